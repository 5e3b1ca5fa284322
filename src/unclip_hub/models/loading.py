"""Checkpoints are loaded whole or not at all.

diffusers and transformers warn about tensors that a file lacks, has in excess or in another shape, and go on with
noise (diffusers even with tensors on `meta`). Here each is an error that names the component's folder and the tensor.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from diffusers.models import modeling_utils

from unclip_hub.hub.weights import read_header, read_json


Source = str | PathLike[str]


class ModelMixin(modeling_utils.ModelMixin):
    """diffusers' `ModelMixin` with a strict `from_pretrained`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Source | None, **kwargs: Any) -> Any:
        """As diffusers', with all of its arguments.

        Raises:
            ValueError, OSError: the folder does not hold every tensor of this network, and only those.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        with _naming(cls.__name__, pretrained_model_name_or_path, kwargs.get("subfolder")):
            if pretrained_model_name_or_path is not None:
                _require_whole_shards(Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or ""))
            loaded: Any = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
            model, info = loaded
            _require_whole(model, info, resized=kwargs.get("ignore_mismatched_sizes", False))
        return (model, info) if wants_info else model


class StrictTransformers:
    """Makes of a class of transformers the loader that an index names in its place; what it loads is that class's."""

    loads: ClassVar[Any]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Source, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with all of its arguments, except that a model is float32 where no `dtype` is given.

        Raises:
            ValueError, OSError: the folder is not whole.
        """
        with _naming(cls.loads.__name__, pretrained_model_name_or_path, kwargs.get("subfolder")):
            if not issubclass(cls.loads, transformers.PreTrainedModel):
                return cls.loads.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            if kwargs.get("dtype") is None:  # diffusers' convention, so that all components agree
                kwargs["dtype"] = torch.float32
            # it would name the tensors of another shape only in its log
            kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
            loaded: Any = cls.loads.from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            model, info = loaded
            _require_whole(model, info)
            return model


class CLIPTextModelWithProjection(StrictTransformers, transformers.CLIPTextModelWithProjection):
    loads = transformers.CLIPTextModelWithProjection


class CLIPVisionModelWithProjection(StrictTransformers, transformers.CLIPVisionModelWithProjection):
    loads = transformers.CLIPVisionModelWithProjection


class CLIPTokenizer(StrictTransformers, transformers.CLIPTokenizer):
    loads = transformers.CLIPTokenizer


class CLIPImageProcessor(StrictTransformers, transformers.CLIPImageProcessorPil):
    loads = transformers.CLIPImageProcessorPil  # the other one needs torchvision, and rounds otherwise than CLIP's


def _require_whole_shards(folder: Path) -> None:
    """Refuse shards that lack what their index promises: diffusers would leave that as it was initialised."""
    for index in folder.glob("*.index*.json"):
        promised = read_json(index).get("weight_map", {})
        there = {file: read_header(folder / file) for file in set(promised.values()) if (folder / file).exists()}
        missing = sorted(name for name, file in promised.items() if name not in there.get(file, promised))
        if missing:
            raise ValueError(f"{len(missing)} missing keys, which {index.name} promises: {_shown(missing)}")


def _require_whole(model: torch.nn.Module, info: Mapping[str, Any], *, resized: bool = False) -> None:
    """Refuse a model whose file did not fit it; `resized` allows tensors of another shape."""
    found: dict[str, list[Any]] = {
        name: sorted(info.get(f"{name}_keys") or ()) for name in ("missing", "unexpected", "mismatched")
    }
    if not found["missing"] and not _offloaded(model):
        tensors = chain(model.named_parameters(), model.named_buffers())
        found["missing"] = sorted(name for name, tensor in tensors if tensor.is_meta)
    shapes = [f"{key}: expected {tuple(own)}, got {tuple(got)}" for key, got, own in found["mismatched"]]
    parts = {
        "missing keys": found["missing"],
        "unexpected keys": found["unexpected"],
        "wrong shapes": [] if resized else shapes,
    }
    wrong = [f"{len(keys)} {what}: {_shown(keys)}" for what, keys in parts.items() if keys]
    if wrong:
        raise ValueError("; ".join(wrong))


def _offloaded(model: torch.nn.Module) -> bool:
    """Whether accelerate keeps some of the weights elsewhere, and `meta` stands for them."""
    devices: Iterable[Any] = (getattr(model, "hf_device_map", None) or {}).values()
    return any(str(device) in ("cpu", "disk") for device in devices)


def _shown(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")


@contextmanager
def _naming(class_name: str, source: Source | None, subfolder: str | None) -> Iterator[None]:
    """Let errors about files name the component's class and folder, in one of two types."""
    place = f"{source}/{subfolder}" if subfolder else str(source)
    try:
        yield
    except (ImportError, NotImplementedError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        if place in str(error):
            raise
        raise OSError(f"{class_name} cannot be loaded from {place}: {error}") from error
    except Exception as error:  # readers of five file formats, each with exceptions of its own
        raise ValueError(f"{class_name} cannot be loaded from {place}: {error}") from error
