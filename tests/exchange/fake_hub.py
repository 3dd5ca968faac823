"""A hub on this machine: the parts of the API that uploads and downloads of models use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants, hf_api
from transformers.utils import hub as transformers_hub

TOKEN = "hf_of_me"
READER = "hf_of_a_reader"


@dataclass
class Repo:
    """Commits are whole trees of files; branches name commits."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    requests: int = 0  # pull requests

    def commit(self, branch: str, files: dict[str, bytes], message: str = "") -> str:
        self.messages.append(message)
        name = hashlib.sha1(f"{len(self.messages)} {branch}".encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name

    def find(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]


@dataclass
class FakeHub:
    """What is stored, and what shall go wrong."""

    endpoint: str
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files by SHA-256
    requests: list[str] = field(default_factory=list)
    fail: str = ""  # a pattern of requests that are answered with an error
    race: bool = False  # somebody else commits just before the next commit
    downloads: list[str] = field(default_factory=list)

    def put(self, name: str, files: Mapping[str, bytes | str] | Path) -> Repo:
        """Commit files, or those of a folder, to a repository; the others in it stay."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        content = {n: c.encode() if isinstance(c, str) else c for n, c in files.items()}
        repo = self.repos.setdefault(name, Repo())
        repo.commit("main", {**(repo.files() if repo.branches else {}), **content})
        return repo


@contextmanager
def fake_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[FakeHub]:
    """Serve a hub on 127.0.0.1, and let huggingface_hub use it and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    hub = _Handler.hubs[server.server_port] = FakeHub(endpoint)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    # Objects that are made once for a process, and read ENDPOINT when they are made.
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    monkeypatch.setattr(transformers_hub, "_hf_api", None, raising=False)
    template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hubs: ClassVar[dict[int, FakeHub]] = {}

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one(self) -> None:
        self.hub = self.hubs[self.server.server_port]  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        asked = f"{self.command} {path}"
        self.hub.requests.append(asked)
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if self.hub.fail and re.search(self.hub.fail, asked):
            return self.answer(400, {"error": "the disk of the hub is full"})
        for pattern, method in _ROUTES:
            if match := re.fullmatch(pattern, asked):
                return getattr(self, method)(*match.groups())
        return self.answer(404, {"error": f"no route {asked}"})

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_one

    def answer(self, status: int, data: Any, **headers: str) -> None:
        body = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def writes(self) -> bool:
        """Whether the token may write; otherwise the answer has been given."""
        if self.token == TOKEN:
            return True
        if self.token == READER:
            self.answer(403, {"error": "you have no right to write"})
        else:
            self.answer(
                401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials"
            )
        return False

    def repo(self, name: str) -> Repo | None:
        """A repository that the token may read; otherwise the answer has been given."""
        found = self.hub.repos.get(name)
        if found is None or (found.private and self.token != TOKEN):
            self.answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return found

    def create(self) -> None:
        data = json.loads(self.body)
        name = f"{data.get('organization') or 'me'}/{data['name']}"
        if not self.writes():
            return
        if name in self.hub.repos:
            return self.answer(409, {"error": "exists", "url": f"{self.hub.endpoint}/{name}"})
        private = data.get("private") or data.get("visibility") == "private"
        repo = self.hub.repos[name] = Repo(private=bool(private))
        repo.commit("main", {".gitattributes": b""}, "initial commit")
        self.answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def branch(self, name: str, branch: str) -> None:
        if self.writes() and (repo := self.repo(name)):
            if branch in repo.branches:
                return self.answer(409, {"error": "Reference already exists"})
            repo.branches[branch] = repo.branches["main"]
            self.answer(200, {})

    def info(self, name: str, revision: str | None = None) -> None:
        if not (repo := self.repo(name)):
            return
        commit = repo.find(revision or "main")
        if commit is None:
            return self.answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        files = [{"rfilename": file} for file in sorted(repo.commits[commit])]
        self.answer(200, {"id": name, "modelId": name, "sha": commit, "siblings": files,
                          "private": repo.private, "tags": [], "downloads": 0})  # fmt: skip

    def tree(self, name: str, revision: str) -> None:
        if repo := self.repo(name):
            commit = repo.find(revision)
            files = repo.commits[str(commit)].items()
            self.answer(200, [{"type": "file", "path": n, "size": len(c), "oid": _oid(c)}
                              for n, c in files])  # fmt: skip

    def resolve(self, name: str, revision: str, file: str) -> None:
        if not (repo := self.repo(name)):
            return
        commit = repo.find(revision)
        if commit is None:
            return self.answer(404, {"error": "no revision"}, X_Error_Code="RevisionNotFound")
        content = repo.commits[commit].get(file)
        if content is None:
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": commit}
            return self.answer(404, {"error": "no such file"}, **headers)
        if self.command == "GET":
            self.hub.downloads.append(file)
        headers = {"ETag": f'"{_oid(content)}"', "X_Repo_Commit": commit}
        self.answer(200, content, Content_Length=str(len(content)), **headers)

    def validate(self) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, name: str, _revision: str) -> None:
        if self.writes() and self.repo(name):
            files = [{"path": each["path"], "shouldIgnore": False, "uploadMode":
                      "lfs" if each["path"].endswith((".safetensors", ".png")) else "regular"}
                     for each in json.loads(self.body)["files"]]  # fmt: skip
            self.answer(200, {"files": files})

    def lfs(self, name: str) -> None:
        if self.writes() and self.repo(name):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{each['oid']}"}}}
                for each in json.loads(self.body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.stored[oid] = self.body
        self.answer(200, {})

    def commit(self, name: str, branch: str) -> None:
        if not self.writes() or not (repo := self.repo(name)):
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        if self.hub.race:
            repo.commit(branch, {**repo.files(branch), "other": b""}, "somebody else")
        if header.get("parentCommit") not in (None, repo.branches[branch]):
            return self.answer(412, {"error": "A commit has happened since. Please refresh"})
        files = dict(repo.files(branch))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        request = {}
        if "create_pr=1" in self.path:
            repo.requests += 1
            branch = f"refs/pr/{repo.requests}"
            request = {"pullRequestUrl": f"{self.hub.endpoint}/{name}/discussions/{repo.requests}"}
        commit = repo.commit(branch, files, header["summary"])
        url = f"{self.hub.endpoint}/{name}/commit/{commit}"
        self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url, **request})


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = (
    (r"POST /api/repos/create", "create"),
    (rf"POST /api/models/{_NAME}/branch/(.+)", "branch"),
    (rf"GET /api/models/{_NAME}", "info"),
    (rf"GET /api/models/{_NAME}/revision/(.+)", "info"),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)/?", "tree"),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", "preupload"),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", "lfs"),
    (r"PUT /lfs/(\w+)", "store"),
    (rf"POST /api/models/{_NAME}/commit/(.+)", "commit"),
)
