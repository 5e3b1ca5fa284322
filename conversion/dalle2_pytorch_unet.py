"""DALLE2-pytorch's Decoder, a cascade of U-Nets: their keys, and the configurations that shapes and options tell."""

import re
from collections.abc import Mapping
from typing import Any

from dalle2_pytorch_prior import TABLES, move_norm, schedule_of
from dalle2_pytorch_release import Release
from ledger import Converted
from torch import Tensor


Options = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

COMPONENTS = ("decoder", "super_res_first", "super_res_1024")  # of the pipeline, by the U-Net's place in the cascade
PROJECTIONS = ("text_proj", "super_res_first_text_proj", "super_res_1024_text_proj")

_RENAMED = {
    "to_time_hiddens.1": "time_embedding",
    "to_time_tokens.0": "time_to_tokens",
    "to_time_cond.0": "time_to_cond",
    "to_lowres_noise_cond.1": "noise_embedding",
    "to_lowres_noise_cond.3": "noise_to_cond",
    "norm_cond": "norm_cond",
    "norm_mid_cond": "norm_mid_cond",
    "to_out": "conv_out",
}
_PROJECTED = {
    "image_to_tokens.0": "image_to_tokens",
    "to_image_hiddens.0": "image_to_time",
    "text_to_cond": "text_to_tokens",
}
# of a decoder, options that change numbers and have no counterpart here, with the value that they must have
_REFUSED: dict[str, Any] = {"learned_variance_constrain_frac": False, "clip_denoised": True, "unconditional": False}


def convert_decoder(state: Mapping[str, Tensor]) -> Converted:
    """The tensors of a `Decoder` as those of our U-Nets and their projections.

    Raises:
        ValueError: keys of an option that our U-Net does not have, or of no decoder at all.
    """
    made = Converted(state, what="a decoder of DALLE2-pytorch")
    for key in made.left(rf"(noise_schedulers\.\d+|lowres_conds\.\d+\.noise_scheduler)\.({TABLES})$"):
        made.drop(key, "noise table, computed from the schedule")
    for key in made.left(r"clip\."):
        made.drop(key, "CLIP, of which convert_clip makes components")
    if any(made.left(r"vaes\.")):
        raise ValueError("the option vae is not supported: this decoder denoises a VQGAN's latents")
    for i in range(count_unets(state)):
        _move_unet(made, f"unets.{i}.", COMPONENTS[i], PROJECTIONS[i])
    return made.finish()


def count_unets(state: Mapping[str, Any]) -> int:
    """How many U-Nets the cascade has.

    Raises:
        ValueError: none, or more than three.
    """
    found = {int(match[1]) for match in (re.match(r"unets\.(\d+)\.", key) for key in state) if match}
    if not 1 <= len(found) <= len(COMPONENTS):
        raise ValueError(f"a decoder must have 1 to {len(COMPONENTS)} U-Nets, this one has {len(found)}")
    return len(found)


