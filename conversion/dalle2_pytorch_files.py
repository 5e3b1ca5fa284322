"""The files of DALLE2-pytorch, in all of its containers: the weights to use, the release, the options."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dalle2_pytorch_release
from containers import Stub, read_container, state_dict
from dalle2_pytorch_release import Release
from torch import Tensor

from unclip_hub.hub.weights import AGAIN, BrokenFile


# what its trainers pickled beside the weights, and what the modules in dalle2.pt consist of; none of it is imported
STUBS = (
    "packaging.*", "pytorch_warmup.*", "torch.optim.*", "torch.nn.*", "torch._C.*", "torch.cuda.amp.*", "functools.*",
    "dalle2_pytorch.*", "einops.*", "einops_exts.*", "rotary_embedding_torch.*", "ema_pytorch.*",
    "vector_quantize_pytorch.*", "x_clip.*", "coca_pytorch.*", "clip.*", "open_clip.*", "pathlib.*",
)  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """One network's weights, the moving average where there is one, and what the file says about it."""

    path: Path
    state: dict[str, Tensor]
    release: Release | None
    options: Mapping[str, Any]
    prefix: str  # of the keys in the file, where it holds more than this network


def read_prior(path: Path, *, config: Path | None = None) -> Checkpoint:
    """A prior: a trainer's checkpoint, a tracker's model, a bare state dict, or the one in ``dalle2.pt``.

    Raises:
        BrokenFile: the file cannot be read, or holds no state dict where one is due.
    """
    found, release, options = _open(path, "prior", config)
    prefix = "prior." if "model_params" in found else ""
    if prefix:
        state = _below(found["model_params"], prefix)
    elif isinstance(found.get("ema_model"), dict):
        state = found["ema_model"]
    elif isinstance(found.get("ema"), dict):
        state = _below(found["ema"], "ema_model.")
    else:
        state = found.get("model", found)
    return Checkpoint(path, _weights(state, path, marker="net.learned_query"), release, options, prefix)


def read_decoder(path: Path, *, config: Path | None = None) -> Checkpoint:
    """A decoder, as `read_prior`; of a trainer's checkpoint the moving averages of the U-Nets that have one.

    Raises:
        BrokenFile: the file cannot be read, or holds no state dict where one is due.
    """
    found, release, options = _open(path, "decoder", config)
    prefix = "decoder." if "model_params" in found else ""
    if prefix:
        state = _below(found["model_params"], prefix)
    else:
        state = dict(found.get("model", found))
    for key, tensor in (found.get("ema") or {}).items():
        index, _, name = key.partition(".ema_model.")
        if name:
            state[f"unets.{index}.{name}"] = tensor
    return Checkpoint(path, _weights(state, path, marker="unets.0.norm_cond.weight"), release, options, prefix)


def _open(path: Path, what: str, config: Path | None) -> tuple[dict[str, Any], Release | None, Mapping[str, Any]]:
    found = read_container(path, stubs=STUBS)
    if not isinstance(found, dict):
        raise BrokenFile(f"{path.name} must hold a dict, got {type(found).__name__}", remedy=AGAIN)
    release = dalle2_pytorch_release.written_in(found.get("version"))
    if config is not None:
        options = _read_json(config)
    else:
        options = found.get("config") or (found.get("init_params") or {}).get(what) or {}
    options = options.get(what, options)
    return found, release, {key: value for key, value in options.items() if not isinstance(value, Stub)}


def _below(found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}


def _weights(found: Any, path: Path, *, marker: str) -> dict[str, Tensor]:
    """The state dict, without the prefix of a distributed wrapper, of the network that has the key ``marker``."""
    if not isinstance(found, dict):
        raise BrokenFile(f"{path.name} must hold key → tensor, got {type(found).__name__}", remedy=AGAIN)
    state = state_dict(found, path=path)
    state = _below(state, "module.") if all(key.startswith("module.") for key in state) else state
    if marker not in state:
        what = f"{path.name} holds another network: it has no {marker}, but {', '.join(list(state)[:3])}"
        raise BrokenFile(what, remedy="name a prior with --prior and a decoder with --decoder")
    return state


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BrokenFile(f"{path.name} cannot be read: {error}", remedy=AGAIN) from None
    if not isinstance(found, dict):
        raise BrokenFile(f"{path.name} must hold a JSON object, got {type(found).__name__}", remedy=AGAIN)
    return found
