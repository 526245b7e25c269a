"""`python scripts/layers.py` is `saelab layers`."""

from saelab.cli.layers import main

if __name__ == "__main__":
    main()
