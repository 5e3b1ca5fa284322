"""OpenAI's CLIP (.pt) and OpenCLIP's (training checkpoint, .bin, .safetensors) → text_encoder/ and image_encoder/.

    python conversion/convert_clip.py FOLDER --output OUT

Both write the same keys (github.com/openai/CLIP, clip/model.py). What tensors do not tell, heads and activation, is
fixed in OpenAI's and stands in OpenCLIP's open_clip_config.json.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from clip_tokenizer import add_tokenizer
from clip_towers import TowerOptions, move_towers, openai_options, text_config, vision_config
from command import FILE, Source, Target, conversion
from containers import read_state
from folder import OutputFolder
from ledger import Converted
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from unclip_hub.hub.weights import read_json


# what names of keys give away, and transformers' CLIP cannot hold
_UNSUPPORTED = {
    r"visual\.(layer1|attnpool)\.": "a ModifiedResNet (RN50 and its like) as image tower",
    r"visual\.trunk\.": "an image tower of timm",
    r"(text\.)?transformer\.(embeddings|encoder|shared|model)\.": "a text tower of transformers",
    r"(text\.)?(text_model|vision_model)\.": "transformers' own keys: it needs no conversion",
    r"logit_bias$": "SigLIP's bias of the similarities",
    r"text_decoder\.": "CoCa's text decoder",
    r"visual\.attn_pool\.": "attentional pooling",
    r".*\.ls_[12]\.gamma$": "layer scale",
    r".*cls_emb$": "a class token in the text tower",
}
# OpenCLIP's settings that leave the tensors as they are but change what is computed: the one value that CLIP has
_FIXED = {
    "vision_cfg": {
        "pool_type": "tok", "global_average_pool": False, "attentional_pool": False, "no_ln_pre": False,
        "pos_embed_type": "learnable", "final_ln_after_pool": False, "ls_init_value": None, "input_patchnorm": False,
        "timm_model_name": None, "act_kwargs": None, "norm_kwargs": None, "block_type": None, "qk_norm": False,
    },
    "text_cfg": {
        "pool_type": "argmax", "no_causal_mask": False, "embed_cls": False, "ls_init_value": None, "proj_bias": False,
        "proj_type": "linear", "hf_model_name": None, "act_kwargs": None, "norm_kwargs": None, "block_type": None,
        "final_ln_after_pool": False, "qk_norm": False,
    },
}  # fmt: skip
_RESAMPLING = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def convert(state: Mapping[str, Tensor]) -> Converted:
    """``text_encoder`` and ``image_encoder`` of a CLIP with two transformers.

    Raises:
        ValueError: it is none, or one that transformers' CLIP cannot hold; the message says which.
    """
    converted = Converted(plain(state), what="a CLIP with two transformers")
    move_towers(converted)
    return converted.finish()


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a CLIP without the prefixes of data-parallel training, and of OpenCLIP's text tower.

    Raises:
        ValueError: a kind that cannot be converted.
    """
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    keys = {key: key.removeprefix(prefix) for key in state}
    for pattern, what in _UNSUPPORTED.items():
        key = next((key for key in keys.values() if re.match(pattern, key)), None)
        if key is not None:
            raise ValueError(f"this CLIP has {what} ({key}); transformers' CLIP has vision transformers only")
    return {keys[key].removeprefix("text."): tensor for key, tensor in state.items()}


def add_clip(
    folder: OutputFolder, state: Mapping[str, Tensor], *, options: TowerOptions, converted: Converted
) -> dict[str, Any]:
    """Write both encoders of a `plain` state; returns the text encoder's configuration."""
    text, vision = text_config(state, options), vision_config(state, options)
    if "logit_scale" in state:  # kept where transformers' CLIPConfig has it
        text["logit_scale_init_value"] = float(state["logit_scale"])
    folder.add_model("text_encoder", CLIPTextModelWithProjection, text, converted.pop("text_encoder"))
    folder.add_model("image_encoder", CLIPVisionModelWithProjection, vision, converted.pop("image_encoder"))
    return text


def image_processor(size: int, preprocess: Mapping[str, Any] | None = None) -> CLIPImageProcessorPil:
    """CLIP's preparation of pictures: the shorter side resized, the middle cut out, colours normalised.

    Args:
        preprocess: OpenCLIP's ``preprocess_cfg``; OpenAI's values where it has none.

    Raises:
        ValueError: another way to resize.
    """
    given = dict(preprocess or {})
    if given.get("resize_mode", "shortest") != "shortest":
        raise ValueError(f"resize_mode must be 'shortest', got {given['resize_mode']!r}")
    resampling = given.get("interpolation", "bicubic")
    if resampling not in _RESAMPLING:
        raise ValueError(f"interpolation must be one of {sorted(_RESAMPLING)}, got {resampling!r}")
    return CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        resample=_RESAMPLING[resampling],  # pyright: ignore[reportArgumentType]
        **{name: given[key] for name, key in (("image_mean", "mean"), ("image_std", "std")) if key in given},
    )


