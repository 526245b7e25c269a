"""`python scripts/search.py` is `saelab search`."""

from saelab.cli.search import main

if __name__ == "__main__":
    main()
