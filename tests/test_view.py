"""The live viewer on loopback: search against brute force, edits, blind rating, and everything it must refuse."""

import base64
import http.client
import io
import json
import os
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode

import numpy as np
import pytest
import torch
import uvicorn
from conftest import PATIENCE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile
from report_fixture import ASKED, MINING, UNITS, Filters, World, crops, write_run
from servers import free_port

from saelab.artifacts import read_jsonl
from saelab.cli.view import listen
from saelab.errors import UserError
from saelab.hosts import Host
from saelab.hosts.transform import Transform
from saelab.label.search import LEAST
from saelab.report import build, people, reading
from saelab.report.live import Models, Search, application, rating, sheets, store, uploads
from saelab.report.live.search import cell_at

STUDY = rating.StudySettings(per_basis=4, checks=2, shown=5)


class Words:
    """The fixture's space of words: a text lies at the mean of the words in it, any other word anywhere."""

    def __init__(self, world: World) -> None:
        self.words = dict(zip(world.words, world.t.numpy(), strict=True))

    def embed(self, texts: Sequence[str]) -> torch.Tensor:
        means = np.stack([np.mean([self.vector(word) for word in text.split()], axis=0) for text in texts])
        return torch.from_numpy(means / np.linalg.norm(means, axis=1, keepdims=True)).float()

    def vector(self, word: str) -> np.ndarray:
        if word in self.words:
            return self.words[word]
        vector = np.random.default_rng(list(word.encode())).standard_normal(len(next(iter(self.words.values()))))
        return vector / np.linalg.norm(vector)


