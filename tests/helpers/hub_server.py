"""A server on this machine that answers as Hugging Face's hub does: data sets, models, uploads."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pytest

_KINDS = {"datasets": "dataset", "models": "model", "spaces": "space"}


@dataclass
class Repo:
    """A repository: files of each revision, after their commit."""

    private: bool = False
    sdk: str | None = None
    revisions: dict[str, tuple[str, dict[str, bytes]]] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, bytes]:
        return self.revisions["main"][1]


class Hub(http.server.ThreadingHTTPServer):
    """Repositories by kind and name, what is refused, and what was asked and sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repos: dict[tuple[str, str], Repo] = {}
        self.refused: dict[str, tuple[int, dict[str, str]]] = {}
        self.asked: list[str] = []
        self.posted: list[str] = []
        self.received = b""  # all that was sent, headers but for the token, which is meant to be
        self.uploads: dict[str, bytes] = {}
        self.bad_cards = ""  # what the hub has against any card
        self.sizes: dict[str, int] = {}  # said of a file, in place of its own

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(
        self,
        revision: str,
        commit: str,
        files: dict[str, bytes],
        *,
        kind: str = "dataset",
        name: str = "me/bees",
        private: bool = False,
    ) -> Repo:
        repo = self.repos.setdefault((kind, name), Repo(private))
        for each in (revision, commit):
            repo.revisions[each] = commit, files
        return repo


class _Answers(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self._body = b""
        path = self._path()
        if not self._is_refused(path):
            self._get(path)

    def do_POST(self):
        self._body = self._read()
        path = self._path()
        self.server.posted.append(path)
        if not self._is_refused(path):
            self._post(path)

    def do_PUT(self):
        self.server.uploads[self._path().rpartition("/")[2]] = self._read()
        self._answer(200, b"")

    def _path(self) -> str:
        path = unquote(self.path.partition("?")[0])
        self.server.asked.append(path)
        return path

    def _read(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        shown = [f"{name}: {value}" for name, value in self.headers.items()]
        hidden = [line for line in shown if not line.lower().startswith(("authorization", "host"))]
        self.server.received += "\n".join([self.path, *hidden, ""]).encode() + body
        return body

    def _is_refused(self, path: str) -> bool:
        for name, (status, headers) in self.server.refused.items():
            if name in path:
                self._answer(status, b"", headers)
                return True
        return False

    def _get(self, path: str) -> None:
        for (kind, name), repo in self.server.repos.items():
            at = f"{kind}s/{name}"
            web = f"/{name}" if kind == "model" else f"/{at}"
            for revision, (commit, files) in repo.revisions.items():
                if path in (f"/api/{at}/revision/{revision}", f"/api/{at}") and (
                    revision == "main" or "/revision/" in path
                ):
                    return self._json(self._info(name, repo, commit, files))
                for file, content in files.items():
                    if path == f"{web}/resolve/{revision}/{file}":
                        etag = f'"{hashlib.sha256(content).hexdigest()}"'
                        headers = {"X-Repo-Commit": commit, "ETag": etag}
                        return self._answer(200, content, headers)
            if path.startswith((f"/api/{at}/", f"{web}/resolve/")):
                return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    def _info(self, name: str, repo: Repo, commit: str, files: dict[str, bytes]) -> dict:
        sizes = {each: len(content) for each, content in files.items()} | self.server.sizes
        siblings = [{"rfilename": each, "size": sizes[each], "blobId": "0" * 40} for each in files]
        info = {"id": name, "sha": commit, "siblings": siblings, "private": repo.private}
        return info | {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "sdk": repo.sdk}

    def _post(self, path: str) -> None:
        if path == "/api/validate-yaml":
            if bad := self.server.bad_cards:
                return self._json({"errors": [{"message": bad}], "warnings": []}, 400)
            return self._json({"errors": [], "warnings": []})
        asked = json.loads(self._body) if "/commit/" not in path else {}
        if path == "/api/repos/create":
            name = f"{asked['organization']}/{asked['name']}"
            key = asked.get("type", "model"), name
            if key in self.server.repos:
                return self._json({"error": "exists"}, 409)
            private = asked.get("visibility") == "private" or asked.get("private") is True
            empty = ("0" * 40, {".gitattributes": b"*.onnx filter=lfs"})
            self.server.repos[key] = Repo(private, asked.get("sdk"), {"main": empty})
            return self._json({"url": f"{self.server.url}/{name}", "name": name, "id": name})
        if "/preupload/" in path:
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".onnx", ".wasm")) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in asked["files"]
            ]
            return self._json({"files": modes})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                each
                | {
                    "authenticated": True,
                    "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}},
                }
                for each in asked["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        _, _, kinds, user, name, _, _ = path.split("/")
        return self._commit(kinds, f"{user}/{name}")

    def _commit(self, kinds: str, name: str) -> None:
        """Take the lines of a commit: a header, and files by their content or their digest."""
        repo = self.server.repos[_KINDS[kinds], name]
        files = dict(repo.files)
        for line in self._body.splitlines():
            each = json.loads(line)
            value = each["value"]
            if each["key"] == "file":
                content = base64.b64decode(value["content"])
                self.server.received += content
            elif each["key"] == "lfsFile":
                content = self.server.uploads[value["oid"]]
            else:
                continue
            files[value["path"]] = content
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        repo.revisions["main"] = repo.revisions[commit] = commit, files
        place = f"{self.server.url}/{'' if kinds == 'models' else f'{kinds}/'}{name}"
        self._json({"commitUrl": f"{place}/commit/{commit}", "commitOid": commit})

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def hub_on_this_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """Yield a hub that ``huggingface_hub`` asks, with a cache and a home of its own."""
    from huggingface_hub import constants

    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # it needs a store of its own
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield server
        server.shutdown()
