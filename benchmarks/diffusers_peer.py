"""diffusers' own pipeline as a contender: one call of it, in which the stage that is asked for is timed."""

import time
from typing import Any

import torch
from diffusers import UnCLIPPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers_assembly import DENOISED
from sampling_contenders import Contender, Inputs, Run, fresh
from sampling_networks import SCALES
from torch import Tensor, nn


def theirs(pipe: UnCLIPPipeline, inputs: Inputs) -> Contender:
    """diffusers' call; the stages around the one that is timed are run in two steps."""
    dtype = pipe.prior.dtype
    began: dict[str, float] = {}

    def at_text_proj(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        began["decoder"] = time.perf_counter()
        return args, kwargs | {"image_embeddings": inputs.image_embed.to(dtype)}

    @torch.no_grad()
    def run(stage: str, steps: int) -> Run:
        schedulers = {name: getattr(pipe, f"{name}_scheduler") for name in DENOISED}
        generator = fresh()
        for scheduler in schedulers.values():
            scheduler.generator = generator
        schedulers["decoder"].handed_on = inputs.small_images.to(dtype)
        hook = pipe.text_proj.register_forward_pre_hook(at_text_proj, with_kwargs=True)
        started = time.perf_counter()
        try:
            call(pipe, inputs, steps={name: steps if name == stage else 2 for name in DENOISED}, generator=generator)
        finally:
            hook.remove()
            for scheduler in schedulers.values():
                scheduler.generator = scheduler.handed_on = None
        bounds = [started, schedulers["prior"].began, began["decoder"], schedulers["super_res"].began]
        bounds.append(time.perf_counter())
        place = ("text_encoder", *DENOISED).index(stage)
        start, end = bounds[place : place + 2]
        if stage == "text_encoder":
            return Run(_encoded(pipe, inputs.captions), end - start)
        made = schedulers[stage]
        output = pipe.prior.post_process_latents(made.result) if stage == "prior" else made.result.clamp(-1, 1)
        return Run(output, end - start, [tick - start for tick in made.ticks])

    return run


def call(pipe: Any, inputs: Inputs, *, steps: dict[str, int], generator: torch.Generator) -> Tensor:
    """One whole call, of diffusers' pipeline or ours, from the given noise; its pictures, (b, h, w, 3) in [0, 1]."""
    made = pipe(
        inputs.captions,
        **{f"{name}_num_inference_steps": count for name, count in steps.items()},
        **{f"{name}_latents": noise.to(pipe.prior.dtype) for name, noise in inputs.noise.items()},
        **{f"{name}_guidance_scale": scale for name, scale in SCALES[inputs.size].items()},
        generator=generator,
        output_type="np",
    )
    return torch.from_numpy(made.images)


def _encoded(pipe: UnCLIPPipeline, captions: list[str]) -> Tensor:
    options = {"padding": "max_length", "max_length": pipe.tokenizer.model_max_length, "return_tensors": "pt"}
    return pipe.text_encoder(pipe.tokenizer(captions, **options).input_ids).text_embeds