def open_clip_options(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> TowerOptions:
    """Heads and activation of a `plain` state out of an ``open_clip_config.json``.

    Raises:
        ValueError: a setting that transformers' CLIP cannot have, or one that contradicts the tensors.
    """
    model = config.get("model_cfg", config)
    vision, text = (dict(model.get(name) or {}) for name in ("vision_cfg", "text_cfg"))
    for name, settings in (("vision_cfg", vision), ("text_cfg", text)):
        for key, only in _FIXED[name].items():
            if settings.get(key) not in (None, only, {}):
                raise ValueError(f"{name}.{key} must be {only!r} for transformers' CLIP, got {settings[key]!r}")
    options = TowerOptions(
        text_heads=text.get("heads", 8),
        vision_heads=vision.get("width", 768) // vision.get("head_width", 64),
        hidden_act="quick_gelu" if model.get("quick_gelu") else "gelu",
    )
    got_text, got_vision = text_config(state, options), vision_config(state, options)
    said = {
        "embed_dim": (model.get("embed_dim"), got_text["projection_dim"]),
        "text_cfg.width": (text.get("width", 512), got_text["hidden_size"]),
        "text_cfg.layers": (text.get("layers", 12), got_text["num_hidden_layers"]),
        "text_cfg.context_length": (text.get("context_length", 77), got_text["max_position_embeddings"]),
        "text_cfg.vocab_size": (text.get("vocab_size", 49408), got_text["vocab_size"]),
        "vision_cfg.width": (vision.get("width", 768), got_vision["hidden_size"]),
        "vision_cfg.layers": (vision.get("layers", 12), got_vision["num_hidden_layers"]),
        "vision_cfg.patch_size": (vision.get("patch_size", 16), got_vision["patch_size"]),
        "vision_cfg.image_size": (vision.get("image_size", 224), got_vision["image_size"]),
    }
    for key, (configured, found) in said.items():
        if configured != found:
            raise ValueError(f"the configuration is of another model: {key} is {configured}, the weights have {found}")
    return options


def options_of(state: Mapping[str, Tensor], config: Path | None) -> tuple[TowerOptions, dict[str, Any]]:
    """The options of a `plain` CLIP, by its configuration if it has one, and its ``preprocess_cfg``.

    Raises:
        ValueError: without a configuration, weights that nothing shows to be OpenAI's.
    """
    if config is not None:
        read = read_json(config)
        return open_clip_options(read, state), read.get("preprocess_cfg") or {}
    if "input_resolution" not in state:
        what = "nothing tells the heads and the activation of these weights"
        raise ValueError(f"{what}: give OpenCLIP's open_clip_config.json with --config, or OpenAI's own file")
    return openai_options(state), {}


@conversion
@click.option("--weights", type=FILE, help="CLIP's weights.")
@click.option("--config", type=FILE, help="OpenCLIP's open_clip_config.json.")
@click.option("--tokenizer", metavar="FOLDER_OR_REPO", help="A tokenizer of CLIP, or the bpe_simple_vocab file.")
def main(source: Source, target: Target, *, weights: Path | None, config: Path | None, tokenizer: str | None) -> None:
    """Convert OpenAI's CLIP or an OpenCLIP model into text_encoder/, image_encoder/, tokenizer/, feature_extractor/.

    FOLDER holds one of open_clip_model.safetensors, open_clip_pytorch_model.bin, epoch_N.pt with
    open_clip_config.json, or OpenAI's .pt (ViT-L-14.pt, model.pt).
    """
    patterns = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "epoch_*.pt", "model.pt", "*.pt")
    path = source.find(*patterns, flag="--weights", given=weights)
    state = plain(read_state(path))
    options, preprocess = options_of(state, source.look("open_clip_config.json", flag="--config", given=config))
    converted = convert(state)
    with target.open("clip") as folder:
        folder.account(path, converted)
        text = add_clip(folder, state, options=options, converted=converted)
        size = vision_config(state, options)["image_size"]
        folder.add_processor("feature_extractor", image_processor(size, preprocess))
        add_tokenizer(folder, source, given=tokenizer, text_config=text)


if __name__ == "__main__":
    main()
