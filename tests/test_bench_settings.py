"""What `saelab bench` can't run is refused in a line before a case takes its time; what is lacking has a line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import run

from saelab.bench import peers, quality
from saelab.cli import bench
from saelab.cli.edge import plain
from saelab.errors import UserError

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench.py"
REFUSED = {
    "cases=foo: unknown; known: cache, ": {"cases": ["sae", "foo"]},
    "cases=qualty: unknown; did you mean quality": {"cases": "qualty"},
    "peers=maybe: expected true or false": {"peers": "maybe"},
    "threads=0: expected a whole number of at least 1": {"threads": 0},
    "sae.rounds=0: expected a whole number of at least 1": {"sae": {"rounds": 0}},
    "sae.k=many: expected a whole number of at least 1": {"sae": {"k": "many"}},
    r"sae.shapes=\[\[8, 64\]\]: expected \[d_in, latents, batch\]": {"sae": {"shapes": [[8, 64]]}},
    r"sae.shapes=\[\]: expected \[d_in, latents, batch\]": {"sae": {"shapes": []}},
    "sae.rules=topk: expected a list; for example sae.rules=\\[topk\\]": {"sae": {"rules": "topk"}},
    "million.density=0: a number above 0": {"cases": ["million"], "million": {"density": 0}},
    "device=foo: is not on this machine": {"cases": ["stream"], "stream": {"device": "foo"}},
}


@pytest.mark.parametrize("message", REFUSED)
def test_settings_that_no_case_can_run_with_are_refused(message):
    given = {"cases": ["sae"], "peers": False, "threads": 1, **REFUSED[message]}
    with pytest.raises(UserError, match=message) as caught:
        bench.check_all(given)
    assert len(str(caught.value).splitlines()) == 1


def test_a_list_with_a_case_that_is_not_there_runs_none_of_them():
    done = run([sys.executable, SCRIPT, "cases=[sae,foo]", "sae.shapes=[[8,64,16]]", "sae.k=2", "sae.rounds=1"])
    assert done.returncode == 2 and not done.stdout and done.stderr.startswith("saelab: cases=foo: unknown; known: ")


def test_the_shipped_settings_are_all_accepted():
    from hydra import compose, initialize_config_dir

    from saelab.run.presets import folder

    with initialize_config_dir(str(folder()), version_base="1.3"):
        given = plain(compose("bench"))
    every = [name for name in bench.known() if name not in ("evidence", "labels")]
    assert len(bench.check_all({**given, "cases": every})) == len(every)


def test_packages_that_are_not_installed_have_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    found = list(peers.cases([[8, 32, 16]], 2, ["topk"], 1))
    lacking = [record for record in found if "skipped" in record]
    assert json.dumps(lacking).count("not installed; pip install") == len(peers.DISTRIBUTIONS) == len(found) - 1
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 8)))
    some = {"latents": 2, "k": 2, "steps": 2, "batch": 16, "rates": [1e-3], "seeds": [0]}
    found = list(quality.cases([str(tmp_path / "x.npy")], **some, others=True))
    said = [record["case"] for record in found if "skipped" in record]
    assert said == [f"peer, {name}" for name in peers.DISTRIBUTIONS]
    with pytest.raises(UserError, match=r"quality\.data=.*gone\.npy: there is no such file"):
        next(quality.cases([str(tmp_path / "gone.npy")], **some, others=True))