class Reply(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Viewer:
    """A real server on loopback with real requests."""

    def __init__(self, report: Path, run: reading.Run, models: Models, folder: Path) -> None:
        self.run, self.folder, self.loads, self.world = run, folder, [], None
        self.study = rating.draw(run, STUDY)
        self.listening = listen(0)
        self.port = self.listening.getsockname()[1]
        self.search, self.host = Search(run, models), models.host
        app = application(report, self.search, self.study, folder)
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        self.thread = threading.Thread(target=self.server.run, args=([self.listening],))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Reply:
        """One request with just the headers given (underscores are dashes) and the path as it stands."""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        link.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"host": f"127.0.0.1:{self.port}", **headers}.items():
            link.putheader(name.replace("_", "-"), value)
        if method == "POST":
            link.putheader("content-length", str(len(body)))
        link.endheaders(body if method == "POST" else None)
        reply = link.getresponse()
        answer = Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        link.close()
        return answer

    def post(self, path: str, value) -> Reply:
        """As our own pages do."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask(path, "POST", body, origin=f"http://127.0.0.1:{self.port}")

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        self.listening.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("live")
    run = write_run(folder)
    return run, build(run, folder / "runs" / "report" / "fixture").parent


@pytest.fixture(scope="module")
def world() -> World:
    return World.of(crops())


def models_of(world: World, loads: list[str]) -> Models:
    def load(what: str, value):
        loads.append(what)
        return value

    host = Host(Filters(), Transform(100, (92, 92), mean=(0.5,) * 3, std=(0.25,) * 3), "filters")
    return Models(
        embed=lambda texts: load("encoder", Words(world)).embed(texts),
        embeddings=lambda: load("embeddings", world.e),
        host=lambda: load("host", host),
        mining=MINING,
        scorer="pearson",
        policy="all",
        pool="max",
    )


@pytest.fixture
def viewer(made, world, tmp_path) -> Iterator[Viewer]:
    loads: list[str] = []
    viewer = Viewer(made[1], clear(reading.read(made[0])), models_of(world, loads), tmp_path / "said")
    viewer.loads, viewer.world = loads, world
    yield viewer
    viewer.stop()


def clear(run: reading.Run) -> reading.Run:
    """The run with scorers' best labels only: of eight words, six are somebody's runner-up, and no check is left."""
    for basis in run.bases:
        for row in basis.labels:
            for entry in row["scores"].values():
                entry["runners_up"] = []
    return run


def dense(run: reading.Run, name: str) -> np.ndarray:
    """[images, units]."""
    return next(b for b in run.bases if b.name == name).acts.toarray()


# ---- search ----


def test_words_find_the_units_whose_activations_follow_them(viewer):
    answer = viewer.ask("/api/search?text=blue+flower").json
    found = answer["found"]
    assert answer["chance"] < 0.01 and answer["nothing"] is False
    assert [part["basis"] for part in found] == [b.name for b in viewer.run.bases]
    mine = viewer.run.images.ids("mine")
    truth = (viewer.world.e @ Words(viewer.world).embed(["blue flower"])[0]).numpy()[mine]
    for part in found:
        acts = dense(viewer.run, part["basis"])[mine].astype(np.float64)
        moving = np.flatnonzero(acts.std(0) > 0)
        r = {int(u): np.corrcoef(acts[:, u], truth)[0, 1] for u in moving}
        best = sorted(r.values(), reverse=True)[: len(part["hits"])]
        assert [hit["score"] for hit in part["hits"]] == pytest.approx(best, abs=1e-4)
        assert [r[hit["unit"]] for hit in part["hits"]] == pytest.approx(best, abs=1e-4)


def test_words_that_mean_nothing_are_told(viewer):
    answers = [viewer.ask(f"/api/search?text={word}").json for word in ("blorvex", "wuzzle", "kranpitch", "ommelt")]
    assert sum(answer["nothing"] for answer in answers) >= 3
    assert all(answer["nothing"] == (answer["chance"] > 0.05) and answer["found"] for answer in answers)


def test_a_picture_of_the_run_fires_units_as_the_run_has_it(viewer):
    image = int(viewer.run.images.ids("mine")[3])
    answer = viewer.ask(f"/api/search?image={image}").json
    mine = viewer.run.images.ids("mine")
    for part in answer["found"]:
        acts = dense(viewer.run, part["basis"])
        assert part["hits"]
        for hit in part["hits"]:
            own = acts[image, hit["unit"]]
            assert hit["activation"] == pytest.approx(own, rel=5e-3, abs=2e-3)
            assert hit["share"] == pytest.approx(own / acts[mine, hit["unit"]].max(), rel=5e-3, abs=2e-3)
            assert hit["share"] >= LEAST - 2e-3
            others = np.delete(acts[mine, hit["unit"]], 3)
            assert (others < own * 0.99).sum() / len(mine) <= hit["below"] + 1e-6
            assert hit["below"] <= ((others < own * 1.01).sum() + 1) / len(mine) + 1e-6
            cells = np.frombuffer(base64.b64decode(hit["cells"]), np.uint8)
            assert cells.size == np.prod(part["grid"])
            assert cells.max() == pytest.approx(255 * min(1, hit["share"]), abs=1)  # pooled by the maximum
        assert [h["score"] for h in part["hits"]] == sorted((h["score"] for h in part["hits"]), reverse=True)


def test_an_upload_is_answered_as_the_same_picture_of_the_run(viewer):
    data = (viewer.run.images.path(7)).read_bytes()
    answer = viewer.post("/api/search", data).json
    of_run = viewer.ask("/api/search?image=7").json
    assert of_run["said"] == viewer.run.images.captions[7] and of_run["file"] == "00007.jpg"
    assert [answer[key] for key in ("found", "picture")] == [of_run[key] for key in ("found", "picture")]
    again = viewer.ask(f"/api/search?upload={answer['upload']}").json
    assert again == {key: answer[key] for key in ("found", "picture")}
    assert (viewer.folder / "asked" / answer["upload"]).read_bytes() == data


@pytest.mark.parametrize("name", ["0" * 16, "../ratings.jsonl", "..", "", "0" * 17, "A" * 16, "%00"])
def test_uploads_that_are_not_kept_are_one_line(viewer, name):
    reply = viewer.ask(f"/api/search?upload={quote(name)}")
    assert reply.status == 400 and "choose the picture again" in reply.json["error"]


def test_uploads_longest_unused_make_room(tmp_path):
    kept = uploads.Uploads(tmp_path, kept=25)
    names = [kept.add(bytes([i]) * 10) for i in range(2)]
    for i, name in enumerate(names):
        os.utime(tmp_path / name, (100 + i, 100 + i))
    assert kept.read(names[0]) == b"\0" * 10  # used: the other goes
    third = kept.add(b"x" * 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[0], third])
    large = kept.add(b"y" * 99)
    assert [path.name for path in tmp_path.iterdir()] == [large]


def test_a_place_in_a_picture_gives_the_units_that_fire_there(viewer):
    """Against the host's own tokens, by hand: the crop of 92 of 100 pixels, 11 x 11 places of 8 pixels."""
    image, places = 7, {"0.3,0.8": (9, 3), "0.5,0.5": (5, 5), "0.05,0.95": (10, 0)}
    picture = viewer.run.images.load(image)
    host = viewer.host()
    tokens = host.tokens(host.transform(picture)[None], ["fire"], "all")["fire"][0]
    mine = viewer.run.images.ids("mine")
    for at, (row, column) in places.items():
        answer = viewer.ask(f"/api/search?image={image}&at={at}").json
        neurons = next(part for part in answer["found"] if part["basis"] == "neuron")
        assert neurons["cell"] == [row, column]
        here = tokens.reshape(11, 11, -1)[row, column].numpy()
        highest = dense(viewer.run, "neuron")[mine].max(0)
        assert {hit["unit"] for hit in neurons["hits"]} <= set(np.flatnonzero(here >= 0.199 * highest).tolist())
        for hit in neurons["hits"]:
            assert hit["activation"] == pytest.approx(here[hit["unit"]], rel=1e-4)
            cells = np.frombuffer(base64.b64decode(hit["cells"]), np.uint8).reshape(11, 11)
            assert cells[row, column] == pytest.approx(255 * min(1, hit["share"]), abs=1)
    outside = viewer.ask(f"/api/search?image={image}&at=0.01,0.5").json
    assert all(part["cell"] is None and part["hits"] == [] for part in outside["found"])


