"""A checkpoint's folder as its files describe it: components, headers, and what is missing or broken on disk."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unclip_hub.hub.class_names import pipeline_class, to_ours
from unclip_hub.hub.shims import is_shim
from unclip_hub.hub.weights import AGAIN, BrokenFile, TensorInfo, read_header, read_json


Kind = Literal["model", "scheduler", "tokenizer", "processor"]
CONFIG_FILE: dict[Kind, str] = {
    "model": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
    "processor": "preprocessor_config.json",
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# of diffusers and transformers, in the order in which they look
_WEIGHTS = ("diffusion_pytorch_model{}.safetensors", "model{}.safetensors")
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json")
_PICKLED = ("diffusion_pytorch_model{}.bin", "pytorch_model{}.bin")


@dataclass(frozen=True)
class Problem:
    """One finding; only an ``"error"`` makes a checkpoint unhealthy."""

    level: Literal["error", "warning", "note"]
    where: str
    what: str
    remedy: str = ""


@dataclass
class Component:
    """One entry of the index. ``config`` and ``tensors`` are None where they cannot be read."""

    name: str
    written: tuple[str, str]
    ours: tuple[str, str]
    config: dict[str, Any] | None = None
    tensors: dict[str, TensorInfo] | None = None
    files: list[Path] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        name = self.ours[1]
        if name.endswith("Scheduler"):
            return "scheduler"
        if "Tokenizer" in name:
            return "tokenizer"
        return "processor" if "Processor" in name or "FeatureExtractor" in name else "model"

    @property
    def dtypes(self) -> list[str]:
        return sorted({t.dtype for name, t in (self.tensors or {}).items() if not name.endswith("position_ids")})


@dataclass
class Checkpoint:
    """A folder's index and components, with what was found on the way."""

    folder: Path
    index: dict[str, Any]
    components: dict[str, Component]
    problems: list[Problem]

    @property
    def pipeline(self) -> str:
        return pipeline_class(self.index)


def inspect(folder: Path, *, variant: str | None = None) -> Checkpoint:
    """Read everything but the weights of a folder in diffusers' format."""
    checkpoint = Checkpoint(folder, {}, {}, [])
    try:
        checkpoint.index = read_json(folder / "model_index.json")
    except BrokenFile as error:
        inside = (
            " (this folder is one component: give the folder above it)" if (folder / "config.json").exists() else ""
        )
        checkpoint.problems.append(Problem("error", "model_index.json", f"{error}{inside}", error.remedy))
        return checkpoint
    entries = {name: value for name, value in checkpoint.index.items() if name[:1] != "_" and _is_entry(value)}
    ours = to_ours(entries)
    for name, written in entries.items():
        if not name.isidentifier():  # it could lead out of the folder
            problem = Problem("error", "model_index.json", f"{name!r} is no name of a component", "do not use it")
            checkpoint.problems.append(problem)
            continue
        if written == [None, None]:
            continue
        component = Component(name, (str(written[0]), str(written[1])), (str(ours[name][0]), str(ours[name][1])))
        checkpoint.components[name] = component
        checkpoint.problems += _read(component, folder / name, variant)
    checkpoint.problems += _strangers(checkpoint)
    return checkpoint


def _is_entry(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str | None) for part in value)


def _read(component: Component, folder: Path, variant: str | None) -> Iterator[Problem]:
    """Fill in what the component's folder holds."""
    name = component.name
    if not folder.is_dir():
        remedy = f"copy the folder {name}/ from where the checkpoint came, or download it again"
        yield Problem("error", name, f"its folder is missing: {folder}", remedy)
        return
    config_file = folder / CONFIG_FILE[component.kind]
    try:
        config = read_json(config_file)
        component.files.append(config_file)
        if component.kind == "tokenizer":
            config |= _vocabulary(folder, config)
            component.files += [path for name in _VOCABULARY if (path := folder / name).exists()]
        component.config = config
    except BrokenFile as error:
        yield Problem("error", name, str(error), error.remedy)
    if component.kind == "model":
        yield from _read_weights(component, folder, variant)


