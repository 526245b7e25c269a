"""The viewer answers whatever is asked: a page, a 4xx in one line, never a raw 500; and it serves nothing else."""

import asyncio
import html
import json
import re
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_fixture import MINING, write_run
from test_view import STUDY, clear

from saelab.errors import UserError
from saelab.report import reading
from saelab.report.build import _pages
from saelab.report.live import Models, Search, application, pages, rating, sheets, store
from saelab.report.live.app import FOLDERS

CALM = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
SECRET = "what nobody may read"
OTHERS = (
    "secret.txt",
    "private/a.txt",
    "private/b.txt",
    ".hidden/c.txt",
    "labels_edited.jsonl",
)
MARKUP = '<img src=x onerror="alert(1)">'


def no_model():
    raise UserError("host", "none", "there is none here")


NO_MODELS = Models(no_model, no_model, no_model, MINING, "pearson", "all", "max")


class Viewer:
    """The application, asked without a network."""

    def __init__(self, run: reading.Run, report, folder) -> None:
        self.run, self.folder, self.study = run, folder, rating.draw(run, STUDY)
        self.app = application(report, Search(run, NO_MODELS), self.study, folder)

    def ask(self, path: str, method: str = "GET", body: bytes = b"", query: bytes = b"", **headers: bytes):
        """(status, body) of one request; headers as given beside our own page's."""
        own = {"host": b"127.0.0.1:1", "origin": b"http://127.0.0.1:1"} | headers
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode("utf-8", "replace")}
        scope |= {"query_string": query, "root_path": "", "scheme": "http", "server": ("127.0.0.1", 1)}
        scope |= {"headers": [(k.encode(), v) for k, v in own.items()], "http_version": "1.1", "extensions": {}}
        sent: list[dict] = []
        received: list[bool] = []

        async def receive():
            if received:
                await asyncio.Event().wait()  # nobody hangs up: cancelled once the answer is sent
            received.append(True)
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message):
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)

    def post(self, path: str, value: object):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask(path, "POST", body)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory) -> Viewer:
    folder = tmp_path_factory.mktemp("hostile")
    file = write_run(folder)
    report = folder / "runs" / "report" / "fixture"  # as a built one, with a file in each folder that is served
    for name in FOLDERS:
        (report / name).mkdir(parents=True)
        (report / name / "a.js").write_text("saelab")
    for place in OTHERS:
        (report / place).parent.mkdir(exist_ok=True)
        (report / place).write_text(SECRET)
    return Viewer(clear(reading.read(file)), report, folder / "said")


def one_line(reply: tuple[int, bytes]) -> bool:
    status, body = reply
    return status == 200 or (400 <= status < 500 and body.decode().strip().count("\n") == 0)


@CALM
@given(host=st.binary(max_size=30).filter(lambda b: b not in (b"127.0.0.1", b"localhost")))
def test_any_host_header_is_answered(viewer, host):
    assert viewer.ask("/index.html", host=host)[0] in (200, 400, 403)


@pytest.mark.parametrize("host", [b"[", b"[::1", b"]", b"127.0.0.1]", b"[127.0.0.1", b"\xff"])
def test_what_is_no_host_is_refused_in_one_line(viewer, host):
    status, body = viewer.ask("/index.html", host=host)
    assert status in (400, 403) and body.count(b"\n") == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@CALM
@given(st.data())
def test_any_json_is_answered_in_one_line_and_only_the_right_one_is_kept(viewer, data):
    for path, right in (
        ("/api/edits", {"basis": "neuron", "unit": 2, "label": "stairs", "who": "Ada"}),
        ("/api/judgements", {"basis": "neuron", "unit": 2, "change": {"verdict": "accepted"}, "who": "Ada"}),
        ("/api/rating", {"rater": "ada", "code": viewer.study.items[0].code, "rating": 3}),
    ):
        key = data.draw(st.sampled_from(sorted(right)))
        asked = right | {key: data.draw(JSON)}
        assert one_line(viewer.post(path, asked)), asked
        del asked[key]
        assert viewer.post(path, asked)[0] == 400  # a missing rating is not "can't say", a missing label not "none"
    assert all(one_line(viewer.ask(path)) for path in ("/api/edits", "/api/people"))
    assert one_line(viewer.ask("/api/rating", query=b"rater=ada"))


