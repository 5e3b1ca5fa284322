"""What a model card is made from: facts that people wrote down (TOML), numbers that were measured (JSON)."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar


T = TypeVar("T")

# what a reader of a text-to-image model's card looks for; what is not among the results is listed as not measured
MEASURES = {
    "adherence": "whether pictures show what their captions say",
    "fid": "FID",
    "distribution": "distance of the pictures' distribution from real ones'",
    "clip_score": "CLIP score",
    "diversity": "diversity of the pictures of one caption",
    "seconds_per_picture": "time for a picture",
    "peak_memory": "memory",
    "bias": "social biases",
}


@dataclass(frozen=True)
class Result:
    """One measured number: ``measure`` is a key of `MEASURES`, ``metric`` its row, ``dataset`` its column.

    ``low`` and ``high`` are the interval that `Results.interval` names; ``chance`` and ``ceiling`` are the same metric
    of an answer that knows nothing, and of the truth.
    """

    measure: str
    metric: str
    value: float | int
    dataset: str = "none"
    dataset_id: str = "other"
    split: str | None = None
    n: int | None = None
    low: float | int | None = None
    high: float | int | None = None
    chance: float | int | None = None
    ceiling: float | int | None = None


@dataclass(frozen=True)
class Results:
    """A ``metrics.json``: the numbers, and how they were measured."""

    results: list[Result] = field(default_factory=list)
    protocol: str = ""
    interval: str = ""
    chance: str = ""
    ceiling: str = ""


@dataclass(frozen=True)
class Reported:
    """A number that others published."""

    metric: str
    value: str
    dataset: str
    source: str


@dataclass(frozen=True)
class Example:
    """A caption, the seed, and the picture that came out: a file beside the facts."""

    caption: str
    picture: str
    seed: int | None = None


@dataclass(frozen=True)
class Training:
    """How a network was trained; ``log`` is the loop's ``stats.jsonl``, beside the facts."""

    network: str
    trained_on: str
    time: str = ""
    parameters: str = ""
    log: str = ""


@dataclass(frozen=True)
class Facts:
    """What is known of a model and not in its files. Texts are Markdown; what is empty is said to be unknown."""

    license: str
    name: str = "An unCLIP model"
    license_link: str | None = None
    summary: str = ""
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    scope: str = ""
    limits: str = ""
    biases: str = ""
    data: str = ""
    usage: str = ""
    training: list[Training] = field(default_factory=list)
    training_note: str = ""
    reported: list[Reported] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)


def read_facts(path: Path) -> Facts:
    """A TOML file with the fields of `Facts`.

    Raises:
        ValueError: it is not TOML, a key is unknown, or one is missing.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    for name, kind in (("training", Training), ("reported", Reported), ("examples", Example)):
        table[name] = [_made(kind, entry, where=f"{path}: {name}") for entry in table.get(name, [])]
    return _made(Facts, table, where=str(path))


def read_results(path: Path) -> Results:
    """A ``metrics.json``.

    Raises:
        ValueError: it is not JSON, a key is unknown or missing, or a number lies outside its interval.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        entries = table["results"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} must hold an object with "results": {error}') from None
    results = [_made(Result, entry, where=f"{path}: results") for entry in entries]
    for result in results:
        if result.measure not in MEASURES:
            raise ValueError(f"{path}: measure must be one of {', '.join(MEASURES)}, got {result.measure!r}")
        ends = result.low, result.high
        if (ends[0] is None) != (ends[1] is None):
            raise ValueError(f"{path}: {result.metric}: an interval has low and high, got {ends}")
        if ends[0] is not None and ends[1] is not None and not ends[0] <= result.value <= ends[1]:
            raise ValueError(f"{path}: {result.metric}: {result.value} is not within [{ends[0]}, {ends[1]}]")
    return _made(Results, table | {"results": results}, where=str(path))


def read_run(folder: Path) -> Training:
    """The folder of a training: its settings (``run.json``) and its log (``stats.jsonl``).

    Paths of the data are left out, as they say on whose machine it was trained.

    Raises:
        ValueError: it holds no settings.
    """
    try:
        settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        train = settings["train"]
        said = f"{settings['batch']} examples a step and process, learning rate {train['lr']:g}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} must be the folder of a training, with run.json: {error!r}") from None
    start = "" if settings.get("start", "scratch") == "scratch" else ", from its base model's weights"
    return Training(folder.name, said + start, log=str(folder.absolute() / "stats.jsonl"))


def _made(kind: type[T], table: Mapping[str, Any], *, where: str) -> T:
    known = {one.name: one for one in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    needed = [name for name, one in known.items() if one.default is MISSING and one.default_factory is MISSING]
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} must be given")
    return kind(**table)
