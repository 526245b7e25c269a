"""`compare.py also=... random_host=true`: SAEs of other settings and of a random host, in one comparison."""

import json
import sys

import commands
import pytest
from test_scripts import ROOT, pictures, run  # noqa: F401  (a fixture)

WITH = ("bases=[neuron,sae]", 'also=["sae.k=4"]', "random_host=true", "seeds=[0]", "scorer=[pearson]", "proposer=none")


@pytest.mark.slow
def test_saes_of_other_settings_and_of_a_random_host_join_the_comparison(pictures, tmp_path):  # noqa: F811
    root = tmp_path / "runs"
    first = run("compare", root, pictures, *WITH)
    record = json.loads((root / "small.json").read_text())
    found = {b["name"]: b for b in record["bases"]}
    assert list(found) == ["neuron", "sae seed 0", "sae k=4 seed 0", "SAE on random host, seed 0"]
    assert [b["control"] for b in found.values()] == [False, False, False, True]
    of = {name: json.loads((root / b["sae"] / "recipe.json").read_text()) for name, b in found.items() if b["sae"]}
    assert [recipe["sae"]["k"] for recipe in of.values()] == [16, 4, 16]
    caches = [recipe["cache"] for recipe in of.values()]
    assert caches[0] == caches[1] != caches[2]
    result = json.loads((root / record["comparison"] / "comparison.json").read_text())
    assert [g["name"] for g in result["groups"]] == [
        "SAE features",
        "SAE features, k=4",
        "neurons",
        "SAE on a random host",
    ]
    weights = {b["name"]: b["weights"] for b in result["bases"]}
    assert len({weights[name] for name in list(found)[:3]}) == 1 and len(set(weights.values())) == 2
    roles = {(p["a"], p["b"]): p["role"] for p in result["pairs"]}
    assert roles["SAE features", "SAE features, k=4"] == "main"
    assert roles["SAE features", "SAE on a random host"] == roles["neurons", "SAE on a random host"] == "control"
    assert "an SAE on a randomly initialised host" not in " ".join(result["cautions"])
    again = run("compare", root, pictures, *WITH)
    assert again.stdout == first.stdout and "building" not in again.stderr
    script = str(ROOT / "scripts" / "report.py")
    done = commands.run([sys.executable, script, f"run={root / 'small.json'}"])
    assert done.returncode == 0, done.stderr
    assert (root / "report" / "small" / "index.html").is_file()


def test_what_is_no_setting_of_an_sae_is_told_in_one_line(pictures, tmp_path):  # noqa: F811
    for given, says in (("k=8", "is no setting of an SAE"), ("sae.kk=8", "known: latents, rule")):
        done = run("compare", tmp_path / "runs", pictures, f'also=["{given}"]', check=False)
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
