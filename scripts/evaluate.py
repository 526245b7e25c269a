"""`python scripts/evaluate.py` is `saelab evaluate`."""

from saelab.cli.evaluate import main

if __name__ == "__main__":
    main()
