"""Explaining one picture: units that carry an output on a model whose answer is known; the page; what can't be."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from test_effects_host import PLACES
from test_effects_stage import QUICK, WORDS, made  # noqa: F401  (a fixture)
from test_report_accessible import check_alone

import saelab
from saelab.effects.attribute import by_token, gradient_x_part, of_output
from saelab.effects.explain import ONE, OnePicture, explain, grid_of, look
from saelab.effects.heads import host_head
from saelab.report.why import SIDE, crop_to_seen
from saelab.units.bases import Projection


def picture(folder, colour=(210, 30, 30), name="red.png", size=(40, 40)):
    """A picture of one colour, its left half darker."""
    pixels = np.full((size[1], size[0], 3), colour, np.uint8)
    pixels[:, : size[0] // 2] //= 3
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_the_unit_that_the_head_reads_carries_its_class(made, tmp_path):  # noqa: F811
    found = made.explain(picture(tmp_path), bases="neuron", top=3)
    facts = found.facts
    assert facts["output"] == "red" == facts["predicted"][0][0] and facts["head"] == "host"
    first = facts["bases"][0]["units"][0]
    assert first["unit"] == 0 and first["label"] == "red" and first["effect"] > 0
    where = np.array(first["where"])
    assert where.shape == (4, 4) and where[:, 2:].sum() > where[:, :2].sum(), "the bright half speaks for it"
    assert found.table()["effect"].abs().is_monotonic_decreasing
    page = found.page.read_text(encoding="utf-8")
    assert "Why “red”?" in page and page.count("data:image/jpeg") == 2 + len(facts["bases"][0]["units"]) + 3
    assert "http" not in page.replace("http-equiv", "")
    again = made.explain(picture(tmp_path), bases="neuron", top=3)
    assert again.folder == found.folder and again.facts == facts


@pytest.mark.browser
def test_the_page_names_bases_as_the_report_does_and_can_be_read_anywhere(made, browser, tmp_path):  # noqa: F811
    found = made.explain(picture(tmp_path))
    assert [basis["words"] for basis in found.facts["bases"]] == ["Neurons", "SAE features", "Random directions"]
    page = found.page.read_text(encoding="utf-8")
    assert "<h2>SAE features <small" in page and not any(name in page for name in ("sae seed", "random rotation"))
    check_alone(browser, found.page)


def test_what_usually_carries_a_class_and_how_typical_a_picture_is(made, tmp_path):  # noqa: F811
    own = made.explain(picture(tmp_path), bases="neuron").facts["bases"][0]["class"]
    assert own["why"] is None and own["units"][0]["unit"] == 0 and own["units"][0]["here"]
    assert own["units"][0]["label"] == "red" and sum(unit["share"] for unit in own["units"]) == pytest.approx(1)
    assert 0.5 < own["typicality"] <= 1 and 0 <= own["below"] <= 1 and own["by_class"] > 0
    assert np.array(own["units"][0]["where"]).shape == (4, 4)
    found = made.class_units["neuron"]
    assert found.matrix.pictures(0) == own["pictures"] and found.matrix.scores.shape[1] == 9
    table, pictures = found.table(2), found.pictures()
    assert set(table["class"]) == {"red", "green", "blue"}
    assert table.groupby("class").first()["label"].to_dict() == {name: name for name in ("red", "green", "blue")}
    assert pictures["typicality"].dropna().is_monotonic_increasing and len(pictures) == len(made.images.ids("mine"))
    page = made.explain(picture(tmp_path), bases="neuron").page.read_text(encoding="utf-8")
    assert "What usually carries red" in page and "Typicality" in page
    again = made.measure_classes(made.labelled[0])
    assert again.reused and found.folder == again.path


def test_another_output_and_all_bases(made, tmp_path):  # noqa: F811
    facts = made.explain(picture(tmp_path), output="Green").facts
    assert facts["output"] == "green" and [b["name"] for b in facts["bases"]] == list(made.labels)
    effects = {unit["unit"]: unit["effect"] for unit in facts["bases"][0]["units"]}
    assert effects[0] < 0, "what speaks for red speaks against green"


def test_effects_are_what_the_host_answers_without_the_unit(made, tmp_path):  # noqa: F811
    """By hand: the centred output before and after, through the whole model; and the sum that a linear rest keeps."""
    host = made.host
    batch = host.load_images([Image.open(picture(tmp_path, (90, 160, 200)))])
    answers = OnePicture(host, "second", "all", batch, host_head(host.model, 3))
    writes = Projection().writes(9)
    explained = explain(answers, Projection(), writes, 2, 9)
    torch.testing.assert_close(answers.logits(ONE, answers.tokens(ONE)[None])[0], host.logits(batch))
    weights = of_output(2, 3)

    def without(unit):
        def edit(tokens):
            kept = tokens.clone()
            kept[..., unit] = kept[..., unit].clamp(max=0)
            return kept

        return host.logits_with(batch, "second", edit)

    for share in explained.shares:
        lost = (host.logits(batch) - without(share.unit)).double() @ weights
        assert share.effect == pytest.approx(float(lost), abs=1e-5)
    assert explained.units == pytest.approx(sum(share.effect for share in explained.shares), abs=1e-4)
    assert explained.summed == pytest.approx(explained.units, abs=1e-4), "relu and mean: linear in positive parts"


@pytest.mark.parametrize(("make", "layer", "cuts"), PLACES)
def test_going_on_from_tokens_gives_the_bits_of_passes_from_the_picture(make, layer, cuts):
    host = make()
    batch = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(6))
    own, long = (look(host, [layer], "all", batch, lambda answer: answer.float())[layer] for _ in range(2))
    vars(long)["resumed"] = False
    assert own.resumed == cuts and torch.equal(own.before, long.before)
    copies = torch.stack([own.own, own.own * 2, own.own.flip(-1)])
    assert torch.equal(own.logits(ONE, copies), long.logits(ONE, copies))
    weights = of_output(0, own.before.shape[-1])
    gradients = [one.gradient(ONE, own.own, weights) for one in (own, long)]
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0


def test_a_picture_of_another_size_has_tokens_of_its_own():
    make, layer, _ = next(place for place in PLACES if place[2])
    host = make()
    batch = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(6))
    seen = look(host, [layer], "all", batch, lambda answer: answer.float())[layer]
    assert not seen.resumed
    torch.testing.assert_close(seen.before, host.logits(batch).float())


@pytest.mark.parametrize("method", ["integrated_gradients", "captum:IntegratedGradients"])
def test_another_method_screens_and_says_where(made, tmp_path, method):  # noqa: F811
    if method.startswith("captum"):
        pytest.importorskip("captum", reason="needs the extra captum")
    found = made.explain(picture(tmp_path), bases="neuron", top=3, method=method)
    usual = made.explain(picture(tmp_path), bases="neuron", top=3)
    assert found.folder != usual.folder and found.facts["method"] == method
    assert f"by {method}" in found.page.read_text(encoding="utf-8")
    for one, other in zip(found.facts["bases"][0]["units"], usual.facts["bases"][0]["units"], strict=True):
        assert (one["unit"], one["effect"]) == (other["unit"], other["effect"])
        np.testing.assert_allclose(one["where"], other["where"], rtol=1e-3, atol=1e-5)  # a linear rest
    with pytest.raises(saelab.UserError, match="did you mean integrated_gradients"):
        made.explain(picture(tmp_path), method="integrated_gradient")


def test_values_by_token_add_up_to_those_of_the_picture(made, tmp_path):  # noqa: F811
    host = made.host
    answers = OnePicture(
        host, "second", "all", host.load_images([Image.open(picture(tmp_path))]), host_head(host.model, 3)
    )
    from saelab.effects.ablate import Active

    active = Active.of(Projection(), answers.tokens(ONE))
    writes, weights = Projection().writes(9), of_output(0, 3)
    gradient = answers.gradient(ONE, active.tokens, weights)
    each = by_token(active, writes, gradient)
    assert each.shape == (1, active.tokens.shape[1], 9)
    torch.testing.assert_close(each.sum(1), gradient_x_part(answers, ONE, active, writes, weights).values)


@pytest.mark.parametrize("size", [(40, 40), (80, 30), (33, 90)])
def test_the_crop_is_what_the_host_saw(size):
    image = Image.new("RGB", size)
    whole = crop_to_seen(image, {"resize": 32, "crop": None})
    assert whole.size[1] == SIDE and whole.size[0] == pytest.approx(SIDE * size[0] / size[1], abs=1)
    assert crop_to_seen(image, {"resize": 32, "crop": (28, 28)}).size == (SIDE, SIDE)


def test_tokens_without_a_place_have_no_map():
    assert grid_of(torch.ones(5), None) is None and grid_of(torch.arange(5.0), (2, 2)) == [[1, 2], [3, 4]]


def test_what_can_not_be_explained_is_one_line(made, tmp_path):  # noqa: F811
    (tmp_path / "words.txt").write_text("no picture")
    for wrong in (tmp_path / "nowhere.png", tmp_path / "words.txt", tmp_path):
        with pytest.raises(saelab.UserError, match="give a picture file"):
            made.explain(wrong)
    with pytest.raises(saelab.UserError, match="did you mean green"):
        made.explain(picture(tmp_path), output="gren")
    with pytest.raises(saelab.UserError, match="top"):
        made.explain(picture(tmp_path), top=0)
    with pytest.raises(saelab.UserError, match="tops"):
        made.explain(picture(tmp_path), tops=3)
    with pytest.raises(saelab.UserError, match="is not in this run"):
        made.explain(picture(tmp_path), bases="neurn")
    acts = np.random.default_rng(0).random((60, 5)).astype(np.float32)
    vectors = {"images": np.random.default_rng(1).normal(size=(60, 8)), "labels": np.eye(4, 8)}
    settings = {"vocabulary": WORDS, "scorer": ["pearson"], "bases": ["neuron"], **QUICK}
    arrays = saelab.Pipeline(activations=acts, embeddings=vectors, root=str(tmp_path / "runs"), **settings)
    with pytest.raises(saelab.UserError, match="no host that could look"):
        arrays.explain(picture(tmp_path))


def test_a_host_without_names_is_told_what_to_use(made, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.delattr(made.host.model, "config")
    with pytest.raises(saelab.UserError, match="3 outputs have no names; use head=probe"):
        made.explain(picture(tmp_path))
    assert made.explain(picture(tmp_path), head="probe", bases="neuron").facts["output"] == "red"


@pytest.mark.parametrize("name", ["<b>&.png", "名前 with spaces.png", "..hidden.png", "x" * 200 + ".png"])
def test_any_file_name_makes_a_page(made, tmp_path, name):  # noqa: F811
    found = made.explain(picture(tmp_path, name=name), bases="neuron", top=1)
    assert found.folder.parent == made.root / "explain" and "<b>" not in found.page.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="names of any bytes are a matter of POSIX")
def test_a_name_that_is_no_text_makes_a_page(made, tmp_path):  # noqa: F811
    source = picture(tmp_path)
    renamed = source.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    assert made.explain(renamed, bases="neuron", top=1).page.is_file()
