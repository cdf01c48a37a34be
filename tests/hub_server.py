"""A small Hugging Face Hub on 127.0.0.1: tests push to it and load from it over real HTTP, without the internet.

It speaks what `huggingface_hub` 1.x and 2.x use of the Hub's interface for model repositories. As on the Hub, a new
repository has one commit, with `.gitattributes`, and a name without organisation is created under the user (`USER`).
Unlike the Hub, it takes any token or none and any model card, only records `private`, and serves large files itself,
without a redirect. What it lacks (xet, pull requests, tags, ...) answers 501.

    with HubServer(tmp_path / "hub") as hub:
        subprocess.run([sys.executable, "load.py"], env={**os.environ, **hub.env(), "HF_HOME": str(tmp_path / "home")})
        assert hub.downloads("org/name") == ["config.json"]
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote


USER = "tester"
LFS_BYTES = 10_000_000  # files of at least this size, and binary files of any size, are LFS objects


class Refused(Exception):
    """An error answer: HTTP status, the Hub's X-Error-Code, message."""


@dataclass
class Repo:
    """A repository. Files are named by object id: SHA-256 (64 digits) for LFS objects, git's SHA-1 (40) for others."""

    private: bool
    commits: dict[str, dict[str, str]] = field(default_factory=dict)  # sha -> {path: object id}, oldest first
    branches: dict[str, str] = field(default_factory=dict)  # name -> sha

    def commit(self, branch: str, files: dict[str, str]) -> str:
        """Makes `files` the new head of `branch` and returns its sha."""
        sha = self.branches[branch] = secrets.token_hex(20)
        self.commits[sha] = files
        return sha


class HubServer:
    """The server with its repositories; the files' bytes lie under `root`, the rest in memory.

    Attributes:
        url: The endpoint; the system chooses the port.
        requests: `(method, path)` of every request so far; the path is quoted and has its query.
        repos: By id, each with `private`, `commits` and `branches`.
        fail_next_commit_of: A repository's name; its next commit answers 500, changes nothing and unsets it.
    """

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        self.requests: list[tuple[str, str]] = []
        self.repos: dict[str, Repo] = {}
        self.fail_next_commit_of: str | None = None
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubServer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def env(self) -> dict[str, str]:
        """Variables that point a new process to this server; huggingface_hub reads them when it is imported."""
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
        return {"HF_ENDPOINT": self.url, "HF_TOKEN": "hf_anything", "NO_PROXY": "127.0.0.1", **switches}

    def downloads(self, repo_id: str) -> list[str]:
        """Names of the files of `repo_id` fetched so far (GET, not HEAD), in order, once per request."""
        with self.lock:
            found = [re.fullmatch(_RESOLVE, f"{method} {path.partition('?')[0]}") for method, path in self.requests]
        return [unquote(match["path"]) for match in found if match and match["repo_id"] == repo_id]

    def snapshot(self, repo_id: str, revision: str = "main") -> tuple[str, dict[str, str]]:
        """`(sha, {path: object id})` of a branch or a commit; `Refused` if there is none."""
        if (repo := self.repos.get(repo_id)) is None:
            raise Refused(404, "RepoNotFound", "Repository not found")
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repo.commits[sha]

    def read(self, repo_id: str, path: str, revision: str = "main") -> bytes:
        """The content of a file in the repository."""
        return (self.root / self.snapshot(repo_id, revision)[1][path]).read_bytes()

    def store(self, content: bytes, oid: str = "") -> str:
        """Keeps `content` under the object id `oid`, by default git's, and returns the id."""
        oid = oid or hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.root / oid).write_bytes(content)
        return oid


