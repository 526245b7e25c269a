"""`python scripts/serve.py` is `saelab serve`."""

from saelab.cli.serve import main

if __name__ == "__main__":
    main()
