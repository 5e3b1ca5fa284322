"""DALLE2-pytorch's DiffusionPrior: its keys, and the configuration that its shapes and its options tell."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from dalle2_pytorch_release import Release
from ledger import Converted
from torch import Tensor

from unclip_hub.models.dalle2_pytorch_blocks import rotary_frequencies
from unclip_hub.schedulers.dalle2_pytorch import SCHEDULES, DALLE2PytorchScheduler


Options = Mapping[str, Any]

TABLES = (
    "betas|alphas_cumprod|alphas_cumprod_prev|sqrt_alphas_cumprod|sqrt_one_minus_alphas_cumprod|"
    "log_one_minus_alphas_cumprod|sqrt_recip_alphas_cumprod|sqrt_recipm1_alphas_cumprod|posterior_variance|"
    "posterior_log_variance_clipped|posterior_mean_coef1|posterior_mean_coef2|p2_loss_weight"
)
_LAYER = "net.causal_transformer.layers.{}."
_RENAMED = {  # of one layer
    "0.null_kv": "attn.null_kv",
    "0.to_q.weight": "attn.to_q.weight",
    "0.to_kv.weight": "attn.to_kv.weight",
    "0.to_out.0.weight": "attn.to_out.weight",
    "1.1.weight": "ff_in.weight",
    "1.5.weight": "ff_out.weight",
}
_NORMS = {"0.norm": "attn.norm", "0.to_out.1": "attn.norm_out", "1.0": "norm", "1.3": "norm_ff"}
_TIME = {"0.0": "0", "1.0": "2", "2": "4"}  # of the MLP that embeds any timestep
# options of the sampler that have no counterpart here, with the value that they must have
_REFUSED: dict[str, Any] = {"sampling_final_clamp_l2norm": False, "init_image_embed_l2norm": False}


def convert_prior(state: Mapping[str, Tensor]) -> Converted:
    """The tensors of a `DiffusionPrior` as those of our prior."""
    made = Converted(state, what="a prior of DALLE2-pytorch")
    for key in made.left(rf"(noise_scheduler\.)?({TABLES})$"):
        made.drop(key, "noise table, computed from the schedule")
    for key in made.left(r"clip\."):
        made.drop(key, "CLIP, of which convert_clip makes components")
    made.move("net.learned_query", "prior", "query")
    _move_conditioning(made)
    stack = "net.causal_transformer."
    made.move(
        f"{stack}rel_pos_bias.relative_attention_bias.weight", "prior", "relative_bias.relative_attention_bias.weight"
    )
    for source, target in (("init_norm", "norm_in"), ("norm", "norm_out")):
        if made.has(f"{stack}{source}.g") or made.has(f"{stack}{source}.gamma"):
            move_norm(made, f"{stack}{source}", "prior", target)
    if made.has(f"{stack}project_out.weight"):
        made.move(f"{stack}project_out.weight", "prior", "project_out.weight")
    for i in range(_count_layers(state)):
        _move_layer(made, i)
    return made.finish()


def prior_config(state: Mapping[str, Tensor], options: Options, *, release: Release) -> dict[str, Any]:
    """Our prior's configuration.

    Args:
        options: those of `DiffusionPrior`, `net` being those of its network, as in a train configuration's "prior";
            may be empty, as all but a few are told by the shapes.

    Raises:
        ValueError: an option that our prior does not have.
    """
    net, layer = dict(options.get("net") or {}), _LAYER.format(0)
    if net.get("self_cond") and release < (1, 12, 1):
        raise ValueError(
            "the option self_cond=True of a prior is supported since release 1.12.1 only: before, its last estimate "
            "took the place of the learned query"
        )
    width, heads = (
        len(state["net.learned_query"]),
        state["net.causal_transformer.rel_pos_bias.relative_attention_bias.weight"].shape[1],
    )
    table = state.get("net.to_time_embeds.0.weight")
    time = state["net.to_time_embeds.0.1.net.2.weight"] if table is None else table[0]
    learned = next((state[k] for k in ("net.null_text_encodings", "net.null_text_embed") if k in state), None)
    unconditional = "masked" if learned is None else "learned" if "net.null_image_embed" in state else "none"
    scale = options.get("image_embed_scale")
    return {
        "embedding_dim": width,
        "num_layers": _count_layers(state),
        "num_attention_heads": heads,
        "attention_head_dim": state[f"{layer}0.null_kv"].shape[1],
        "ff_mult": state[f"{layer}1.5.weight"].shape[1] / width,
        "num_timesteps": None if table is None else len(table),
        "num_time_tokens": len(time) // width,
        "num_image_tokens": _tokens(state, "net.to_image_embeds.0.weight"),
        "num_text_tokens": _tokens(state, "net.to_text_embeds.0.weight"),
        "max_text_len": None if learned is None else learned.shape[1],
        "unconditional": unconditional,
        "self_condition": bool(net.get("self_cond", False)),
        "rotary": f"{layer}0.rotary_emb.freqs" in state,
        "normalize_input": any(f"net.causal_transformer.init_norm.{g}" in state for g in ("g", "gamma")),
        "normalize_output": any(f"net.causal_transformer.norm.{g}" in state for g in ("g", "gamma")),
        "project_output": "net.causal_transformer.project_out.weight" in state,
        "normalize_feed_forward": any(f"{layer}1.3.{g}" in state for g in ("g", "gamma")),
        "cosine_attention": release >= (1, 4, 3),
        "relative_bias_scale": 1024
        if (0, 16, 2) <= release < (0, 23, 3)
        else 128
        if (0, 23, 3) <= release < (1, 4, 3)
        else 1,
        "stable_norms": "none" if release < (0, 16, 2) else "all" if release < (0, 23, 3) else "last",
        "embedding_scale": None if scale is None else float(scale),
    }


def prior_scheduler_config(state: Mapping[str, Tensor], options: Options, *, release: Release) -> dict[str, Any]:
    """Our scheduler's configuration: what `DiffusionPrior.p_sample_loop` does.

    Raises:
        ValueError: an option of its sampler that has no counterpart here.
    """
    for name, expected in _REFUSED.items():
        if options.get(name, expected) != expected:
            raise ValueError(f"the option {name}={options[name]!r} of this prior is not supported, only {expected!r}")
    width = len(state["net.learned_query"])
    tables = ("noise_scheduler.alphas_cumprod", "alphas_cumprod")
    alphas_cumprod = next(state[key] for key in tables if key in state)
    predicts_x0 = bool(options.get("predict_x_start", True))
    clip_norm = options.get("image_embed_scale") or width**0.5
    return {
        "num_train_timesteps": len(alphas_cumprod),
        "prediction_type": "v_prediction" if options.get("predict_v") else "sample" if predicts_x0 else "epsilon",
        "clip_sample": not predicts_x0,
        "beta_schedule": schedule_of(alphas_cumprod, options.get("beta_schedule") or "cosine"),
        "eta": 1.0,
        "ddim_grid": "from_minus" if release >= (1, 10, 3) else "from_zero",
        "ddim_alphas": "previous",
        "ddim_noise": "implied" if release >= (1, 12, 3) else "predicted",
        "clip_norm": clip_norm if predicts_x0 and options.get("sampling_clamp_l2norm") else None,
    }


def schedule_of(alphas_cumprod: Tensor, name: str) -> str:
    """Our name of the noise schedule whose table a file holds; without its values, of the one that was named.

    Raises:
        ValueError: it is none that we have.
    """
    named = "squaredcos_cap_v2" if name == "cosine" else name
    if named not in SCHEDULES:
        raise ValueError(
            f"the option beta_schedule={name!r} is not supported, only cosine, linear, quadratic, sigmoid"
        )
    for schedule in (named, *SCHEDULES) if not alphas_cumprod.is_meta else ():
        try:
            table = DALLE2PytorchScheduler(len(alphas_cumprod), beta_schedule=schedule).alphas_cumprod
        except ValueError:  # a schedule that has no such number of timesteps
            continue
        if torch.allclose(table, alphas_cumprod.double(), rtol=1e-3, atol=1e-6):
            return schedule
    if not alphas_cumprod.is_meta:
        raise ValueError(f"the noise table of this checkpoint is none of {', '.join(SCHEDULES)}")
    return named


def move_norm(made: Converted, source: str, component: str, target: str) -> None:
    """A norm's gain, which has two names and over channels is [1, c, 1, 1]; its shift, if any, must be zeros."""
    gain = f"{source}.g" if made.has(f"{source}.g") else f"{source}.gamma"
    made.move(gain, component, f"{target}.weight", change=flattened)
    if made.has(f"{source}.beta"):
        shift = made.take(f"{source}.beta")
        if not shift.is_meta and shift.any():
            raise ValueError(f"{source}.beta must be zeros, as it is no parameter, got {shift.abs().max():.3g}")
        made.fates[f"{source}.beta"] = "dropped: zeros"


