"""The live viewer's addresses: pages and files of the report, search, label edits, ratings."""

import base64
import io
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from saelab.errors import UserError
from saelab.images.decode import decode
from saelab.report.live import guard, pages, refusals
from saelab.report.live.rating import Study
from saelab.report.live.search import Place, Search
from saelab.report.live.store import Edits, Judgements, Ratings, line, shown
from saelab.report.live.uploads import Uploads
from saelab.report.live.what_if import WhatIf

UPLOAD = 32 * 2**20  # bytes of a picture at most
QUESTION = 64 * 2**10  # bytes of any other body
WORDS = 300  # characters of a search at most
TOP = 8  # units shown of each basis
PREVIEW = 512  # longer side of a searched picture on its page
FOLDERS = ("assets", "data", "thumbs", "sheets", "takeaway")  # of the report; nothing else is served


def application(report: Path, search: Search, study: Study, folder: Path) -> Starlette:
    """The viewer of the report in `report`; what people say is kept in `folder`."""
    said = Edits(search.run, folder), Judgements(search.run, folder), Ratings(study, folder)
    viewer = Viewer(search, *said, Uploads(folder / "asked"))
    routes: list[Route | Mount] = [
        Route("/", lambda request: RedirectResponse("index.html")),
        Route("/{page}.html", viewer.page),
        Route("/api/edits", viewer.edits),
        Route("/api/edits", viewer.edit, methods=["POST"]),
        Route("/api/people", viewer.said),
        Route("/api/judgements", viewer.judge, methods=["POST"]),
        Route("/api/search", viewer.find),
        Route("/api/search", viewer.find_upload, methods=["POST"]),
        Route("/api/what-if", viewer.what_if),
        Route("/api/what-if", viewer.what_if_upload, methods=["POST"]),
        Route("/api/rating", viewer.question),
        Route("/api/rating", viewer.rate, methods=["POST"]),
        Route("/api/rating/undo", viewer.undo, methods=["POST"]),
        Mount("/live", StaticFiles(directory=str(files("saelab.report") / "static" / "live"))),
    ]
    routes += [Mount(f"/{name}", StaticFiles(directory=report / name)) for name in FOLDERS if (report / name).is_dir()]
    return Starlette(routes=routes, middleware=[Middleware(guard.Guard)], exception_handlers=refusals.HANDLERS)


class Viewer:
    """Answers of one run's viewer."""

    def __init__(
        self, search: Search, edits: Edits, judgements: Judgements, ratings: Ratings, uploads: Uploads
    ) -> None:
        self.search, self.labels, self.judgements, self.ratings = search, edits, judgements, ratings
        self.uploads = uploads
        self.changes = WhatIf(search)
        self.pages = pages.render(search.run)

    async def page(self, request: Request) -> Response:
        """A page of the report, or one that only the live viewer has."""
        text = self.pages.get(request.path_params["page"])
        if text is None:
            raise HTTPException(404, "there is no such page")
        return HTMLResponse(text, headers={"content-security-policy": guard.policy(text)})

    async def edits(self, request: Request) -> Response:
        """Labels that people changed: basis -> unit -> what it is now, and who made it so."""
        return JSONResponse(await run_in_threadpool(self.labels.current))

    async def edit(self, request: Request) -> Response:
        """Change a label: `{"basis", "unit", "label", "who"}`."""
        given = await _json(request, "basis", "unit", "label", "who")
        return JSONResponse(await run_in_threadpool(self.labels.edit, *given))

    async def said(self, request: Request) -> Response:
        """What people said of units, line by line, oldest first."""
        return JSONResponse(await run_in_threadpool(self.judgements.said))

    async def judge(self, request: Request) -> Response:
        """Keep a verdict, star, note or collections: `{"basis", "unit", "change", "who"}`."""
        given = await _json(request, "basis", "unit", "change", "who")
        return JSONResponse(await run_in_threadpool(self.judgements.add, *given))

    async def find(self, request: Request) -> Response:
        """Units for words, `?text=`, or for a picture: of the run, `?image=`, or an upload kept before, `?upload=`.

        With a picture, `at=x,y` asks for one place in it, in shares of its centre square.
        """
        given = request.query_params
        if "text" in given:
            text = given["text"].strip()
            if not 0 < len(text) <= WORDS:
                raise UserError("text", shown(text), f"expected 1 to {WORDS} characters", "ask in a few words")
            return JSONResponse(await run_in_threadpool(self.search.by_text, text, TOP))
        place, (load, said) = _place(given.get("at")), self._asked(given)
        return await run_in_threadpool(self._answer, load, place, said)

    async def find_upload(self, request: Request) -> Response:
        """Units for the picture that is the request's body; it is kept, and `upload` names it from now on."""
        data = await guard.body(request, UPLOAD)

        def answer() -> Response:
            picture = decode(data, self.search.run.images.square)
            return self._answer(lambda: picture, None, {"upload": self.uploads.add(data)})

        return await run_in_threadpool(answer)

    async def what_if(self, request: Request) -> Response:
        """What the host says of a picture, `?image=` or `?upload=`; changed, with `basis`, `unit` and `strength`."""
        given = dict(request.query_params)
        load, _ = self._asked(given)
        change = {key: value for key, value in given.items() if key not in ("image", "upload")}
        return JSONResponse(await run_in_threadpool(lambda: self._outputs(load(), change)))

    async def what_if_upload(self, request: Request) -> Response:
        """The same for the picture that is the body; it is kept, and `upload` names it from now on."""
        data, change = await guard.body(request, UPLOAD), dict(request.query_params)

        def answer() -> dict[str, Any]:
            picture = decode(data, self.search.run.images.square)
            return self._outputs(picture, change) | {"upload": self.uploads.add(data)}

        return JSONResponse(await run_in_threadpool(answer))

    async def question(self, request: Request) -> Response:
        """The next item for `?rater=`, or the one named `&code=`, without a word on where it comes from.

        `{"item": {"code", "label", "images"}, "past", "of"}`; `past`: `[code, rating]` of what the rater answered.
        """
        rater, code = line("name", request.query_params.get("rater")), request.query_params.get("code")
        past = {a.code: a.rating for a in await run_in_threadpool(self.ratings.answers) if a.rater == rater}
        order = self.ratings.study.order(rater)
        asked = [item for item in order if (item.code == code if code is not None else item.code not in past)]
        if code is not None and not asked:
            raise UserError("code", shown(code), "is no item of this study", "load the page again")
        item = {"code": asked[0].code, "label": asked[0].label, "images": asked[0].images} if asked else None
        return JSONResponse({"item": item, "past": list(past.items()), "of": len(order)})

    async def rate(self, request: Request) -> Response:
        """Keep an answer: `{"rater", "code", "rating"}`."""
        given = await _json(request, "rater", "code", "rating")
        await run_in_threadpool(self.ratings.add, *given)
        return JSONResponse({"kept": True})

    async def undo(self, request: Request) -> Response:
        """Take back the last answer of `{"rater"}`: `{"code"}` of its item."""
        given = await _json(request, "rater")
        return JSONResponse({"code": await run_in_threadpool(self.ratings.undo, *given)})

    def _asked(self, given: Mapping[str, str]) -> tuple[Callable[[], Image.Image], dict[str, Any]]:
        """What loads the picture that an address names, and what people wrote of it, where it is the run's."""
        images = self.search.run.images
        if "upload" in given:
            return lambda: decode(self.uploads.read(given["upload"]), images.square), {}
        image = given.get("image", "")
        if not re.fullmatch("[0-9]{1,12}", image) or int(image) >= len(images):
            raise UserError("image", shown(image), "is no image of this run", f"use 0 to {len(images) - 1}")
        i = int(image)
        said = {"said": images.captions[i] or ", ".join(images.classes[i]) or None, "file": images.files[i]}
        return lambda: images.load(i), said

    def _outputs(self, picture: Image.Image, change: Mapping[str, str]) -> dict[str, Any]:
        if change:
            return self.changes.changed(picture, change)
        return self.changes.outputs(picture) | {"picture": _preview(picture)}

    def _answer(self, load: Callable[[], Image.Image], place: Place | None, more: dict[str, Any]) -> Response:
        picture = load()
        found = self.search.by_picture(picture, TOP, place)
        return JSONResponse({"found": found, "picture": _preview(picture)} | more)


def _place(text: str | None) -> Place | None:
    """`x,y`, each from 0 to 1. Raises UserError for anything else."""
    if text is None:
        return None
    found = re.fullmatch(r"([01](?:\.[0-9]{1,9})?),([01](?:\.[0-9]{1,9})?)", text)
    x, y = (float(found[1]), float(found[2])) if found else (2.0, 2.0)
    if x > 1 or y > 1:
        raise UserError("at", shown(text), "is no place in a picture", "give x,y, each from 0 (left, top) to 1")
    return x, y


def _preview(picture: Image.Image) -> str:
    """A small copy as a data address."""
    small, file = picture.copy(), io.BytesIO()
    small.thumbnail((PREVIEW, PREVIEW))
    small.save(file, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


async def _json(request: Request, *keys: str) -> list[Any]:
    """The values of `keys` in the request's JSON object; null is a value, a missing key is a mistake."""
    found = guard.json_object(await guard.body(request, QUESTION))
    missing = [key for key in keys if key not in found]
    if missing:
        raise HTTPException(400, f"the object lacks {', '.join(missing)}")
    return [found[key] for key in keys]
