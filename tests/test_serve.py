"""The unit server: calls against the run's own numbers and an edited model, over HTTP and MCP, and what they refuse."""

import asyncio
import base64
import dataclasses
import io
import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from report_fixture import World, crops, write_run
from test_view import Viewer, bomb, models_of
from test_view_what_if import NAMES, Classifier, shares

from saelab.cli.view import listen
from saelab.errors import UserError
from saelab.hosts import Host
from saelab.hosts.transform import Transform
from saelab.label.tools import Toolbox
from saelab.report import reading, what_it_does
from saelab.serve import mcp, units, web

CALLS = ["bases", "exemplars", "contrasts", "labels", "effects", "activate", "ablate", "steer"]
CALM = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Served:
    """A run's calls, with the host that they run."""

    def __init__(self, file: Path) -> None:
        self.file, self.run = file, reading.read(file)
        host = Host(Classifier(), Transform(100, (92, 92), mean=(0.5,) * 3, std=(0.25,) * 3), "classifier")
        self.host = lambda: host
        models = dataclasses.replace(models_of(World.of(crops()), []), host=self.host)
        self.box = Toolbox(units.tools(self.run, models))

    def ask(self, name: str, **given):
        return self.box.call(name, given).facts

    def acts(self, basis: str) -> np.ndarray:
        return next(b for b in self.run.bases if b.name == basis).acts.toarray()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    return Served(write_run(tmp_path_factory.mktemp("serve")))


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# ---- the calls ----


@pytest.mark.parametrize("basis", ["neuron", "sae seed 0", "random rotation"])
def test_pictures_activate_a_unit_as_the_run_has_it(served, basis):
    acts, ids = served.acts(basis), [3, 11, 25]
    mine = served.run.images.ids("mine")
    for unit in (1, 7):
        rows = served.ask("activate", basis=basis, unit=unit, images=ids)["activations"]
        assert [row["image"] for row in rows] == ids
        for row, image in zip(rows, ids):
            own = acts[image, unit]
            assert row["activation"] == pytest.approx(own, rel=5e-3, abs=2e-3)  # the cache holds float16
            assert row["share"] == pytest.approx(own / acts[:, unit].max(), rel=5e-3, abs=2e-3)
            others = acts[mine, unit]
            assert (
                (others < own * 0.99).mean() - 1e-6 <= row["percentile"] <= (others < own * 1.01 + 2e-3).mean() + 1e-6
            )
            assert np.max(row["map"]) == pytest.approx(row["activation"], abs=1e-4)  # pooled by the maximum
    data = served.run.images.path(3).read_bytes()
    sent = served.ask("activate", basis=basis, unit=1, pictures=[in_base64(data)])["activations"]
    (kept,) = served.ask("activate", basis=basis, unit=1, images=3)["activations"]
    assert sent == [{k: v for k, v in kept.items() if k != "image"}]


def test_exemplars_and_contrasts_are_those_that_were_mined(served):
    own = served.run.bases[0]
    shown = served.box.call("exemplars", {"basis": own.name, "unit": 2, "count": 4})
    rows = shown.facts["exemplars"]
    assert [row["image"] for row in rows] == own.exemplars["positives"][2, :4].tolist()
    assert [row["activation"] for row in rows] == pytest.approx(own.exemplars["activations"][2, :4].tolist(), rel=1e-5)
    assert [row["share"] for row in rows] == sorted((row["share"] for row in rows), reverse=True)
    assert rows[0]["percentile"] > 0.95 and rows[0]["file"] == served.run.images.files[rows[0]["image"]]
    with Image.open(io.BytesIO(shown.pictures[0].jpeg)) as picture:
        assert max(picture.size) <= 448 and [p.name for p in shown.pictures] == [f"image-{r['image']}" for r in rows]
    against = served.box.call("contrasts", {"basis": own.name, "unit": 2, "show": False})
    assert not against.pictures
    pairs = {(row["resembles"], row["image"]) for row in against.facts["contrasts"]}
    assert pairs and pairs <= set(zip(*(own.exemplars[n][2].tolist() for n in ("positives", "contrasts"))))
    assert all(row["share"] < rows[0]["share"] for row in against.facts["contrasts"])


