"""Measure what units do: take each out, and see whether the outputs that its label means are those that it raised.

Rows go to <root>/effects/<basis>-<hash>/, a line a unit; after a kill, or for more units, the same command goes on.
Controls that the run lacks (random directions, components, SAEs that learned nothing) are made and measured as well.
With all bases measured, the run's comparison and pages say both when units fire and what they do.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from saelab import settings, tables
from saelab.artifacts import read_json
from saelab.cli.edge import command, plain, run_file
from saelab.errors import UserError
from saelab.run.basis import RANDOM_GROUP, Basis
from saelab.run.controls import ALWAYS, OF_SAES, RANDOM_HOST
from saelab.run.making import Stages
from saelab.run.record import add_effects, read_config
from saelab.run.stages.effects import SUMMARY, EffectsSettings, read_effects, table_line
from saelab.run.stages.simulation import AGAINST
from saelab.run.stages.words import WORDS

COLUMNS = {
    "measured": "units",
    "causal_pct": "own class",
    "causal_chance": "dealt",
    "causal_control": "others",
    "causal_net": "net",
    "net_se": "se",
    "permuted": "permuted",
    "top1": "top-1",
    "top10": "top-10",
    "uses": "p<.05",
    "uses_corrected": "corrected",
    "steer": "steered",
    "push": "push",
    "screen_r": "screen r",
}


@command(
    "effects",
    settings=(
        "run",
        "bases",
        "units",
        "labels_of",
        "head",
        "targets",
        "count",
        "pictures",
        "value",
        "group",
        "simulate",
        "fit",
        "words",
        "seconds",
        "controls",
    ),
    examples=(
        "effects",
        "effects units=all seconds=600",
        "effects bases=[neuron] labels_of=pearson value=mean",
        "effects head=probe units='status:ok top:50'",
    ),
)
def main(cfg: DictConfig) -> None:
    """Measure, and print a line for each basis."""
    given = plain(cfg)
    run = run_file(given.pop("run"))
    wanted, controls, words = (given.pop(name) for name in ("bases", "controls", "words"))
    own = read_effects(given)
    made = Stages(replace(read_config(run), effects=given))
    bases = choose(wanted, made.acting)
    whole = len(bases) == len(made.acting) and own.labels_of == made.config.compare.scorer
    measured = [basis for basis in made.measured if basis.acts] if whole else bases
    folders = [basis.effects or made.measure_effects(basis, own) for basis in measured]
    others = made.controls.labelled if controls and wanted is None else []
    folders += [made.controls.measure_effects(basis, own) for basis in others]
    found = [read_json(folder / SUMMARY) for folder in folders]
    print(table(found))
    print(notes(found))
    for basis, folder in zip([*bases, *others], folders):
        print(f"{basis.layer} {basis.name}: {folder}")
    for line in words_lines(made, bases, own) if words else ():
        print(line)
    for basis in bases if own.group else ():
        print(group_line(f"{basis.layer} {basis.name}", made.measure_groups(basis, own)))
    for basis in bases if own.simulate else ():
        print(simulation_lines(f"{basis.layer} {basis.name}", made.measure_simulation(basis, own)))
    if whole and made.compared_layers:  # only then do all bases of the comparison have effects
        for layer, compared in made.comparisons.items():
            print(f"{layer}: {read_json(compared.path / 'comparison.json')['headline']}\n{compared.path}")
        add_effects(run, made.outcome(), made.config.name)
        print(f"pages: saelab report run={run}")


def choose(wanted: Any, bases: Sequence[Basis]) -> list[Basis]:
    """The bases that are named, all by default. Raises UserError for one that the run lacks."""
    names = ((b.name, b.kind, b.layer, f"{b.layer} {b.name}") for b in bases)
    return settings.choose("bases", wanted, list(zip(bases, names)))


def table(found: Sequence[dict[str, Any]]) -> str:
    """Basis x numbers, aligned."""
    rows = []
    for one in found:
        line = table_line(one)
        cells = [line[name] for name in COLUMNS]
        texts = [str(x) if isinstance(x, int) else tables.number(x) for x in cells]
        rows.append([f"{one['layer']} {one['basis']}", *texts])
    return tables.draw(("basis", *COLUMNS.values()), rows)


def notes(found: Sequence[dict[str, Any]]) -> str:
    """What the table leaves out: units without numbers, the four-field table, controls that the run lacks."""
    lines = []
    for one in found:
        left = {name.replace("_", " "): n for name, n in one["why"].items() if n}
        left |= {"for lack of time": one["left"]} if one["left"] else {}
        cells = ", ".join(f"{name} {share:.2f}" for name, share in one["four_field"].items())
        without = ", ".join(f"{name} {n}" for name, n in left.items())
        lines.append(f"{one['layer']} {one['basis']}: {cells}" + (f"; not measured: {without}" if without else ""))
    there = {one["kind"] for one in found}
    there |= {RANDOM_HOST} if any(one["group"] == RANDOM_GROUP for one in found) else set()
    wanted = [*ALWAYS, *((*OF_SAES, RANDOM_HOST) if "sae" in there else ())]
    lacking = [kind for kind in wanted if kind not in there]
    if lacking:
        lines.append(f"Not among these bases: {', '.join(lacking)}. A control that is not measured proves nothing.")
    return "\n".join(lines)


def words_lines(made: Stages, bases: Sequence[Basis], own: EffectsSettings) -> list[str]:
    """A line a basis, those of layers without a linear read-out too. Raises UserError where that is all of them."""
    lines, refused = [], []
    for basis in bases:
        try:
            lines.append(words_line(made.find_words(basis, own).path))
        except UserError as error:
            refused.append(error)
            lines.append(f"{basis.layer} {basis.name}: no words: {error}")
    if len(refused) == len(bases):
        raise refused[0]
    return lines


def words_line(folder: Path) -> str:
    """How often what a unit writes says its label, without a picture."""
    found = read_json(folder / "words.json")
    pct = tables.number(found["pct"])
    what = f"own class {pct} by what units write alone, first of all outputs for {found['first']} of {found['known']}"
    return f"{found['layer']} {found['basis']}: {what}: {folder / WORDS}"


def group_line(name: str, found: dict[str, Any]) -> str:
    """What units of one label do together, beside what each does."""
    if not found["measured"]:
        return f"{name}: no label of several units could be measured"
    joint, single = (f"{found[key]['mean']:.3f}" for key in ("causal_pct", "single_pct"))
    times = "" if found["times"] is None else f"; they cost {found['times']:.2f} times the sum of single losses"
    what = f"{found['measured']} labels of several units ({found['units']} units)"
    return f"{name}: {what}: own class {joint} together, {single} one at a time{times}"


def simulation_lines(name: str, found: dict[str, Any]) -> str:
    """Mean ablation score of each labeller, and paired differences from labels dealt out and from people's words."""
    rows = []
    for labeller, entry in found["labellers"].items():
        mean = entry["mean"]
        score = f"{mean['mean']:+.3f} ({tables.number(mean['se'], '.3f')})" if mean else "no unit could be scored"
        gaps = [_gap_text(entry.get(f"above_{other}")) for other in AGAINST]
        rows.append([labeller, str(mean["units"] if mean else 0), score, *gaps])
    title = f"{name}: ablation scores (1: what the label predicts does the unit's work; 0: no better than its mean)"
    last = f"nothing depends on {found['independent']} of {found['units']} units"
    last += f"; no word of people's follows {found['wordless']}, which have no best truth" if found["wordless"] else ""
    heads = ("labeller", "units", "score (se)", *(f"above {other.replace('_', ' ')}: 95 %, units" for other in AGAINST))
    return "\n".join([title, tables.draw(heads, rows), f"{last}: {found['path']}"])


def _gap_text(gap: dict[str, Any] | None) -> str:
    """A paired difference with its interval and the units that both could be scored on."""
    if gap is None:
        return "–"
    reach = "no interval" if gap["low"] is None else f"{gap['low']:+.3f} to {gap['high']:+.3f}"
    return f"{gap['mean']:+.3f} ({reach}), {gap['units']}"


if __name__ == "__main__":
    main()
