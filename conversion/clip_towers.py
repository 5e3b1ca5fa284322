"""CLIP's two transformers in the keys of OpenAI's code (and OpenCLIP's), as transformers' classes with projections."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from attention_rows import thirds
from ledger import Converted
from torch import Tensor


HEAD_DIM = 64  # of all of OpenAI's vision transformers, both towers
_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
_INTEGERS = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class TowerOptions:
    """What no tensor tells of CLIP: heads of the two towers, and the activation's name in transformers."""

    text_heads: int
    vision_heads: int
    hidden_act: str


def openai_options(state: Mapping[str, Tensor]) -> TowerOptions:
    """OpenAI's: heads 64 channels wide, and x * sigmoid(1.702 x)."""
    widths = (len(_get(state, key)) for key in ("ln_final.weight", "visual.ln_post.weight"))
    text, vision = (width // HEAD_DIM for width in widths)
    return TowerOptions(text_heads=text, vision_heads=vision, hidden_act="quick_gelu")


def text_config(state: Mapping[str, Tensor], options: TowerOptions) -> dict[str, Any]:
    """The configuration of transformers' CLIPTextModelWithProjection.

    OpenAI's code reads the embedding off at the highest token id, which is the end token's. transformers does that
    for an ``eos_token_id`` of 2 only; given the true one it reads at its first place, which is the same.
    """
    vocab_size, width = _get(state, "token_embedding.weight").shape
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": len(_get(state, "transformer.resblocks.0.mlp.c_fc.weight")),
        "projection_dim": _get(state, "text_projection").shape[1],
        "num_hidden_layers": _layers(state, "transformer.resblocks."),
        "num_attention_heads": _whole(options.text_heads, width),
        "max_position_embeddings": len(_get(state, "positional_embedding")),
        "hidden_act": options.hidden_act,
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
        "pad_token_id": 0,
    }


def vision_config(state: Mapping[str, Tensor], options: TowerOptions) -> dict[str, Any]:
    """The configuration of transformers' CLIPVisionModelWithProjection."""
    width, channels, _, patch_size = _get(state, "visual.conv1.weight").shape
    grid = math.isqrt(len(_get(state, "visual.positional_embedding")) - 1)
    return {
        "hidden_size": width,
        "intermediate_size": len(_get(state, "visual.transformer.resblocks.0.mlp.c_fc.weight")),
        "projection_dim": _get(state, "visual.proj").shape[1],
        "num_hidden_layers": _layers(state, "visual.transformer.resblocks."),
        "num_attention_heads": _whole(options.vision_heads, width),
        "num_channels": channels,
        "image_size": grid * patch_size,
        "patch_size": patch_size,
        "hidden_act": options.hidden_act,
        "layer_norm_eps": 1e-5,
    }


def move_towers(converted: Converted) -> None:
    """Move every tensor into ``text_encoder`` and ``image_encoder``, but the temperature, which is in neither."""
    text = partial(_move, converted, "text_encoder", "text_model.")
    text("token_embedding.weight", "embeddings.token_embedding.weight")
    text("positional_embedding", "embeddings.position_embedding.weight")
    _move_layers(converted, "text_encoder", "transformer.resblocks.", "text_model.encoder.layers.")
    _norm(text, "ln_final", "final_layer_norm")
    converted.move("text_projection", "text_encoder", "text_projection.weight", change=transposed)

    vision = partial(_move, converted, "image_encoder", "vision_model.")
    vision("visual.class_embedding", "embeddings.class_embedding")
    vision("visual.conv1.weight", "embeddings.patch_embedding.weight")
    vision("visual.positional_embedding", "embeddings.position_embedding.weight")
    _norm(vision, "visual.ln_pre", "pre_layrnorm")
    _move_layers(converted, "image_encoder", "visual.transformer.resblocks.", "vision_model.encoder.layers.")
    _norm(vision, "visual.ln_post", "post_layernorm")
    converted.move("visual.proj", "image_encoder", "visual_projection.weight", change=transposed)
    if converted.has("logit_scale"):
        converted.drop("logit_scale", "no tensor of either tower; kept in text_encoder/config.json")
    for name in _INTEGERS:
        if converted.has(name):
            converted.drop(name, "a number that the shapes tell, too")
    if converted.has("attn_mask"):
        converted.drop("attn_mask", "the causal mask, which transformers makes itself")


def transposed(weight: Tensor) -> Tensor:
    """A projection of CLIP's, (in, out), as a linear layer's weight."""
    return weight.T


def _move(converted: Converted, component: str, prefix: str, source: str, target: str) -> None:
    converted.move(source, component, prefix + target)


def _norm(move: Any, source: str, target: str) -> None:
    for kind in ("weight", "bias"):
        move(f"{source}.{kind}", f"{target}.{kind}")


def _move_layers(converted: Converted, component: str, source: str, target: str) -> None:
    for i in range(_layers({key: None for key in converted.left()}, source)):
        for kind in ("weight", "bias"):
            projections = [f"{target}{i}.self_attn.{name}_proj.{kind}" for name in "qkv"]
            converted.split(f"{source}{i}.attn.in_proj_{kind}", component, projections, change=thirds)
            converted.move(f"{source}{i}.attn.out_proj.{kind}", component, f"{target}{i}.self_attn.out_proj.{kind}")
            for name, new in _LAYER.items():
                converted.move(f"{source}{i}.{name}.{kind}", component, f"{target}{i}.{new}.{kind}")


def _layers(state: Mapping[str, Any], prefix: str) -> int:
    return len({key.removeprefix(prefix).partition(".")[0] for key in state if key.startswith(prefix)})


def _whole(heads: int, width: int) -> int:
    if heads < 1 or width % heads:
        raise ValueError(f"CLIP's width of {width} cannot be shared by {heads} heads")
    return heads


def _get(state: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise ValueError(f"this is not a CLIP with two transformers: it has no {key}")
    return state[key]
