"""`python scripts/cache.py` is `saelab cache`."""

from saelab.cli.cache import main

if __name__ == "__main__":
    main()