def _read_weights(component: Component, folder: Path, variant: str | None) -> Iterator[Problem]:
    name, dot = component.name, f".{variant}" if variant else ""
    candidates = [
        (folder / template.format(dot), folder / f"{template.format('')}.index{dot}.json")
        for template in _WEIGHTS + _PICKLED
    ]
    found = next(((one, index) for one, index in candidates if one.exists() or index.exists()), None)
    if found is None:
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES))
        remedy = f"choose one with --variant, found {', '.join(others)}" if others else AGAIN
        yield Problem("error", name, f"{candidates[0][0].name} or {candidates[1][0].name} is missing", remedy)
        return
    one, index = found
    files = [one]
    if index.exists():
        component.files.append(index)
        try:
            files = _shards(index)
        except BrokenFile as error:
            yield Problem("error", name, str(error), error.remedy)
            return
        if one.exists():
            yield Problem("warning", name, f"both {one.name} and {index.name} are there", "delete the outdated one")
    tensors: dict[str, TensorInfo] = {}
    broken = False
    for file in files:
        component.files.append(file)
        try:
            tensors |= read_header(file)
        except BrokenFile as error:
            broken = True
            yield Problem("error", name, str(error), error.remedy)
    if not broken:
        component.tensors = tensors
    if files[0].suffix in PICKLES:
        remedy = "save it anew with save_pretrained, which writes safetensors"
        yield Problem("warning", name, f"{files[0].name} is a pickle; it is read as tensors only", remedy)


def _shards(index: Path) -> list[Path]:
    """The files of a sharded component, in the order of their names; they may be missing."""
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise BrokenFile(f"{index.name} must map every tensor to a file", remedy=AGAIN)
    names = sorted(set(files.values()))
    outside = [name for name in names if Path(name).name != name or "\\" in name]
    if outside:
        raise BrokenFile(f"{index.name} names a file outside its folder: {outside[0]}", remedy="do not use it")
    return [index.parent / name for name in names]


def _vocabulary(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What must fit the text encoder: the ids that a tokenizer can give, and its end token's."""
    if (folder / "tokenizer.json").exists():
        written = read_json(folder / "tokenizer.json")
        try:
            ids = dict(written["model"]["vocab"])
            ids |= {token["content"]: token["id"] for token in written.get("added_tokens") or ()}
        except (KeyError, TypeError, ValueError):
            raise BrokenFile("tokenizer.json holds no vocabulary", remedy=AGAIN) from None
    else:
        if not (folder / "merges.txt").exists():
            raise BrokenFile("tokenizer.json, or vocab.json with merges.txt, is missing", remedy=AGAIN)
        ids = read_json(folder / "vocab.json")
        if (folder / "added_tokens.json").exists():
            ids |= read_json(folder / "added_tokens.json")
    if not ids or not all(isinstance(i, int) for i in ids.values()):
        raise BrokenFile("the tokenizer's vocabulary must give every token a number", remedy=AGAIN)
    end = config.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    return {"vocab_size": max(ids.values()) + 1, "eos_token_id": ids.get(end) if isinstance(end, str) else None}


def _strangers(checkpoint: Checkpoint) -> Iterator[Problem]:
    """What lies in the folder and is not part of the checkpoint."""
    read = {file for component in checkpoint.components.values() for file in component.files}
    for path in sorted(checkpoint.folder.rglob("*")):
        here = path.relative_to(checkpoint.folder)
        if any(part.startswith(".") for part in here.parts):
            continue
        if path.suffix == ".py" and not is_shim(path):
            remedy = "never pass trust_remote_code=True for it unless you have read it"
            yield Problem("warning", str(here), "code in the checkpoint; unclip_hub never runs it", remedy)
        elif path.suffix in PICKLES and path not in read and path.is_file():
            yield Problem("warning", str(here), "a pickle that is not used", "delete it")
        elif path.is_dir() and len(here.parts) == 1 and checkpoint.index.get(here.name) in (None, [None, None]):
            if any((path / name).exists() for name in CONFIG_FILE.values()):
                remedy = "delete the folder, or add its entry to model_index.json"
                yield Problem("warning", str(here), "a component that model_index.json does not name", remedy)
