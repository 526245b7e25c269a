"""`python scripts/report.py` is `saelab report`."""

from saelab.cli.report import main

if __name__ == "__main__":
    main()