@pytest.mark.parametrize("at", ["", "1", "0.5", "0.5,", "1.1,0", "-0.1,0", "nan,0", "0.5,0.5,0.5", "1e-3,0", "2,2"])
def test_places_that_are_none_are_refused(viewer, at):
    reply = viewer.ask(f"/api/search?image=7&at={at}")
    assert reply.status == 400 and "give x,y" in reply.json["error"]


@pytest.mark.parametrize(
    ("place", "grid", "box", "cell"),
    [
        ((0.5, 0.5), (7, 7), (1.0, 1.0), (3, 3)),
        ((0.0, 0.999), (7, 7), (1.0, 1.0), (6, 0)),
        ((1.0, 0.5), (7, 7), (1.0, 1.0), None),
        ((0.1, 0.5), (7, 7), (0.8, 0.8), (3, 0)),
        ((0.09, 0.5), (7, 7), (0.8, 0.8), None),
        ((0.0, 0.0), (2, 4), (2.0, 1.0), (0, 1)),  # a wide picture seen whole: the square is its middle
    ],
)
def test_a_place_lies_in_the_token_that_covers_it(place, grid, box, cell):
    assert cell_at(place, grid, box) == cell


def test_models_wait_for_the_first_search_that_needs_them(viewer):
    viewer.ask("/unit.html")
    viewer.ask("/api/edits")
    assert viewer.loads == []
    viewer.ask("/api/search?image=1")
    assert viewer.loads == ["host"]


def test_warmed_the_first_search_finds_everything_loaded(viewer):
    search = viewer.search
    search.warm()
    assert set(viewer.loads) == {"encoder", "embeddings", "host"} and "null" in vars(search)
    before = len(viewer.loads)
    assert viewer.ask("/api/search?text=red").json["nothing"] is False
    assert viewer.loads[before:] == ["encoder"] + ["embeddings"] * len(viewer.run.bases), "no null is made again"


def test_what_cannot_be_loaded_is_told_by_the_search_not_by_the_start(made, tmp_path, caplog):
    def no_model(*_):
        raise UserError("host", "none", "there is none here")

    search = Search(reading.read(made[0]), Models(no_model, no_model, no_model, MINING, "pearson", "all", "max"))
    search.warm()
    assert "host=none" in caplog.text
    with pytest.raises(UserError):
        search.by_text("red", 3)


@pytest.mark.parametrize(
    "query", ["", "text=", "text=" + "a" * 301, "image=-1", "image=99999", "image=1.5", "image=%D9%A1"]
)
def test_searches_that_ask_nothing_are_told_so(viewer, query):
    reply = viewer.ask(f"/api/search?{query}")
    assert reply.status == 400 and any(remedy in reply.json["error"] for remedy in ("; use", "; ask"))


# ---- label editing ----


def edit(viewer: Viewer, label, unit: int = 2, basis: str = "neuron", who: str = "Ada") -> Reply:
    return viewer.post("/api/edits", {"basis": basis, "unit": unit, "label": label, "who": who})


def test_edits_say_who_when_what_was_and_leave_the_runs_labels_alone(viewer, made):
    files = sorted(made[0].parent.glob("labels/*/*"))
    before = [file.read_bytes() for file in files]
    own = viewer.run.bases[0].labels[2]["label"]
    assert edit(viewer, "  stone   steps ").status == 200
    row = edit(viewer, "stairs", who="Bob").json
    assert (row["old"], row["new"], row["who"]) == ("stone steps", "stairs", "Bob")
    assert abs(time.time() - time.mktime(time.strptime(row["when"][:19], "%Y-%m-%dT%H:%M:%S"))) < 60
    now = viewer.ask("/api/edits").json
    assert now == {"neuron": {"2": {"label": "stairs", "was": own, "who": "Bob", "when": row["when"]}}}
    assert [file.read_bytes() for file in files] == before
    lines = (viewer.folder / "labels_edited.jsonl").read_text().splitlines()
    assert [json.loads(line)["old"] for line in lines] == [own, "stone steps"]
    edit(viewer, own)
    assert viewer.ask("/api/edits").json == {"neuron": {}}
    edit(viewer, None)
    assert viewer.ask("/api/edits").json["neuron"]["2"]["label"] is None


