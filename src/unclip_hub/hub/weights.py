"""What a file of weights declares, read from its header: names, shapes and dtypes, never the weights."""

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


AGAIN = "download the file again"
_HEADER_LIMIT = 100_000_000  # bytes; safetensors' own
# https://github.com/huggingface/safetensors#format; of a dtype not listed the size is not checked
_DTYPES = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1), "I16": ("int16", 2), "U16": ("uint16", 2), "F16": ("float16", 2),
    "BF16": ("bfloat16", 2), "I32": ("int32", 4), "U32": ("uint32", 4), "F32": ("float32", 4), "I64": ("int64", 8),
    "U64": ("uint64", 8), "F64": ("float64", 8),
}  # fmt: skip


class BrokenFile(ValueError):
    """A file that cannot be read, and what to do about it."""

    def __init__(self, what: str, *, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor, and the file that holds it."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Name → shape and dtype of a ``.safetensors`` file, or of a torch pickle that holds nothing but tensors.

    Raises:
        BrokenFile: the file is missing, cut short, or not what its name says.
    """
    try:
        with path.open("rb") as file:
            start = file.read(20)
    except OSError as error:
        raise BrokenFile(f"{path.name} cannot be read: {error.strerror}", remedy=AGAIN) from None
    if start.startswith(b"version https://git-"):
        raise BrokenFile(f"{path.name} is a Git LFS pointer, not the file itself", remedy="run `git lfs pull`")
    return _safetensors(path) if path.suffix == ".safetensors" else _pickle(path)


def read_tensor(info: TensorInfo, name: str) -> Any:
    """One small tensor."""
    if info.file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(info.file, framework="pt") as file:
            return file.get_tensor(name)
    return _load(info.file, device="cpu")[name]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        BrokenFile: it does not, or is missing.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BrokenFile(f"{path.name} cannot be read: {error.strerror}", remedy=AGAIN) from None
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{path.name} is not JSON: {error}", remedy=AGAIN) from None
    if not isinstance(value, dict):
        raise BrokenFile(f"{path.name} must hold an object, got {type(value).__name__}", remedy=AGAIN)
    return value


def _safetensors(path: Path) -> dict[str, TensorInfo]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise BrokenFile(f"{path.name} is cut short within its header, or is not safetensors", remedy=AGAIN)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            table = {name: TensorInfo(tuple(t["shape"]), _dtype(t)[0], path) for name, t in header.items()}
            end = _end(header)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise BrokenFile(f"{path.name} has a header that is not safetensors'", remedy=AGAIN) from None
    declared = 8 + length + end
    if declared != size:
        wrong = "is cut short" if size < declared else "is too long"
        raise BrokenFile(f"{path.name} {wrong}: its header declares {declared} bytes, it has {size}", remedy=AGAIN)
    return table


def _dtype(tensor: Mapping[str, Any]) -> tuple[str, int | None]:
    return _DTYPES.get(tensor["dtype"], (str(tensor["dtype"]), None))


def _end(header: Mapping[str, Any]) -> int:
    """Where the last tensor ends; a ValueError where the tensors leave gaps or are not as long as their shapes."""
    end = 0
    for tensor in sorted(header.values(), key=lambda tensor: tensor["data_offsets"]):
        start, stop = tensor["data_offsets"]
        size = _dtype(tensor)[1]
        if start != end or stop < start or (size and stop - start != math.prod(tensor["shape"]) * size):
            raise ValueError
        end = stop
    return end


def _pickle(path: Path) -> dict[str, TensorInfo]:
    import torch

    remedy = f"{AGAIN}, or take a .safetensors file from its author"
    try:
        state = _load(path, device="meta")
    except Exception as error:  # whatever the unpickler meets in a foreign file
        unsafe = "Weights only load failed" in str(error)
        what = "holds more than tensors and was not opened" if unsafe else "is cut short, or no file of torch's"
        raise BrokenFile(f"{path.name} {what}", remedy=remedy) from None
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise BrokenFile(f"{path.name} must hold a dict of tensors", remedy=remedy)
    return {
        name: TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), path)
        for name, tensor in state.items()
    }


def _load(path: Path, *, device: str) -> Any:
    import torch

    return torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
