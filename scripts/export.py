"""`python scripts/export.py` is `saelab export`."""

from saelab.cli.export import main

if __name__ == "__main__":
    main()
