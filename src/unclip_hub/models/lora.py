"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) of our networks: which layers take them, and their one file."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors.torch import save_file
from torch import Tensor, nn

from unclip_hub.models.ar_prior import AutoregressivePrior
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.one_step_prior import OneStepPrior
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.models.upsampler import UNet2DModel


# as peft reads them: ends of the names of layers
_TRANSFORMER = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
TARGETS: dict[type[nn.Module], tuple[str, ...]] = {
    PriorTransformer: _TRANSFORMER,
    AutoregressivePrior: _TRANSFORMER,
    OneStepPrior: _TRANSFORMER,
    UNet2DConditionModel: ("to_q", "to_k", "to_v", "add_k_proj", "add_v_proj", "to_out.0"),
    UnCLIPTextProjModel: (
        "embedding_proj",
        "clip_image_embeddings_project_to_time_embeddings",
        "clip_extra_context_tokens_proj",
        "encoder_hidden_states_proj",
    ),
    UNet2DModel: ("conv1", "conv2", "time_emb_proj"),  # it has no attention
}


def require_peft() -> Any:
    """The package peft, or an error that names the command to get it."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'unclip_hub[train]'") from error
    return peft


def save_lora(
    networks: Mapping[str, nn.Module] | nn.ModuleDict, folder: Path, *, adapter_name: str = "default"
) -> Path:
    """Write the adapter of every network that has it to one file, ``folder/pytorch_lora_weights.safetensors``.

    Names in the file begin with the network's key in ``networks``; a pipeline looks for its components' names.

    Raises:
        ValueError: none of the networks has this adapter.
    """
    peft = require_peft()
    state: dict[str, Tensor] = {}
    configs: dict[str, Any] = {}
    for name, network in networks.items():
        config = getattr(network, "peft_config", {}).get(adapter_name)
        if config is not None:
            layers = peft.get_peft_model_state_dict(network, adapter_name=adapter_name)
            state |= {f"{name}.{key}": value.detach().cpu().contiguous() for key, value in layers.items()}
            configs |= {f"{name}.{key}": value for key, value in config.to_dict().items()}
    if not state:
        raise ValueError(f"there is no adapter {adapter_name!r} in {', '.join(networks) or 'no networks'}")
    folder.mkdir(parents=True, exist_ok=True)
    path, partial = folder / LORA_WEIGHT_NAME_SAFE, folder / f"{LORA_WEIGHT_NAME_SAFE}.partial"
    described = json.dumps(configs, default=_plain, indent=2, sort_keys=True)
    save_file(state, partial, metadata={"format": "pt", LORA_ADAPTER_METADATA_KEY: described})
    os.replace(partial, path)
    return path


def check_fits(network: nn.Module, state: Mapping[str, Tensor], *, name: str) -> None:
    """Refuse an adapter of another network before any of it is loaded; ``state`` is without the prefix ``name``.

    Raises:
        ValueError: a layer that the network does not have, has in another shape, or of which one half is missing.
    """
    halves: dict[str, set[str]] = {}
    for key, value in state.items():
        layer, _, half = key.removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B"):
            raise ValueError(f"{name}.{key} is no tensor of a LoRA adapter: expected lora_A and lora_B weights")
        halves.setdefault(layer, set()).add(half)
        weight = _weight(network, layer)
        if weight is None:
            raise ValueError(f"the adapter is of another network: {name} has no layer {layer}")
        expected, got = (weight.shape[1], value.shape[1]) if half == "lora_A" else (weight.shape[0], value.shape[0])
        if expected != got:
            raise ValueError(f"the adapter is of another network: {name}.{key} is for width {got}, got {expected}")
    alone = sorted(layer for layer, found in halves.items() if len(found) == 1)
    if alone:
        raise ValueError(f"the adapter is not whole: {name}.{alone[0]} has only one of lora_A and lora_B")


def lora_parameters(network: nn.Module, adapter_name: str) -> Iterable[nn.Parameter]:
    """The parameters of one adapter."""
    return (p for key, p in network.named_parameters() if ".lora_" in key and f".{adapter_name}." in key)


def _weight(network: nn.Module, layer: str) -> torch.Tensor | None:
    """The weight below a layer, which other adapters may already have wrapped."""
    try:
        module = network.get_submodule(layer)
    except AttributeError:
        return None
    weight = getattr(getattr(module, "base_layer", module), "weight", None)
    return weight if isinstance(weight, Tensor) and weight.ndim >= 2 else None


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
