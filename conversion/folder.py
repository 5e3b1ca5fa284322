"""The converted folder: whole or not there, every component checked against the class that will load it."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from ledger import SHOWN, Converted
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer, PretrainedConfig

import unclip_hub
from unclip_hub.hub.card import write_card
from unclip_hub.hub.card_check import CARD
from unclip_hub.hub.card_facts import Facts
from unclip_hub.hub.inspect import inspect
from unclip_hub.hub.layout import write_index
from unclip_hub.hub.push import Plan, prepare
from unclip_hub.hub.push import push as publish
from unclip_hub.models.examine import examine
from unclip_hub.models.expected import expected


REPORT = "conversion_report.json"
STATISTICS = ("clip_mean", "clip_std")


@contextmanager
def output_folder(
    path: Path, *, source_format: str, overwrite: bool = False, dtype: torch.dtype | None = None
) -> Iterator["OutputFolder"]:
    """A folder to write into, which takes its place at ``path`` only when everything went well.

    Args:
        overwrite: replace a folder that a conversion wrote; no other is ever replaced.
        dtype: of the weights; as in the original where None.

    Raises:
        ValueError: there is something at ``path`` already.
    """
    _require_free(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        made = OutputFolder(beside / "new", source_format=source_format, dtype=dtype)
        made.path.mkdir()
        yield made
        made.write_report()
        if path.exists():
            os.replace(path, beside / "old")
        os.replace(made.path, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


class OutputFolder:
    """Writes components one by one, so that no more than one need be in memory."""

    def __init__(self, path: Path, *, source_format: str, dtype: torch.dtype | None) -> None:
        self.path = path
        self.components: dict[str, tuple[str, str]] = {}  # library and class of what was written
        self._dtype = dtype
        self._report: dict[str, Any] = {"converter": f"unclip_hub {_version()}", "format": source_format, "files": {}}
        self._notes: list[str] = []

    def add_model(self, name: str, cls: Any, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        """Write a network of ours or of transformers': its configuration, and all tensors that it expects.

        A component is stored in one dtype: the folder's, else the widest of the original's, which loses nothing. Only
        statistics of embeddings stay as they are: rounded, they would shift every embedding.

        Raises:
            ValueError: the configuration or the tensors are not those of ``cls``.
        """
        shapes, full = expected(cls, config)
        _require_equal(name, cls, state, shapes)
        dtype = self._dtype or _widest(tensor for key, tensor in state.items() if key not in STATISTICS)
        folder = self._component(name, cls)
        if issubclass(cls, ConfigMixin):
            with torch.device("meta"):
                model: Any = cls.from_config(dict(config))
            model.save_config(folder)
        else:
            written: PretrainedConfig = cls.config_class.from_dict(full)
            written.architectures, written.dtype = [cls.__name__], dtype
            written.save_pretrained(folder)
        stem = "diffusion_pytorch_model" if issubclass(cls, ConfigMixin) else "model"
        cast = {key for key, tensor in state.items() if tensor.is_floating_point() and key not in STATISTICS}
        whole = {key: (t.to(dtype) if key in cast else t).contiguous() for key, t in state.items()}
        save_file(whole, folder / f"{stem}.safetensors", metadata={"format": "pt"})

    def add_scheduler(self, name: str, scheduler: Any) -> None:
        """Write a scheduler's configuration."""
        scheduler.save_pretrained(self._component(name, type(scheduler)))

    def add_tokenizer(self, name: str, tokenizer: CLIPTokenizer) -> None:
        """Write a CLIP tokenizer, also in the two files that transformers before 5 reads."""
        folder = self._component(name, type(tokenizer))
        tokenizer.save_pretrained(folder)
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")

    def add_processor(self, name: str, processor: Any) -> None:
        """Write what prepares pictures for an encoder."""
        processor.save_pretrained(self._component(name, type(processor)))

    def account(self, file: Path, converted: Converted) -> None:
        """Enter into the report what became of the keys of a file; by file name, as folders say where it was made."""
        keys = dict(sorted(converted.fates.items()))
        entry = {"what": converted.what, "bytes": file.stat().st_size, "keys": keys}
        files = self._report["files"]
        name = file.name if file.name not in files else f"{file.parent.name}/{file.name}"
        files[name] = entry | ({"computed": converted.computed} if converted.computed else {})

    def note(self, text: str) -> None:
        """A sentence for the report and for the person who converts."""
        self._notes.append(text)

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    def write_index(self, pipeline: str, *, config: Mapping[str, Any] | None = None) -> None:
        """Make the folder one that the pipeline of this name opens, with the components written so far."""
        write_index(self.path, pipeline, components=self.components, config=config)

    def write_report(self) -> None:
        report = self._report | {"components": {name: " ".join(of) for name, of in self.components.items()}}
        report |= {"notes": self._notes} if self._notes else {}
        (self.path / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def _component(self, name: str, cls: type) -> Path:
        assert name not in self.components, f"{name} is written twice"
        self.components[name] = (cls.__module__.partition(".")[0], cls.__name__)
        folder = self.path / name
        folder.mkdir()
        return folder


def push(folder: Path, repo: str, *, license: str) -> str:
    """Publish the folder in one commit, with a model card that says what is known; returns the commit's address.

    Raises:
        HubError, ValueError: it could not be done, or the folder is not fit to be published; nothing was.
    """
    checkpoint = inspect(folder)
    card = folder / CARD
    if not card.exists():
        card.write_text(write_card(Facts(license=license), checkpoint=checkpoint), encoding="utf-8")
    if checkpoint.index:
        examine(checkpoint)
        plan = prepare(checkpoint)
    else:  # networks that no pipeline holds
        plan = Plan({path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()})
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    message = f"Convert from {report['format']} with {report['converter']}"
    return publish(plan, repo, message=message).url


def _require_free(path: Path, *, overwrite: bool) -> None:
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not (path / REPORT).is_file():
        raise ValueError(f"{path} is there already, and no conversion wrote it: choose another place")
    if path.exists() and not overwrite:
        raise ValueError(f"{path} is there already: --overwrite replaces it")


def _require_equal(name: str, cls: Any, state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    got = {key: tuple(tensor.shape) for key, tensor in state.items()}
    differ = [key for key in shapes if key in got and got[key] != shapes[key]]
    parts = {
        "lacks": [key for key in shapes if key not in got],
        "must not have": [key for key in got if key not in shapes],
        "has another shape in": [f"{key} (expected {shapes[key]}, got {got[key]})" for key in differ],
    }
    wrong = [
        f"it {what} {', '.join(keys[:SHOWN])}" + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
        for what, keys in parts.items()
        if keys
    ]
    if wrong:
        where = f"the checkpoint does not fit its configuration: {name} ({cls.__name__})"
        raise ValueError(f"{where}: {'; '.join(wrong)}")


def _widest(tensors: Iterable[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, {tensor.dtype for tensor in tensors if tensor.is_floating_point()})


def _version() -> str:
    from importlib.metadata import version

    return version(unclip_hub.__name__)
