"""`--help`: what a command does, its most used settings with what the configs' comments say of them, and examples."""

import re
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from saelab.run.presets import folder

if TYPE_CHECKING:
    from saelab.cli.edge import Help

LINE = re.compile(r"^(?P<indent> *)(?P<key>[\w.]+):(?P<value>[^#]*?)(?:\s+#\s*(?P<comment>.*))?$")


def print_help(name: str, doc: str, shown: "Help") -> None:
    """One screen on stdout."""
    print(f"{doc.strip()}\n\nUsage: saelab {name} [SETTING=VALUE ...]")
    if shown.settings:
        print("\nMost used settings, with their defaults:")
        values, comments = _values(name), _comments(name)
        rows = [(f"{key}={_short(values.get(key))}", comments.get(key, "")) for key in shown.settings]
        width = min(44, max(len(left) for left, _ in rows) + 2)
        for left, comment in rows:
            print(f"  {left:<{width}}{comment}".rstrip())
    if shown.examples:
        print("\nExamples:")
        for example in shown.examples:
            print(f"  saelab {example}")
    print(
        "\nMore: `saelab COMMAND --cfg job` prints every setting, --config-dir PATH adds your own configs, --hydra-help"
    )


def _values(name: str) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(folder()), version_base="1.3"):
        cfg = compose(name, return_hydra_config=False)
    found: dict[str, Any] = {}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            found[prefix + str(key)] = value
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    choices = re.findall(r"^  - (?:override )?/?(\w+): (.+)$", _text(name), re.M)
    return found | dict(choices)


def _comments(name: str) -> dict[str, str]:
    """What the YAML files say of each setting, by dotted name."""
    found: dict[str, str] = {}
    for group, value in re.findall(r"^  - (?:override )?/?(\w+): (\w+)$", _text(name), re.M):
        file = folder() / group / f"{value}.yaml"
        if file.is_file():
            found |= _read(file.read_text(encoding="utf-8"), f"{group}.")
            first = file.read_text(encoding="utf-8").splitlines()[0]
            found[group] = first.lstrip("# ") if first.startswith("#") else f"a config of conf/{group}"
    for text in _texts(name):
        found |= _read(text, "")
    return found


def _text(name: str) -> str:
    return "\n".join(_texts(name))


def _texts(name: str) -> list[str]:
    own = (folder() / f"{name}.yaml").read_text(encoding="utf-8")
    base = [(folder() / "pipeline.yaml").read_text(encoding="utf-8")] if "[pipeline" in own else []
    return [*base, own]


def _read(text: str, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        indent = len(match["indent"])
        above = [(depth, key) for depth, key in above if depth < indent] + [(indent, match["key"])]
        if match["comment"]:
            found[prefix + ".".join(key for _, key in above)] = match["comment"]
    return found


def _short(value: Any) -> str:
    if value is None:
        return "null"
    text = str(value).lower() if isinstance(value, bool) else str(value).replace("'", "").replace(", ", ",")
    return text if len(text) <= 30 else text[:27] + "..."
