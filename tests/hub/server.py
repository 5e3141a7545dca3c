"""A Hub on loopback: answers huggingface_hub's client as the Hub does, keeps commits in memory, and fails when asked.

Paths, bodies and headers are those that the client reads and writes: ``hf_api.py``, ``_commit_api.py``, ``lfs.py`` and
``file_download.py`` of huggingface_hub. Large files go through Git LFS to a storage under another host name, which, as
the real one, refuses requests that bring a token along. Only the standard library is needed, so it can listen before
any other library reads ``HF_ENDPOINT``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_FILES = (".safetensors", ".bin", ".pt", ".pth", ".model")
CUT = "cut"  # a fault: the connection ends without an answer

_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_API, _REVISION = f"/api/models/{_REPO}", "(?P<revision>[^/]+)"
# Each step: its method, its path, and what access to the repository it needs.
_STEPS: dict[str, tuple[str, str, str]] = {
    "whoami": ("GET", "/api/whoami-v2", "account"),
    "create": ("POST", "/api/repos/create", "account"),
    "validate": ("POST", "/api/validate-yaml", "none"),
    "preupload": ("POST", f"{_API}/preupload/{_REVISION}", "write"),
    "batch": ("POST", f"/{_REPO}.git/info/lfs/objects/batch", "write"),
    "put": ("PUT", "/storage/(?P<oid>[0-9a-f]{64})", "none"),
    "verify": ("POST", f"/{_REPO}.git/info/lfs/verify", "write"),
    "commit": ("POST", f"{_API}/commit/{_REVISION}", "write"),
    "branch": ("POST", f"{_API}/branch/(?P<branch>[^/]+)", "write"),
    "refs": ("GET", f"{_API}/refs", "read"),
    "info": ("GET", f"{_API}(/revision/{_REVISION})?", "read"),
    "tree": ("GET", f"{_API}/tree/{_REVISION}(/(?P<folder>.+))?", "read"),
    "resolve": ("GET", f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", "read"),
    "download": ("GET", "/storage/(?P<oid>[0-9a-f]{64})", "none"),
}


@dataclass
class Account:
    """Whom a token belongs to, and whether it may write."""

    user: str
    can_write: bool = True


@dataclass
class Commit:
    """What a branch held after a commit: each file's content."""

    oid: str
    branch: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    """Branches by name, and all commits in their order."""

    private: bool
    branches: dict[str, Commit]
    commits: list[Commit] = field(default_factory=list)

    def at(self, revision: str) -> Commit | None:
        """The commit of a branch or hash."""
        by_hash = {commit.oid: commit for commit in [*self.branches.values(), *self.commits]}
        return self.branches.get(revision) or by_hash.get(revision)


class Answer(Exception):
    """What ends a request: an answer other than 200 with JSON."""

    def __init__(self, status: int, body: Any = None, **headers: str) -> None:
        super().__init__(status)
        self.status, self.body = status, body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @classmethod
    def error(cls, status: int, message: str, code: str = "", **headers: str) -> Answer:
        """An error as the Hub words it."""
        told = {"X_Error_Message": message, **({"X_Error_Code": code} if code else {})}
        return cls(status, {"error": message}, **told, **headers)


class HubServer:
    """Repositories in memory, and the HTTP server around them.

    Attributes:
        repositories: By their ids.
        requests: Step and status of every request, in their order; a cut connection has the status 0.
        released: While this event is cleared, commits wait.
        url: Where it listens, once it has started.
    """

    def __init__(self, accounts: dict[str, Account]) -> None:
        self.accounts = accounts
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, int]] = []
        self._objects: dict[str, bytes] = {}
        self._faults: dict[str, int | str] = {}
        self._lock = threading.Lock()
        self.released = threading.Event()  # commits wait for it
        self.released.set()
        self.url = self._storage = ""

    def start(self) -> None:
        """Listen, in threads of their own, for as long as the process lives."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{server.server_port}"
        self._storage = f"http://localhost:{server.server_port}/storage"
        threading.Thread(target=server.serve_forever, daemon=True).start()

    @contextmanager
    def failing(self, step: str, fault: int | str) -> Iterator[None]:
        """In here a step answers with a status, or not at all (``CUT``)."""
        assert step in _STEPS, step
        self._faults[step] = fault
        try:
            yield
        finally:
            del self._faults[step]

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """What a branch holds."""
        commit = self.repositories[repo].at(revision)
        assert commit is not None
        return commit.files

    def answer(self, method: str, url: str, headers: Any, body: bytes) -> Answer:
        """The answer to a request."""
        path = urlsplit(url).path
        wanted = "GET" if method == "HEAD" else method
        found = [
            (step, access, match)
            for step, (of_step, pattern, access) in _STEPS.items()
            if of_step == wanted and (match := re.fullmatch(pattern, path))
        ]
        if not found:
            self.requests.append((f"{method} {path}", 404))
            return Answer.error(404, f"this Hub has no {method} {path}")
        step, access, match = found[0]
        try:
            if (fault := self._faults.get(step)) is not None:
                raise Answer(0) if fault == CUT else Answer.error(int(fault), f"the test says so at {step}")
            if step == "commit":
                self.released.wait()
            told = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            with self._lock:
                options = self._admit(access, headers, **told)
                answer = Answer(200, getattr(self, f"_{step}")(headers=headers, body=body, **{**told, **options}))
        except Answer as other:
            answer = other
        self.requests.append((step, answer.status))
        return answer

    # --- who may do what -------------------------------------------------------------------------------------------

    def _admit(self, access: str, headers: Any, **told: str) -> dict[str, Any]:
        """The account and the repository of a request that may have them."""
        if access == "none":
            return {}
        given = headers.get("Authorization", "").removeprefix("Bearer ")
        account = self.accounts.get(given)
        if given and account is None:
            raise Answer.error(401, "Invalid credentials in Authorization header")
        if access == "account":
            if account is None:
                raise Answer.error(401, "Invalid username or password.")
            return {"account": account}
        repository = self.repositories.get(told["repo"])
        is_owner = account is not None and account.user == told["repo"].split("/")[0]
        if repository is None or (repository.private and not is_owner):
            raise Answer.error(404 if account else 401, "Repository not found", "RepoNotFound")
        if access == "write" and account is None:
            raise Answer.error(401, "Invalid username or password.")
        if access == "write" and not (is_owner and account is not None and account.can_write):
            raise Answer.error(403, f"you may not write to {told['repo']}")
        return {"repository": repository}

    @staticmethod
    def _commit_at(repository: Repository, revision: str) -> Commit:
        commit = repository.at(revision)
        if commit is None:
            raise Answer.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # --- the steps -------------------------------------------------------------------------------------------------

    def _whoami(self, account: Account, **_: Any) -> Any:
        return {"type": "user", "name": account.user, "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def _create(self, account: Account, body: bytes, **_: Any) -> Any:
        wanted = json.loads(body)
        owner = wanted["organization"] or account.user
        if owner != account.user or not account.can_write:
            raise Answer.error(403, f"you may not create a repository under {owner}")
        repo = f"{owner}/{wanted['name']}"
        url = {"url": f"{self.url}/{repo}"}
        if repo in self.repositories:
            raise Answer(409, {**url, "error": "You already created this model repo"})
        first = Commit(_hash(f"{repo} is empty".encode()), "main", "initial commit", {".gitattributes": b""})
        is_private = wanted.get("visibility") == "private"
        self.repositories[repo] = Repository(is_private, {"main": first})
        return url

    def _validate(self, body: bytes, **_: Any) -> Any:
        assert json.loads(body)["repoType"] == "model"
        return {"errors": [], "warnings": []}

    def _preupload(self, repository: Repository, revision: str, body: bytes, **_: Any) -> Any:
        held = self._commit_at(repository, revision).files
        files = []
        for file in json.loads(body)["files"]:
            is_large = _is_large(file["path"], base64.b64decode(file["sample"]))
            oid = _oid(file["path"], held[file["path"]]) if file["path"] in held else None
            mode = "lfs" if is_large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}

    def _batch(self, repo: str, body: bytes, **_: Any) -> Any:
        objects = []
        for wanted in json.loads(body)["objects"]:
            if wanted["oid"] not in self._objects:
                upload = {"href": f"{self._storage}/{wanted['oid']}?signature=x"}
                verify = {"href": f"{self.url}/{repo}.git/info/lfs/verify"}
                wanted = {**wanted, "authenticated": True, "actions": {"upload": upload, "verify": verify}}
            objects.append(wanted)
        return {"transfer": "basic", "objects": objects}

    def _put(self, headers: Any, oid: str, body: bytes, **_: Any) -> Any:
        _refuse_token(headers)
        if hashlib.sha256(body).hexdigest() != oid:
            raise Answer.error(400, "the content does not have the digest that was announced")
        self._objects[oid] = body
        raise Answer(200)

    def _verify(self, body: bytes, **_: Any) -> Any:
        wanted = json.loads(body)
        if len(self._objects.get(wanted["oid"], b"")) != wanted["size"]:
            raise Answer.error(422, "the object was not uploaded")
        return {}

    def _commit(self, repo: str, repository: Repository, revision: str, body: bytes, **_: Any) -> Any:
        if revision not in repository.branches:
            raise Answer.error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files, message = dict(repository.branches[revision].files), ""
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self._objects[value["oid"]]
            else:
                assert key == "deletedFile", key
                del files[value["path"]]
        oid = _hash(f"{repo} {revision} {len(repository.commits)}".encode())
        repository.branches[revision] = Commit(oid, revision, message, files)
        repository.commits.append(repository.branches[revision])
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}", "hookOutput": ""}

    def _branch(self, repository: Repository, branch: str, body: bytes, **_: Any) -> Any:
        if branch in repository.branches:
            raise Answer.error(409, "Reference already exists")
        start = self._commit_at(repository, json.loads(body).get("startingPoint", "main"))
        repository.branches[branch] = start
        raise Answer(201)

    def _refs(self, repository: Repository, **_: Any) -> Any:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.oid}
            for name, commit in repository.branches.items()
        ]
        return {"branches": branches, "converts": [], "tags": []}

    def _info(self, repo: str, repository: Repository, revision: str = "main", **_: Any) -> Any:
        commit = self._commit_at(repository, revision)
        about = {"id": repo, "modelId": repo, "sha": commit.oid, "private": repository.private, "tags": []}
        return {**about, "siblings": [{"rfilename": path} for path in commit.files]}

    def _tree(self, repository: Repository, revision: str, folder: str = "", **_: Any) -> Any:
        entries = []
        for path, content in self._commit_at(repository, revision).files.items():
            if path.startswith(f"{folder}/" if folder else ""):
                entry = {"type": "file", "path": path, "size": len(content), "oid": _git_hash(content)}
                if _is_large(path, content):
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
                entries.append(entry)
        return entries

    def _resolve(self, repository: Repository, revision: str, path: str, **_: Any) -> Any:
        commit = self._commit_at(repository, revision)
        if path not in commit.files:
            raise Answer.error(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.oid)
        content = commit.files[path]
        etag = f'"{_oid(path, content)}"'
        if not _is_large(path, content):
            raise Answer(200, content, X_Repo_Commit=commit.oid, ETag=etag)
        location = f"{self._storage}/{hashlib.sha256(content).hexdigest()}?signature=x"
        linked = {"X_Linked_ETag": etag, "X_Linked_Size": str(len(content))}
        raise Answer(302, None, X_Repo_Commit=commit.oid, Location=location, **linked)

    def _download(self, headers: Any, oid: str, **_: Any) -> Any:
        _refuse_token(headers)
        raise Answer(200, self._objects[oid], ETag=f'"{oid}"')


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        answer = self.hub.answer(self.command, self.path, self.headers, self._body())
        if answer.status == 0:
            self.close_connection = True
            return
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        content = b"" if answer.body is None else content
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


def _refuse_token(headers: Any) -> None:
    """As a storage with signed addresses does: a token must not leave the Hub."""
    if "Authorization" in headers:
        raise Answer.error(400, "Only one auth mechanism allowed")


def _is_large(path: str, content: bytes) -> bool:
    return path.endswith(LARGE_FILES) or b"\0" in content[:512]


def _oid(path: str, content: bytes) -> str:
    """What the client compares with a file of its own."""
    return hashlib.sha256(content).hexdigest() if _is_large(path, content) else _git_hash(content)


def _git_hash(content: bytes) -> str:
    return _hash(b"blob %d\0" % len(content) + content)


def _hash(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


# The one that the cases talk to. Two tokens are of one user; one of them may only read.
WRITER, READER, OTHER = "hf_writer1234", "hf_reader9012", "hf_other5678"
HUB = HubServer({WRITER: Account("me"), READER: Account("me", can_write=False), OTHER: Account("you")})
