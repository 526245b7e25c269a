"""The live viewer's addresses: pages and files of the report, search, label edits, ratings."""

import base64
import io
import re
from collections.abc import Callable
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
from saelab.images.decode import Unreadable, decode
from saelab.report.live import guard, pages, refusals
from saelab.report.live.rating import Study
from saelab.report.live.search import Search
from saelab.report.live.store import Edits, Judgements, Ratings, line, shown
from saelab.report.live.what_if import WhatIf

UPLOAD = 32 * 2**20  # bytes of a picture at most
QUESTION = 64 * 2**10  # bytes of any other body
WORDS = 300  # characters of a search at most
TOP = 8  # units shown of each basis
PREVIEW = 512  # longer side of a searched picture on its page
FOLDERS = ("assets", "data", "thumbs", "sheets", "takeaway")  # of the report; nothing else is served


def application(report: Path, search: Search, study: Study, folder: Path) -> Starlette:
    """The viewer of the report in `report`; what people say is kept in `folder`."""
    viewer = Viewer(search, Edits(search.run, folder), Judgements(search.run, folder), Ratings(study, folder))
    routes: list[Route | Mount] = [
        Route("/", lambda request: RedirectResponse("index.html")),
        Route("/{page}.html", viewer.page),
        Route("/api/edits", viewer.edits),
        Route("/api/edits", viewer.edit, methods=["POST"]),
        Route("/api/people", viewer.said),
        Route("/api/judgements", viewer.judge, methods=["POST"]),
        Route("/api/search", viewer.find),
        Route("/api/search", viewer.find_upload, methods=["POST"]),
        Route("/api/what-if", viewer.what_if, methods=["POST"]),
        Route("/api/rating", viewer.question),
        Route("/api/rating", viewer.rate, methods=["POST"]),
        Mount("/live", StaticFiles(directory=str(files("saelab.report") / "static" / "live"))),
    ]
    routes += [Mount(f"/{name}", StaticFiles(directory=report / name)) for name in FOLDERS if (report / name).is_dir()]
    return Starlette(routes=routes, middleware=[Middleware(guard.Guard)], exception_handlers=refusals.HANDLERS)


class Viewer:
    """Answers of one run's viewer."""

    def __init__(self, search: Search, edits: Edits, judgements: Judgements, ratings: Ratings) -> None:
        self.search, self.labels, self.judgements, self.ratings = search, edits, judgements, ratings
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
        """Units for words, `?text=`, or for a picture of the run, `?image=`."""
        text, image = request.query_params.get("text"), request.query_params.get("image")
        if text is not None:
            if not 0 < len(text.strip()) <= WORDS:
                raise UserError("text", shown(text), f"expected 1 to {WORDS} characters", "ask in a few words")
            return JSONResponse({"found": await run_in_threadpool(self.search.by_text, text.strip(), TOP)})
        images = self.search.run.images
        if image is None or not re.fullmatch("[0-9]{1,12}", image) or int(image) >= len(images):
            raise UserError("image", shown(image), "is no image of this run", f"use 0 to {len(images) - 1}")
        return await run_in_threadpool(self._answer, lambda: images.load(int(image)))

    async def find_upload(self, request: Request) -> Response:
        """Units for the picture that is the request's body."""
        data = await guard.body(request, UPLOAD)
        return await run_in_threadpool(self._answer, lambda: decode(data, self.search.run.images.square))

    async def what_if(self, request: Request) -> Response:
        """What the host says of the picture that is the body; with `?basis=`, `unit=`, `strength=`: with it changed."""
        data, given = await guard.body(request, UPLOAD), dict(request.query_params)

        def answer() -> dict[str, Any]:
            if given:
                return self.changes.changed(data, given)
            picture, found = self.changes.outputs(data)
            return found | {"picture": _preview(picture)}

        try:
            return JSONResponse(await run_in_threadpool(answer))
        except Unreadable as error:
            raise HTTPException(415, f"not a readable picture: {error}") from None

    async def question(self, request: Request) -> Response:
        """The next item for `?rater=`, without a word on where it comes from."""
        rater = line("name", request.query_params.get("rater"))
        answered = {a.code for a in await run_in_threadpool(self.ratings.answers) if a.rater == rater}
        left = [item for item in self.ratings.study.order(rater) if item.code not in answered]
        item = {"code": left[0].code, "label": left[0].label, "images": left[0].images} if left else None
        return JSONResponse({"item": item, "done": len(answered), "of": len(answered) + len(left)})

    async def rate(self, request: Request) -> Response:
        """Keep an answer: `{"rater", "code", "rating"}`."""
        given = await _json(request, "rater", "code", "rating")
        await run_in_threadpool(self.ratings.add, *given)
        return JSONResponse({"kept": True})

    def _answer(self, load: Callable[[], Image.Image]) -> Response:
        try:
            picture = load()
        except Unreadable as error:
            raise HTTPException(415, f"not a readable picture: {error}") from None
        found = self.search.by_picture(picture, TOP)
        return JSONResponse({"found": found, "picture": _preview(picture)})


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
