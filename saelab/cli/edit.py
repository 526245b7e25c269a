"""Edit a concept: take out the units named as it, and see what a classifier then does on each group of pictures.

The page and its numbers go to <root>/edits/<pictures>-<basis>-<hash>/index.html and edit.json.
"""

from pathlib import Path

from omegaconf import DictConfig

from saelab.artifacts import read_json
from saelab.cli.edge import command, plain, run_file
from saelab.cli.effects import choose
from saelab.errors import UserError
from saelab.images.demo.composites import composites
from saelab.report.edits import sentence
from saelab.run.making import Stages
from saelab.run.record import read_config
from saelab.run.stages.edit import EditSettings, read_photos
from saelab.settings import make


@command(
    "edit",
    settings=("photos", "concepts", "run", "bases", "match", "abstained", "draws", "seed"),
    examples=(
        "edit concepts=[building,tower,bridge]",
        "edit photos=waterbirds concepts=[water,forest] bases=[sae,neuron]",
        "edit photos=waterbirds concepts=[lakeside] match=exact draws=100",
    ),
)
def main(cfg: DictConfig) -> None:
    """Print a sentence for each basis, and where the page is."""
    given = plain(cfg)
    run, photos, wanted = run_file(given.pop("run")), given.pop("photos"), given.pop("bases")
    own = make(EditSettings, given)
    if photos is None:
        raise UserError("photos", None, "says which pictures", "give photos=FOLDER with photos.csv")
    folder = composites() if photos == "packaged" else Path(str(photos)).expanduser()
    read_photos(folder)  # before anything is loaded
    made = Stages(read_config(run))
    for basis in choose(wanted, made.acting):
        place = made.edit_concepts(folder, own, basis)
        print(f"{made.call(basis)} of {basis.layer}: {sentence(read_json(place / 'edit.json'))}")
        print(place / "index.html")


if __name__ == "__main__":
    main()
