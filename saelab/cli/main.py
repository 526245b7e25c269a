"""`saelab COMMAND [SETTING=VALUE ...]`."""

import sys
from importlib import import_module
from importlib.util import find_spec

from saelab import __version__
from saelab.cli.pipes import leave_if_unread
from saelab.settings import nearest

COMMANDS = {
    "quickstart": "from photos to a report: neurons and SAE features labelled, measured and compared",
    "cache": "cache a layer's activations, or adopt activations that you have",
    "train": "train sparse autoencoders on cached activations",
    "label": "mine, propose and assign labels to every unit",
    "evaluate": "measure every label on held-out images",
    "effects": "measure what units do: is the class that a label names the one that the unit raises?",
    "explain": "explain one picture: the class that the host sees, the units that carry it, and where",
    "edit": "take out the units named as a concept, and see what a classifier does on each group of pictures",
    "synthesise": "make pictures that raise units, and say how far each can be believed",
    "compare": "compare bases: which units are easier to name, and how sure is it?",
    "report": "build the pages of a finished run",
    "export": "write exemplars of a run for other people's tools (MILAN)",
    "push": "share the SAEs of a run on the Hugging Face hub, with labels and a card",
    "view": "serve a finished run on this machine: search, label editing, blind rating",
    "serve": "serve the units of a finished run to programs and agents, over HTTP or MCP",
    "search": "find the units that match words or a picture",
    "layers": "list the layers of a model",
    "verify": "have a vision-language model look again at labels",
    "cosy": "measure whether units fire on pictures of their labels",
    "quality": "measure the SAEs: held-out reconstruction, loss recovered, stability over seeds",
    "verify-run": "check every byte of a run or an artifact",
    "bench": "measure speed, one JSON line a case",
}


def main() -> None:
    """Run a command, or list them."""
    try:
        _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        leave_if_unread()
        raise


def _run() -> None:
    given = sys.argv[1:]
    if not given or given[0] in ("-h", "--help"):
        return _list()
    if given[0] == "--version":
        return print(f"saelab {__version__}")
    name = given[0]
    if name not in COMMANDS:
        print(
            f"saelab: {name}: unknown command; {nearest(name, list(COMMANDS))}`saelab --help` lists them",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.argv = [f"saelab {name}", *given[1:]]
    import_module(f"saelab.cli.{name.replace('-', '_')}").main()
    return None


def _list() -> None:
    print("saelab COMMAND [SETTING=VALUE ...]\n\nCommands:")
    width = max(map(len, COMMANDS)) + 2
    for name, line in COMMANDS.items():
        print(f"  {name:<{width}}{line}")
    extra = "" if find_spec("efficientnet_lite_pytorch") else " (needs the extra: pip install 'saelab[quickstart]')"
    print(
        f"\nStart with: saelab quickstart{extra}\n`saelab COMMAND --help` explains one; settings are Hydra overrides."
    )


if __name__ == "__main__":
    main()