def test_labels_come_with_their_held_out_numbers_and_bases_with_their_size(served):
    own = served.run.bases[1]
    found = served.ask("labels", basis=own.name, unit=3)
    assert found["label"] == own.labels[3]["label"] and found["held_out"] == own.evaluation[3]["final"]
    assert set(found["scores"]) == set(own.labels[3]["scores"]) and "positives" not in found
    listed = served.ask("bases")["bases"]
    assert [(b["basis"], b["units"], b["control"]) for b in listed] == [
        (b.name, len(b.labels), b.control) for b in served.run.bases
    ]


def test_effects_are_those_of_the_unit_s_page_and_where_there_are_none_the_command_is_named(served):
    with pytest.raises(UserError, match="saelab effects run="):
        served.ask("effects", basis="neuron", unit=1)
    row = {"unit": 1, "label": "sky", "why": None, "pictures": [4, 5], "raised": [["sky", 0.5]], "lowered": []}
    row |= {"causal_pct": 0.9, "causal_p": 0.2, "drop": 0.5, "moved": float("nan")}
    measured = what_it_does.Measured({1: row}, {"sky": [["sky", 1.0]]}, 4)
    own = dataclasses.replace(served.run.bases[0], effects=measured)
    (shown,) = what_it_does.of_units(measured, [own.labels[1]])
    run = dataclasses.replace(served.run, bases=(own, *served.run.bases[1:]))
    found = Toolbox(units.tools(run, models_of(World.of(crops()), []))).call("effects", {"basis": "neuron", "unit": 1})
    assert found.facts == shown | {"moved": None} and found.facts["raised"] == [["sky", 0.5, True]]


@pytest.mark.parametrize("strength", [0, 0.5, 3])
def test_ablate_and_steer_give_what_the_edited_model_says(served, strength):
    data = served.run.images.path(5).read_bytes()
    unit = int(served.acts("neuron")[5].argmax())

    def edit(tokens):
        changed = tokens.clone()
        changed[..., unit] *= strength
        return changed

    plain, after = shares(served, data), shares(served, data, edit)
    given = {"basis": "neuron", "unit": unit, "image": 5}
    found = served.ask("steer", strength=strength, **given) if strength else served.ask("ablate", **given)
    assert not found["silent"] and {row["output"]: (row["before"], row["after"]) for row in found["outputs"]} == {
        name: (pytest.approx(b, abs=1e-5), pytest.approx(a, abs=1e-5)) for name, b, a in zip(NAMES, plain, after)
    }
    if strength:
        sent = served.ask("steer", strength=strength, basis="neuron", unit=unit, picture=in_base64(data))
        assert sent == found


@pytest.mark.parametrize(
    "name, given, said",
    [
        ("activates", {}, "did you mean activate"),
        (None, {}, "known: bases"),
        ("bases", [], "expected an object"),
        ("bases", {"code": "print(1)"}, "has no such argument"),
        ("labels", {"basis": "neuron"}, "unit=null: is missing"),
        ("labels", {"basis": "neurone", "unit": 1}, "is not in this run"),
        ("labels", {"basis": "neuron", "unit": 24}, "use 0 to 23"),
        ("labels", {"basis": "neuron", "unit": -1}, "expected a whole number"),
        ("labels", {"basis": "neuron", "unit": True}, "expected a whole number"),
        ("labels", {"basis": "neuron", "unit": 10**400}, "expected a whole number"),
        ("labels", {"basis": "neuron", "unit": 1.5}, "expected a whole number"),
        ("labels", {"basis": "n" * 999, "unit": 1}, "1 to 300 characters"),
        ("exemplars", {"basis": "neuron", "unit": 1, "count": 17}, "from 1 to 16"),
        ("exemplars", {"basis": "neuron", "unit": 1, "show": 1}, "true or false"),
        ("activate", {"basis": "neuron", "unit": 1}, "give images or pictures"),
        ("activate", {"basis": "neuron", "unit": 1, "images": [1] * 17}, "at most 16"),
        ("activate", {"basis": "neuron", "unit": 1, "images": [10**9]}, "is no image of this run"),
        ("activate", {"basis": "neuron", "unit": 1, "pictures": ["no base64!"]}, "is no base64"),
        ("activate", {"basis": "neuron", "unit": 1, "pictures": [in_base64(b"text")]}, "is not readable"),
        ("activate", {"basis": "neuron", "unit": 1, "pictures": [in_base64(bomb())]}, "is not readable"),
        ("steer", {"basis": "neuron", "unit": 1, "image": 1, "strength": 5}, "from 0 to 4"),
        ("steer", {"basis": "neuron", "unit": 1, "image": 1, "strength": float("nan")}, "from 0 to 4"),
        ("ablate", {"basis": "neuron", "unit": 1}, "either image or picture"),
        ("ablate", {"basis": "neuron", "unit": 1, "image": 1, "picture": "AA=="}, "either image or picture"),
    ],
)
def test_what_can_t_be_asked_is_one_line_that_says_what_to_send(served, name, given, said):
    with pytest.raises(UserError) as error:
        served.box.call(name, given)
    assert said in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)


