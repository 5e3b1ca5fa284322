"""A small Hub on the loopback: what huggingface_hub's client asks of the real one, and its faults on demand.

It keeps commits, branches, pull requests and LFS objects, checks tokens, and answers as the Hub does (headers
included). Objects stay on disk, so that gigabytes pass through a small process.
"""

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub.state import Commit, File, Hub, Refused, Repo


LFS_SUFFIXES = (".safetensors", ".bin", ".png", ".pt")
CHUNK = 1 << 20


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Hub]:
    """A running Hub, its objects below ``folder``."""
    hub = Hub(folder, **options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    """One connection. Requests whose answers need the whole state are worked on one at a time."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._work()

    do_HEAD = do_POST = do_PUT = do_GET

    def _work(self) -> None:
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), parse_qs(parts.query)
        self.hub.requests.append(f"{self.command} {path}")
        self.limit: int | None = None
        self.unread = True
        fault = self.hub.fault(self.command, path, after=False)
        if fault is not None and fault.cut is not None:
            self.limit = fault.cut
        elif fault is not None:
            if fault.status is None:
                return self._drop()
            body = {"error": fault.message}
            return self._json(body, status=fault.status, headers={"X-Error-Message": fault.message} | fault.headers)
        try:
            for method, pattern, work in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    return work(self, **match.groupdict())
            raise Refused(404, f"no such endpoint: {self.command} {path}")
        except Refused as refused:
            self._json(refused.body, status=refused.status, headers=refused.headers)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _json(self, value: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if self.hub.fault(self.command, unquote(urlsplit(self.path).path), after=True):
            return self._drop()
        for _ in self._blocks() if self.unread else ():
            pass  # the next request begins behind the body of this one
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _blocks(self) -> Iterator[bytes]:
        """The request's body, in pieces."""
        self.unread = False
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length") or 0)
        while left:
            block = self.rfile.read(min(CHUNK, left))
            if not block:
                raise ConnectionError("the client went away")
            left -= len(block)
            yield block

    def _body(self) -> Any:
        return json.loads(b"".join(self._blocks()) or b"{}")

    # who may do what

    def _user(self) -> tuple[str | None, bool]:
        header = self.headers.get("Authorization", "")
        if not header:
            return None, False
        user = self.hub.tokens.get(header.removeprefix("Bearer "))
        if user is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def _repo(self, name: str, *, write: bool = False, files: bool = False) -> Repo:
        user, may_write = self._user()
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and user != repo.owner):
            raise Refused(401 if user is None else 404, "Repository not found", code="RepoNotFound")
        if files and repo.gated and user != repo.owner and user not in repo.granted:
            raise Refused(401 if user is None else 403, f"Access to model {name} is restricted", code="GatedRepo")
        if write and user is None:
            raise Refused(401, "Invalid username or password.")
        if write and not (may_write and user == repo.owner):
            raise Refused(403, f"you must have write access to {name}")
        return repo

    def _sha(self, repo: Repo, revision: str) -> str:
        sha = revision if revision in repo.commits else repo.refs.get(revision)
        if sha is None:
            raise Refused(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return sha

    @property
    def _as_pull_request(self) -> bool:
        return self.query.get("create_pr") == ["1"]

    # repositories

    def whoami(self) -> None:
        user, _ = self._user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        self._json({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"type": "access_token"}})

    def create(self) -> None:
        body, (user, may_write) = self._body(), self._user()
        name = f"{body.get('organization') or user}/{body['name']}"
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if not may_write or name.partition("/")[0] != user:
            raise Refused(403, f"you have no rights to create a model under {name.partition('/')[0]}")
        url = {"url": f"{self.hub.url}/{name}"}
        with self.hub.lock:
            if name in self.hub.repos:
                raise Refused(409, "You already created this model repo", body=url)
            self.hub.create(name, private=body.get("visibility") == "private" or bool(body.get("private")))
        self._json(url)

    def info(self, name: str, revision: str = "main") -> None:
        repo = self._repo(name)
        sha = self._sha(repo, revision)
        siblings = [
            {"rfilename": path, "size": file.size, "blobId": file.oid}
            | ({"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": 130}} if file.sha256 else {})
            for path, file in sorted(repo.commits[sha].files.items())
        ]
        gated = "manual" if repo.gated else False
        self._json(
            {"_id": "0", "id": name, "modelId": name, "sha": sha, "private": repo.private, "gated": gated}
            | {"disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}
        )

    def tree(self, name: str, revision: str) -> None:
        repo = self._repo(name)
        files = repo.commits[self._sha(repo, revision)].files
        self._json([self._entry(path, file) for path, file in sorted(files.items())])

    def paths_info(self, name: str, revision: str) -> None:
        repo, body = self._repo(name), self._body()
        files = repo.commits[self._sha(repo, revision)].files
        self._json([self._entry(path, files[path]) for path in body["paths"] if path in files])

    def _entry(self, path: str, file: File) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
        if file.sha256:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": 130}
        if file.sha256 in self.hub.xet_hashes:
            entry["xetHash"] = self.hub.xet_hashes[file.sha256]
        return entry

    def refs(self, name: str) -> None:
        repo = self._repo(name)
        known = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in repo.refs.items()]
        self._json({"branches": known, "tags": [], "converts": [], "pullRequests": []})

    def branch(self, name: str, revision: str) -> None:
        repo, body = self._repo(name, write=True), self._body()
        if revision in repo.refs:
            raise Refused(409, f"Reference already exists: {revision}")
        repo.refs[revision] = self._sha(repo, body.get("startingPoint") or "main")
        self._json({})

    # uploads

    def validate_yaml(self) -> None:
        text = self._body()["content"]
        match = re.match(r"---\n(.*?)\n---\n", text, re.S)
        errors = []
        try:
            data = yaml.safe_load(match[1]) if match else {}
            if not isinstance(data.get("model-index", []), list):
                errors = [{"message": '"model-index" must be an array'}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        if errors:
            raise Refused(400, "Invalid metadata", body={"errors": errors, "warnings": []})
        self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str) -> None:
        body = self._body()
        repo = self._repo(name, write=not self._as_pull_request)
        there = repo.commits[self._sha(repo, revision)].files
        answers = []
        for file in body["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > 10 * CHUNK else "regular"
            oid = there[file["path"]].oid if file["path"] in there else None
            answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": answers})

    def batch(self, name: str) -> None:
        body = self._body()
        self._repo(name, write="ref" in body)
        objects = []
        for item in body["objects"]:
            oid, size = item["oid"], item["size"]
            if not self.hub.stored(oid):
                upload: dict[str, Any] = {"href": f"{self.hub.url}/objects/{oid}", "header": {}}
                if self.hub.part_size and size > self.hub.part_size:
                    count = -(-size // self.hub.part_size)
                    parts = {str(i + 1): f"{self.hub.url}/objects/{oid}/parts/{i + 1}" for i in range(count)}
                    upload["header"] = {"chunk_size": str(self.hub.part_size)} | parts
                verify = {"href": f"{self.hub.url}/{name}.git/info/lfs/objects/verify", "header": {}}
                item = item | {"actions": {"upload": upload, "verify": verify}}
            objects.append(item)
        self._json({"transfer": "basic", "objects": objects})

    def put_object(self, oid: str, part: str | None = None) -> None:
        path = self.hub.folder / f".{oid}.{part or 'whole'}.{threading.get_ident()}"
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for block in self._blocks():
                digest.update(block)
                file.write(block)
        if part:
            path.replace(self.hub.folder / f".{oid}.part{part}")
        elif digest.hexdigest() == oid:
            path.replace(self.hub.object(oid))
        else:
            path.unlink()
            raise Refused(400, "the object is not what its digest says")
        self._json({}, headers={"ETag": f'"{digest.hexdigest()}"'})

    def complete(self, oid: str) -> None:
        digest, whole = hashlib.sha256(), self.hub.folder / f".{oid}.joined"
        with whole.open("wb") as file:
            for part in sorted(self._body()["parts"], key=lambda part: part["partNumber"]):
                path = self.hub.folder / f".{oid}.part{part['partNumber']}"
                with path.open("rb") as source:
                    while block := source.read(CHUNK):
                        digest.update(block)
                        file.write(block)
                path.unlink()
        if digest.hexdigest() != oid:
            raise Refused(400, "the parts do not make the object")
        whole.replace(self.hub.object(oid))
        self._json({})

    def verify(self, name: str) -> None:
        body = self._body()
        path = self.hub.object(body["oid"])
        if not path.exists() or path.stat().st_size != body["size"]:
            raise Refused(404, "the object did not arrive")
        self._json({})

    def commit(self, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in b"".join(self._blocks()).splitlines() if line]
        repo = self._repo(name, write=not self._as_pull_request)
        header = next(line["value"] for line in lines if line["key"] == "header")
        with self.hub.lock:
            head = self._sha(repo, revision)
            parent = header.get("parentCommit")
            if parent is not None and parent != head and not self._as_pull_request:
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            files = dict(repo.commits[parent or head].files)
            for line in lines:
                self._apply(line["key"], line["value"], files)
            number = 1 + sum(ref.startswith("refs/pr/") for ref in repo.refs)
            ref = f"refs/pr/{number}" if self._as_pull_request else revision
            sha = repo.add(ref, Commit(files, parent or head, header["summary"]))
        url = f"{self.hub.url}/{name}"
        pull_request = f"{url}/discussions/{number}" if self._as_pull_request else None
        self._json({"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "pullRequestUrl": pull_request})

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, File]) -> None:
        if key == "file":
            data = base64.b64decode(value["content"])
            files[value["path"]] = File(len(data), data)
        elif key == "lfsFile":
            if not self.hub.stored(value["oid"]):
                raise Refused(400, f"the object of {value['path']} was not uploaded")
            files[value["path"]] = File(value["size"], sha256=value["oid"])
        elif key == "deletedFile":
            del files[value["path"]]

    # downloads

    def resolve(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, files=True)
        sha = self._sha(repo, revision)
        found = repo.commits[sha].files.get(file)
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if found is None:
            raise Refused(404, "Entry not found", code="EntryNotFound")
        xet = self.hub.xet_hashes.get(found.sha256)
        if xet:
            refresh = f"{self.hub.url}/api/models/{name}/xet-read-token/{sha}"
            headers |= {"X-Xet-Hash": xet, "Link": f'<{refresh}>; rel="xet-auth"'}
        if found.sha256:
            headers |= {"X-Linked-Etag": f'"{found.sha256}"', "X-Linked-Size": str(found.size)}
        start, status = 0, 200
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{found.size - 1}/{found.size}"
        self.send_response(status)
        for key, text in (headers | {"ETag": f'"{found.oid}"', "Content-Length": str(found.size - start)}).items():
            self.send_header(key, text)
        self.end_headers()
        if self.command == "GET":
            self._send(found, start)

    def _send(self, file: File, start: int) -> None:
        if self.limit is not None:
            body = self._bytes(file)[start : start + self.limit]
            self.wfile.write(body)
            self.wfile.flush()
            self._drop()
        elif file.data is not None:
            self.wfile.write(file.data[start:])
        else:
            with self.hub.object(file.sha256).open("rb") as source:
                source.seek(start)
                shutil.copyfileobj(source, self.wfile, CHUNK)

    def _bytes(self, file: File) -> bytes:
        return self.hub.object(file.sha256).read_bytes() if file.data is None else file.data

    def xet_token(self, name: str, kind: str, revision: str) -> None:
        self._repo(name, write=kind == "write" and not self._as_pull_request)
        assert self.hub.xet, "this Hub has no xet storage"
        expires = 4_000_000_000
        headers = {
            "X-Xet-Cas-Url": self.hub.xet,
            "X-Xet-Token-Expiration": str(expires),
            "X-Xet-Access-Token": "token",
        }
        self._json({"casUrl": self.hub.xet, "exp": expires, "accessToken": "token"}, headers=headers)


_NAME = r"(?P<name>[^/]+/[^/]+?)"
_REVISION = r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), "/api/whoami-v2", Handler.whoami),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate_yaml),
    (("GET",), f"/api/models/{_NAME}", Handler.info),
    (("GET",), f"/api/models/{_NAME}/revision/{_REVISION}", Handler.info),
    (("GET",), f"/api/models/{_NAME}/tree/{_REVISION}", Handler.tree),
    (("GET",), f"/api/models/{_NAME}/refs", Handler.refs),
    (("POST",), f"/api/models/{_NAME}/branch/{_REVISION}", Handler.branch),
    (("POST",), f"/api/models/{_NAME}/paths-info/{_REVISION}", Handler.paths_info),
    (("POST",), f"/api/models/{_NAME}/preupload/{_REVISION}", Handler.preupload),
    (("POST",), f"/api/models/{_NAME}/commit/{_REVISION}", Handler.commit),
    (("GET",), f"/api/models/{_NAME}/xet-(?P<kind>read|write)-token/{_REVISION}", Handler.xet_token),
    (("POST",), f"/{_NAME}.git/info/lfs/objects/batch", Handler.batch),
    (("POST",), f"/{_NAME}.git/info/lfs/objects/verify", Handler.verify),
    (("PUT",), r"/objects/(?P<oid>[0-9a-f]{64})(?:/parts/(?P<part>\d+))?", Handler.put_object),
    (("POST",), r"/objects/(?P<oid>[0-9a-f]{64})", Handler.complete),
    (("GET", "HEAD"), f"/{_NAME}/resolve/{_REVISION}/(?P<file>.+)", Handler.resolve),
]
