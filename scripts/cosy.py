"""`python scripts/cosy.py` is `saelab cosy`."""

from saelab.cli.cosy import main

if __name__ == "__main__":
    main()
