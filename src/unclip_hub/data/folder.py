"""Captioned pictures as files: a folder with captions beside the pictures, or a table that names pictures.

In a folder ``a/b.jpg`` has its captions in ``a/b.txt``, one per line, unless ``a`` holds a ``metadata.jsonl`` or
``metadata.csv`` (the form of Hugging Face's image folders). A table is JSON lines or CSV: the picture's path, relative
to the table, in ``file_name``, ``image``, ``path`` or ``file``; captions in ``caption`` or ``text``. A picture may
have several rows.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip_hub.data.captioned import BrokenSample, Sample, as_captions, caption_name, checked_captions


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})
TABLE_SUFFIXES = frozenset({".jsonl", ".csv"})
FILE_NAMES = ("file_name", "image", "path", "file")


@dataclass(frozen=True)
class CaptionedFiles:
    """Pictures on disk, in the order of their keys; captions beside a picture are read when the sample is.

    ``files`` holds, for each, its key, its path below ``root``, and its captions or (as a string) the file with them.
    """

    root: Path
    files: tuple[tuple[str, str, tuple[str, ...] | str], ...]
    problems: tuple[BrokenSample, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Sample:
        key, name, captions = self.files[index]
        if isinstance(captions, str):
            captions = _lines(self.root / captions, key)
        return Sample(key, self.root / name, checked_captions(captions, key))

    def key(self, index: int) -> str:
        """The key of a sample."""
        return self.files[index][0]


def open_folder(root: Path) -> CaptionedFiles:
    """Every captioned picture below a folder; hidden files and folders are passed over.

    A picture's key is its path in the folder, without the suffix where its captions lie beside it.
    """
    files: list[tuple[str, str, tuple[str, ...] | str]] = []
    problems: list[BrokenSample] = []
    for path, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here, visible = Path(path), sorted(name for name in names if not name.startswith("."))
        tables = [name for name in visible if name in ("metadata.jsonl", "metadata.csv")]
        if tables:
            table = _from_table(here / tables[0], root=root)
            listed = {Path(name).name for _, name, _ in table.files}
            unlisted = [name for name in visible if _is_image(name) and name not in listed]
            files += table.files
            problems += table.problems
            problems += [_uncaptioned(here / name, root, f"is not in {tables[0]}") for name in unlisted]
        else:
            _beside(here, visible, root, files, problems)
    return CaptionedFiles(root, tuple(sorted(files)), tuple(problems))


def open_table(path: Path) -> CaptionedFiles:
    """The pictures that a table of JSON lines or CSV names; a picture's key is its path as the table has it."""
    return _from_table(path, root=path.parent)


def _beside(here: Path, names: list[str], root: Path, files: list[Any], problems: list[BrokenSample]) -> None:
    """Add the pictures of one folder with the captions beside them."""
    texts = {Path(name).stem for name in names if name.endswith(".txt")}
    images = [name for name in names if _is_image(name)]
    count = Counter(Path(name).stem for name in images)
    for name in images:
        path, stem = (here / name).relative_to(root), Path(name).stem
        key = path.with_suffix("").as_posix()
        if count[stem] > 1:
            same = ", ".join(other for other in images if Path(other).stem == stem)
            problems.append(BrokenSample("duplicate key", key, f"names several pictures: {same}"))
            count[stem] = -1  # told once
        elif count[stem] == 1 and stem not in texts:
            problems.append(_uncaptioned(here / name, root, f"expected captions in {stem}.txt beside {name}"))
        elif count[stem] == 1:
            files.append((key, path.as_posix(), path.with_suffix(".txt").as_posix()))
    for stem in sorted(texts - set(count)):
        key = (here / stem).relative_to(root).as_posix()
        problems.append(BrokenSample("no image", key, f"{stem}.txt has no picture beside it"))


def _from_table(table: Path, *, root: Path) -> CaptionedFiles:
    found: dict[str, list[str]] = {}
    problems: list[BrokenSample] = []
    for line, row in _rows(table):
        where = f"{table.name}:{line}"
        if isinstance(row, BrokenSample):
            problems.append(row)
            continue
        name, column = next((row[n] for n in FILE_NAMES if row.get(n)), None), caption_name(row)
        if not isinstance(name, str) or column is None:
            lacks = f"one of {', '.join(FILE_NAMES)}" if not isinstance(name, str) else "caption or text"
            kind = "no caption" if isinstance(name, str) else "no image"
            problems.append(BrokenSample(kind, where, f"expected {lacks} in the row, got {', '.join(map(str, row))}"))
            continue
        key = (table.parent / name).relative_to(root).as_posix() if not Path(name).is_absolute() else name
        try:
            captions = as_captions(row[column], key)
        except BrokenSample as problem:
            problems.append(problem)
            continue
        known = found.setdefault(key, [])
        if captions and set(captions) <= set(known):
            problems.append(BrokenSample("duplicate key", key, f"{where} repeats a caption of this picture"))
        known += captions
    missing = [key for key in found if not (root / key).is_file()]
    problems += [BrokenSample("no image", key, f"{table.name} names it, but there is no such file") for key in missing]
    ill = {problem.key for problem in problems}
    files = [(key, key, tuple(captions)) for key, captions in sorted(found.items()) if key not in ill]
    return CaptionedFiles(root, tuple(files), tuple(problems))


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any] | BrokenSample]]:
    """The rows with their line numbers, from 1."""
    with open(table, encoding="utf-8-sig", newline="") as file:
        try:
            if table.suffix == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    yield reader.line_num, {str(name): value for name, value in row.items()}
                return
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, _json_row(text, f"{table.name}:{line}")
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{table} cannot be read as UTF-8 {table.suffix[1:].upper()}: {error}") from None


def _json_row(text: str, where: str) -> dict[str, Any] | BrokenSample:
    try:
        row = json.loads(text)
    except ValueError as error:
        return BrokenSample("broken caption", where, f"is not JSON: {error}")
    if not isinstance(row, dict):
        return BrokenSample("broken caption", where, f"expected an object, got {type(row).__name__}")
    return row


def _lines(path: Path, key: str) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise BrokenSample("broken caption", key, f"{path.name} is not UTF-8") from None
    lines = tuple(line for line in text.splitlines() if line.strip())
    return lines or ("",)  # a file of captions without one has an empty one


def _uncaptioned(path: Path, root: Path, what: str) -> BrokenSample:
    return BrokenSample("no caption", path.relative_to(root).with_suffix("").as_posix(), what)


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES
