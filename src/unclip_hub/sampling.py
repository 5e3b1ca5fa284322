"""Classifier-free guidance and the denoising loop: the only ones in the library.

A network is anything called as ``model(x_t, t, **condition)`` that returns a tensor; a condition is the dict of its
keyword tensors.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelScheduler
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler as DiffusersUnCLIPScheduler
from torch import Tensor

from unclip_hub.schedulers.unclip import UnCLIPScheduler


Condition = Mapping[str, Tensor]
Predict = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> model output; the condition is already bound


def guide(
    model: Callable[..., Tensor],
    cond: Condition,
    *,
    null: Condition | None = None,
    scale: float | int = 1.0,
    rescale: float | int = 0.0,
    active: Callable[[Tensor], bool] | None = None,
) -> Predict:
    """Bind a condition to a network, with classifier-free guidance (Ho & Salimans 2022, eq. 6) away from ``null``.

    ``scale`` 1 is the conditional network itself and costs one pass; anything else runs both conditions as one batch
    and needs ``null``. A learned variance (twice the channels of x_t) is not guided: it is the conditional pass's.

    Args:
        rescale: how far, 0 to 1, the guided output gets the standard deviation of the conditional one back (Lin et
            al. 2024, arXiv:2305.08891, section 3.4).
        active: whether a timestep is guided, by default every one: an interval of noise levels (Kynkäänniemi et al.
            2024, arXiv:2404.07724).
    """
    if scale == 1:
        return lambda x, t: model(x, t, **cond)
    if null is None:
        raise ValueError(f"guidance with scale {scale} needs the condition to guide away from, got null=None")
    both = {name: torch.cat([null[name], cond[name]]) for name in cond}

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if active is not None and not active(t):
            return model(x, t, **cond)
        away, towards = model(torch.cat([x, x]), t, **both).chunk(2)
        c = x.shape[1]
        guided = away[:, :c] + scale * (towards[:, :c] - away[:, :c])
        if rescale:
            axes = tuple(range(1, x.ndim))
            ratio = towards[:, :c].std(axes, keepdim=True) / guided.std(axes, keepdim=True)
            guided = guided * (1 + rescale * (ratio - 1))
        return torch.cat([guided, towards[:, c:]], dim=1)  # (b, c or 2c, ...)

    return predict


def denoise(
    predict: Predict,
    x: Tensor,
    scheduler: Any,
    *,
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_step: Callable[[int, Tensor, Tensor], Tensor | None] | None = None,
    begin: int = 0,
    end: int | None = None,
) -> Tensor:
    """Take ``x``, as noisy as the scheduler's timestep number ``begin`` expects it, down the timesteps to ``end``.

    Args:
        scheduler: any diffusers scheduler, its timesteps set. One that cannot use a learned variance is not given it.
        on_step: called as ``on_step(i, t, x)`` after step ``i`` of those run; a tensor that it returns replaces ``x``.
    """
    accepted = inspect.signature(scheduler.step).parameters
    options = {"generator": generator} if "generator" in accepted else {}
    learned = uses_learned_variance(scheduler)
    steps = list(scheduler.timesteps)
    for i, t in enumerate(steps[begin:end], start=begin):
        output = predict(scheduler.scale_model_input(x, t), t)
        if not learned:
            output = output[:, : x.shape[1]]
        if "prev_timestep" in accepted:  # diffusers' UnCLIPScheduler does not know its own next step
            options["prev_timestep"] = steps[i + 1] if i + 1 < len(steps) else None
        x = scheduler.step(output, t, x, **options).prev_sample
        if on_step is not None:
            replaced = on_step(i - begin, t, x)
            x = x if replaced is None else replaced
    return x


def uses_learned_variance(scheduler: Any) -> bool:
    """Whether a scheduler's step wants the network's second half of the channels: of all, only the ancestral step can.

    The configuration alone does not tell: ``from_config`` carries ``variance_type`` on to every class.
    """
    ancestral = (UnCLIPScheduler, DiffusersUnCLIPScheduler, DDPMScheduler, DDPMParallelScheduler)
    return isinstance(scheduler, ancestral) and scheduler.config["variance_type"] in ("learned", "learned_range")