@CALM
@given(st.binary(max_size=60))
def test_any_body_is_answered(viewer, body):
    for path in ("/api/edits", "/api/judgements", "/api/rating", "/api/search"):
        assert 400 <= viewer.post(path, body)[0] < 500


@CALM
@given(st.text(max_size=30), st.binary(max_size=30))
def test_any_address_is_answered(viewer, path, query):
    for prefix in ("/", "/data/", "/live/", "/thumbs/", "/api/"):
        assert one_line(viewer.ask(prefix + path)) or viewer.ask(prefix + path)[0] in (301, 302, 307)
    assert one_line(viewer.ask("/api/rating", query=b"rater=" + query))
    assert one_line(viewer.ask("/api/search", query=b"image=" + query.replace(b"&", b"")))


@pytest.mark.parametrize("image", ["1" * 5000, "-1", "1e3", "٣", "", "999999999999", "\ud800"])
def test_images_that_are_none_are_refused(viewer, image):
    assert viewer.ask("/api/search", query=b"image=" + image.encode("utf-8", "surrogatepass"))[0] == 400


def test_the_old_label_of_an_edit_is_what_the_edit_before_wrote_whoever_else_writes(viewer, tmp_path):
    edits = store.Edits(viewer.run, tmp_path)
    first = edits.bases["neuron"].labels[3]["label"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: edits.edit("neuron", 3, f"label {i}", "Ada"), range(40)))
    rows = [json.loads(text) for text in (tmp_path / "labels_edited.jsonl").read_text().splitlines()]
    assert [row["old"] for row in rows] == [first, *(row["new"] for row in rows[:-1])]


def test_lines_that_somebody_wrote_into_the_files_are_passed_over(viewer, tmp_path):
    edits, ratings = store.Edits(viewer.run, tmp_path), store.Ratings(viewer.study, tmp_path)
    edits.edit("neuron", 1, "stairs", "Ada")
    row = json.loads(edits.path.read_text())
    odd = [[], 3, {}, row | {"unit": 10**30}, row | {"unit": "1"}, row | {"basis": []}, row | {"new": 7}]
    with edits.path.open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in odd)
    assert list(edits.current()["neuron"]) == [1]
    ratings.add("ada", viewer.study.items[0].code, 4)
    row = json.loads(ratings.path.read_text())
    with ratings.path.open("a") as file:
        file.writelines(json.dumps(each) + "\n" for each in [*odd, row | {"rating": 9}, row | {"rater": None}])
    assert [answer.rating for answer in ratings.answers()] == [4]


def test_only_the_folders_that_are_meant_are_served(viewer):
    asked = ["/secret.txt", "/private/a.txt", "/private/b.txt", "/.hidden/c.txt", "/labels_edited.jsonl"]
    asked += ["/data/../private/a.txt", "/data/..%2fprivate/a.txt", "/thumbs/../secret.txt", "//private/a.txt"]
    for path in asked:
        status, body = viewer.ask(path)
        assert status in (404, 405) and SECRET.encode() not in body, path
    assert all(viewer.ask(f"/{name}/a.js") == (200, b"saelab") for name in FOLDERS)


def test_markup_in_the_run_s_name_is_text_on_pages_that_open_from_disk(tmp_path):
    _pages(SimpleNamespace(facts={"name": MARKUP}, comparisons=[]), tmp_path)
    pages_on_disk = [page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")]
    assert pages_on_disk
    for text in pages_on_disk:
        assert MARKUP not in text and html.escape(MARKUP, quote=False).split("=")[0] in text


def test_markup_in_labels_credits_and_names_is_text_on_sheets_and_pages(viewer, tmp_path):
    import dataclasses

    item = dataclasses.replace(viewer.study.items[0], label=MARKUP)
    study = dataclasses.replace(viewer.study, items=(item, *viewer.study.items[1:]))
    images = dataclasses.replace(viewer.run.images, credit=MARKUP)
    (sheet,) = sheets.write(study, images, 1, tmp_path)
    run = dataclasses.replace(viewer.run, facts=viewer.run.facts | {"name": MARKUP})
    for text in (sheet.read_text(encoding="utf-8"), *pages.render(run).values()):
        assert MARKUP not in text and html.escape(MARKUP, quote=False).split("=")[0] in text
        assert not re.search(r"<img[^>]*onerror", text)
