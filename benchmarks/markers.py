"""Tables in pages: what stands between a page's markers, ``<!-- begin: NAME -->`` and ``<!-- end: NAME -->``."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


def fill(page: Path, name: str, body: str) -> None:
    """Put ``body`` between the markers ``name`` of a page, whose other text is left alone.

    Raises:
        click.ClickException: the page has no such markers.
    """
    text = page.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- begin: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
    if not marked.search(text):
        raise click.ClickException(f"{page} must hold the markers <!-- begin: {name} --> and end")
    page.write_text(marked.sub(lambda found: f"{found[1]}{body}\n{found[2]}", text), encoding="utf-8")


def head(*names: str) -> Iterator[str]:
    """The first two lines of a table."""
    yield line(*names)
    yield "|---" * len(names) + "|"


def line(*cells: Any) -> str:
    """A line of a table."""
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"
