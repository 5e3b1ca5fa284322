"""CLIP embeddings of a dataset, computed once and kept in shards: a row for each picture and each of its captions.

A folder holds ``00000.safetensors``, ... and ``manifest.json``, which says what made them and what every shard must
be: rows, bytes, hash. A shard is written whole before the manifest names it, so what the manifest names is there. A
shard holds ``image_embed`` (n, d), ``text_embed`` (n, d), ``text_states`` (n, l, e), ``text_mask`` (n, l), and its
keys and captions as UTF-8 bytes with the place where each ends.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.data.captioned import BrokenSample
from unclip_hub.hub.weights import BrokenFile, read_header


MANIFEST = "manifest.json"
FORMAT = 1
_TEXT = ("text_embed", "text_states", "text_mask")


@dataclass
class EmbeddedBatch:
    """Image embeddings, not normalised, with the captions; ``text`` is None where only images were embedded."""

    image_embed: Float[Tensor, "b d"]
    text: Conditioning | None
    captions: list[str]
    keys: list[str]


@dataclass
class Manifest:
    """What a folder of embeddings holds so far; ``made_of`` says of which data, with which encoders, and how."""

    made_of: dict[str, Any]
    shards: list[dict[str, Any]] = field(default_factory=list)  # file, rows, bytes, sha256, and the writer's position
    complete: bool = False

    @property
    def rows(self) -> int:
        return sum(shard["rows"] for shard in self.shards)

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest at once."""
        text = json.dumps({"format": FORMAT, "rows": self.rows, **vars(self)}, indent=1) + "\n"
        _write(folder / MANIFEST, text.encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        ValueError: it is missing, of another format, or not what ``Manifest.write`` wrote.
    """
    path = folder / MANIFEST
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        known = state.pop("format")
        if known != FORMAT:
            raise ValueError(f"{path} is of format {known}, this version reads {FORMAT}")
        rows = state.pop("rows")
        manifest = Manifest(**state)
        if rows != manifest.rows:
            raise ValueError(f"{path} counts {rows} rows, its shards {manifest.rows}")
    except (OSError, KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not the manifest of a folder of embeddings: {error!r}") from error
    return manifest


def write_shard(folder: Path, number: int, batch: EmbeddedBatch) -> dict[str, Any]:
    """Write a shard at once, and return what the manifest must say of it."""
    tensors = {"image_embed": batch.image_embed}
    if batch.text is not None:
        tensors |= {name: getattr(batch.text, name) for name in _TEXT}
    for name, texts in (("keys", batch.keys), ("captions", batch.captions)):
        encoded = [text.encode() for text in texts]
        ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
        tensors[f"{name}.bytes"] = torch.tensor(list(b"".join(encoded)), dtype=torch.uint8)
        tensors[f"{name}.ends"] = torch.from_numpy(ends)
    content = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    name = f"{number:05d}.safetensors"
    _write(folder / name, content)
    digest = hashlib.sha256(content).hexdigest()
    return {"file": name, "rows": len(batch.keys), "bytes": len(content), "sha256": digest}


class Embeddings:
    """The embeddings in a folder that `unclip embed` wrote, row by row; shards are mapped into memory, not read.

    Raises:
        ValueError: the folder is not complete, or a shard is missing or is not what the manifest says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        if not self.manifest.complete:
            raise ValueError(f"{folder} is not complete, {len(self)} rows so far: run the same `unclip embed` again")
        for shard in self.manifest.shards:
            check_shard(folder, shard)
        self._starts = np.cumsum([0, *(shard["rows"] for shard in self.manifest.shards)])
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.manifest.rows

    def batch(self, rows: Sequence[int]) -> EmbeddedBatch:
        """These rows, as float32.

        Raises:
            IndexError: there is no such row.
        """
        found = [self._row(row) for row in rows]
        parts = {name: torch.stack([tensors[name] for tensors, _, _ in found]) for name in found[0][0]}
        image_embed = parts.pop("image_embed").float()
        text = Conditioning(**parts).to(dtype=torch.float32) if parts else None
        return EmbeddedBatch(image_embed, text, [caption for *_, caption in found], [key for _, key, _ in found])

    def find(self, keys: Sequence[str], captions: Sequence[str]) -> EmbeddedBatch:
        """The embeddings of pictures with these keys and captions, for a batch of the dataset they were made of.

        Raises:
            ValueError: the folder does not hold one of them.
        """
        pairs = list(zip(keys, captions, strict=True))
        missing = [pair for pair in pairs if pair not in self._rows]
        if missing:
            key, caption = missing[0]
            raise ValueError(f"{self.folder} holds no embedding of {key} with caption {caption!r}")
        return self.batch([self._rows[pair] for pair in pairs])

    def image_embeds(self) -> Iterator[Float[Tensor, "n d"]]:
        """All image embeddings, shard by shard, as float32."""
        for number in range(len(self.manifest.shards)):
            yield self._shard(number).get_tensor("image_embed").float()

    @cached_property
    def _rows(self) -> dict[tuple[str, str], int]:
        pairs: list[tuple[str, str]] = []
        for number in range(len(self.manifest.shards)):
            shard = self._shard(number)
            pairs += zip(_texts(shard, "keys"), _texts(shard, "captions"), strict=True)
        return {pair: row for row, pair in enumerate(pairs)}

    def _row(self, row: int) -> tuple[dict[str, Tensor], str, str]:
        if not 0 <= row < len(self):
            raise IndexError(f"expected a row below {len(self)}, got {row}")
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        shard, i = self._shard(number), row - int(self._starts[number])
        names = ("image_embed", *(name for name in _TEXT if name in shard.keys()))
        tensors = {name: shard.get_slice(name)[i] for name in names}
        return tensors, _text(shard, "keys", i), _text(shard, "captions", i)

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            path = self.folder / self.manifest.shards[number]["file"]
            self._open[number] = safe_open(path, framework="pt")
        return self._open[number]


def check_shard(folder: Path, shard: dict[str, Any], *, content: bool = False) -> None:
    """Compare a shard with the manifest: its size and the rows in its header, and if ``content`` its hash and values.

    Raises:
        BrokenSample: it is missing, or is something else.
    """
    name, path = shard["file"], folder / shard["file"]

    def require(right: bool, what: str) -> None:
        if not right:
            raise BrokenSample("broken embeddings", str(path), what)

    require(path.is_file(), "the shard is missing")
    size = path.stat().st_size
    require(size == shard["bytes"], f"the shard has {size} bytes, the manifest says {shard['bytes']}")
    try:
        header = read_header(path)
    except BrokenFile as error:
        raise BrokenSample("broken embeddings", str(path), str(error)) from None
    rows = {info.shape[0] for tensor, info in header.items() if not tensor.endswith(".bytes")}
    require(rows == {shard["rows"]}, f"{name} holds {sorted(rows)} rows, the manifest says {shard['rows']}")
    if content:
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == shard["sha256"]
        require(same, "the shard's content is not what was written: its hash is another one")
        with safe_open(path, framework="pt") as opened:
            embeds = opened.get_tensor("image_embed").float()
        require(bool(embeds.isfinite().all()), "image_embed holds NaN or infinity")
        require(bool((embeds.norm(dim=-1) > 0).all()), "image_embed holds rows of zeros")


def _text(shard: Any, name: str, row: int) -> str:
    ends = shard.get_slice(f"{name}.ends")[max(0, row - 1) : row + 1].tolist()
    start, end = (0, ends[0]) if row == 0 else ends
    return bytes(shard.get_slice(f"{name}.bytes")[start:end].tolist()).decode()


def _texts(shard: Any, name: str) -> list[str]:
    content, ends = shard.get_tensor(f"{name}.bytes").numpy().tobytes(), shard.get_tensor(f"{name}.ends").tolist()
    return [content[start:end].decode() for start, end in zip([0, *ends], ends)]  # noqa: B905  one start too many


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # before the manifest names it, even if the power fails
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
