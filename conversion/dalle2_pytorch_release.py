"""Which release of DALLE2-pytorch a checkpoint is of: it decides on numbers that no key shows."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from containers import Stub


Release = tuple[int, ...]

# what stands for all releases that compute alike and have the same keys
FIRST_LAYOUT: Release = (0, 15, 4)  # gamma and beta in the norms
LAST_LAYOUT: Release = (1, 15, 6)
_ANY = "give the release that the checkpoint was trained with: --version 1.0.2"
_COUNTED = re.compile(r"\d+(\.\d+)*")


def parse(text: str) -> Release:
    """ "1.15.6" as numbers.

    Raises:
        ValueError: it is no release.
    """
    if not _COUNTED.fullmatch(text):
        raise ValueError(f"a release must be numbers like 1.0.2, got {text!r}")
    return tuple(int(part) for part in text.split("."))


def shown(release: Release) -> str:
    return ".".join(map(str, release))


def written_in(value: Any) -> Release | None:
    """The release that a file names: text, or a pickled `packaging.version.Version` of any age."""
    if isinstance(value, str) and _COUNTED.match(value):
        return tuple(int(part) for part in _COUNTED.match(value)[0].split("."))  # type: ignore[index]
    if isinstance(value, Stub):
        return next(filter(None, map(_release_tuple, _leaves(vars(value)))), None)
    return None


def of_prior(keys: Iterable[str]) -> Release | None:
    """The release that a prior's keys tell; None where they fit releases that compute differently."""
    keys = set(keys)
    if any(key.endswith(".gamma") for key in keys):
        return FIRST_LAYOUT
    return LAST_LAYOUT if any(key.endswith("net.null_text_encodings") for key in keys) else None


def of_decoder(shapes: Mapping[str, tuple[int, ...]]) -> Release | None:
    """The release that a decoder's keys tell; None where they fit releases that compute differently."""
    if any(key.endswith(".gamma") for key in shapes):
        return FIRST_LAYOUT
    joined = any(re.search(r"downs\.\d+\.[04]\.1\.weight$", key) for key in shapes)  # space to depth, since 1.10
    unwrapped = any(".cross_attn.norm.g" in key for key in shapes)  # since 1.14
    return LAST_LAYOUT if joined or unwrapped else None


def decide(what: str, *, given: Release | None, written: Release | None, told: Release | None) -> Release:
    """The release of one file: the one given, else written in a file, else told by its keys.

    Raises:
        ValueError: none of them.
    """
    found = given or written or told
    if found is None:
        raise ValueError(
            f"the keys of {what} fit several releases of DALLE2-pytorch that compute differently (attention changed "
            f"in 0.16.2, 0.23.3, 1.4.0 and 1.4.3), and no file here names one; {_ANY}. LAION's networks with such "
            "keys are run with 1.0.2 or 1.1.0"
        )
    return found


def _release_tuple(value: Any) -> Release | None:
    numbers = isinstance(value, tuple) and len(value) >= 2 and all(type(part) is int for part in value)
    return value if numbers else None


def _leaves(value: Any) -> Iterable[Any]:
    """A value and everything in it, in order."""
    yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if isinstance(value, Stub):
        inner = vars(value).values()
    for one in inner:
        yield from _leaves(one)