def test_judgements_add_up_field_by_field_and_lie_beside_edits(viewer):
    def judge(change, unit: int = 2) -> Reply:
        return viewer.post("/api/judgements", {"basis": "neuron", "unit": unit, "change": change, "who": "Ada"})

    assert judge({"verdict": "accepted", "star": True}).status == 200
    assert judge({"note": "  two   words ", "collections": ["sky", "sky", "sea"]}).status == 200
    assert judge({"verdict": None}).status == 200 and edit(viewer, "stairs").status == 200
    for bad in ({}, [], {"verdict": "maybe"}, {"star": 1}, {"note": "x" * 501}, {"collections": "sky"}, {"new": "x"}):
        assert judge(bad).status == 400, bad
    assert judge({"star": True}, unit=999).status == 400
    said = viewer.ask("/api/people").json
    assert [row["who"] for row in said] == ["Ada"] * 4
    now = people.merged(said)[("neuron", 2)]
    assert now == {"verdict": None, "star": True, "note": "two words", "collections": ["sky", "sea"], "new": "stairs"}


def test_edits_of_other_units_under_the_same_name_do_not_show(viewer):
    edit(viewer, "stairs")
    path = viewer.folder / "labels_edited.jsonl"
    path.write_text(path.read_text().replace(viewer.run.bases[0].units.name, "neuron-of-another-model"))
    assert viewer.ask("/api/edits").json == {}


def test_edits_at_the_same_time_are_all_kept(viewer):
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda i: edit(viewer, f"word {i}", unit=i % 5), range(40)))
    assert {reply.status for reply in replies} == {200}
    rows = [json.loads(line) for line in (viewer.folder / "labels_edited.jsonl").read_text().splitlines()]
    assert sorted(row["new"] for row in rows) == sorted(f"word {i}" for i in range(40))


