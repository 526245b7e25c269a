"""`python scripts/quality.py` is `saelab quality`."""

from saelab.cli.quality import main

if __name__ == "__main__":
    main()
