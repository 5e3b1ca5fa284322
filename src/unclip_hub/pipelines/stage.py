"""One stage of the chain: its network with guidance, and its way from noise to a result."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.cpu_kernels import fast_kernels
from unclip_hub.pipelines.keeping import can_keep, keeping
from unclip_hub.pipelines.known import Known, holding, levels, renoised, spans
from unclip_hub.pipelines.schedulers import check_scheduler, fitted, noise_level, supported, with_final
from unclip_hub.pipelines.settings import Interval
from unclip_hub.sampling import Condition, Predict, denoise, guide


Generator = torch.Generator | list[torch.Generator] | None
OnStep = Callable[[int, Tensor, Tensor], Tensor | None]


def guided(
    pipe: Any,
    stage: str,
    *,
    cond: Conditioning,
    null: Conditioning | None,
    guidance_scale: float | int,
    guidance_interval: Interval | None,
    guidance_rescale: float | int,
    context: Tensor | None = None,
) -> Predict:
    """The prior's or the decoder's network, its captions bound to it and guided away from ``null``.

    ``context`` is what the network gets beside x_t as more channels, guided or not: a masked picture and its mask.
    """
    model, condition = {"prior": _prior, "decoder": _decoder}[stage](pipe)
    model = quickly(model, getattr(pipe, stage), pipe._execution_device)
    active = None if guidance_interval is None else _within(guidance_interval, getattr(pipe, f"{stage}_scheduler"))
    given = [cond] if null is None or guidance_scale == 1 else [cond, null.expand(len(cond))]
    if can_keep(getattr(pipe, stage)):
        model, conditions = keeping(model, condition, given)
    else:
        conditions = [condition(one) for one in given]
    beside = {} if context is None else {"context": context}
    towards, *away = ({**one, **beside} for one in conditions)
    return guide(
        model, towards, null=away[0] if away else None, scale=guidance_scale, rescale=guidance_rescale, active=active
    )


def quickly(call: Callable[..., Tensor], network: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """A call of a network that runs by the fastest kernels of its device; for the steps of one stage."""
    kernels = fast_kernels(network, device)

    def quick(*args: Any, **kwargs: Any) -> Tensor:
        with kernels:
            return call(*args, **kwargs)

    return quick


def run(
    pipe: Any,
    stage: str,
    predict: Predict,
    *,
    num_inference_steps: int,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    generator: Generator,
    latents: Tensor | None,
    on_step: OnStep | None,
    final: Predict | None = None,
    image: Tensor | None = None,
    strength: float | int = 1.0,
    known: Known | None = None,
    resampling: int = 1,
    jump_length: int = 1,
) -> Tensor:
    """One stage from noise to its result, under a progress bar that names it.

    Only the networks (``final`` is that of the last step) compute in ``dtype``: x itself is at least float32, as
    schedulers that count in sigmas start at 20,000. With an ``image`` and a ``strength`` below 1 only the last
    ``strength`` of the steps are run, from that image with their noise on it (Meng et al. 2022, SDEdit). What is
    ``known`` of the result is held, and every ``jump_length`` steps are run ``resampling`` times, see ``known.py``.
    """
    check_scheduler(pipe, stage, num_inference_steps=num_inference_steps)
    device, precise = pipe._execution_device, torch.promote_types(dtype, torch.float32)
    own = getattr(pipe, f"{stage}_scheduler")
    scheduler, kind = supported(own), own.config["prediction_type"]
    scheduler.set_timesteps(num_inference_steps, device=device)
    begin = 0 if image is None else first_step(scheduler, num_inference_steps, strength)
    if final is not None:
        predict = with_final(predict, final, scheduler, stage=stage, begin=begin)
    predict = _computing_in(dtype, predict)
    if known is not None:
        predict = holding(predict, known, scheduler=scheduler, kind=kind)
    predict = fitted(predict, scheduler, kind=kind)
    if latents is None:
        latents = randn_tensor(shape, generator=generator, device=device, dtype=precise)
    elif tuple(latents.shape) != shape:
        raise ValueError(f"{stage} latents must be {shape}, got {tuple(latents.shape)}")
    noise = latents.to(device, precise)
    if image is None or begin == 0:
        x = noise * scheduler.init_noise_sigma
    else:
        at = scheduler.timesteps[begin].expand(len(noise))
        _begin_at(scheduler, begin)
        x = scheduler.add_noise(image.to(device, precise), noise, at)
    runs = spans(begin, len(scheduler.timesteps), length=jump_length * _order(scheduler), times=resampling)
    noise_levels = levels(scheduler) if resampling > 1 else []
    pipe._stage = stage
    with pipe.progress_bar(total=sum(last - first for first, last in runs)) as bar:
        bar.set_description(stage)
        count = itertools.count()

        def after(_: int, t: Tensor, x: Tensor) -> Tensor | None:
            bar.update()
            return None if on_step is None else on_step(next(count), t, x)

        for i, (first, last) in enumerate(runs):
            back = i > 0 and first < runs[i - 1][1]
            if back:
                x = renoised(x, noise_levels[runs[i - 1][1]], noise_levels[first], generator=generator)
                scheduler.set_timesteps(num_inference_steps, device=device)  # forgets what multistep solvers keep
                _begin_at(scheduler, first)
            x = denoise(predict, x, scheduler, generator=generator, on_step=after, begin=first, end=last)
        return x


def first_step(scheduler: Any, num_inference_steps: int, strength: float | int) -> int:
    """The index of the first timestep that ``strength`` leaves to run; at least one step is run."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
    if strength < 1 and len(scheduler.timesteps) not in (num_inference_steps, 2 * num_inference_steps - 1):
        raise ValueError(f"{type(scheduler).__name__} cannot begin in the middle: use strength=1 or another scheduler")
    skipped = num_inference_steps - max(1, math.floor(num_inference_steps * strength + 1e-9))
    return skipped * _order(scheduler)


