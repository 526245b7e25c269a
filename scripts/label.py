"""`python scripts/label.py` is `saelab label`."""

from saelab.cli.label import main

if __name__ == "__main__":
    main()