# ---- over HTTP ----


class Site(Viewer):
    """The web application on loopback, asked with real requests."""

    def __init__(self, served: Served) -> None:
        self.listening = listen(0)
        self.port = self.listening.getsockname()[1]
        app = web.application(served.box)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def call(self, name: str, body, **headers: str):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.ask(f"/tools/{name}", "POST", data, **({"content_type": "application/json"} | headers))


@pytest.fixture(scope="module")
def site(served):
    site = Site(served)
    yield site
    site.stop()


def test_a_program_lists_the_calls_and_asks_them(site, served):
    listed = site.ask("/tools").json["tools"]
    assert [tool["name"] for tool in listed] == CALLS
    needed = {tool["name"]: tool["inputSchema"]["required"] for tool in listed}
    assert needed["steer"] == ["basis", "unit", "strength"] and needed["bases"] == []
    reply = site.call("labels", {"basis": "neuron", "unit": 2})
    assert reply.status == 200 and reply.json == served.ask("labels", basis="neuron", unit=2)
    shown = site.call("exemplars", {"basis": "neuron", "unit": 2, "count": 1}).json
    (picture,) = shown["pictures"]
    with Image.open(io.BytesIO(base64.b64decode(picture["jpeg"]))) as image:
        assert image.format == "JPEG" and image.size == (picture["width"], picture["height"])


def test_only_programs_of_this_machine_may_ask(site):
    asked = {"basis": "neuron", "unit": 2}
    assert site.call("labels", asked, host="evil.example").status == 403
    assert site.call("labels", asked, origin="http://evil.example").status == 403
    assert site.call("labels", asked, origin="null").status == 403
    assert site.call("labels", asked, sec_fetch_site="cross-site").status == 403
    assert site.call("labels", asked, content_type="text/plain").status == 415
    assert site.ask("/tools", host="evil.example").status == 403
    assert site.call("labels", asked, origin=f"http://127.0.0.1:{site.port}").status == 200


