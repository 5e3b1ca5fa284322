"""What a Hub on the loopback holds: repositories with their commits, objects on disk, tokens, and faults to come."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests of this method whose path matches.

    Without a ``status`` the connection is dropped: before the request is worked on, or ``after`` it, so that only the
    answer is lost. With ``cut`` the body of the answer ends after that many bytes.
    """

    method: str
    path: str
    status: int | None = None
    times: int = 1
    after: bool = False
    cut: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "injected"


@dataclass(frozen=True)
class File:
    """A file of a commit: its bytes, or the digest of an LFS object."""

    size: int
    data: bytes | None = None
    sha256: str = ""

    @property
    def oid(self) -> str:
        """As `preupload` tells it: git's digest of a regular file, SHA-256 of an object."""
        if self.data is None:
            return self.sha256
        return hashlib.sha1(b"blob %d\0" % self.size + self.data).hexdigest()


@dataclass
class Commit:
    files: dict[str, File]
    parent: str | None = None
    title: str = ""


@dataclass
class Repo:
    """A repository; ``gated`` ones give their files to those in ``granted`` alone."""

    owner: str
    private: bool = False
    gated: bool = False
    granted: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def add(self, ref: str, commit: Commit) -> str:
        text = json.dumps([commit.parent, commit.title, sorted((k, f.oid) for k, f in commit.files.items())])
        sha = hashlib.sha1(f"{len(self.commits)}{text}".encode()).hexdigest()
        self.commits[sha] = commit
        self.refs[ref] = sha
        return sha

    @property
    def files(self) -> dict[str, File]:
        return self.commits[self.refs["main"]].files


class Refused(Exception):
    """An answer other than success."""

    def __init__(self, status: int, message: str = "", *, code: str = "", body: Any = None) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message} if body is None else body
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Hub:
    """The server's state; ``tokens`` are user → whether the token may write."""

    def __init__(self, folder: Path, *, part_size: int | None = None, xet: str | None = None) -> None:
        self.folder, self.part_size, self.xet = folder, part_size, xet
        folder.mkdir(parents=True, exist_ok=True)
        self.repos: dict[str, Repo] = {}
        self.tokens = {"someone-token": ("someone", True), "reader-token": ("reader", False)}
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD path", in order
        self.xet_hashes: dict[str, str] = {}  # sha256 -> xet's own digest
        self.lock = threading.RLock()
        self.url = ""

    def create(self, name: str, **options: Any) -> Repo:
        repo = self.repos[name] = Repo(owner=name.partition("/")[0], **options)
        text = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        repo.add("main", Commit({".gitattributes": File(len(text), text)}, title="initial commit"))
        return repo

    def put(self, name: str, folder: Path) -> str:
        """Commit a folder as somebody else would."""
        repo, files = self.repos[name], {}
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                data = path.read_bytes()
                files[path.relative_to(folder).as_posix()] = File(len(data), data)
        parent = repo.refs["main"]
        return repo.add("main", Commit(repo.files | files, parent, "by somebody else"))

    def object(self, sha256: str) -> Path:
        return self.folder / sha256

    def stored(self, sha256: str) -> bool:
        return self.object(sha256).exists() or sha256 in self.xet_hashes

    def fault(self, method: str, path: str, *, after: bool) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.method == method and fault.after == after and fault.times and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None
