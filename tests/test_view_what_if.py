"""The viewer's slider: outputs of an uploaded picture with a unit taken out or amplified, against the edited model."""

import dataclasses
import functools
import io
import os

import numpy as np
import pytest
import torch
from conftest import PATIENCE
from PIL import Image
from report_fixture import Filters
from test_report_accessible import check_looks
from test_view import Viewer, clear, made, models_of, world  # noqa: F401  (fixtures)
from torch import nn

from saelab.effects.explain import OnePicture
from saelab.hosts import Host
from saelab.hosts.transform import Transform
from saelab.report import reading

NAMES = ["leaf", "sky", "stone", "wall"]


class Classifier(nn.Module):
    """The fixture's filters with a head of four named outputs."""

    def __init__(self) -> None:
        super().__init__()
        own = Filters()
        self.filters, self.fire = own.filters, own.fire
        self.head = nn.Linear(24, 4)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(4, 24, generator=torch.Generator().manual_seed(0)))
            self.head.bias.zero_()
        self.config = type("Config", (), {"id2label": dict(enumerate(NAMES))})()

    def forward(self, batch):
        return self.head(self.fire(self.filters(batch)).mean((2, 3)))


@pytest.fixture
def named(made, world, tmp_path):  # noqa: F811
    @functools.cache
    def host():
        """Made when it is first asked for, as the command's is."""
        return Host(Classifier(), Transform(100, (92, 92), mean=(0.5,) * 3, std=(0.25,) * 3), "classifier")

    models = dataclasses.replace(models_of(world, []), host=host)
    viewer = Viewer(made[1], clear(reading.read(made[0])), models, tmp_path / "said")
    yield viewer
    viewer.stop()


def shares(viewer, data: bytes, edit=None, layer: str = "fire") -> np.ndarray:
    """By hand: the whole model, the layer's tokens edited."""
    with Image.open(io.BytesIO(data)) as image:
        batch = viewer.host().transform(image.convert("RGB"))[None]
    logits = viewer.host().logits_with(batch, layer, edit or (lambda tokens: tokens))[0]
    return logits.double().softmax(-1).numpy()


def test_a_picture_goes_to_outputs_and_to_units(named):
    data = named.run.images.path(5).read_bytes()
    answer = named.post("/api/what-if", data).json
    plain = shares(named, data)
    assert answer["output"] == NAMES[plain.argmax()] and [name for name, _ in answer["outputs"]] == [
        NAMES[i] for i in np.argsort(-plain)
    ]
    assert [share for _, share in answer["outputs"]] == pytest.approx(sorted(plain, reverse=True), abs=1e-5)
    assert answer["picture"].startswith("data:image/webp")
    again = named.ask(f"/api/what-if?upload={answer.pop('upload')}").json
    assert again == answer == named.ask("/api/what-if?image=5").json
    assert [part["basis"] for part in answer["bases"]] == [b.name for b in named.run.bases]
    first = answer["bases"][0]["units"]
    assert len(first) == 8 and [abs(u["effect"]) for u in first] == sorted(
        (abs(u["effect"]) for u in first), reverse=True
    )
    assert first[0]["label"] == named.run.bases[0].labels[first[0]["unit"]]["label"]


def test_a_picture_runs_through_the_host_once_and_the_numbers_stay(named, monkeypatch):
    """Every answer goes on from the layer's tokens; the long way starts each from the picture: the same, bit by bit."""
    unit = named.ask("/api/what-if?image=5").json["bases"][0]["units"][0]["unit"]  # tried once: where passes may begin
    ran: list[int] = []
    filters, forward = named.host().model.filters, named.host().model.filters.forward
    filters.forward = lambda batch: (ran.append(len(batch)), forward(batch))[1]  # hooks would see short cuts too
    asked = ["/api/what-if?image=7"]
    asked += [f"/api/what-if?image=7&basis={named.run.bases[0].name}&unit={unit}&strength={x}" for x in (0, 2.5)]
    quick = [named.ask(address).json for address in asked]
    assert ran == [1, 1, 1], "one picture a question"
    ran.clear()
    monkeypatch.setattr(OnePicture, "resumed", False)
    assert [named.ask(address).json for address in asked] == quick
    assert len(ran) > 4 * len(named.run.bases), "a pass for each question"


def test_a_host_that_a_search_loaded_has_gradients_too(named):
    named.search.warm()
    assert named.ask("/api/what-if?image=5").status == 200


@pytest.mark.parametrize("strength", [0, 0.5, 1, 4])
def test_the_slider_gives_what_the_edited_model_says(named, strength):
    data, basis = named.run.images.path(5).read_bytes(), named.run.bases[0]
    unit = named.post("/api/what-if", data).json["bases"][0]["units"][0]["unit"]
    answer = named.post(f"/api/what-if?basis={basis.name}&unit={unit}&strength={strength}", data).json
    assert named.ask(f"/api/what-if?image=5&basis={basis.name}&unit={unit}&strength={strength}").json == {
        key: answer[key] for key in ("outputs", "silent")
    }

    def edit(tokens):
        changed = tokens.clone()
        changed[..., unit] *= strength
        return changed

    plain, after = shares(named, data), shares(named, data, edit, basis.layer)
    assert not answer["silent"]
    assert {name: (b, a) for name, b, a in answer["outputs"]} == {
        name: (pytest.approx(b, abs=1e-5), pytest.approx(a, abs=1e-5)) for name, b, a in zip(NAMES, plain, after)
    }


