"""`python -m saelab`: the command, where no folder on the path holds it."""

from saelab.cli.main import main

if __name__ == "__main__":
    main()
