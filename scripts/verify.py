"""`python scripts/verify.py` is `saelab verify`."""

from saelab.cli.verify import main

if __name__ == "__main__":
    main()