def on_step_end(pipe: Any, callback: Callable[..., dict[str, Tensor] | None] | None) -> OnStep | None:
    """diffusers' ``callback_on_step_end`` as the loop takes it."""
    if callback is None:
        return None

    def on_step(i: int, t: Tensor, x: Tensor) -> Tensor | None:
        returned = callback(pipe, i, t, {"latents": x})
        return None if returned is None else returned.get("latents")

    return on_step


def decoder_condition(pipe: Any, cond: Conditioning) -> Condition:
    """The decoder's keyword tensors: context tokens, text_proj's first, and the addition to the timestep."""
    proj = pipe.text_proj
    cond = cond.to(dtype=proj.dtype)
    unknown = cond.image_embed is None  # its learned embedding is at hand in forward only, if weights are offloaded
    twice = 2 if unknown else 1
    states, time_embed = proj(
        image_embeddings=torch.zeros_like(cond.text_embed) if unknown else cond.image_embed,
        prompt_embeds=cond.text_embed.repeat(twice, 1),
        text_encoder_hidden_states=cond.text_states.repeat(twice, 1, 1),
        do_classifier_free_guidance=unknown,
    )
    states, time_embed = states[: len(cond)], time_embed[: len(cond)]
    mask = torch.nn.functional.pad(cond.text_mask, (proj.config["clip_extra_context_tokens"], 0), value=True)
    dtype = pipe.decoder.dtype
    return {
        "encoder_hidden_states": states.to(dtype),
        "class_labels": time_embed.to(dtype),
        "attention_mask": mask,
    }


def _prior(pipe: Any) -> tuple[Callable[..., Tensor], Callable[[Conditioning], Condition]]:
    def condition(cond: Conditioning) -> Condition:
        cond = cond.to(dtype=pipe.prior.dtype)
        return {
            "proj_embedding": cond.text_embed,
            "encoder_hidden_states": cond.text_states,
            "attention_mask": cond.text_mask,
        }

    before: list[Tensor] = []  # what a self-conditioned prior predicted last

    def model(x: Tensor, t: Tensor, **c: Any) -> Tensor:
        if not pipe.prior.config.get("self_conditioning"):
            return pipe.prior(x, t, **c).predicted_image_embedding
        if before and len(before[0]) >= len(x):  # where guidance ends, the conditional half comes last
            c["self_condition"] = before[0][-len(x) :]
        before[:] = [pipe.prior(x, t, **c).predicted_image_embedding]
        return before[0]

    return model, condition


def _decoder(pipe: Any) -> tuple[Callable[..., Tensor], Callable[[Conditioning], Condition]]:
    def model(x: Tensor, t: Tensor, context: Tensor | None = None, **c: Any) -> Tensor:
        return pipe.decoder(x if context is None else torch.cat([x, context], dim=1), t, **c).sample

    return model, lambda cond: decoder_condition(pipe, cond)


def _order(scheduler: Any) -> int:
    """Timesteps per step: solvers of second order hold two; diffusers' UnCLIPScheduler does not say."""
    return getattr(scheduler, "order", 1)


def _begin_at(scheduler: Any, index: int) -> None:
    """Tell those that count their steps where they are; the others look the timestep up."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(index)


def _within(interval: Interval, scheduler: Any) -> Callable[[Tensor], bool]:
    low, high = interval
    return lambda t: low < noise_level(scheduler, t) <= high


def _computing_in(dtype: torch.dtype, predict: Predict) -> Predict:
    return lambda x, t: predict(x.to(dtype), t).to(x.dtype)
