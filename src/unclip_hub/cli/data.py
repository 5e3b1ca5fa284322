"""`unclip data`: what is wrong with a dataset, before anything is trained on it."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unclip_hub.cli import one_line, plain_errors


if TYPE_CHECKING:
    from unclip_hub.data.captioned import BrokenSample, Sample
    from unclip_hub.data.embeddings import Manifest

_AHEAD = 16  # pictures per thread that are read before their results are taken


@click.group(name="data")
def command() -> None:
    """Look at datasets."""


@command.command(name="check")
@click.argument("data", metavar="DATA")
@click.option("--size", type=click.IntRange(min=1), default=64, help="Smallest edge that is enough. [default: 64]")
@click.option("--fix-list", type=click.Path(path_type=Path, dir_okay=False), help="Write the keys of what is wrong.")
@click.option("--exclude", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Leave these keys out.")
@click.option("--threads", type=click.IntRange(min=1), help="That decode. [default: one per core]")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def check(
    data: str, *, size: int, fix_list: Path | None, exclude: Path | None, threads: int | None, debug: bool
) -> int:
    """Decode every picture of DATA, read every caption, and name all that is wrong.

    DATA is a folder of pictures, a table of them (.jsonl, .csv), webdataset shards ('shards/{000..099}.tar'),
    hf:OWNER/NAME, a folder that `unclip embed` wrote, or scenes. What --fix-list writes, --exclude leaves out, here
    and in `unclip embed`.

    Exit code: 0 if nothing is wrong, 1 if something is, 2 for wrong usage.

    Example: unclip data check photos --size 256 --fix-list broken.txt
    """
    with plain_errors(debug=debug):
        from unclip_hub.data.embeddings import MANIFEST, read_manifest

        if (Path(data) / MANIFEST).is_file():
            manifest = read_manifest(Path(data))
            found = _embeddings(Path(data), manifest)
        else:
            found = _pictures(data, size=size, exclude=exclude, threads=threads or os.cpu_count() or 1)
        return _report(data, found, fix_list)


def _report(data: str, found: Iterable["int | BrokenSample"], fix_list: Path | None) -> int:
    """Print what is wrong as it comes, then the counts; numbers among ``found`` count what is right."""
    right, wrong = 0, Counter[str]()
    partial = fix_list and fix_list.with_name(f".{fix_list.name}.{os.getpid()}.partial")
    try:
        with open(partial or os.devnull, "w", encoding="utf-8") as file:
            for one in found:
                if isinstance(one, int):
                    right += one
                    continue
                wrong[one.kind] += 1
                click.echo(one_line(f"{one.kind}: {one}"))
                file.write(f"{one.key}\n")
        if fix_list and partial:
            partial.replace(fix_list)
    finally:
        if partial:
            partial.unlink(missing_ok=True)
    total = sum(wrong.values())
    click.echo(f"{data}: {right:,} right, {total:,} wrong")
    for kind, count in wrong.most_common():
        click.echo(f"  {count:>9,}  {kind}")
    return int(total > 0)


def _pictures(text: str, *, size: int, exclude: Path | None, threads: int) -> "Iterator[int | BrokenSample]":
    from unclip_hub.data.captioned import BrokenSample
    from unclip_hub.data.pictures import check_size, open_picture
    from unclip_hub.data.shards import Shards
    from unclip_hub.data.sources import in_order, open_data

    source: Any = open_data(text, exclude=exclude, strict=False)

    def examine(sample: "Sample | BrokenSample") -> "int | BrokenSample":
        try:
            if isinstance(sample, BrokenSample):
                return sample
            check_size(open_picture(sample), sample.key, size=size)
            return 1
        except BrokenSample as problem:
            return problem

    known = () if isinstance(source, Shards) else source.problems
    samples = (sample for sample, _ in in_order(source))
    return chain(known, _in_threads(examine, samples, threads=threads))


def _in_threads(function: Callable[[Any], Any], items: Iterator[Any], *, threads: int) -> Iterator[Any]:
    """The results in order, with a bounded number of items at hand."""
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(islice(items, _AHEAD * threads)):
            yield from pool.map(function, chunk)


def _embeddings(folder: Path, manifest: "Manifest") -> "Iterator[int | BrokenSample]":
    from unclip_hub.data.captioned import BrokenSample
    from unclip_hub.data.embeddings import check_shard

    for shard in manifest.shards:
        try:
            check_shard(folder, shard, content=True)
            yield shard["rows"]
        except BrokenSample as problem:
            yield problem
    if not manifest.complete:
        what = f"is not complete, {manifest.rows} rows so far: run the same `unclip embed` again"
        yield BrokenSample("broken embeddings", str(folder), what)
