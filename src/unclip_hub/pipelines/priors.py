"""Running a pipeline's prior: a diffusion with the pipeline's scheduler, or a network that samples itself."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.cpu_kernels import fast_kernels
from unclip_hub.pipelines.settings import Interval
from unclip_hub.pipelines.stage import Generator, OnStep, guided, run


def diffused(
    pipe: Any,
    cond: Conditioning,
    null: Conditioning | None,
    *,
    num_inference_steps: int,
    guidance_scale: float | int = 1.0,
    guidance_interval: Interval | None = None,
    guidance_rescale: float | int = 0.0,
    max_norm: float | int | None = None,
    generator: Generator,
    latents: Float[Tensor, "b d"] | None,
    on_step: OnStep | None,
) -> Float[Tensor, "b d"]:
    """The diffusion prior (Ramesh et al. 2022, section 2.2); an embedding longer than ``max_norm`` is shortened."""
    if max_norm is not None and not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    x = run(
        pipe,
        "prior",
        guided(
            pipe,
            "prior",
            cond=cond,
            null=null,
            guidance_scale=guidance_scale,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
        ),
        num_inference_steps=num_inference_steps,
        shape=(len(cond), pipe.prior.config["embedding_dim"]),
        dtype=pipe.prior.dtype,
        generator=generator,
        latents=latents,
        on_step=on_step,
    )
    embeds = pipe.prior.post_process_latents(x)
    if max_norm is None:
        return embeds
    return embeds * (max_norm / embeds.norm(dim=1, keepdim=True)).clamp(max=1)


def sampled(
    pipe: Any, cond: Conditioning, null: Conditioning | None, *, generator: Generator, **options: Any
) -> Float[Tensor, "b d"]:
    """A prior's own ``sample``, as a stage of one step."""
    pipe._stage = "prior"
    with pipe.progress_bar(total=1) as bar:
        bar.set_description("prior")
        with fast_kernels(pipe.prior, pipe._execution_device):
            embeds = pipe.prior.sample(cond, null, generator=generator, **options)
        bar.update()
    return embeds