class _Handler(BaseHTTPRequestHandler):
    """One connection. The methods named in `_ROUTES` each return one kind of answer: JSON, or a file's bytes."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes: the second would wait 40 ms for the first's receipt

    def log_message(self, *_: object) -> None:
        """Prints nothing: `HubServer.requests` is the log."""

    def serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.status, self.extra = 200, {"Content-Type": "application/json"}
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path))
            try:
                content = self.answer()
            except Refused as refused:
                self.status, self.extra["X-Error-Code"], message = refused.args
                content = {"error": message}
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(self.status)
        for name, value in {**self.extra, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answer(self) -> Any:
        path, _, self.query = self.path.partition("?")
        request = f"{self.command} {path}".replace("HEAD ", "GET ", 1)
        for route, name in _ROUTES.items():
            if match := re.fullmatch(route, request):
                return getattr(self, name)(**{key: unquote(value) for key, value in match.groupdict("").items()})
        raise Refused(501, "NotImplemented", f"The test server does not know {request}")

    def snapshot(self, repo_id: str, revision: str) -> dict[str, str]:
        self.extra["X-Repo-Commit"], files = self.hub.snapshot(repo_id, revision or "main")
        return files

    def entry(self, path: str, oid: str) -> dict[str, Any]:
        size = (self.hub.root / oid).stat().st_size
        lfs = {"oid": oid, "sha256": oid, "size": size, "pointerSize": 134} if len(oid) == 64 else None
        return {"type": "file", "path": path, "rfilename": path, "oid": oid, "blobId": oid, "size": size, "lfs": lfs}

    def whoami(self) -> Any:
        return {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}}

    def validate(self) -> Any:
        return {"errors": [], "warnings": []}

    def create(self) -> Any:
        wanted = json.loads(self.body)
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if repo_id in self.hub.repos:
            self.status = 409
        else:
            self.hub.repos[repo_id] = Repo(wanted.get("visibility") == "private" or bool(wanted.get("private")))
            attributes = self.hub.store(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            self.hub.repos[repo_id].commit("main", {".gitattributes": attributes})
        return {"name": repo_id, "url": f"{self.hub.url}/{repo_id}"}

    def branch(self, repo_id: str, revision: str) -> Any:
        sha, _ = self.hub.snapshot(repo_id, json.loads(self.body).get("startingPoint", "main"))
        if revision in self.hub.repos[repo_id].branches:
            raise Refused(409, "", f"Reference already exists: {revision}")
        self.hub.repos[repo_id].branches[revision] = sha
        return {}

    def info(self, repo_id: str, revision: str) -> Any:
        files = self.snapshot(repo_id, revision)
        siblings = [self.entry(*file) if "blobs=" in self.query else {"rfilename": file[0]} for file in files.items()]
        private, sha = self.hub.repos[repo_id].private, self.extra["X-Repo-Commit"]
        return {"id": repo_id, "sha": sha, "private": private, "siblings": siblings, "tags": []}

    def tree(self, repo_id: str, revision: str, folder: str) -> Any:
        """Files only, at any depth."""
        files = self.snapshot(repo_id, revision).items()
        return [self.entry(path, oid) for path, oid in files if not folder or path.startswith(f"{folder}/")]

    def preupload(self, repo_id: str, revision: str) -> Any:
        present, answers = self.snapshot(repo_id, revision), []
        for file in json.loads(self.body)["files"]:
            binary = b"\0" in base64.b64decode(file["sample"])
            mode = "lfs" if binary or file["size"] >= LFS_BYTES else "regular"
            oid = present.get(file["path"])
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answers}

    def lfs_batch(self) -> Any:
        """Asks for the objects that are not here yet, and for no other."""
        objects = json.loads(self.body)["objects"]
        for wanted in objects:
            if not (self.hub.root / wanted["oid"]).exists():
                wanted["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, oid: str) -> Any:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "", "The content does not have this SHA-256")
        return {"oid": self.hub.store(self.body, oid)}

    def commit(self, repo_id: str, revision: str) -> Any:
        files = dict(self.snapshot(repo_id, revision))
        if revision not in self.hub.repos[repo_id].branches:
            raise Refused(400, "", f"Only a branch takes commits: {revision}")
        if self.hub.fail_next_commit_of == repo_id:
            self.hub.fail_next_commit_of = None
            raise Refused(500, "", "The test asked for this commit to fail")
        for line in self.body.splitlines():
            operation = json.loads(line)
            self.apply(operation["key"], operation["value"], files)
        sha = self.hub.repos[repo_id].commit(revision, files)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}"}

    def apply(self, key: str, value: dict[str, Any], files: dict[str, str]) -> None:
        """Does one line of a commit to `files`, in place."""
        if key == "header":
            if value.get("parentCommit", self.extra["X-Repo-Commit"]) != self.extra["X-Repo-Commit"]:
                raise Refused(412, "", "A commit has happened since")
        elif key == "file":
            files[value["path"]] = self.hub.store(base64.b64decode(value["content"]))
        elif key == "lfsFile" and (self.hub.root / value["oid"]).exists():
            files[value["path"]] = value["oid"]
        elif key == "deletedFile" and value["path"] in files:
            del files[value["path"]]
        elif key == "deletedFolder":
            for path in [path for path in files if path.startswith(value["path"].rstrip("/") + "/")]:
                del files[path]
        else:
            raise Refused(404, "EntryNotFound", f"{key}: {value['path']} does not exist, or was not uploaded")

    def resolve(self, repo_id: str, revision: str, path: str) -> Any:
        if (oid := self.snapshot(repo_id, revision).get(path)) is None:
            raise Refused(404, "EntryNotFound", f"{path} does not exist")
        content = (self.hub.root / oid).read_bytes()
        self.extra |= {"ETag": f'"{oid}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
            self.status, self.extra["Content-Range"] = 206, f"bytes {start}-{stop - 1}/{len(content)}"
            content = content[start:stop]
        return content


_REPO, _REVISION = r"(?P<repo_id>[^/]+(?:/[^/]+)?)", r"(?P<revision>[^/]+)"
_RESOLVE = f"GET /{_REPO}/resolve/{_REVISION}/(?P<path>.+)"
_ROUTES = {
    "GET /api/whoami-v2": "whoami",
    "POST /api/validate-yaml": "validate",
    "POST /api/repos/create": "create",
    f"POST /api/models/{_REPO}/branch/{_REVISION}": "branch",
    f"POST /api/models/{_REPO}/preupload/{_REVISION}": "preupload",
    f"POST /api/models/{_REPO}/commit/{_REVISION}": "commit",
    f"GET /api/models/{_REPO}/tree/{_REVISION}(?:/(?P<folder>.+))?": "tree",
    f"GET /api/models/{_REPO}(?:/revision/{_REVISION})?": "info",
    r"POST /.+\.git/info/lfs/objects/batch": "lfs_batch",
    "PUT /lfs/(?P<oid>[0-9a-f]{64})": "lfs_upload",
    _RESOLVE: "resolve",
}
