"""SAEs to the hub and back, against a hub on loopback: one commit, the same codes, labels bound to their weights."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import in_place_of_the_hub
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saelab import artifacts, hub
from saelab.errors import UserError
from saelab.hub import card, labels
from saelab.images import ImageSet
from saelab.sae import SAE, Meta, convert

LATENTS, D = 8, 6
PLACE = "timm_toy.a1/layer4.1/sae_seed_"
HOSTILE = "cat | <script>alert(1)</script>\n## [x](http://evil)"


def random_sae(seed: int, rule: str = "topk") -> SAE:
    draw = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(LATENTS, D, generator=draw), dim=1)
    bias = torch.randn(LATENTS, generator=draw)
    threshold = torch.full((LATENTS,), 0.1) if rule == "jumprelu" else None
    return SAE(W, bias, W.clone(), torch.randn(D, generator=draw), Meta(rule, 2), threshold)


def row(unit: int) -> dict:
    score = {"label": "cat", "score": 0.5 + unit / 100, "rank": 1, "margin": 0.1, "null_percentile": 0.97}
    label = None if unit == 3 else HOSTILE if unit == 4 else f"cat {unit}"
    known = {"unit": unit, "basis": "sae", "status": "ok", "label": label, "abstained": unit == 5, "final": "csp"}
    return known | {"scores": {"csp": score}, "positives": [unit % 6, -1], "contrasts": [0, -1]}


def summary(side: float) -> dict:
    return {"metrics": {"truth_r": {"mean_all": side}}}


def make(root: Path, stage: str, name: str, files: dict) -> str:
    """A small artifact; its place in the root."""

    def build(at: Path) -> None:
        for file, value in files.items():
            if isinstance(value, SAE):
                value.save(at / file)
            else:
                (artifacts.write_jsonl if file.endswith("l") else artifacts.write_json)(at / file, value)

    return str(artifacts.ensure(root, stage, name, {"stage": stage, "of": name}, build).path.relative_to(root))


def make_images(root: Path, credit: str) -> str:
    photos = root.parent / "photos"
    photos.mkdir()
    for i in range(6):
        Image.fromarray(np.full((40, 40, 3), 40 * i, np.uint8)).save(photos / f"{i}.png")
    known = {"captions": (None,) * 6, "classes": ((),) * 6, "splits": np.array(["mine"] * 6), "groups": np.arange(6)}
    files = tuple(f"{i}.png" for i in range(6))
    images = ImageSet("zoo", photos, files, fingerprint="f" * 64, credit=credit, sizes=((40, 40),) * 6, **known)
    return str(artifacts.ensure(root, "images", "zoo", {"n": 6}, images.save).path.relative_to(root))


def write_run(
    folder: Path, credit: str = "Ann, CC BY 4.0", names: tuple[str, ...] = ("sae seed 0", "sae seed 1")
) -> Path:
    """A run of two SAEs and neurons, by hand: what a push reads of one."""
    root, bases = folder / "runs", []
    measured = {"fvu": 0.25, "l0": 2.0, "dead": 0.125}
    quality = {"mine": measured, "held_out": measured | {"fvu": 0.3}, "loss_recovered": {"ce_recovered": 0.875}}
    evaluated = {"by_scorer": {"named": summary(0.4), "shuffled": summary(0.1)}, "truth": "mention"}
    evaluated |= {"images": {"mine": 4, "test": 2}}
    for i, name in enumerate(names):
        training = {"sae": {"k": 2, "lr": 0.001}, "train": {"steps": 9}, "data": {"tokens": 99, "mean": [0.0]}}
        sae = {"sae.safetensors": random_sae(i), "training.json": training, "quality.json": measured}
        basis = {"name": name, "basis": "sae", "layer": "layer4.1", "seed": i, "units": "units/x"}
        basis["sae"] = make(root, "sae", f"s{i}", sae)
        basis["labels"] = make(root, "labels", f"s{i}", {"labels.jsonl": [row(u) for u in range(LATENTS)]})
        basis["evaluation"] = make(root, "evaluation", f"s{i}", {"evaluation.json": evaluated, "evaluation.jsonl": []})
        basis["quality"] = make(root, "quality", f"s{i}", {"quality.json": quality})
        bases.append(basis)
    bases.append(bases[0] | {"name": "neuron", "basis": "neuron", "sae": None, "quality": None})
    effects = {"mean": {"causal_net": {"mean": 0.0625}}}
    bases[0]["effects"] = make(root, "effects", "s0", {"effects.json": effects, "effects.jsonl": []})
    run = {"name": "toy", "version": "0.1.0", "host": "timm:toy.a1", "encoder": "clip", "bases": bases}
    artifacts.write_json(root / "toy.json", run | {"images": make_images(root, credit)})
    return root / "toy.json"


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path)


@pytest.fixture
def server(tmp_path):
    with in_place_of_the_hub(tmp_path / "cache") as server:
        yield server


def refused(says: str, *given, **named) -> None:
    with pytest.raises(UserError, match=says) as caught:
        hub.push_run(*given, **named)
    assert "\n" not in str(caught.value)


def test_what_a_dry_run_puts_together_loads_and_encodes_to_the_same_bytes(run):
    done = hub.push_run(run, "org/name", dry_run=True)
    assert done.url is None and dict(done.files) == {
        name: (done.folder / name).stat().st_size for name, _ in done.files
    }
    x = torch.randn(20, D, generator=torch.Generator().manual_seed(7))
    for i in (0, 1):
        wanted = random_sae(i).encode(x)
        for sae in (SAE.from_pretrained(str(done.folder), f"{PLACE}{i}"), convert.load(done.folder / f"{PLACE}{i}")):
            codes = sae.encode(x)
            assert torch.equal(codes.values, wanted.values) and torch.equal(codes.indices, wanted.indices)
        rows = labels.from_pretrained(str(done.folder), f"{PLACE}{i}")
        assert [{k: v for k, v in r.items() if k != "sae_digest"} for r in rows] == [row(u) for u in range(LATENTS)]
        twin = done.folder / f"{PLACE}{i}" / "sae_weights.safetensors"
        torch.testing.assert_close(convert.load(twin).encode(x).dense(), wanted.dense())
        assert labels.from_pretrained(str(done.folder), f"{PLACE}{i}", sae=convert.load(twin)) == rows
    before = {name: (done.folder / name).read_bytes() for name, _ in done.files}
    again = hub.push_run(run, "org/name", dry_run=True)
    assert {name: (again.folder / name).read_bytes() for name, _ in again.files} == before
    assert not any(str(run.parent.parent).encode() in content for content in before.values())
    assert not any(name.endswith((".webp", ".png", ".jpg")) for name in before)


def test_there_and_back_in_one_commit(run, server):
    done = hub.push_run(run, "org/name", hub.PushSettings(license="mit"))
    assert server.commits["org/name"] == [sorted(name for name, _ in done.files)] and server.private["org/name"]
    assert done.commit == server.head("org/name") and done.url.endswith(done.commit)
    sae = SAE.from_pretrained("org/name", f"{PLACE}1")
    assert sae.meta.source == {"hub": "org/name", "path": f"{PLACE}1", "commit": done.commit}
    for name, tensor in random_sae(1).tensors().items():
        assert torch.equal(sae.tensors()[name], tensor)
    assert len(labels.from_pretrained("org/name", f"{PLACE}1", sae=sae)) == LATENTS
    fetched = [p.name for p in (Path(server_cache()) / "models--org--name" / "snapshots").rglob("*") if p.is_file()]
    assert sorted(set(fetched)) == ["labels.jsonl", "sae.safetensors"]
    with pytest.raises(UserError, match="hub has none"):
        SAE.from_pretrained("org/other")
    for path in ("", "elsewhere"):
        with pytest.raises(UserError, match=r"holds no sae\.safetensors"):
            SAE.from_pretrained("org/name", path)


def server_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


@pytest.mark.parametrize("answer_lost", [False, True])
def test_an_upload_cut_off_and_run_again_leaves_one_commit(run, server, answer_lost):
    server.cut, server.cut_after = {"/commit/": 1}, answer_lost
    refused("interrupted.*run the same command again", run, "org/name")
    assert len(server.commits["org/name"]) == answer_lost and server.sent > 0
    sent = server.sent
    done = hub.push_run(run, "org/name")
    assert (
        len(server.commits["org/name"]) == 1
        and server.sent == sent
        and set(server.files["org/name"]) == {name for name, _ in done.files}
    )


@pytest.mark.parametrize(
    ("token", "repo", "says"),
    [
        ("", "org/name", "HF_TOKEN"),
        ("hf_wrong", "org/name", "the hub does not know it"),
        ("hf_right", "stranger/name", "you may not write there"),
        ("hf_right", "name", "no name of a repository"),
        ("hf_right", "org/../name", "no name of a repository"),
    ],
)
def test_whoever_may_not_push_reads_one_line(run, server, monkeypatch, token, repo, says):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token or None)
    refused(says, run, repo)
    assert not any(server.commits.values())


def test_the_token_is_written_nowhere(run, server, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    secret = "hf_verySecret1234"
    monkeypatch.setenv("HF_TOKEN", secret)
    refused("does not know", run, "org/name")  # this hub repeats the token in its answer
    server.token, server.broken = secret, True
    refused(r"the hub refused \(.*Bad request by Bearer \*\*\*", run, "org/name")
    server.broken = False
    server.cut = {"/commit/": 1}
    refused("interrupted", run, "org/name")
    hub.push_run(run, "org/name")
    out, err = capfd.readouterr()
    written = [p.read_bytes() for p in run.parent.parent.rglob("*") if p.is_file()]
    assert len(written) > 20 and not any(secret.encode() in content for content in written)
    assert secret not in caplog.text + out + err and "commit" in caplog.text


def test_labels_of_another_sae_are_refused(run):
    folder = str(hub.push_run(run, "org/name", dry_run=True).folder)
    other = SAE.from_pretrained(folder, f"{PLACE}1")
    with pytest.raises(UserError, match="are of another SAE") as caught:
        labels.from_pretrained(folder, f"{PLACE}0", sae=other)
    assert "\n" not in str(caught.value)
    other.save(Path(folder, f"{PLACE}0"))
    with pytest.raises(UserError, match="are of another SAE"):
        labels.from_pretrained(folder, f"{PLACE}0")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda rows: rows[:-1], "not one for each"),
        (lambda rows: [*rows, rows[0]], "not one for each"),
        (lambda rows: [rows[0] | {"unit": "0"}, *rows[1:]], "no labels"),
        (lambda rows: [[1], *rows[1:]], "no labels"),
        (lambda rows: [{k: v for k, v in r.items() if k != "sae_digest"} for r in rows], "another SAE"),
    ],
)
def test_damaged_labels_are_refused(run, spoil, says):
    folder = hub.push_run(run, "org/name", dry_run=True).folder
    file = folder / f"{PLACE}0" / "labels.jsonl"
    artifacts.write_jsonl(file, spoil(artifacts.read_jsonl(file)))
    with pytest.raises(UserError, match=says):
        labels.from_pretrained(str(folder), f"{PLACE}0")


@settings(max_examples=25)
@given(
    place=st.sampled_from(["W_enc", "b_enc", "W_dec", "b_dec", "threshold"]),
    at=st.integers(0, 10**6),
    seed=st.integers(0, 5),
)
def test_one_changed_weight_changes_the_digest_and_where_it_came_from_does_not(place, at, seed):
    sae, other = random_sae(seed, "jumprelu"), random_sae(seed, "jumprelu")
    other.meta.source["hub"] = "org/name"
    assert hub.digest_weights(sae) == hub.digest_weights(other)
    flat = other.tensors()[place].view(-1)
    flat[at % len(flat)] = torch.nextafter(flat[at % len(flat)], torch.tensor(9.0))
    assert hub.digest_weights(sae) != hub.digest_weights(other)


def test_a_card_survives_the_hubs_own_reader(run):
    from huggingface_hub import ModelCard

    wanted = hub.PushSettings(license="cc-by-4.0", private=False)
    done = hub.push_run(run, "org/name", wanted, dry_run=True)
    for name in ("README.md", f"{PLACE}0/README.md"):
        text = (done.folder / name).read_text()
        read = ModelCard(text)
        assert f"---\n{read.data.to_yaml()}\n---" == text[: text.index("\n---\n") + 4]
        assert read.data.library_name == "saelab" and read.data.license == "cc-by-4.0"
        assert read.data.base_model == "timm/toy.a1" and {"saelab", "saelens"} <= set(read.data.tags)
        found = {r.metric_type: r.metric_value for r in read.data.eval_results if f"{PLACE}0" in r.metric_name}
        assert found == pytest.approx(
            {"fvu": 0.25, "fvu_test": 0.3, "l0": 2.0, "dead": 0.125, "loss_recovered": 0.875}
            | {"truth_r_above_chance": 0.3}
        )
    assert f'SAE.from_pretrained("org/name", "{PLACE}0")' in text and "abstain" in text
    assert "0.0625" in text and "What latents do" not in text and "owner has named no licence" not in text
    assert text.count("| cat ") == 7 and "\n## \\[" not in text and "<script>" not in text
    page = (done.folder / "index.html").read_text()
    assert page.count("<tr>") == 3 and f'href="{PLACE}1/README.md"' in page
    assert [sae["place"] for sae in json.loads((done.folder / "saes.json").read_text())] == [PLACE + "0", PLACE + "1"]


@pytest.mark.browser
def test_the_index_sorts_numbers_as_numbers_and_what_is_unknown_last(browser, tmp_path):
    numbers = {"a": 9.5, "b": None, "c": 10.25, "d": -1e-7}
    known = {"layer": "l", "rule": "topk", "latents": 8} | dict.fromkeys(card.INDEX, 0.0)
    saes = [known | {"name": name, "place": f"p/{name}", "l0": l0} for name, l0 in numbers.items()]
    (tmp_path / "index.html").write_text(card.write_index_page(saes, "org/name"), encoding="utf-8")
    page, errors = browser.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((tmp_path / "index.html").as_uri())
    for wanted in ("dacb", "cadb"):  # up, then down
        page.get_by_role("button", name="L0").click()
        assert "".join(page.locator("td a").all_text_contents()) == wanted
    page.get_by_role("button", name="SAE").click()
    assert "".join(page.locator("td a").all_text_contents()) == "abcd" and not errors
    page.close()


def test_no_licence_is_made_up(run):
    refused("nobody else can choose", run, "org/name", hub.PushSettings(private=False), dry_run=True)
    refused("no licence of the hub", run, "org/name", hub.PushSettings(license="my own!"), dry_run=True)
    done = hub.push_run(run, "org/name", dry_run=True)
    cards = [(done.folder / name).read_text() for name, _ in done.files if name.endswith(".md")]
    assert len(cards) == 3 and not any("license:" in text for text in cards)
    assert "owner has named no licence" in cards[0] + cards[1]


def test_what_is_to_stay_private_does_not_go_where_everybody_looks(run, server):
    hub.push_run(run, "org/name", hub.PushSettings(private=False, license="mit"))
    assert not server.private["org/name"]
    refused("everybody sees it", run, "org/name", hub.PushSettings(message="secret"))
    assert len(server.commits["org/name"]) == 1


def test_a_repository_that_is_private_stays_so_and_whoever_wants_it_public_is_told(run, server, caplog):
    hub.push_run(run, "org/name")
    assert not caplog.records
    hub.push_run(run, "org/name", hub.PushSettings(private=False, license="mit"))
    (line,) = [record.getMessage() for record in caplog.records if record.name == "saelab"]
    assert "org/name was there already, and stays private" in line and server.private["org/name"]


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("ab |\\`<>[]_*\n\r\x0b\x1c\x85\u2028"), max_size=12))
def test_a_cell_of_a_card_stays_one_cell_of_plain_text(text):
    lines = card.draw_table(["a"], [[text]]).splitlines()
    bare = re.sub(r"\\.", "", lines[-1])  # without what is escaped
    assert len(lines) == 3 and bare.count("|") == 2 and not set(bare) & set("`<>[]_*\\")


def test_the_command_lists_files_with_their_sizes(run, capsys):
    from hydra import compose, initialize_config_dir

    from saelab.cli.push import main
    from saelab.run.presets import folder

    with initialize_config_dir(str(folder()), version_base="1.3"):
        cfg = compose("push", [f"run={run}", "repo=org/name", "bases=[sae seed 1]", "dry_run=true"])
    main.__wrapped__(cfg)
    lines = capsys.readouterr().out.splitlines()
    staged = run.parent / "push" / "toy"
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[:-2]}
    assert listed == {name: (staged / name).stat().st_size for name in listed} and f"{PLACE}1/labels.jsonl" in listed
    assert len(listed) == sum(file.is_file() for file in staged.rglob("*")) and not any(
        f"{PLACE}0" in n for n in listed
    )
    assert str(staged) in lines[-2] and "nothing was sent" in lines[-1]


def test_pictures_only_when_asked_for_and_with_their_credit(run, tmp_path):
    done = hub.push_run(run, "org/name", hub.PushSettings(pictures=True), dry_run=True)
    shown = [name for name, _ in done.files if name.endswith(".webp")]
    assert len(shown) == 5  # the one picture that only the latent without a label fires on stays at home
    assert "Ann, CC BY 4.0" in next(done.folder.rglob("CREDITS.md")).read_text()
    (run.parent.parent / "photos" / "1.png").unlink()
    done = hub.push_run(run, "org/name", hub.PushSettings(pictures=True), dry_run=True)
    assert sum(name.endswith(".webp") for name, _ in done.files) == 4
    assert "1 of 5 pictures could not be read" in next(done.folder.rglob("CREDITS.md")).read_text()
    bare = write_run(tmp_path / "bare", credit="")
    refused("nobody is credited for 5 of 5 pictures", bare, "org/name", hub.PushSettings(pictures=True), dry_run=True)
    assert not (bare.parent / "push").exists() or not any((bare.parent / "push").iterdir())


def test_one_sae_goes_into_its_own_folder_and_leaves_the_rest(run, server, tmp_path):
    hub.push_run(run, "org/name")
    index = server.files["org/name"]["README.md"]
    entry = hub.Entry(next((run.parent / "sae").glob("s1-*")), "my host", "block", "best")
    done = hub.push(entry, "org/name", out=tmp_path / "one")
    assert len(server.commits["org/name"]) == 2 and server.files["org/name"]["README.md"] == index
    assert all(name.startswith("my_host/block/best/") for name, _ in done.files)
    assert torch.equal(SAE.from_pretrained("org/name", "my_host/block/best").W_enc, random_sae(1).W_enc)
    with pytest.raises(UserError, match=r"holds no labels\.jsonl"):
        labels.from_pretrained("org/name", "my_host/block/best")


def test_an_sae_without_words_in_saelens_is_shared_without_its_format(tmp_path):
    sae = random_sae(0)
    SAE(meta=Meta("topk", 2, input_norm="unit"), **sae.tensors()).save(tmp_path / "sae")
    entry = hub.Entry(str(tmp_path / "sae"), "h", "l", "n")
    done = hub.push(entry, "org/name", out=str(tmp_path / "out"), dry_run=True)
    assert "h/l/n/sae_weights.safetensors" not in dict(done.files)
    assert "SAELens cannot express it" in (done.folder / "h/l/n/README.md").read_text()
    with pytest.raises(UserError, match=rf"sae={tmp_path}/nowhere/sae.safetensors: there is no such file"):
        hub.push(hub.Entry(tmp_path / "nowhere", "h", "l", "n"), "org/name", out=tmp_path / "new", dry_run=True)


def test_bad_runs_names_and_folders_are_refused_in_one_line(run, tmp_path):
    refused(
        "bases=sae seed O: is no SAE of this run; did you mean", run, "org/name", names=["sae seed O"], dry_run=True
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused("holds nothing to upload", run, "org/name", out=tmp_path / "mine", dry_run=True)
    record = artifacts.read_json(run)
    artifacts.write_json(run, record | {"bases": record["bases"][2:]})
    refused("has no SAE", run, "org/name", dry_run=True)
    artifacts.write_json(run, record)
    (run.parent / record["bases"][0]["labels"] / "labels.jsonl").write_text("{}")
    refused("damaged", run, "org/name", dry_run=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_names_that_paths_do_not_tell_apart_get_folders_of_their_own(tmp_path):
    run = write_run(tmp_path, names=("sae: 0", "SAE. 0"))
    assert [entry.place for entry in hub.read_entries(run)] == [f"{PLACE[:-9]}sae_0", f"{PLACE[:-9]}SAE._0"]
    run = write_run(tmp_path / "more", names=("sae: 0", "sae/ 0"))
    assert [entry.place for entry in hub.read_entries(run)] == [f"{PLACE[:-9]}sae_0", f"{PLACE[:-9]}sae_0-2"]


@settings(max_examples=40)
@given(st.text(max_size=20))
def test_every_name_makes_a_path_that_stays_inside(name):
    from saelab.hub.entries import slug

    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", slug(name)) and slug(name) != ".."
