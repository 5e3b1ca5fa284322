"""OpenAI's GLIDE (``base.pt``, ``upsample.pt``, ``base_inpaint.pt``, ``upsample_inpaint.pt``) → our networks.

    python conversion/convert_glide.py FOLDER --output OUT

Every file becomes a U-Net (``base``, opened by `UNet2DConditionModel.from_pretrained(OUT, subfolder="base")`), its own
text encoder (``base_text_encoder``, a `GlideTextEncoder`) and a scheduler (``base_scheduler``). The tokenizer, GPT-2's
vocabulary, is in none of the files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from adm_unet import decoder_config, move_unet, unet_shape
from command import FILE, Source, Target, conversion
from containers import read_state
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from folder import OutputFolder
from ledger import Converted
from text_transformer import count_blocks, move_blocks
from torch import Tensor

from unclip_hub.hub.weights import read_json
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.glide_text import GlideTextEncoder
from unclip_hub.schedulers.unclip import UnCLIPScheduler


# input channels: the noisy image; the low-resolution one; what is known of the image, and where
CHANNELS = {"base": 3, "upsample": 3 + 3, "base_inpaint": 3 + 3 + 1, "upsample_inpaint": 3 + 3 + 3 + 1}
_SIZE = {"base": 64, "upsample": 256, "base_inpaint": 64, "upsample_inpaint": 256}
HEAD_DIM = 64  # of every published network
_PUBLISHED_WIDTHS = (192, 512)  # of the U-Net's first level and of the text encoder
_LINEAR: dict[str, Any] = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "clip_sample": True}


@conversion
@click.option("--base", type=FILE, help="base.pt")
@click.option("--upsample", type=FILE, help="upsample.pt")
@click.option("--base-inpaint", type=FILE, help="base_inpaint.pt")
@click.option("--upsample-inpaint", type=FILE, help="upsample_inpaint.pt")
@click.option("--options", type=FILE, help="options.json: the options of each network, if they are not the published.")
def main(source: Source, target: Target, *, options: Path | None, **flags: Path | None) -> None:
    """Convert GLIDE's networks, as FOLDER with base.pt, upsample.pt, base_inpaint.pt, upsample_inpaint.pt or some."""
    described = source.look("options.json", flag="--options", given=options)
    every = read_json(described) if described else {}
    files = {
        name: source.look(f"{name}.pt", flag=f"--{name.replace('_', '-')}", given=flags[name]) for name in CHANNELS
    }
    if not any(files.values()):
        source.find(*(f"{name}.pt" for name in CHANNELS), flag="--base")  # its error says what there is instead
    with target.open("OpenAI's GLIDE") as folder:
        for name, file in files.items():
            if file is not None:
                _add_network(folder, name, file, every.get(name))


def convert(
    state: Mapping[str, Tensor], *, name: str = "base", head_dim: int = HEAD_DIM, text_head_dim: int = HEAD_DIM
) -> Converted:
    """One of GLIDE's networks as the components ``name`` and ``name_text_encoder``.

    Args:
        name: ``base``, ``upsample``, ``base_inpaint`` or ``upsample_inpaint``.
        head_dim: width of the heads of the U-Net's attention, which its tensors do not tell.

    Raises:
        ValueError: it is another network than ``name``, or none of GLIDE's.
    """
    converted = Converted(state, what=f"GLIDE's {name}")
    shape = unet_shape(state, prefix="", what=converted.what)
    if shape.in_channels != CHANNELS[name]:
        raise ValueError(
            f"this is not {converted.what}: it must take {CHANNELS[name]} channels, it takes {shape.in_channels}"
        )
    move_unet(converted, name, shape=shape, prefix="", head_dim=head_dim)
    text = f"{name}_text_encoder"
    for key in ("token_embedding.weight", "positional_embedding", "padding_embedding"):
        converted.move(key, text, key)
    move_blocks(converted, text, prefix="", head_dim=text_head_dim)
    for kind in ("weight", "bias"):
        converted.move(f"final_ln.{kind}", text, f"norm_out.{kind}")
        converted.move(f"transformer_proj.{kind}", text, f"time_proj.{kind}")
    return converted.finish()


def text_config(text_encoder: Mapping[str, Tensor], *, heads: int) -> dict[str, int]:
    """The configuration of `GlideTextEncoder` that its tensors tell."""
    vocab_size, width = text_encoder["token_embedding.weight"].shape
    return {
        "vocab_size": vocab_size,
        "num_embeddings": len(text_encoder["positional_embedding"]),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "num_layers": count_blocks(text_encoder, name="transformer_blocks"),
        "time_embed_dim": len(text_encoder["time_proj.weight"]),
    }


def scheduler(name: str) -> Any:
    """What OpenAI's notebooks sample the network with; that the upsamplers take "fast27" steps is not its to say."""
    if name == "upsample":
        return DDIMScheduler(**_LINEAR, set_alpha_to_one=True, timestep_spacing="trailing")
    if name == "upsample_inpaint":
        return DDPMScheduler(**_LINEAR, variance_type="learned_range", timestep_spacing="trailing")
    return UnCLIPScheduler(variance_type="learned_range")


def _add_network(folder: OutputFolder, name: str, file: Path, options: Mapping[str, Any] | None) -> None:
    state = read_state(file)
    what = f"GLIDE's {name}"
    shape = unet_shape(state, prefix="", what=what)
    text_width = state["final_ln.weight"].shape[0] if "final_ln.weight" in state else 0
    if options is None:
        if (shape.block_out_channels[0], text_width) != _PUBLISHED_WIDTHS:
            raise ValueError(
                f"{file.name} has another size than the published networks, and its tensors do not tell the width of "
                "the heads: --options must give num_head_channels, xf_heads and image_size"
            )
        options = {"num_head_channels": HEAD_DIM, "xf_heads": text_width // HEAD_DIM, "image_size": _SIZE[name]}
    needed = ("num_head_channels", "xf_heads", "image_size")
    head_dim, heads, size = (_option(options, key, what=what) for key in needed)
    converted = convert(state, name=name, head_dim=head_dim, text_head_dim=text_width // heads)
    text = f"{name}_text_encoder"
    configured = decoder_config(shape, sample_size=size, head_dim=head_dim)
    folder.add_model(name, UNet2DConditionModel, configured, converted[name])
    folder.add_model(text, GlideTextEncoder, text_config(converted[text], heads=heads), converted[text])
    folder.add_scheduler(f"{name}_scheduler", scheduler(name))
    folder.account(file, converted)


def _option(options: Mapping[str, Any], key: str, *, what: str) -> int:
    value = options.get(key)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"the options of {what} must have {key}, a positive number, got {value}")
    return value


if __name__ == "__main__":
    main()
