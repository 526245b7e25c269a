"""`python scripts/train.py` is `saelab train`."""

from saelab.cli.train import main

if __name__ == "__main__":
    main()