def test_a_line_that_a_kill_cut_off_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "a.jsonl"
    store.append(path, {"n": 1})
    path.write_bytes(path.read_bytes() + b'{"n": 2, "te')
    store.append(path, {"n": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"n": 1}, {"n": 3}]


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.none() | st.integers() | st.text(), max_size=2), max_size=4),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"", b" ", b"  \t"]),
    st.integers(0, 60),
)
@settings(max_examples=100, deadline=None)
def test_an_editor_s_last_line_is_kept_and_a_cut_one_is_not(rows, end, space, cut):
    """Lines that somebody typed, with or without an end; then one that a kill cut anywhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(end.join(json.dumps(row, ensure_ascii=False).encode() for row in rows) + space)
        store.append(path, {"new": "é"})
        assert read_jsonl(path) == [*rows, {"new": "é"}]
        path.write_bytes(path.read_bytes() + json.dumps({"text": "é" * 30}, ensure_ascii=False).encode()[:cut])
        store.append(path, {"new": 2})
        assert read_jsonl(path) == [*rows, {"new": "é"}, {"new": 2}]


@pytest.mark.parametrize(
    "change",
    [
        {"basis": "neurons"},
        {"basis": ["neuron"]},
        {"unit": 24},
        {"unit": -1},
        {"unit": "2"},
        {"unit": True},
        {"unit": 2.0},
        {"label": ""},
        {"label": " \n"},
        {"label": "a" * 201},
        {"label": 5},
        {"label": "a\u0000b"},
        {"who": ""},
        {"who": None},
    ],
)
def test_edits_of_nothing_or_by_nobody_are_refused(viewer, change):
    reply = viewer.post("/api/edits", {"basis": "neuron", "unit": 2, "label": "stairs", "who": "Ada"} | change)
    assert reply.status == 400 and "=" in reply.json["error"]
    assert not (viewer.folder / "labels_edited.jsonl").exists()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 60_000, b"\xff\xfe", b'"text"'])
def test_what_is_no_json_object_is_refused(viewer, body):
    assert viewer.post("/api/edits", body).status == 400


# ---- blind rating ----


def test_raters_see_each_item_once_in_their_own_order_and_nothing_of_the_basis(viewer):
    seen = {}
    for rater in ("ada", "bob"):
        seen[rater] = []
        while (answer := viewer.ask(f"/api/rating?rater={rater}").json)["item"]:
            assert set(answer["item"]) == {"code", "label", "images"} and answer["of"] == len(viewer.study.items)
            assert [code for code, _ in answer["past"]] == seen[rater]
            assert answer == viewer.ask(f"/api/rating?rater={rater}").json  # coming back changes nothing
            seen[rater].append(answer["item"]["code"])
            grade = None if len(seen[rater]) == 1 else 1 + len(seen[rater]) % 5
            assert viewer.post("/api/rating", {"rater": rater, "code": seen[rater][-1], "rating": grade}).status == 200
    assert sorted(seen["ada"]) == sorted(seen["bob"]) == sorted(item.code for item in viewer.study.items)
    assert seen["ada"] != seen["bob"]
    answers = store.Ratings(viewer.study, viewer.folder).answers()
    assert {(a.rater, a.code): a.rating for a in answers}[("ada", seen["ada"][0])] is None
    assert {(a.rater, a.code): a.rating for a in answers}[("bob", seen["bob"][2])] == 4


def test_answers_are_changed_and_taken_back_one_by_one(viewer):
    def asked(**query) -> dict:
        return viewer.ask(f"/api/rating?{urlencode({'rater': 'ada', **query})}").json

    def give(code: str, value: int | None) -> None:
        assert viewer.post("/api/rating", {"rater": "ada", "code": code, "rating": value}).status == 200

    codes = [item.code for item in viewer.study.order("ada")]
    give(codes[0], 2), give(codes[1], None), give(codes[0], 5)
    viewer.post("/api/rating", {"rater": "bob", "code": codes[0], "rating": 1})
    assert asked()["past"] == [[codes[0], 5], [codes[1], None]] and asked()["item"]["code"] == codes[2]
    assert asked(code=codes[0])["item"]["code"] == codes[0]
    for code, past in ((codes[0], [[codes[0], 2], [codes[1], None]]), (codes[1], [[codes[0], 2]]), (codes[0], [])):
        assert viewer.post("/api/rating/undo", {"rater": "ada"}).json == {"code": code}
        assert asked()["past"] == past
    reply = viewer.post("/api/rating/undo", {"rater": "ada"})
    assert reply.status == 400 and "no answer to take back" in reply.json["error"]
    assert asked()["item"]["code"] == codes[0] and viewer.ask("/api/rating?rater=ada&code=q").status == 400
    give(codes[0], 4)
    answers = store.Ratings(viewer.study, viewer.folder).answers()
    assert [(a.rater, a.rating) for a in answers] == [("ada", 4), ("bob", 1)]
    assert len((viewer.folder / "ratings.jsonl").read_text().splitlines()) == 8, "nothing is removed"


@pytest.mark.parametrize(
    "change",
    [{"rating": 0}, {"rating": 6}, {"rating": "5"}, {"rating": True}, {"rating": 2.5}, {"code": "?"}, {"rater": ""}],
)
def test_answers_that_are_none_are_refused(viewer, change):
    code = viewer.study.items[0].code
    assert viewer.post("/api/rating", {"rater": "ada", "code": code, "rating": 3} | change).status == 400
    assert not (viewer.folder / "ratings.jsonl").exists()


# ---- who may ask ----


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "evil.example:80", "127.0.0.1@evil.example"]
)
def test_other_names_of_this_machine_are_refused(viewer, host):
    for path in ("/index.html", "/data/run.js", "/api/edits"):
        assert viewer.ask(path, host=host).status in (400, 403)


def test_both_names_of_loopback_are_served(viewer):
    for host in (f"127.0.0.1:{viewer.port}", f"localhost:{viewer.port}"):
        assert viewer.ask("/index.html", host=host).status == 200


@pytest.mark.parametrize(
    "origin",
    [None, "null", "http://evil.example", "http://127.0.0.1", "https://127.0.0.1:{port}", "http://localhost:{port}"],
)
def test_changes_from_other_sites_are_refused(viewer, origin):
    headers = {} if origin is None else {"origin": origin.format(port=viewer.port)}
    for path in ("/api/edits", "/api/rating", "/api/search"):
        assert viewer.ask(path, "POST", b"{}", **headers).status == 403


def test_other_sites_may_link_to_a_page_but_not_load_from_it(viewer):
    assert viewer.ask("/index.html", sec_fetch_site="cross-site", sec_fetch_mode="navigate").status == 200
    for path in ("/data/run.js", "/api/search?text=red", "/thumbs/0/0.webp"):
        assert viewer.ask(path, sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status == 403


@pytest.mark.parametrize(
    "way",
    [
        "../report.json",
        "..%2freport.json",
        "%2e%2e/report.json",
        "../../../fixture.json",
        "..%5creport.json",
        "%2fetc%2fpasswd",
        "/etc/passwd",
        "linked.js",
        "....//report.json",
        "x%00.js",
    ],
)
def test_paths_do_not_lead_out_of_the_reports_folders(viewer, made, way):
    link = made[1] / "data" / "linked.js"
    if not link.is_symlink():
        link.symlink_to(made[0])
    for folder in ("assets", "data", "thumbs", "takeaway", "live"):
        assert viewer.ask(f"/{folder}/{way}").status in (400, 404)


def test_the_server_listens_on_loopback_only():
    with listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_pages_carry_a_policy_that_names_no_other_place(viewer):
    for page in ("index", "units", "unit", "compare", "methods", "search", "rate"):
        reply = viewer.ask(f"/{page}.html")
        rules = dict(rule.strip().split(" ", 1) for rule in reply.headers["content-security-policy"].split(";"))
        assert rules["default-src"] == "'none'" and "unsafe" not in rules["script-src"]
        assert rules["connect-src"] == "'self'" and rules["frame-ancestors"] == "'none'"
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert viewer.ask("/nothing.html").status == 404


def bomb() -> bytes:
    """A PNG of few bytes whose head promises 20,000 x 20,000 pixels."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    head = b"IHDR" + struct.pack(">II", 20_000, 20_000) + file.getvalue()[24:29]
    return file.getvalue()[:12] + head + struct.pack(">I", zlib.crc32(head)) + file.getvalue()[33:]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 415),
        (b"<html><script>alert(1)</script></html>", 415),
        (b"\x80\x04\x95pickle", 415),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 99, 415),
        (b"0" * (32 * 2**20 + 1), 413),
    ],
)
def test_uploads_that_are_no_pictures_or_too_large_are_refused(viewer, body, status):
    reply = viewer.post("/api/search", body)
    assert reply.status == status and reply.json["error"] and viewer.loads == []


