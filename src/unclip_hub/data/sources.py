"""What ``--data`` says, as the dataset it means."""

import re
from collections.abc import Iterator
from pathlib import Path

from unclip_hub.data.captioned import BrokenSample, Indexed, Sample, all_samples, without
from unclip_hub.data.drawn import open_scenes
from unclip_hub.data.embeddings import MANIFEST, Embeddings
from unclip_hub.data.folder import TABLE_SUFFIXES, open_folder, open_table
from unclip_hub.data.hf_datasets import open_hf
from unclip_hub.data.shards import REMOTE, SHARD_SUFFIXES, Shards, find_shards, shard_name


Source = Indexed | Shards | Embeddings
Position = tuple[int, int]  # shard and sample in it; shard 0 where there are none

FORMS = """\
  photos/                       a folder of pictures, captions beside them (a.jpg, a.txt) or in metadata.jsonl or .csv
  photos.jsonl, photos.csv      a table with file_name and caption
  shards/  'shards/{000..099}.tar'  'shards/*.tar'  https://...tar  hf://datasets/OWNER/NAME/...tar
                                webdataset shards: a folder, a pattern, or addresses
  hf:OWNER/NAME  hf:OWNER/NAME:SPLIT  hf:FOLDER
                                a dataset of Hugging Face datasets, or a folder that its save_to_disk wrote
  embeddings/                   a folder that `unclip embed` wrote
  scenes  scenes:SIZE  scenes:SIZE:COUNT  scenes:SIZE:COUNT:ICONS
                                procedural scenes, drawn here, of 64, 256 or 1024 px; with ICONS (icons.json of Noto
                                Emoji) those that the bundled model is trained on, else of shapes alone"""


def open_data(text: str, *, exclude: Path | None = None, strict: bool = True) -> Source:
    """The dataset that ``text`` names, in one of ``FORMS``.

    Args:
        exclude: a list of keys to leave out, one per line, as ``unclip data check --fix-list`` writes it.
        strict: refuse a dataset of which something is seen to be wrong without opening its pictures. Otherwise that
            stands in its ``problems``.

    Raises:
        ValueError: it is none of these forms, holds nothing, or (if strict) something is wrong with it.
    """
    keys = frozenset(exclude.read_text(encoding="utf-8").splitlines()) if exclude else frozenset()
    source = _open(text, keys)
    if isinstance(source, Embeddings):
        if keys:
            raise ValueError("exclude is for pictures: embeddings are made without them, by `unclip embed --exclude`")
        return source
    if isinstance(source, Indexed):
        source = without(source, keys)
        if strict and source.problems:
            first, more = source.problems[0], len(source.problems) - 1
            others = f", and {more} more" if more else ""
            raise ValueError(f"{text}: {first}{others}; `unclip data check {text}` lists all")
        if len(source) == 0 and (strict or not source.problems):
            raise ValueError(f"{text} holds no captioned pictures; {_what_is_there(text)}")
    return source


def in_order(
    source: Indexed | Shards, *, start: Position = (0, 0)
) -> Iterator[tuple[Sample | BrokenSample, Position]]:
    """Everything once, with the position after it, from which another call continues."""
    first, offset = start
    if isinstance(source, Shards):
        for shard in range(first, len(source.addresses)):
            skip = offset if shard == first else 0
            for done, found in enumerate(source.read(shard), start=1):
                if done > skip:
                    yield found, (shard, done)
    else:
        for done, found in enumerate(all_samples(source, start=offset), start=offset + 1):
            yield found, (0, done)


def _open(text: str, exclude: frozenset[str]) -> Source:
    if text == "scenes" or text.startswith("scenes:"):
        return _scenes(text)
    if text.startswith("hf:") and not text.startswith("hf://"):
        return _hugging_face(text)
    path = Path(text)
    if text.startswith(REMOTE) or text.endswith(SHARD_SUFFIXES):
        return _shards(find_shards(text), exclude)
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return Embeddings(path)
        shards = tuple(str(file) for file in sorted(path.iterdir()) if file.name.endswith(SHARD_SUFFIXES))
        return _shards(shards, exclude) if shards else open_folder(path)
    if path.is_file() and path.suffix in TABLE_SUFFIXES:
        return open_table(path)
    missing = "there is no such file or folder" if not path.exists() else f"{path.suffix or 'such'} files are not read"
    raise ValueError(f"no data in {text!r}: {missing}; expected one of\n{FORMS}")


def _shards(addresses: tuple[str, ...], exclude: frozenset[str]) -> Shards:
    kept = tuple(address for address in addresses if shard_name(address) not in exclude)
    if not kept:
        raise ValueError(f"all {len(addresses)} shards are left out")
    return Shards(kept, exclude)


def _scenes(text: str) -> Source:
    given = re.fullmatch(r"scenes(?::(\d{1,9})(?::(\d{1,9})(?::(.+))?)?)?", text)
    if given is None:
        raise ValueError(f"expected scenes, scenes:SIZE, scenes:SIZE:COUNT or scenes:SIZE:COUNT:ICONS, got {text!r}")
    size, count, icons = given.groups()
    return open_scenes(int(count or 100_000), size=int(size or 64), icons=Path(icons) if icons else None)


def _hugging_face(text: str) -> Source:
    name, split = text.removeprefix("hf:"), "train"
    if not Path(name).exists() and ":" in name:
        name, _, split = name.rpartition(":")
    if not name or not split:
        raise ValueError(f"expected hf:OWNER/NAME, hf:OWNER/NAME:SPLIT or hf:FOLDER, got {text!r}")
    return open_hf(name, split=split)


def _what_is_there(text: str) -> str:
    path = Path(text)
    if not path.is_dir():
        return "every row was left out or the table is empty"
    found = sorted({file.suffix or file.name for file in path.rglob("*") if file.is_file()})
    return f"its files end in {', '.join(found[:10])}" if found else "the folder is empty"
