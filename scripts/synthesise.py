"""`python scripts/synthesise.py` is `saelab synthesise`."""

from saelab.cli.synthesise import main

if __name__ == "__main__":
    main()
