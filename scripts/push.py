"""`python scripts/push.py` is `saelab push`."""

from saelab.cli.push import main

if __name__ == "__main__":
    main()
