"""Small datasets on disk: numbered pictures, no two alike, and their captions."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def picture(number: int, *, width: int = 40, height: int = 32) -> Image.Image:
    """One colour, another for every number below 4096."""
    colour = (number % 16 * 16, number // 16 % 16 * 16, number // 256 % 16 * 16)
    return Image.new("RGB", (width, height), colour)


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def truncated() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "jpeg")[:900]


def folder(root: Path, count: int) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(number).save(root / f"{number:04d}.png")
        (root / f"{number:04d}.txt").write_text(f"picture {number}\n")
    return root


def shard(path: Path, files: list[tuple[str, bytes]]) -> Path:
    """A tar of these files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def files_of(number: int) -> list[tuple[str, bytes]]:
    name = f"{number:04d}"
    return [(f"{name}.png", encoded(picture(number))), (f"{name}.txt", f"picture {number}".encode())]


def shards(root: Path, counts: list[int]) -> list[Path]:
    """A shard for each of the counts, numbered on."""
    starts = np.cumsum([0, *counts])
    return [
        shard(root / f"part-{i:02d}.tar", [file for n in range(start, start + count) for file in files_of(n)])
        for i, (start, count) in enumerate(zip(starts[:-1].tolist(), counts, strict=True))
    ]


def table(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
