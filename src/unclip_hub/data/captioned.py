"""What a dataset is: pictures that are not decoded yet, each with its captions and a key that names it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image


Kind = Literal[
    "broken image",
    "too small",
    "no image",
    "no caption",
    "empty caption",
    "broken caption",
    "duplicate key",
    "broken shard",
    "broken embeddings",
]
CAPTION_NAMES = ("captions", "caption", "texts", "text")  # of a column or a JSON field, the first that is there


@dataclass(frozen=True)
class Sample:
    """A picture as it is stored, one caption or several of it, and its key: unique in its dataset, the same always."""

    key: str
    image: Path | bytes | Image.Image
    captions: tuple[str, ...]


class BrokenSample(ValueError):
    """What is wrong with one sample, or with one shard; ``key`` names it."""

    def __init__(self, kind: Kind, key: str, what: str) -> None:
        super().__init__(kind, key, what)  # the arguments, so that it crosses from a worker process whole
        self.kind, self.key, self.what = kind, key, what

    def __str__(self) -> str:
        return f"{self.key}: {self.what}"


@runtime_checkable
class Indexed(Protocol):
    """A dataset in which any sample can be had at once; ``source[i]`` raises BrokenSample for one without captions.

    ``problems`` is what was found without opening a single picture: of these nothing is among the samples.
    """

    @property
    def problems(self) -> tuple[BrokenSample, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def key(self, index: int) -> str: ...


@dataclass(frozen=True)
class Kept:
    """The samples of a dataset that ``exclude`` does not name."""

    source: Indexed
    indices: tuple[int, ...]
    problems: tuple[BrokenSample, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.source[self.indices[index]]

    def key(self, index: int) -> str:
        """The key of a sample."""
        return self.source.key(self.indices[index])


def without(source: Indexed, exclude: frozenset[str]) -> Indexed:
    """The dataset without the samples, and without the problems, whose keys are in ``exclude``."""
    if not exclude:
        return source
    indices = tuple(i for i in range(len(source)) if source.key(i) not in exclude)
    return Kept(source, indices, tuple(problem for problem in source.problems if problem.key not in exclude))


def all_samples(source: Indexed, *, start: int = 0) -> Iterator[Sample | BrokenSample]:
    """The samples in their order from ``start`` on, and what is wrong in the place of those that are not whole."""
    for index in range(start, len(source)):
        try:
            yield source[index]
        except BrokenSample as problem:
            yield problem


def checked_captions(captions: tuple[str, ...], key: str) -> tuple[str, ...]:
    """The captions, stripped.

    Raises:
        BrokenSample: there is none, or one is empty.
    """
    if not captions:
        raise BrokenSample("no caption", key, "has no caption")
    stripped = tuple(caption.strip() for caption in captions)
    if not all(stripped):
        raise BrokenSample("empty caption", key, "has an empty caption")
    return stripped


def caption_name(names: Mapping[str, Any] | list[str]) -> str | None:
    """Which of these columns or fields holds captions."""
    return next((name for name in CAPTION_NAMES if name in names), None)


def as_captions(value: Any, key: str) -> tuple[str, ...]:
    """The captions in a field: a text, or a list of texts; None is none.

    Raises:
        BrokenSample: it is something else.
    """
    values = () if value is None else tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(one, str) for one in values):
        raise BrokenSample("broken caption", key, f"expected a caption or a list of them, got {_short(value)}")
    return values


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
