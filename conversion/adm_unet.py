"""U-Nets of the guided-diffusion family (ADM, Dhariwal & Nichol 2021): GLIDE's, and Karlo's decoder and upsamplers.

A file numbers the blocks on the way down and up one after the other; here they are named by level, as diffusers does.
What a network looks like is read off its tensors, but for the width of the attention's heads and the picture size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from attention_rows import per_head, pointwise
from ledger import Converted
from torch import Tensor


_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True)
class UNetShape:
    """What the tensors of a U-Net tell of it; ``attention`` is per level."""

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention: tuple[bool, ...]
    cross_attention_dim: int | None
    scale_shift: bool


def unet_shape(state: Mapping[str, Tensor], *, prefix: str, what: str) -> UNetShape:
    """Read the layout of the U-Net whose keys begin with ``prefix``.

    Raises:
        ValueError: it is no U-Net whose levels are joined by residual blocks (``resblock_updown``).
    """

    def shape(key: str) -> Sequence[int]:
        if prefix + key not in state:
            raise ValueError(f"this is not {what}: it has no {prefix + key}")
        return state[prefix + key].shape

    blocks = sum(f"{prefix}output_blocks.{n}.0.in_layers.0.weight" in state for n in range(len(state)))
    ups = [
        n
        for n in range(blocks)
        if any(f"{prefix}output_blocks.{n}.{part}.in_layers.0.weight" in state for part in (1, 2))
    ]
    levels = len(ups) + 1
    if blocks == 0 or blocks % levels:
        raise ValueError(f"this is not {what}: {blocks} output blocks cannot be {levels} equal levels")
    depth = blocks // levels - 1
    firsts = [1 + level * (depth + 1) for level in range(levels)]
    widths = tuple(shape(f"input_blocks.{n}.0.out_layers.3.weight")[0] for n in firsts)
    context = f"{prefix}middle_block.1.encoder_kv.weight"
    return UNetShape(
        in_channels=shape("input_blocks.0.0.weight")[1],
        out_channels=shape("out.2.weight")[0],
        block_out_channels=widths,
        layers_per_block=depth,
        attention=tuple(f"{prefix}input_blocks.{n}.1.qkv.weight" in state for n in firsts),
        cross_attention_dim=state[context].shape[1] if context in state else None,
        scale_shift=shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0],
    )


def decoder_config(shape: UNetShape, *, sample_size: int, head_dim: int) -> dict[str, Any]:
    """The configuration of `unclip_hub.UNet2DConditionModel`: a U-Net with attention to a context."""
    down = ["SimpleCrossAttnDownBlock2D" if attends else "ResnetDownsampleBlock2D" for attends in shape.attention]
    up = ["SimpleCrossAttnUpBlock2D" if attends else "ResnetUpsampleBlock2D" for attends in shape.attention[::-1]]
    return _config(shape, sample_size, down, up) | {
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "attention_head_dim": head_dim,
        "cross_attention_dim": shape.cross_attention_dim,
        "class_embed_type": "identity",
    }


def upsampler_config(shape: UNetShape, *, sample_size: int) -> dict[str, Any]:
    """The configuration of `unclip_hub.UNet2DModel`: a U-Net without attention."""
    levels = len(shape.block_out_channels)
    blocks = ["ResnetDownsampleBlock2D"] * levels, ["ResnetUpsampleBlock2D"] * levels
    return _config(shape, sample_size, *blocks) | {"add_attention": False}


def move_unet(
    converted: Converted, component: str, *, shape: UNetShape, prefix: str, head_dim: int | None = None
) -> None:
    """Move every tensor of a U-Net into ``component``; ``head_dim`` is needed if it has attention."""
    levels, depth = len(shape.block_out_channels), shape.layers_per_block
    move = partial(_move_both, converted, component)
    resnet = partial(_move_resnet, converted, component)
    attend = partial(_move_attention, converted, component, head_dim)
    for source, target in _ENDS.items():
        move(prefix + source, target)
    for level in range(levels):
        for j in range(depth):
            source = f"{prefix}input_blocks.{1 + level * (depth + 1) + j}"
            resnet(f"{source}.0", f"down_blocks.{level}.resnets.{j}")
            if shape.attention[level]:
                attend(f"{source}.1", f"down_blocks.{level}.attentions.{j}")
        if level < levels - 1:
            resnet(f"{prefix}input_blocks.{(level + 1) * (depth + 1)}.0", f"down_blocks.{level}.downsamplers.0")
    attends = converted.has(f"{prefix}middle_block.1.qkv.weight")
    resnet(f"{prefix}middle_block.0", "mid_block.resnets.0")
    if attends:
        attend(f"{prefix}middle_block.1", "mid_block.attentions.0")
    resnet(f"{prefix}middle_block.{2 if attends else 1}", "mid_block.resnets.1")
    for level, attends in enumerate(shape.attention[::-1]):
        for j in range(depth + 1):
            source = f"{prefix}output_blocks.{level * (depth + 1) + j}"
            resnet(f"{source}.0", f"up_blocks.{level}.resnets.{j}")
            if attends:
                attend(f"{source}.1", f"up_blocks.{level}.attentions.{j}")
        if level < levels - 1:
            source = f"{prefix}output_blocks.{level * (depth + 1) + depth}.{2 if attends else 1}"
            resnet(source, f"up_blocks.{level}.upsamplers.0")


def _config(shape: UNetShape, sample_size: int, down: list[str], up: list[str]) -> dict[str, Any]:
    return {
        "sample_size": sample_size,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "block_out_channels": list(shape.block_out_channels),
        "layers_per_block": shape.layers_per_block,
        "down_block_types": down,
        "up_block_types": up,
        "resnet_time_scale_shift": "scale_shift" if shape.scale_shift else "default",
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
    }


def _move_both(converted: Converted, component: str, source: str, target: str) -> None:
    for kind in ("weight", "bias"):
        converted.move(f"{source}.{kind}", component, f"{target}.{kind}")


def _move_resnet(converted: Converted, component: str, source: str, target: str) -> None:
    for part, name in _RESNET.items():
        _move_both(converted, component, f"{source}.{part}", f"{target}.{name}")
    if converted.has(f"{source}.skip_connection.weight"):
        _move_both(converted, component, f"{source}.skip_connection", f"{target}.conv_shortcut")


def _move_attention(converted: Converted, component: str, head_dim: int | None, source: str, target: str) -> None:
    assert head_dim is not None, "a U-Net with attention has heads"
    _move_both(converted, component, f"{source}.norm", f"{target}.group_norm")
    for kind in ("weight", "bias"):
        split = partial(converted.split, component=component)
        names = [f"{target}.{name}.{kind}" for name in ("to_q", "to_k", "to_v")]
        split(f"{source}.qkv.{kind}", targets=names, change=partial(per_head, head_dim=head_dim))
        if converted.has(f"{source}.encoder_kv.{kind}"):
            names = [f"{target}.{name}.{kind}" for name in ("add_k_proj", "add_v_proj")]
            split(f"{source}.encoder_kv.{kind}", targets=names, change=partial(per_head, head_dim=head_dim, parts=2))
        converted.move(f"{source}.proj_out.{kind}", component, f"{target}.to_out.0.{kind}", change=pointwise)
