"""`python scripts/bench.py` is `saelab bench`."""

from saelab.cli.bench import main

if __name__ == "__main__":
    main()
