"""Is a model card complete: what the Hub needs to know, and the files that it shows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from unclip_hub.hub.inspect import Problem


CARD = "README.md"
LIBRARY, TASK = "diffusers", "text-to-image"  # without them the Hub's own buttons and filters pass the model by
WRITE = "write one with `unclip card FOLDER --license NAME`"


def card_problems(folder: Path) -> list[Problem]:
    """What is missing in the card of a folder; nothing if it can be published."""
    return list(_problems(folder))


def _problems(folder: Path) -> Iterator[Problem]:
    path = folder / CARD
    if not path.is_file():
        yield Problem("error", CARD, "there is no model card", WRITE)
        return
    try:
        data, text = split(path.read_text(encoding="utf-8"))
    except ValueError as error:
        yield Problem("error", CARD, str(error), WRITE)
        return
    if data.get("license") in (None, "", "unknown"):
        yield Problem(
            "error", CARD, "no licence is named", "add `license: apache-2.0`, or the model's own, at its top"
        )
    for name, value in (("library_name", LIBRARY), ("pipeline_tag", TASK)):
        if data.get(name) != value:
            yield Problem("error", CARD, f"{name} is {data.get(name)!r}", f"set `{name}: {value}` at its top")
    if "[More Information Needed]" in text:
        yield Problem("error", CARD, "it is a template that nobody filled in", WRITE)
    for picture in _pictures(data):
        if "://" not in picture and not (folder / picture).is_file():
            yield Problem("error", CARD, f"its picture {picture} is missing", "add the file, or take the example out")


def split(text: str) -> tuple[dict[str, Any], str]:
    """A card's metadata and its text.

    Raises:
        ValueError: it does not begin with metadata in YAML.
    """
    parts = text.replace("\r\n", "\n").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        raise ValueError("it must begin with metadata between two lines of ---")
    try:
        data = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise ValueError(f"its metadata is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ValueError(f"its metadata must be names and values, got {type(data).__name__}")
    return data, parts[2]


def _pictures(data: dict[str, Any]) -> Iterator[str]:
    widget = data.get("widget")
    for example in widget if isinstance(widget, list) else []:
        output = example.get("output") if isinstance(example, dict) else None
        if isinstance(output, dict) and isinstance(output.get("url"), str):
            yield output["url"]
