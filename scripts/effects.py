"""`python scripts/effects.py` is `saelab effects`."""

from saelab.cli.effects import main

if __name__ == "__main__":
    main()
