"""Check every byte of a run, an artifact or a folder of artifacts against what was written.

`saelab verify-run runs/quickstart.json`; prints what is wrong, a line each, and ends with status 1 if anything is.
"""

import sys
from pathlib import Path

from saelab import integrity
from saelab.cli.edge import complain
from saelab.errors import UserError


def main() -> None:
    """Check the path on the command line."""
    given = sys.argv[1:]
    if len(given) != 1 or given[0] in ("-h", "--help"):
        print(f"{(__doc__ or '').strip()}\n\nUsage: saelab verify-run PATH\n\nExamples:")
        print("  saelab verify-run runs/quickstart.json\n  saelab verify-run runs/sae")
        sys.exit(0 if given in (["-h"], ["--help"]) else 2)
    path = Path(given[0].removeprefix("run=")).expanduser()
    try:
        wrong = integrity.verify(path)
    except UserError as error:
        sys.exit(complain(str(error)))
    if wrong:
        print("\n".join(wrong))
        sys.exit(1)
    print(f"whole: {path}")


if __name__ == "__main__":
    main()
