"""`python scripts/edit.py` is `saelab edit`."""

from saelab.cli.edit import main

if __name__ == "__main__":
    main()
