"""`python scripts/compare.py` is `saelab compare`."""

from saelab.cli.compare import main

if __name__ == "__main__":
    main()