def test_a_picture_that_unpacks_to_gigabytes_is_refused_before_a_pixel_is_decoded(viewer, monkeypatch):
    decoded: list[tuple] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.size) or load(image))
    for address in ("/api/search", "/api/what-if"):
        reply = viewer.post(address, bomb())
        assert reply.status == 415 and "megapixels" in reply.json["error"] and decoded == []
    assert not (viewer.folder / "asked").exists()
    viewer.post("/api/search", viewer.run.images.path(0).read_bytes())
    assert decoded, "what is decoded is seen"


def test_only_the_methods_that_are_meant_work(viewer):
    for method in ("PUT", "DELETE", "PATCH"):
        reply = viewer.ask("/api/edits", method, origin=f"http://127.0.0.1:{viewer.port}")
        assert reply.status == 405


def test_a_port_that_is_taken_is_told_in_one_line():
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(UserError, match=f"port={port}"):
            listen(port)
    with pytest.raises(UserError, match="port=70000"):
        listen(70_000)


# ---- in a browser ----


@pytest.fixture
def page(browser, viewer) -> Iterator:
    faults = []
    page = browser.new_page(base_url=f"http://127.0.0.1:{viewer.port}/")
    page.set_default_timeout(PATIENCE)
    page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    home = (f"http://127.0.0.1:{viewer.port}/", "data:", "blob:")
    home += (viewer.folder.parent.as_uri(),)
    page.on("request", lambda r: None if r.url.startswith(home) else faults.append(r.url))
    yield page
    assert faults == []
    page.close()


def opened(page, address: str):
    page.goto(address)
    page.wait_for_selector("main:not([aria-busy])")
    shots = os.environ.get("SAELAB_SHOTS")
    if shots:
        page.screenshot(path=Path(shots) / f"{address.split('.')[0]}.png")


@pytest.mark.browser
def test_every_page_of_the_report_works_when_served(page):
    for name in ("index", "units", "unit", "compare", "methods"):
        opened(page, f"{name}.html")
        assert page.inner_text("main h1")
        assert page.locator(".fault:visible").count() == 0
    opened(page, f"unit.html#{quote(ASKED)}/{UNITS[0]}")
    sheet = page.locator(".sheets img >> nth=0")
    sheet.scroll_into_view_if_needed()
    sheet.evaluate("image => image.decode()")
    assert sheet.evaluate("image => image.naturalWidth") > 200


@pytest.mark.browser
def test_a_changed_label_shows_on_every_page(page, viewer):
    opened(page, "unit.html#neuron/2")
    own = page.inner_text("h1")
    page.click("details.edit summary")
    page.fill("details.edit input[name=label]", "<b>steps</b> & stairs")
    page.fill("details.edit input[name=who]", "Ada")
    page.click("details.edit button >> nth=0")
    page.wait_for_selector(".edited")
    assert page.inner_text("h1") == "<b>steps</b> & stairs" and own in page.inner_text(".edited")
    opened(page, "units.html#basis=neuron&q=stairs")
    (text,) = page.locator(".units td.name").all_inner_texts()
    assert text.splitlines()[0] == "<b>steps</b> & stairs"
    opened(page, "unit.html#neuron/2")
    page.click("details.edit summary")
    page.click("details.edit button:has-text('Back to')")
    page.wait_for_selector(".edited", state="detached")
    assert page.inner_text("h1") == own


