"""Captioned pictures in tar shards, as webdataset lays them out, streamed from disk, the web or the Hugging Face Hub.

The files of a sample stand side by side in a shard and share their name up to its first dot: ``000123.jpg`` and
``000123.txt`` (a caption), or ``000123.json`` with ``caption`` or ``text`` in it. Other files are passed over. A
sample's key is the name of its shard and its own: ``pictures-0004/000123``.
"""

import json
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.request import urlopen

from unclip_hub.data.captioned import BrokenSample, Sample, as_captions, caption_name, checked_captions
from unclip_hub.data.folder import IMAGE_SUFFIXES


SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
REMOTE = ("http://", "https://", "hf://")
_TIMEOUT = 60  # seconds without a byte after which a connection counts as lost
_ATTEMPTS = 4  # at each place of a remote shard, before it is an error


@dataclass(frozen=True)
class Shards:
    """Shards by path or address, read one after the other, never as a whole; ``exclude`` holds keys to leave out."""

    addresses: tuple[str, ...]
    exclude: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        same = [name for name, count in Counter(map(shard_name, self.addresses)).items() if count > 1]
        if same:
            raise ValueError(f"several shards are called {same[0]}: the keys of their samples would be the same")
        gone = [one for one in self.addresses if not one.startswith(REMOTE) and not Path(one).is_file()]
        if gone:
            raise ValueError(f"{len(gone)} of {len(self.addresses)} shards are missing: {_some(gone)}")

    def read(self, shard: int, *, part: int = 0, parts: int = 1) -> Iterator[Sample | BrokenSample]:
        """The samples of one shard in order, and what is wrong in the place of those that are not whole.

        A lost connection is taken up again where it broke off.

        Args:
            part: which of ``parts`` equal parts to read: every ``parts``-th sample.
        """
        address, name = self.addresses[shard], shard_name(self.addresses[shard])
        following, failures = part, 0
        while True:
            try:
                for found in _samples(address, name, start=following, step=parts):
                    following, failures = following + parts, 0
                    if found.key not in self.exclude:
                        yield found
                return
            except Exception as error:  # of the archive, or whatever the transport raises
                failures += 1
                if not address.startswith(REMOTE) or failures == _ATTEMPTS:
                    yield BrokenSample("broken shard", name, f"{address} breaks off at sample {following}: {error}")
                    return
                time.sleep(2.0 ** (failures - 2))  # 0.5, 1, 2 seconds


def find_shards(pattern: str) -> tuple[str, ...]:
    """The shards of a pattern, sorted: ``{000..012}`` and ``{a,b}`` are spelled out, on disk also ``*`` and ``?``.

    Raises:
        ValueError: the pattern fits no file, or a brace is not closed.
    """
    found: list[str] = []
    for one in _spelled_out(pattern):
        if one.startswith(REMOTE) or not re.search(r"[*?]", one):
            found.append(one)
            continue
        matching = glob(one)
        if not matching:
            raise ValueError(f"no shard fits {one}")
        found += matching
    return tuple(sorted(found))


def shard_name(address: str) -> str:
    """The name of a shard in the keys of its samples: that of its file, without the suffix."""
    name = PurePosixPath(address.partition("?")[0]).name
    return re.sub(r"\.(tar|tar\.gz|tgz)$", "", name)


def _samples(address: str, name: str, *, start: int, step: int) -> Iterator[Sample | BrokenSample]:
    """Every ``step``-th sample from ``start`` on."""
    seen: set[int] = set()  # hashes of the keys
    for index, (key, members) in enumerate(_groups(address, start=start, step=step)):
        repeated = hash(key) in seen
        seen.add(hash(key))
        if index < start or (index - start) % step:
            continue
        if repeated:
            yield BrokenSample("duplicate key", f"{name}/{key}", "its files do not stand together in the shard")
            continue
        try:
            yield _sample(f"{name}/{key}", members)
        except BrokenSample as problem:
            yield problem


def _groups(address: str, *, start: int, step: int) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """The files that share a key, as (suffix, content); empty contents for groups that are not asked for."""
    key, members, index = None, [], -1
    with _open(address) as raw, tarfile.open(fileobj=raw, mode="r|*", tarinfo=_StrictInfo) as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            path = PurePosixPath(info.name)
            stem, _, suffix = path.name.partition(".")
            if not info.isfile() or not stem or not suffix:
                continue
            if str(path.parent / stem) != key:
                if key is not None:
                    yield key, members
                key, members, index = str(path.parent / stem), [], index + 1
            wanted = index >= start and (index - start) % step == 0
            file = tar.extractfile(info) if wanted and _is_read(suffix) else None
            members.append((suffix.lower(), b"" if file is None else file.read()))
    if key is not None:
        yield key, members


class _StrictInfo(tarfile.TarInfo):
    """Python's tarfile takes a broken or missing header for the end of the archive: what follows would be lost."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> tarfile.TarInfo:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark with which an archive ends
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error}, expected a file or the archive's end mark") from None


def _sample(key: str, members: list[tuple[str, bytes]]) -> Sample:
    images = [content for suffix, content in members if _is_image(suffix)]
    if not images:
        suffixes = ", ".join(suffix for suffix, _ in members)
        raise BrokenSample("no image", key, f"expected a picture beside .{suffixes}")
    if len(images) > 1:
        raise BrokenSample("duplicate key", key, f"names {len(images)} pictures")
    return Sample(key, images[0], checked_captions(_captions(key, dict(members)), key))


def _captions(key: str, files: dict[str, bytes]) -> tuple[str, ...]:
    """The caption in .txt, else those in .json."""
    try:
        if "txt" in files:
            return (files["txt"].decode("utf-8-sig"),)
        if "json" not in files:
            raise BrokenSample("no caption", key, f"expected .txt or .json beside .{', '.join(files)}")
        fields = json.loads(files["json"])
    except UnicodeDecodeError:
        raise BrokenSample("broken caption", key, "its caption is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise BrokenSample("broken caption", key, f"its .json is not JSON: {error}") from None
    name = caption_name(fields) if isinstance(fields, dict) else None
    if name is None:
        raise BrokenSample("no caption", key, "its .json has neither caption nor text")
    return as_captions(fields[name], key)


def _is_image(suffix: str) -> bool:
    return f".{suffix}" in IMAGE_SUFFIXES


def _is_read(suffix: str) -> bool:
    return _is_image(suffix.lower()) or suffix.lower() in ("txt", "json")


def _open(address: str) -> Any:
    if address.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        return HfFileSystem().open(address, "rb")
    if address.startswith(REMOTE):
        return urlopen(address, timeout=_TIMEOUT)
    return open(address, "rb")


def _spelled_out(pattern: str) -> list[str]:
    """``a{0..2}b`` as a0b, a1b, a2b; leading zeros are kept, braces may follow one another."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise ValueError(f"a brace is not closed in {pattern}")
        return [pattern]
    choices = found[1].split(",")
    between = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if between:
        first, last = between.groups()
        width = len(first) if first.startswith("0") else 0
        choices = [f"{i:0{width}}" for i in range(int(first), int(last) + 1)]
    if not between and len(choices) < 2 or not choices:
        raise ValueError(f"expected {{000..012}} or {{a,b}}, got {found[0]} in {pattern}")
    return [
        f"{pattern[: found.start()]}{one}{rest}" for one in choices for rest in _spelled_out(pattern[found.end() :])
    ]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
