"""`python scripts/quickstart.py` is `saelab quickstart`."""

from saelab.cli.quickstart import main

if __name__ == "__main__":
    main()