def unet_config(state: Mapping[str, Tensor], index: int, options: Options, *, release: Release) -> dict[str, Any]:
    """The configuration of the U-Net at a place in the cascade.

    Args:
        options: those of `Decoder`, "unets" being a list of those of its networks, as in a train configuration's
            "decoder"; may be empty, as all but a few are told by the shapes.

    Raises:
        ValueError: an option that our U-Net does not have.
    """
    prefix = f"unets.{index}."
    shapes = {key.removeprefix(prefix): tuple(t.shape) for key, t in state.items() if key.startswith(prefix)}
    own = _of_unet(options, index)
    _check_supported(shapes, own, image=index == 0)
    base, picture = shapes["to_time_hiddens.1.weight"][1], int(options.get("channels") or own.get("channels") or 3)
    first, levels = (
        "init_resnet_block.time_mlp.1.weight" in shapes or "downs.0.0.bias" in shapes,
        _count(shapes, "downs.{}."),
    )
    first = first or any(key.startswith("downs.0.0.") for key in shapes)
    kernels, taken = _conv_in(shapes)
    cond, text = shapes["norm_cond.weight"][0], "text_to_cond.weight" in shapes
    head_dim = shapes["mid_attn.fn.fn.null_kv"][1]
    down = _downsampling(shapes, "downs.0.0" if first else "downs.0.4") if first or levels > 1 else {}
    up = _upsampling(shapes, "ups.0.3") if first or levels > 1 else {}
    return {
        "sample_size": _image_size(options, index),
        "in_channels": picture * (2 if index else 1),
        "out_channels": shapes["to_out.weight"][0],
        "base_channels": base,
        "channel_mult": [shapes[f"ups.{levels - 1 - i}.0.block1.project.weight"][0] // base for i in range(levels)],
        "layers_per_block": [_count(shapes, f"downs.{i}.2.{{}}.") for i in range(levels)],
        "norm_num_groups": own.get("resnet_groups", 8),
        "self_attention": [f"downs.{i}.3.fn.fn.to_q.weight" in shapes for i in range(levels)],
        "linear_attention": any(f"downs.{i}.3.fn.to_qkv.weight" in shapes for i in range(levels)),
        "num_attention_heads": shapes["mid_attn.fn.fn.to_q.weight"][0] // head_dim,
        "attention_head_dim": head_dim,
        "cross_attention_dim": cond,
        "num_image_tokens": shapes["null_image_embed"][1] if "image_to_tokens.0.weight" in shapes else 0,
        "num_time_tokens": shapes["to_time_tokens.0.weight"][0] // cond,
        "max_text_len": shapes["null_text_embed"][1] if text else None,
        "low_res": index > 0,
        "low_res_noise": "to_lowres_noise_cond.1.weight" in shapes,
        "low_res_to_output": index > 0 and shapes["to_out.weight"][1] == base + picture,
        "self_condition": taken // picture - (2 if index else 1) > 0,
        "conv_in_kernel": kernels,
        "conv_out_kernel": shapes["to_out.weight"][-1],
        "resample_first": first,
        **down,
        **up,
        "skip_scale": 2**-0.5 if own.get("scale_skip_connection") else 1.0,
        "weight_standardization": bool(own.get("resnet_weight_standardization", False)),
        "cosine_self_attention": bool(own.get("cosine_sim_self_attn", False)),
        "cosine_cross_attention": bool(own.get("cosine_sim_cross_attn", False)),
        "squared_attention_scale": release >= (1, 4, 3),
        "normalize_linear_attention": release >= (1, 4, 0),
        "stable_norms": (0, 16, 2) <= release < (0, 23, 3),
    }


def projection_config(state: Mapping[str, Tensor], index: int) -> dict[str, Any] | None:
    """The configuration of the projection beside a U-Net; None for one without image and text."""
    prefix = f"unets.{index}."
    image, text = state.get(f"{prefix}image_to_tokens.0.weight"), state.get(f"{prefix}text_to_cond.weight")
    if image is None and text is None:
        return None
    time, cond = len(state[f"{prefix}to_time_cond.0.weight"]), len(state[f"{prefix}norm_cond.weight"])
    return {
        "clip_extra_context_tokens": 0 if image is None else len(image) // cond,
        "clip_embeddings_dim": text.shape[1] if image is None else image.shape[1],  # type: ignore[union-attr]
        "text_embed_dim": None if text is None else text.shape[1],
        "time_embed_dim": time,
        "cross_attention_dim": cond,
    }


def decoder_scheduler_config(
    state: Mapping[str, Tensor], index: int, options: Options, *, release: Release
) -> dict[str, Any]:
    """The configuration of a U-Net's scheduler: what `Decoder.p_sample_loop` does.

    Raises:
        ValueError: an option of its sampler that has no counterpart here.
    """
    for name, expected in _REFUSED.items():
        if options.get(name, expected) != expected:
            raise ValueError(
                f"the option {name}={options[name]!r} of this decoder is not supported, only {expected!r}"
            )
    unets = count_unets(state)
    default = "linear" if unets > 1 and index == unets - 1 else "cosine"
    prefix = f"noise_schedulers.{index}."
    picture = int(options.get("channels") or 3)
    learned = len(state[f"unets.{index}.to_out.weight"]) == 2 * picture
    kind = "sample" if _per_unet(options.get("predict_x_start"), index) else "epsilon"
    threshold = options.get("dynamic_thres_percentile", 0.95) if options.get("use_dynamic_thres") else None
    return {
        "num_train_timesteps": len(state[f"{prefix}betas"]),
        "variance_type": "learned_range" if learned else "fixed_small_log",
        "prediction_type": "v_prediction" if _per_unet(options.get("predict_v"), index) else kind,
        "beta_schedule": schedule_of(
            state[f"{prefix}alphas_cumprod"], _per_unet(options.get("beta_schedule"), index) or default
        ),
        "eta": float(options.get("ddim_sampling_eta", 1.0 if release < (1, 12, 0) else 0.0)),
        "ddim_grid": "from_zero",
        "ddim_alphas": "own" if release >= (1, 10, 2) else "previous",
        "ddim_noise": "implied" if release >= (1, 12, 3) else "predicted",
        "dynamic_threshold": threshold,
    }


def sample_timesteps(options: Options, index: int) -> int | None:
    """The number of steps that the decoder's configuration samples a U-Net with; None: all."""
    return _per_unet(options.get("sample_timesteps"), index)


def _move_unet(made: Converted, prefix: str, component: str, projection: str) -> None:
    image, text = made.has(f"{prefix}image_to_tokens.0.weight"), made.has(f"{prefix}text_to_cond.weight")
    for name, kept, where, target in (
        ("null_image_embed", image, projection, "null_image_tokens"),
        ("null_image_hiddens", image, projection, "null_image_time"),
        ("null_text_embed", text, component, "null_text_embed"),
    ):
        if kept:
            made.move(prefix + name, where, target)
        else:
            made.drop(prefix + name, "unused: this network is not given that condition")
    for key in made.left(re.escape(prefix)):
        name, _, kind = key.removeprefix(prefix).rpartition(".")
        if name in _PROJECTED:
            made.move(key, projection, f"{_PROJECTED[name]}.{kind}")
        elif name in _RENAMED:
            made.move(key, component, f"{_RENAMED[name]}.{kind}")
        elif kind in ("g", "gamma"):
            move_norm(made, f"{prefix}{name}", component, _renamed(name))
        elif kind != "beta":
            made.move(key, component, _renamed(f"{name}.{kind}"))


_LEVELS = (
    (r"^init_conv\.", "conv_in."),
    (r"^init_resnet_block\.", "resnet_in."),
    (r"^final_resnet_block\.", "resnet_out."),
    (r"^mid_block1\.", "mid_block.resnets.0."),
    (r"^mid_block2\.", "mid_block.resnets.1."),
    (r"^mid_attn\.fn\.", "mid_block.attention."),
    (r"^downs\.(\d+)\.0\.", r"down_blocks.\1.resample_in."),
    (r"^downs\.(\d+)\.1\.", r"down_blocks.\1.resnet_in."),
    (r"^downs\.(\d+)\.2\.", r"down_blocks.\1.resnets."),
    (r"^downs\.(\d+)\.3\.fn\.", r"down_blocks.\1.attention."),
    (r"^downs\.(\d+)\.4\.", r"down_blocks.\1.resample_out."),
    (r"^ups\.(\d+)\.0\.", r"up_blocks.\1.resnets.0."),
    (r"^ups\.(\d+)\.2\.fn\.", r"up_blocks.\1.attention."),
    (r"^ups\.(\d+)\.3\.", r"up_blocks.\1.resample_out."),
)
_LAYERS = (
    (r"\.attention\.fn\.", ".attention.attn."),
    (r"\.cross_attn\.fn\.", ".cross_attn."),
    (r"\.time_mlp\.1\.", ".time_emb_proj."),
    (r"\.block([12])\.project\.", r".conv\1."),
    (r"\.block([12])\.norm\.", r".norm\1."),
    (r"\.res_conv\.", ".conv_shortcut."),
    (r"\.to_out\.0\.", ".to_out."),
    (r"\.to_out\.1$", ".norm_out"),
    (r"\.resample_(in|out)\.(1|net\.0)\.", r".resample_\1.conv."),
)


def _renamed(name: str) -> str:
    """A key below the U-Net's own level."""
    name = re.sub(r"^ups\.(\d+)\.1\.(\d+)\.", lambda m: f"up_blocks.{m[1]}.resnets.{int(m[2]) + 1}.", name)
    for pattern, replacement in _LEVELS + _LAYERS:
        name = re.sub(pattern, replacement, name)
    return name


def _check_supported(shapes: Shapes, own: Options, *, image: bool) -> None:
    if "norm_cond.weight" not in shapes:
        raise ValueError("this is not a decoder of DALLE2-pytorch: it has a U-Net without norm_cond.weight")
    if any(key.startswith("upsample_combiner.") for key in shapes):
        raise ValueError("the option combine_upsample_fmaps=True of this U-Net is not supported, only False")
    if "mid_attn.fn.fn.null_kv" not in shapes:
        raise ValueError("the option attend_at_middle=False of this U-Net is not supported, only True")
    tokens, hiddens = "image_to_tokens.0.weight" in shapes, "to_image_hiddens.0.weight" in shapes
    if tokens and not hiddens:
        raise ValueError("the option add_image_embeds_to_time=False of this U-Net is not supported, only True")
    if hiddens and not tokens:
        cond = shapes["norm_cond.weight"][0]
        raise ValueError(
            f"the option cond_dim={cond}, equal to image_embed_dim, of this U-Net is not supported: its image tokens "
            "then are those of other pictures of the batch"
        )


def _of_unet(options: Options, index: int) -> Options:
    unets = options.get("unets") or ()
    return unets[index] if index < len(unets) else {}


def _per_unet(value: Any, index: int) -> Any:
    if isinstance(value, list | tuple):
        return value[index] if index < len(value) else None
    return value


def _image_size(options: Options, index: int) -> int | None:
    sizes = options.get("image_sizes") or ([options["image_size"]] if options.get("image_size") else [])
    return sorted(set(sizes))[index] if index < len(sizes) else None


def _count(shapes: Shapes, pattern: str) -> int:
    found = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
    return 1 + max((int(match[1]) for match in map(found.match, shapes) if match), default=-1)


def _conv_in(shapes: Shapes) -> tuple[int | list[int], int]:
    """Kernel sizes and input channels of the first convolution."""
    if "init_conv.weight" in shapes:
        return shapes["init_conv.weight"][-1], shapes["init_conv.weight"][1]
    convs = [shapes[f"init_conv.convs.{i}.weight"] for i in range(_count(shapes, "init_conv.convs.{}."))]
    return [conv[-1] for conv in convs], convs[0][1]


def _downsampling(shapes: Shapes, name: str) -> dict[str, Any]:
    if f"{name}.weight" in shapes:
        return {"downsample": "conv"}
    if f"{name}.1.weight" in shapes:
        return {"downsample": "space_to_depth"}
    kernels = [shapes[f"{name}.convs.{i}.weight"][-1] for i in range(_count(shapes, f"{name}.convs.{{}}."))]
    return {"downsample": "cross_embed", "downsample_kernels": kernels}


def _upsampling(shapes: Shapes, name: str) -> dict[str, Any]:
    if f"{name}.weight" in shapes:
        return {"upsample": "conv_transpose"}
    return {"upsample": "pixel_shuffle" if f"{name}.net.0.weight" in shapes else "nearest"}
