"""Share the SAEs of a finished run on the Hugging Face hub: weights, labels with their nulls, quality, effects, a card.

The token is that of HF_TOKEN or of `hf auth login`. An interrupted upload goes on with the same command.
"""

from omegaconf import DictConfig

from saelab import hub
from saelab.cli.edge import command, plain, run_file
from saelab.run.config import as_tuple
from saelab.settings import make


@command(
    "push",
    settings=("run", "repo", "dry_run", "private", "license", "pictures", "bases", "base_model", "out"),
    examples=(
        "push repo=org/name dry_run=true",
        "push run=runs/quickstart.json repo=org/name license=apache-2.0 private=false",
        "push repo=org/name bases='[sae seed 0]' pictures=true",
    ),
    types={"repo": str | None, "dry_run": bool, "out": str | None},
)
def main(cfg: DictConfig) -> None:
    """Put the files together, list them, and send them in one commit unless it is a dry run."""
    given = plain(cfg)
    run, repo, out = run_file(given.pop("run")), given.pop("repo"), given.pop("out")
    names, dry_run = given.pop("bases"), given.pop("dry_run")
    settings = make(hub.PushSettings, given)
    done = hub.push_run(run, repo, settings, None if names is None else as_tuple(names), out, dry_run)
    width = max(len(f"{size:,}") for _, size in done.files)
    for name, size in done.files:
        print(f"{size:>{width},}  {name}")
    total = sum(size for _, size in done.files)
    print(f"{len(done.files)} files, {total:,} bytes: {done.folder}")
    print(done.url or f"dry run: nothing was sent to {repo}")


if __name__ == "__main__":
    main()