def flattened(tensor: Tensor) -> Tensor:
    return tensor.flatten()


def _move_conditioning(made: Converted) -> None:
    if made.has("net.to_time_embeds.0.weight"):
        made.move("net.to_time_embeds.0.weight", "prior", "time_embedding.weight")
    else:
        for source, target in _TIME.items():
            for kind in ("weight", "bias"):
                made.move(f"net.to_time_embeds.0.1.net.{source}.{kind}", "prior", f"time_embedding.{target}.{kind}")
    for what in ("text", "image"):
        for kind in ("weight", "bias"):
            if made.has(f"net.to_{what}_embeds.0.{kind}"):
                made.move(f"net.to_{what}_embeds.0.{kind}", "prior", f"{what}_to_tokens.{kind}")
    if made.has("net.null_text_embed"):
        made.move("net.null_text_embed", "prior", "null_text_states")
    if made.has("net.null_text_encodings"):
        made.move("net.null_text_encodings", "prior", "null_text_states")
        made.move("net.null_text_embeds", "prior", "null_text_embed")
        made.move("net.null_image_embed", "prior", "null_image_embed", change=add_an_axis)


def add_an_axis(tensor: Tensor) -> Tensor:
    return tensor[:, None]


def _move_layer(made: Converted, i: int) -> None:
    source, target = _LAYER.format(i), f"transformer_blocks.{i}."
    for theirs, ours in _RENAMED.items():
        made.move(source + theirs, "prior", target + ours)
    for theirs, ours in _NORMS.items():
        if theirs != "1.3" or made.has(f"{source}1.3.g") or made.has(f"{source}1.3.gamma"):
            move_norm(made, source + theirs, "prior", target + ours)
    rotary = f"{source}0.rotary_emb.freqs"
    if made.has(rotary):
        frequencies = made.take(rotary)
        expected = rotary_frequencies(2 * len(frequencies))
        if not frequencies.is_meta and not torch.allclose(frequencies.float(), expected, rtol=1e-2):
            raise ValueError(f"{rotary} must be the usual frequencies {expected.tolist()}, got {frequencies.tolist()}")
        made.fates[rotary] = "dropped: the usual rotary frequencies, computed"


def _count_layers(state: Mapping[str, Tensor]) -> int:
    found = [re.match(r"net\.causal_transformer\.layers\.(\d+)\.", key) for key in state]
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _tokens(state: Mapping[str, Tensor], key: str) -> int:
    return state[key].shape[0] // state[key].shape[1] if key in state else 1
