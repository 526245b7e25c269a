"""What a report of many units takes to build: `python report_build.py RUN.json [UNITS ...]`, of a finished run.

The features of the run's first SAE are repeated until they are so many (20,000 and 100,000 unless given), each with its
own label, numbers, photos and heat maps. It prints the processor seconds, the peak of memory above what the process
held before, and the bytes of each part of the folder. The SAE's own weights stay those of the run: add 8 bytes for each
latent and dimension.
"""

import dataclasses
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from saelab.report import maps, reading


def repeat(basis: reading.ReadBasis, units: int) -> reading.ReadBasis:
    """The basis with its units repeated; directions get some noise, so that no two are one."""
    source, rng = np.arange(units) % len(basis.labels), np.random.default_rng(0)
    assert basis.decoder is not None
    decoder = basis.decoder[source] + 0.01 * rng.standard_normal((units, basis.decoder.shape[1]), dtype=np.float32)
    return dataclasses.replace(
        basis,
        labels=[basis.labels[i] | {"unit": u} for u, i in enumerate(source.tolist())],
        evaluation=[basis.evaluation[i] | {"unit": u} for u, i in enumerate(source.tolist())],
        exemplars={name: array[source] for name, array in basis.exemplars.items()},
        acts=basis.acts[:, source],
        decoder=decoder.astype(np.float32),
        proposals={},
        verified={},
        synthesised={},
    )


def enlarged(run: reading.Run, units: int) -> reading.Run:
    """The run with its neurons and the repeated features; heat maps follow the features that are repeated."""
    neurons = next(b for b in run.bases if b.kind == "neuron")
    features = next(b for b in run.bases if b.kind == "sae")
    projection = maps._projection
    source = np.arange(units) % len(features.labels)

    def of_many(basis: reading.ReadBasis) -> Any:
        project = projection(basis)
        if project is None or basis.name != features.name:
            return project
        return lambda tokens: project(tokens)[:, source]

    maps._projection = of_many
    return dataclasses.replace(run, bases=(neurons, repeat(features, units)))


def peak() -> float:
    """Megabytes that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def study(run_json: str, units: int) -> None:
    """Build one report in a process of its own, and print what it took."""
    from saelab.report.build import _write

    before = peak()
    run = enlarged(reading.read(run_json), units)
    read, start = peak(), time.process_time()
    with tempfile.TemporaryDirectory() as place:
        _write(run, Path(place), 30, None)
        spent = time.process_time() - start
        print(f"{units:,} units: {spent:.0f} s of processor time")
        print(
            f"  memory: {peak() - before:,.0f} MB above {before:,.0f} MB, of which the run as read {read - before:,.0f}"
        )
        for part in ("data", "thumbs", "takeaway"):
            size = sum(path.stat().st_size for path in Path(place, part).rglob("*") if path.is_file())
            print(f"  {part}: {size / 1e6:,.0f} MB, {size / units / 1e3:.1f} kB a unit", flush=True)


if __name__ == "__main__":
    for count in map(int, sys.argv[2:] or ("20000", "100000")):
        child = multiprocessing.get_context("spawn").Process(target=study, args=(sys.argv[1], count))
        child.start()
        child.join()