def test_a_unit_that_is_silent_is_added(named):
    file = io.BytesIO()
    Image.new("RGB", (120, 120), (127, 127, 127)).save(file, "PNG")
    basis = named.run.bases[0]
    answers = [
        named.post(f"/api/what-if?basis={basis.name}&unit={u}&strength=2", file.getvalue()).json for u in range(24)
    ]
    silent = [u for u, answer in enumerate(answers) if answer["silent"]]
    assert silent
    acts = basis.acts[:, [silent[0]]].toarray().ravel()
    usual = np.quantile(acts[acts > 0], 0.95)

    def edit(tokens):
        changed = tokens.clone()
        changed[..., silent[0]] += 2 * usual
        return changed

    after = shares(named, file.getvalue(), edit, basis.layer)
    found = {name: share for name, _, share in answers[silent[0]]["outputs"]}
    assert found == {name: pytest.approx(share, abs=1e-4) for name, share in zip(NAMES, after)}
    nothing = named.post(f"/api/what-if?basis={basis.name}&unit={silent[0]}&strength=0", file.getvalue()).json
    assert all(before == pytest.approx(after, abs=1e-7) for _, before, after in nothing["outputs"])


@pytest.mark.parametrize(
    "query",
    [
        "basis=nothing&unit=1&strength=1",
        "basis=neuron&unit=24&strength=1",
        "basis=neuron&unit=-1&strength=1",
        "basis=neuron&unit=%D9%A1&strength=1",
        "basis=neuron&unit=1&strength=5",
        "basis=neuron&unit=1&strength=nan",
        "basis=neuron&unit=1&strength=",
        "unit=1",
    ],
)
def test_changes_of_nothing_are_refused(named, query):
    reply = named.post(f"/api/what-if?{query}", named.run.images.path(5).read_bytes())
    assert reply.status == 400 and len(reply.json["error"].splitlines()) == 1


def test_what_is_no_picture_and_a_host_without_names_are_one_line(named):
    assert named.post("/api/what-if", b"no picture").status == 415
    del named.host().model.config
    reply = named.post("/api/what-if", named.run.images.path(5).read_bytes())
    assert reply.status == 400 and "have no names" in reply.json["error"]


@pytest.fixture
def page(browser, named):
    faults = []
    page = browser.new_page(base_url=f"http://127.0.0.1:{named.port}/")
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield page
    assert faults == []
    page.close()


@pytest.mark.browser
def test_what_if_with_results_can_be_read_anywhere(browser, named):
    context = browser.new_context(base_url=f"http://127.0.0.1:{named.port}/", bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto("what-if.html")
    page.wait_for_selector("main:not([aria-busy])")
    page.set_input_files("input[type=file]", named.run.images.path(5))
    page.wait_for_selector(".found .near li")
    check_looks(page)
    page.click(".found .near li button >> nth=0")
    page.wait_for_selector(".what-if .note:has-text('Multiples')")
    check_looks(page)
    context.close()


@pytest.mark.browser
def test_after_a_refusal_the_picture_before_can_be_asked_for_again(browser, named):
    page = browser.new_page(base_url=f"http://127.0.0.1:{named.port}/")  # not `page`: a refusal is in the console
    page.set_default_timeout(PATIENCE)
    page.goto("what-if.html#image=5")
    page.wait_for_selector(".found .near li")
    page.set_input_files("input[type=file]", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    page.wait_for_selector(".fault:has-text('not a readable picture')")
    assert "#" not in page.url and page.locator(".found").count() == 0
    page.evaluate("location.hash = 'image=5'")  # as a click on the same sample does
    page.wait_for_selector(".found .near li")
    page.close()


@pytest.mark.browser
def test_a_slider_changes_what_the_model_says(page, named):
    page.goto("what-if.html")
    page.wait_for_selector("main:not([aria-busy])")
    page.set_input_files("input[type=file]", named.run.images.path(5))
    page.wait_for_selector(".found .near li")
    assert page.locator(".found").count() == len(named.run.bases) and "#upload=" in page.url
    page.reload()  # the address brings the picture back
    page.wait_for_selector(".found .near li")
    page.click(".found .near li button >> nth=0")
    page.wait_for_selector(".what-if .note:has-text('Multiples')")
    before = page.locator(".outputs tbody td.tabular").all_inner_texts()
    assert before[0] == before[1], "as it is"
    page.fill(".what-if input[type=range]", "0")
    page.wait_for_selector(".what-if output:has-text('0 ×')")
    page.wait_for_function(
        "() => { const t = [...document.querySelectorAll('.outputs tbody td.tabular')].map(x => x.innerText);"
        " return t[0] !== t[1] }"
    )
    after = page.locator(".outputs tbody td.tabular").all_inner_texts()
    assert after[0] == before[0] and after[1] != before[1]
    if os.environ.get("SAELAB_SHOTS"):
        page.screenshot(path=f"{os.environ['SAELAB_SHOTS']}/what-if.png", full_page=True)
    page.fill(".found input[type=number] >> nth=0", "23")
    page.click(".found form button >> nth=0")
    page.wait_for_selector(".what-if a:has-text('unit 23')")
    page.click(".found .near li a >> nth=0")
    page.wait_for_selector(".crumbs")
