"""Foreign checkpoints as tensors and inert data: nothing in a file is imported or run.

torch's files (zip archives, the older stream, TorchScript archives) are pickles. They are read here by an unpickler
that knows the few constructors tensors and plain data need, all of them functions of this module; every other name in
a file is refused, or, where the caller lists its class, becomes a `Stub`. Tensors are views of the mapped file: they
cost memory when they are used, and the file must stay where it is while they live.
"""

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from unclip_hub.hub.weights import AGAIN, BrokenFile, read_header


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before 1.6, in the first of the stream's pickles
_TRUSTED_ELSEWHERE = "take the weights as .safetensors, or from a source that saves only tensors"
_DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}  # fmt: skip
# what text or a pointer file begins with where a download went wrong
_STRANGERS = {
    b"version https://git-": ("is a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    b"<": ("is a web page or XML, not a checkpoint", f"{AGAIN}, following the link to the file itself"),
    b"{": ("is JSON, not a checkpoint", AGAIN),
}
_BUILTINS = ("builtins", "__builtin__")  # of Python 3 and 2
_PLAIN = ("int", "long", "float", "bool", "str", "unicode", "list", "tuple")
_SHOWN = 200  # characters of a name that comes from a file
_DEPTH_OF_MODULES = 50


class Stub:
    """Stands for an object of a class that is not imported: what the file gave it, and nothing that it could do.

    ``args`` are the positional arguments it was made with; its state is in ``__dict__``, or in ``state`` if it was no
    dict.
    """

    name: str  # the full name of the class; read it off the type, as a state may hold a ``name``, too

    def __new__(cls, *args: Any, **kwargs: Any) -> "Stub":
        made = object.__new__(cls)
        made.__dict__.update(kwargs)
        if args:
            made.__dict__["args"] = args
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        parts = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
        if all(isinstance(part, dict | None) for part in parts):
            for part in parts:
                self.__dict__.update(part or {})
        else:
            self.__dict__["state"] = state

    def __repr__(self) -> str:
        return f"<stub of {type(self).name}>"


def read_state(
    path: Path, *, under: Sequence[str] = ("state_dict",), stubs: Collection[str] = ()
) -> dict[str, Tensor]:
    """Key → tensor of a state dict in ``.safetensors``, in a file of torch's, or in a TorchScript archive.

    Args:
        under: where the file holds a dict of more, the names under which the state dict may be; the first that is
            there is taken.
        stubs: see `read_container`.

    Raises:
        BrokenFile: the file is missing, cut short, not what its name says, or holds no state dict.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    found = read_container(path, stubs=stubs)
    if isinstance(found, dict):
        found = next((found[name] for name in under if isinstance(found.get(name), dict)), found)
    elif isinstance(found, Stub) and type(found).name.startswith("__torch__."):
        found = module_state(found)
    else:
        raise BrokenFile(f"{path.name} must hold a state dict, got {_kind(found)}", remedy=AGAIN)
    return state_dict(found, path=path)


def state_dict(found: Mapping[Any, Any], *, path: Path) -> dict[str, Tensor]:
    """A dict of a container as key → tensor.

    Raises:
        BrokenFile: it holds something else, too.
    """
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            what = f"{path.name} must hold key → tensor, got {_kind(value)} at {str(key)!r}"
            raise BrokenFile(what, remedy="check that this is the file of weights")
    if not found:
        raise BrokenFile(f"{path.name} holds an empty state dict", remedy=AGAIN)
    return dict(found)


def module_state(module: Stub, *, depth: int = 0) -> dict[str, Tensor]:
    """Key → tensor of a pickled module, as its ``state_dict()`` would name them."""
    if depth > _DEPTH_OF_MODULES:
        raise ValueError(f"{type(module).name} is a module within itself")
    state: dict[str, Tensor] = {}
    fields = vars(module)
    # a Python module keeps its tensors and parts in dicts, a TorchScript one as attributes
    parameters, buffers, modules = (_dict(fields.get(name)) for name in ("_parameters", "_buffers", "_modules"))
    state |= {key: value for key, value in (parameters | buffers | fields).items() if isinstance(value, Tensor)}
    for name, child in (fields | modules).items():
        if isinstance(child, Stub):
            state |= {f"{name}.{key}": value for key, value in module_state(child, depth=depth + 1).items()}
    return state


def read_container(path: Path, *, stubs: Collection[str] = ()) -> Any:
    """What a file of torch's holds: dicts, lists, numbers, tensors, and a `Stub` where it holds anything else.

    Args:
        stubs: full names of the classes (``"packaging.version.Version"``, ``"dall_e.*"``) that may be in the file. The
            classes of a TorchScript archive always may.

    Raises:
        BrokenFile: the file is missing, cut short, not what its name says, or names something not in ``stubs``.
    """
    size = _size(path)
    try:
        if zipfile.is_zipfile(path):
            return _read_zip(path, stubs)
        _refuse_strangers(path, size)
        return _read_legacy(path, size, stubs)
    except BrokenFile:
        raise
    except Exception as error:  # a pickle machine given garbage can fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise BrokenFile(f"{path.name} is damaged, or no file of torch's ({reason})", remedy=AGAIN) from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not read_header(path):  # which says what is wrong with the file
        raise BrokenFile(f"{path.name} holds no tensors", remedy=AGAIN)
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BrokenFile(f"{path} cannot be read: {error.strerror}", remedy=AGAIN) from None
    if path.is_dir():
        raise BrokenFile(f"{path} is a folder, expected a file", remedy="give the file in it")
    if size == 0:
        raise BrokenFile(f"{path.name} is empty", remedy=AGAIN)
    return size


def _refuse_strangers(path: Path, size: int) -> None:
    with path.open("rb") as file:
        start = file.read(64)
    for beginning, (what, remedy) in _STRANGERS.items():
        if start.lstrip().startswith(beginning):
            raise BrokenFile(f"{path.name} {what}", remedy=remedy)
    if start.startswith(b"PK"):
        what = f"{path.name} is cut short: a zip archive without its end, {size} bytes"
        raise BrokenFile(what, remedy=AGAIN)
    if start[8:9] == b"{":
        raise BrokenFile(f"{path.name} is safetensors under another name", remedy="name it .safetensors again")
    if start[:1] != b"\x80":
        text = " (it begins with text)" if start.isascii() and start.decode("ascii").isprintable() else ""
        raise BrokenFile(f"{path.name} is no file of torch's{text}", remedy=AGAIN)


def _read_zip(path: Path, stubs: Collection[str]) -> Any:
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
        if "data.pkl" not in entries:
            raise BrokenFile(f"{path.name} is a zip archive, but not one of torch's: no data.pkl", remedy=AGAIN)
        used = [entry for name, entry in entries.items() if name == "data.pkl" or name.startswith("data/")]
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in used):
            raise BrokenFile(f"{path.name} is compressed, torch's archives are not", remedy=AGAIN)
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise BrokenFile(f"{path.name} was saved on a big-endian machine", remedy="save it on another machine")
        if "constants.pkl" in entries:
            stubs = {*stubs, "__torch__.*"}
        content = archive.read(entries["data.pkl"])
    mapped = _map(path)

    def storage(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        entry = entries.get(f"data/{key}")
        wanted = numel * dtype.itemsize
        if entry is None or entry.file_size < wanted:
            got = "missing" if entry is None else f"{entry.file_size} bytes"
            raise BrokenFile(f"{path.name}: data/{key} must have {wanted} bytes, it is {got}", remedy=AGAIN)
        # the entry's own header: of a download with holes it is missing, and its lengths need not be the directory's
        header = mapped[entry.header_offset : entry.header_offset + 30].numpy().tobytes()
        if not header.startswith(b"PK\3\4"):
            raise BrokenFile(f"{path.name} has a hole: data/{key} is not where the archive says", remedy=AGAIN)
        start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        return _view(mapped, start, wanted, dtype=dtype, path=path)

    return _Unpickler(io.BytesIO(content), path=path, stubs=stubs, storage=storage).load()


def _read_legacy(path: Path, size: int, stubs: Collection[str]) -> Any:
    """The stream of torch before 1.6: the storages follow the object that uses them, so it is read twice."""
    sizes: dict[str, int] = {}

    def announce(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        sizes[key] = numel * dtype.itemsize
        return torch.empty(numel, dtype=dtype, device="meta")

    with path.open("rb") as file:

        def load(storage: "Storage") -> Any:
            return _Unpickler(file, path=path, stubs=stubs, storage=storage).load()

        magic = load(announce)
        if isinstance(magic, dict) or magic != LEGACY_MAGIC:
            raise BrokenFile(f"{path.name} is a pickle, but not one of torch's", remedy=_TRUSTED_ELSEWHERE)
        version, system = load(announce), load(announce)
        if version != 1001 or not system.get("little_endian", True):
            raise BrokenFile(f"{path.name} is of a version of torch's format that is not read", remedy="save it anew")
        beginning = file.tell()
        load(announce)
        offsets, position = {}, 0
        for key in load(announce):
            position = position or file.tell()
            offsets[key] = position + 8  # after the number of elements
            position += 8 + sizes[key]
        if position > size:
            raise BrokenFile(f"{path.name} is cut short: it needs {position} bytes, it has {size}", remedy=AGAIN)
        mapped = _map(path)
        file.seek(beginning)
        return load(
            lambda dtype, key, numel: _view(mapped, offsets[key], numel * dtype.itemsize, dtype=dtype, path=path)
        )


def _map(path: Path) -> Tensor:
    """The whole file as bytes, private: nothing written to them reaches the file."""
    storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    return torch.empty(0, dtype=torch.uint8).set_(storage)  # pyright: ignore[reportArgumentType]


def _view(mapped: Tensor, start: int, length: int, *, dtype: torch.dtype, path: Path) -> Tensor:
    if start + length > len(mapped):
        what = f"{path.name} is cut short: it needs {start + length} bytes, it has {len(mapped)}"
        raise BrokenFile(what, remedy=AGAIN)
    part = mapped[start : start + length]
    return (part if start % dtype.itemsize == 0 else part.clone()).view(dtype)


Storage = Callable[[torch.dtype, str, int], Tensor]


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


class _Unpickler(pickle.Unpickler):
    """Resolves names to functions of this module and to stubs only, so that no opcode reaches anything else."""

    def __init__(self, file: Any, *, path: Path, stubs: Collection[str], storage: Storage) -> None:
        super().__init__(file, encoding="utf-8")
        self._path, self._patterns, self._storage = path, stubs, storage
        self._stubs: dict[str, type[Stub]] = {}
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if module == "torch" and name in _DTYPES or full == "torch.storage.UntypedStorage":
            return _StorageType(_DTYPES[name])
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if full in _CONSTRUCTORS:
            return _CONSTRUCTORS[full]()
        if any(fnmatchcase(full, pattern) for pattern in self._patterns):
            if full not in self._stubs:
                self._stubs[full] = type(name.rpartition(".")[2], (Stub,), {"name": full})
            return self._stubs[full]
        shown = full[:_SHOWN]
        what = f"{self._path.name} names {shown}, which is no tensor or plain data; it was not opened and nothing ran"
        raise BrokenFile(what, remedy=_TRUSTED_ELSEWHERE)

    def persistent_load(self, pid: Any, /) -> Any:
        if pid[0] == "module":  # the class of a pickled module, with its source text, which is not looked at
            return pid[1]
        kind, storage_type, key, _, numel, *view = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType) or not isinstance(numel, int):
            raise ValueError(f"an unknown reference {str(pid)[:_SHOWN]}")
        if key not in self._storages:
            self._storages[key] = self._storage(storage_type.dtype, str(key), numel)
        if view and view[0] is not None:  # torch 0.3: a part of a storage, under a key of its own
            _, offset, length = view[0]
            return self._storages[key][offset : offset + length]
        return self._storages[key]


def _tensor(storage: Tensor, offset: int, size: Sequence[int], stride: Sequence[int], *_: Any) -> Tensor:
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if math.prod(size) else -1
    if min((0, offset, *size, *stride)) < 0 or offset + last >= len(storage):
        raise ValueError(f"a tensor of shape {tuple(size)} lies outside its {len(storage)} elements")
    return storage.as_strided(tuple(size), tuple(stride), storage.storage_offset() + offset)


def _tensor_of_untyped(storage: Tensor, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    return _tensor(storage.view(rest[2]), offset, size, stride)  # requires_grad, hooks, dtype


# Made anew for every name in a file: a pickle may set attributes of what it is given, and must not reach ours
_CONSTRUCTORS: dict[str, Callable[[], Any]] = {
    "collections.OrderedDict": lambda: lambda items=(): OrderedDict(items),
    "collections.defaultdict": lambda: lambda factory=None, items=(): dict(items),
    "collections.Counter": lambda: lambda items=(): dict(items),
    **{f"{builtins}.set": lambda: lambda items=(): set(items) for builtins in _BUILTINS},
    **{f"{builtins}.dict": lambda: lambda items=(): dict(items) for builtins in _BUILTINS},
    # what a defaultdict would make, by name; given back, not made
    **{f"{builtins}.{name}": lambda: lambda *given: given for builtins in _BUILTINS for name in _PLAIN},
    "_codecs.encode": lambda: lambda text, encoding: text.encode("latin-1"),  # bytes of the older protocols
    "torch.Size": lambda: lambda items=(): tuple(items),
    "torch.device": lambda: lambda *names: ":".join(map(str, names)),
    "torch._utils._rebuild_tensor": lambda: lambda *parts: _tensor(*parts),
    "torch._utils._rebuild_tensor_v2": lambda: lambda *parts: _tensor(*parts),
    "torch._utils._rebuild_tensor_v3": lambda: lambda *parts: _tensor_of_untyped(*parts),
    "torch._utils._rebuild_parameter": lambda: lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda: lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda: lambda data, *_: data,
    **{f"torch.jit._pickle.build_{kind}list": lambda: list for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": lambda: lambda value, _: value,
}


def _dict(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _kind(value: Any) -> str:
    return f"an object of {type(value).name}" if isinstance(value, Stub) else type(value).__name__