@pytest.mark.browser
def test_search_by_words_by_picture_and_by_upload(page, viewer):
    opened(page, "search.html")
    page.fill("input[name=text]", "red flower")
    page.keyboard.press("Enter")
    page.wait_for_selector(".found .near li")
    assert "text=red+flower" in page.url and page.locator(".found").count() == len(viewer.run.bases)
    page.fill("input[name=text]", "kranpitch")
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:has-text('Nothing like “kranpitch”')")
    assert page.locator(".found:visible").count() == 0
    page.click("details.nearest summary")
    assert page.locator(".found:visible").count() == len(viewer.run.bases)
    page.click(".samples a >> nth=1")
    page.wait_for_selector(".found .pair canvas")
    assert page.locator(".found .pair").count() > 0
    page.set_input_files("input[type=file]", viewer.run.images.path(0))
    page.wait_for_selector("h2:has-text('Your picture')")
    page.wait_for_selector(".found .pair")
    page.click(".found .pair a >> nth=0")
    page.wait_for_selector(".crumbs")


GIVE = """([kind, bytes, type]) => {
  const given = new DataTransfer()
  given.items.add(new File([Uint8Array.from(atob(bytes), c => c.charCodeAt(0))], "mine.jpg", { type }))
  const event = kind === "paste"
    ? new ClipboardEvent("paste", { clipboardData: given, bubbles: true, cancelable: true })
    : new DragEvent(kind, { dataTransfer: given, bubbles: true, cancelable: true })
  document.querySelector("main").dispatchEvent(event)
  return event.defaultPrevented
}"""


@pytest.mark.browser
def test_pictures_are_pasted_and_dropped_and_an_address_brings_them_back(page, viewer):
    seen = {}
    for i, kind in enumerate(("paste", "drop")):
        opened(page, "search.html")
        picture = base64.b64encode(viewer.run.images.path(i).read_bytes()).decode()
        if kind == "drop":
            assert page.evaluate(GIVE, ["dragover", picture, "image/jpeg"]), "else the browser leaves for the file"
            assert page.locator("body.dropping").count() == 1
        assert page.evaluate(GIVE, [kind, picture, "image/jpeg"])
        page.wait_for_selector(".found .pair")
        assert "#upload=" in page.url and page.locator("body.dropping").count() == 0
        seen[page.url] = page.locator(".found").all_inner_texts()
    assert len(seen) == 2
    for url, texts in seen.items():
        opened(page, "index.html")
        opened(page, url)
        page.wait_for_selector(".found .pair")
        assert page.locator(".found").all_inner_texts() == texts
    big = "() => live.upload('x', new File([new Uint8Array(33 * 2 ** 20)], 'b.jpg')).catch(error => error.message)"
    assert page.evaluate(big) == "b.jpg has 33 MB; at most 32 MB are read"


@pytest.mark.browser
def test_what_is_refused_stands_by_itself_and_can_be_asked_again(browser, viewer):
    page = browser.new_page(base_url=f"http://127.0.0.1:{viewer.port}/")  # not `page`: refusals are in the console
    page.set_default_timeout(PATIENCE)
    for kind, type_ in (("choose", "image/jpeg"), ("drop", "text/plain"), ("paste", "application/pdf")):
        opened(page, "search.html#image=3")
        page.wait_for_selector(".found .pair")
        words = base64.b64encode(b"no picture").decode()
        if kind == "choose":
            page.set_input_files("input[type=file]", {"name": "a.jpg", "mimeType": type_, "buffer": b"no picture"})
        else:
            assert page.evaluate(GIVE, [kind, words, type_])
        page.wait_for_selector(".fault:has-text('not a readable picture')")
        assert page.locator(".asking").count() == 0, "the picture before stands beside the refusal of this one"
        assert "#" not in page.url and page.input_value("input[type=file]") == ""
        page.evaluate("location.hash = 'image=3'")  # as a click on the same sample does
        page.wait_for_selector(".found .pair")
    held = []
    page.route("**/api/search", lambda route: held.append(route))  # a picture that takes its time
    page.set_input_files("input[type=file]", viewer.run.images.path(0))
    page.fill("input[name=text]", "red flower")
    page.keyboard.press("Enter")
    page.wait_for_selector(".found .near li")
    with page.expect_response("**/api/search"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert "text=red+flower" in page.url and page.locator(".found .near li").count(), "what was asked last stays"
    page.route("**/api/search?*", lambda route: route.abort())
    page.fill("input[name=text]", "blue flower")
    page.keyboard.press("Enter")
    page.wait_for_selector(".fault:has-text('start saelab view again')")
    page.unroute("**/api/search?*")
    page.keyboard.press("Enter")
    page.wait_for_selector(".found .near li")
    page.close()


@pytest.mark.browser
def test_a_click_in_a_photo_asks_what_fires_there(page, viewer):
    opened(page, f"unit.html#neuron/{int(np.argmax((dense(viewer.run, 'neuron') > 0).sum(0)))}")
    photo = page.locator(".pairs .pair > .frame .photo >> nth=0")
    photo.scroll_into_view_if_needed()
    box = photo.bounding_box()
    page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + 0.8 * box["height"])
    page.wait_for_selector("h2:has-text('Units that fire here')")
    x, y = (float(part) for part in page.url.split("at=")[1].replace("%2C", ",").split(","))
    assert (x, y) == (pytest.approx(0.3, abs=0.01), pytest.approx(0.8, abs=0.01))
    assert page.locator(".place .token").count() == 1 and page.locator(".found .pair canvas").count() > 0
    page.focus(".place")
    page.keyboard.press("ArrowUp")  # a token higher; the focus stays
    page.wait_for_function("old => !location.href.includes(old)", arg=f"{y:.4f}")
    page.wait_for_selector("[role=status]:not([aria-busy])")
    assert page.evaluate("() => document.activeElement.className") == "place"
    page.mouse.click(*(page.locator(".place").bounding_box()[side] + 2 for side in ("x", "y")))
    page.wait_for_selector("h2:has-text('Nothing is known here')")  # the crop leaves the corner out
    page.go_back()
    page.wait_for_selector("h2:has-text('Units that fire here')")
    page.focus("button.whole")
    page.keyboard.press("Enter")
    page.wait_for_selector("h2:has-text('Units that the picture fires')")
    assert "at=" not in page.url
    assert page.evaluate("() => document.activeElement.className") == "place", "the button that was pressed is gone"


