"""`python scripts/view.py` is `saelab view`."""

from saelab.cli.view import main

if __name__ == "__main__":
    main()