def test_every_other_request_is_refused_in_one_line(site):
    assert site.call("nothing", {}).status == 404 and "known: bases" in site.call("nothing", {}).json["error"]
    assert site.ask("/").status == 404 and site.ask("/tools/labels").status == 405
    assert site.ask("/tools/../../etc/passwd").status in (404, 405)
    for body in (b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b"1" * 6000):
        assert site.call("labels", body).status == 400
    assert site.call("labels", b" " * (web.BODY + 1)).status == 413
    reply = site.call("activate", {"basis": "neuron", "unit": 1, "pictures": in_base64(bomb())})
    assert reply.status == 400 and "is not readable" in reply.json["error"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@CALM
@given(st.sampled_from(CALLS), st.sampled_from(["basis", "unit", "image", "count", "strength", "else"]), VALUES)
def test_any_arguments_are_answered(served, name, key, value):
    given = {"basis": "neuron", "unit": 1, "image": 1, "strength": 1, "show": False}
    given = {k: v for k, v in given.items() if k in served.box.tools[name].arguments} | {key: value}
    line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": given}})
    answer = mcp.Server(served.box, "").answer(line.encode())
    assert "result" in answer and json.dumps(answer, allow_nan=False)


# ---- over MCP ----


def talk(served, *lines) -> list[dict]:
    """What the server writes to these messages."""
    source = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    sink = io.BytesIO()
    mcp.Server(served.box, "about").run(io.BytesIO(source), sink)
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def message(method: str, own=1, **params) -> dict:
    return {"jsonrpc": "2.0", "id": own, "method": method, "params": params}


def test_a_client_introduces_itself_lists_tools_and_calls_them(served):
    hello, tools, called, shown, wrong = talk(
        served,
        message("initialize", protocolVersion="2024-11-05", capabilities={}, clientInfo={"name": "x", "version": "1"}),
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        message("tools/list", own="two"),
        message("tools/call", name="labels", arguments={"basis": "neuron", "unit": 2}),
        message("tools/call", name="exemplars", arguments={"basis": "neuron", "unit": 2, "count": 2}),
        message("tools/call", name="labels", arguments={"basis": "neuron", "unit": 999}),
    )
    assert hello["result"]["protocolVersion"] == "2024-11-05" and hello["result"]["serverInfo"]["name"] == "saelab"
    assert tools["id"] == "two" and [tool["name"] for tool in tools["result"]["tools"]] == CALLS
    assert called["result"]["structuredContent"] == served.ask("labels", basis="neuron", unit=2)
    assert json.loads(called["result"]["content"][0]["text"]) == called["result"]["structuredContent"]
    kinds = [part["type"] for part in shown["result"]["content"]]
    assert kinds == ["text", "text", "image", "text", "image"]
    assert wrong["result"]["isError"] and "use 0 to 23" in wrong["result"]["content"][0]["text"]


@pytest.mark.parametrize(
    "line, code",
    [
        (b"{", mcp.PARSE),
        (b"[" * 100_000, mcp.PARSE),
        (b"[]", mcp.INVALID),
        (b'{"id": 1, "method": "ping"}', mcp.INVALID),
        (message("tools/run"), mcp.METHOD),
        (message("tools/call", name="exec", arguments={"code": "1"}), mcp.PARAMS),
        (message("ping") | {"params": [1]}, mcp.PARAMS),
        (message("ping") | {"id": None}, mcp.INVALID),
    ],
)
def test_what_is_no_message_gets_json_rpc_s_error(served, line, code):
    wrong, right = talk(served, line, message("ping", own=7))
    assert wrong["error"]["code"] == code and "\n" not in wrong["error"]["message"]
    assert right == {"jsonrpc": "2.0", "id": 7, "result": {}}


def test_a_line_without_an_end_is_refused_and_the_next_one_answered(served, monkeypatch):
    monkeypatch.setattr(mcp, "BODY", 1000)
    wrong, right = talk(served, b"x" * 5000, message("ping"))
    assert wrong["error"]["code"] == mcp.INVALID and right["result"] == {}


@CALM
@given(st.binary(max_size=60))
def test_any_line_is_answered_or_a_notification(served, line):
    for answer in talk(served, line.replace(b"\n", b"")):
        assert "error" in answer


def test_the_protocol_s_own_client_works_the_command(served, tmp_path):
    """The client of the `mcp` package starts `saelab serve mcp=true` and speaks to it."""
    client = pytest.importorskip("mcp", reason="the protocol's own package")
    from mcp.client.stdio import stdio_client

    command = ["-m", "saelab.cli.main", "serve", "mcp=true", f"run={served.file}"]
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    start = client.StdioServerParameters(command=sys.executable, args=command, env=own, cwd=str(tmp_path))

    async def work():
        async with stdio_client(start) as (read, write), client.ClientSession(read, write) as session:
            await session.initialize()
            listed = await session.list_tools()
            called = await session.call_tool("labels", {"basis": "sae seed 0", "unit": 3})
            shown = await session.call_tool("exemplars", {"basis": "neuron", "unit": 1, "count": 1})
            wrong = await session.call_tool("labels", {"basis": "sae seed 9", "unit": 3})
            return listed, called, shown, wrong

    listed, called, shown, wrong = asyncio.run(work())
    assert [tool.name for tool in listed.tools] == CALLS
    facts = json.loads(called.content[0].text)
    assert facts == served.ask("labels", basis="sae seed 0", unit=3)
    assert [part.type for part in shown.content] == ["text", "text", "image"]
    assert "is not in this run" in wrong.content[0].text
