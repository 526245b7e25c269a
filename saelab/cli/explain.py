"""Explain one picture: what the host says it shows, which labelled units carry that, how much, and where.

The page and its numbers go to <root>/explain/<picture>-<hash>/index.html and explanation.json.
"""

from pathlib import Path

from omegaconf import DictConfig

from saelab.artifacts import read_json
from saelab.cli.edge import command, plain, run_file
from saelab.cli.effects import choose
from saelab.errors import UserError
from saelab.run.making import Stages
from saelab.run.record import read_config
from saelab.run.stages.explain import ExplainSettings, open_picture
from saelab.settings import make


@command(
    "explain",
    settings=("image", "run", "output", "bases", "top", "head", "method", "pixels"),
    examples=(
        "explain image=photo.jpg",
        "explain image=photo.jpg pixels=true",
        "explain image=photo.jpg output=tench bases=[sae]",
        "explain image=a.png top=20 method=integrated_gradients",
    ),
)
def main(cfg: DictConfig) -> None:
    """Print the first units of each basis, and where the page is."""
    given = plain(cfg)
    run, image, wanted = run_file(given.pop("run")), given.pop("image"), given.pop("bases")
    if image is None:
        raise UserError("image", None, "says what to explain", "give image=PATH")
    own = make(ExplainSettings, given)
    open_picture(Path(str(image)).expanduser())  # before anything is loaded
    made = Stages(read_config(run))
    folder = made.explain_picture(str(image), own, choose(wanted, made.acting))
    found = read_json(folder / "explanation.json")
    print(f"{found['picture']}: " + ", ".join(f"{name} {share:.0%}" for name, share in found["predicted"]))
    for basis in found["bases"]:
        print(f"{basis['words']} of {basis['layer']}: what carries {found['output']}")
        for unit in basis["units"]:
            print(f"  {unit['unit']:>6}  {unit['effect']:+7.3f}  {unit['label'] or '-'}")
    print(folder / "index.html")


if __name__ == "__main__":
    main()
