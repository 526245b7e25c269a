"""A hub on loopback, for the calls of a push and a pull: create_repo, preupload, LFS, commit, tree, resolve."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


class HubServer:
    """One user with one right: to write to repositories of `owner`.

    `cut`: hang up at the next so many requests whose path holds this word ({"commit": 1}). `files`: what the branch
    main of each repository holds; `commits`: [files added] of each commit; `sent`: bytes that arrived by LFS.
    """

    def __init__(self, owner: str = "org", token: str = "hf_right") -> None:
        self.owner, self.token = owner, token
        self.cut: dict[str, int] = {}
        self.broken = False  # refuse whatever is asked, and repeat the token
        self.cut_after = False  # hang up once the work is done: the answer is lost, not the request
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, list[list[str]]] = {}
        self.stored: dict[str, bytes] = {}
        self.sent = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.handle(self, unquote(urlsplit(self.path).path), body)

            do_GET = do_HEAD = do_POST = do_PUT = _answer

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def handle(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        """Route one request."""
        word = next((word for word, left in self.cut.items() if left and word in path), None)
        if word is not None:
            self.cut[word] -= 1
            if self.cut_after:
                self._route(request.command, path, body, request)
            request.close_connection = True
            return request.connection.close()
        status, content, headers = self._route(request.command, path, body, request)
        request.send_response(status)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
        return None

    def _route(
        self, method: str, path: str, body: bytes, request: BaseHTTPRequestHandler
    ) -> tuple[int, Any, dict[str, str]]:
        parts = path.strip("/").split("/")
        if method == "PUT" and parts[0] == "lfs":  # a signed address: no token
            if oid(body, "lfs") != parts[1]:  # cut off on its way
                return 400, {"error": "Checksum mismatch"}, {}
            self.stored[parts[1]], self.sent = body, self.sent + len(body)
            return 200, b"", {}
        if request.headers["Authorization"] not in (f"Bearer {self.token}", None):
            return 401, {"error": f"Invalid credentials: {request.headers['Authorization']}"}, {}
        if self.broken:
            return 400, {"error": f"Bad request by {request.headers['Authorization']}"}, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        repo = "/".join(parts[2:4]) if parts[0] == "api" else "/".join(parts[:2])
        if repo not in self.files:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if parts[0] != "api":
            return self._resolve(repo, "/".join(parts[4:]))
        answers = {
            "": self._info,
            "preupload": self._preupload,
            "commit": self._commit,
            "revision": self._info,
            "tree": self._tree,
        }
        return answers["".join(parts[4:5])](repo, body)

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        if asked["organization"] != self.owner:
            return 403, {"error": f"You don't have the rights to create a model under {asked['organization']}"}, {}
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.files:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repo}"}, {}
        self.files[repo], self.commits[repo] = {}, []
        self.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return 200, {"url": f"{self.url}/{repo}"}, {}

    def _preupload(self, repo: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        def answer(file: dict[str, Any]) -> dict[str, Any]:
            mode = "lfs" if file["path"].endswith(".safetensors") else "regular"
            there = self.files[repo].get(file["path"])
            known = {} if there is None else {"oid": oid(there, mode)}
            return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False} | known

        return 200, {"files": [answer(file) for file in json.loads(body)["files"]]}, {}

    def _batch(self, asked: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        def answer(wanted: dict[str, Any]) -> dict[str, Any]:
            action = {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}", "header": {}}}
            return wanted | ({} if wanted["oid"] in self.stored else {"actions": action})

        return 200, {"transfer": "basic", "objects": [answer(wanted) for wanted in asked["objects"]]}, {}

    def _commit(self, repo: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        lines = [json.loads(line) for line in body.splitlines()]
        added = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.stored[value["oid"]]
        self.files[repo] |= added
        self.commits[repo].append(sorted(added))
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{self.head(repo)}", "commitOid": self.head(repo)}, {}

    def head(self, repo: str) -> str:
        """The hash of the last commit."""
        return hashlib.sha1(json.dumps(self.commits[repo]).encode()).hexdigest()

    def _info(self, repo: str, _: bytes) -> tuple[int, Any, dict[str, str]]:
        siblings = [{"rfilename": name} for name in self.files[repo]]
        return (
            200,
            {"id": repo, "sha": self.head(repo), "siblings": siblings, "private": self.private[repo], "tags": []},
            {},
        )

    def _tree(self, repo: str, _: bytes) -> tuple[int, Any, dict[str, str]]:
        rows = [
            {"type": "file", "path": name, "size": len(data), "oid": oid(data, "regular")}
            for name, data in self.files[repo].items()
        ]
        return 200, rows, {}

    def _resolve(self, repo: str, name: str) -> tuple[int, Any, dict[str, str]]:
        data = self.files[repo].get(name)
        if data is None:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        return 200, data, {"ETag": f'"{oid(data, "regular")}"', "X-Repo-Commit": self.head(repo)}


@contextmanager
def in_place_of_the_hub(cache: Path) -> Iterator[HubServer]:
    """A hub that the client believes to be the real one; `cache`: where it keeps what it fetches."""
    import pytest
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch, HubServer() as server:
        patch.setenv("HF_TOKEN", server.token)
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        own = {"ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(cache)}
        for name, value in (own | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
            patch.setattr(constants, name, value)
        yield server


def oid(data: bytes, mode: str) -> str:
    """The hash by which the hub knows a file: git's of a blob, or SHA-256."""
    return (
        hashlib.sha256(data).hexdigest() if mode == "lfs" else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )
