"""`python scripts/explain.py` is `saelab explain`."""

from saelab.cli.explain import main

if __name__ == "__main__":
    main()