@pytest.mark.browser
def test_rating_by_keyboard_to_the_end(page, viewer):
    opened(page, "rate.html")
    page.fill("input[name=who]", "ada")
    page.keyboard.press("Enter")
    total = len(viewer.study.items)
    for i in range(total):
        page.wait_for_selector(f".kicker:has-text('{i + 1} of {total}')")
        assert page.locator(".sheet img").count() == STUDY.shown
        page.keyboard.press("x" if i == 0 else "4")
    page.wait_for_selector("h1:has-text('Done')")
    opened(page, "rate.html")  # come back: answers are where they were
    page.keyboard.press("Enter")
    page.wait_for_selector("h1:has-text('Done')")
    for i in (total, total - 1):  # back over the last two answers, and the last of them once more
        page.keyboard.press("b")
        page.wait_for_selector(f".kicker:has-text('{i} of {total}, answered')")
        assert page.inner_text(".grades button[aria-pressed=true]") == "4 well"
    page.keyboard.press("f")
    page.wait_for_selector(f".kicker:has-text('{total} of {total}')")
    page.keyboard.press("5")
    page.wait_for_selector("h1:has-text('Done')")
    page.keyboard.press("b")
    page.wait_for_selector(".grades button[aria-pressed=true]:has-text('5')")
    page.keyboard.press("1")
    page.wait_for_selector("h1:has-text('Done')")
    page.keyboard.press("u")  # what was changed is as it was
    page.wait_for_selector(".grades button[aria-pressed=true]:has-text('5')")
    ratings = [a.rating for a in store.Ratings(viewer.study, viewer.folder).answers()]
    assert sorted(ratings, key=str) == [4] * (total - 2) + [5, None]


@pytest.mark.browser
def test_rating_by_its_buttons_keeps_the_focus_and_wants_a_name(page, viewer):
    opened(page, "rate.html")
    page.fill("input[name=who]", "   ")
    page.keyboard.press("Enter")
    assert page.locator("input[name=who]:invalid").count() == 1
    page.fill("input[name=who]", " eve ")
    page.keyboard.press("Enter")
    page.wait_for_selector(".grades")
    page.focus(".grades button >> nth=2")
    for _ in range(4):
        page.keyboard.down("Enter")  # all but the first are repeats
    page.keyboard.up("Enter")
    page.wait_for_selector(f".kicker:has-text('2 of {len(viewer.study.items)}')")
    focused = "() => document.activeElement.innerText"
    assert page.evaluate(focused) == "3 partly"
    page.focus(".turn button >> nth=0")
    page.keyboard.press("Enter")
    page.wait_for_selector(".kicker:has-text('1 of')")
    assert page.evaluate(focused) == "1 not at all", "Back can go no further: the first that can be pressed"
    assert [(a.rater, a.rating) for a in store.Ratings(viewer.study, viewer.folder).answers()] == [("eve", 3)]


@pytest.mark.browser
def test_a_sheet_filled_in_and_saved_is_read_back(page, viewer, tmp_path):
    study = viewer.study
    sheet = sheets.write(study, viewer.run.images, 1, tmp_path)[0]
    page.goto(sheet.as_uri())
    first, second = study.order("sheet-01")[:2]
    page.check(f"input[name='{first.code}'][value='4']")
    page.check(f"input[name='{second.code}'][value='x']")
    with page.expect_download() as saved:
        page.click("#save")
    returned = tmp_path / "back" / saved.value.suggested_filename
    saved.value.save_as(returned)
    assert sheets.read([returned], study) == [
        rating.Answer("sheet-01", first.code, 4),
        rating.Answer("sheet-01", second.code, None),
    ]
