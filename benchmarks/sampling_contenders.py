"""Who samples, of those that need our networks alone: our pipeline, and the loop that Karlo's code runs.

Every contender runs a stage from the same inputs and the same noise, and says when each of its steps was done.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from sampling_networks import CAPTIONS, SCALES
from torch import Tensor

from unclip_hub import UnCLIPPipeline
from unclip_hub.images import resize
from unclip_hub.sampling import Predict


SEED = 7


@dataclass
class Run:
    """One stage, once: what it made, and when, in seconds since it began."""

    output: Tensor
    seconds: float
    ticks: list[float] = field(default_factory=list)  # after each step


Contender = Callable[[str, int], Run]  # (stage, steps)


@dataclass(frozen=True)
class Inputs:
    """What the stages of a size and batch start from."""

    size: str
    captions: list[str]
    noise: dict[str, Tensor]
    image_embed: Tensor
    small_images: Tensor

    @classmethod
    def of(cls, pipe: Any, *, size: str, batch: int) -> "Inputs":
        generator = torch.Generator().manual_seed(SEED)
        width, small = pipe.prior.config["embedding_dim"], pipe.decoder.config["sample_size"]
        large = pipe.super_res_first.config["sample_size"]
        shapes = {"prior": (batch, width), "decoder": (batch, 3, small, small), "super_res": (batch, 3, large, large)}
        return cls(
            size=size,
            captions=(CAPTIONS * batch)[:batch],
            noise={stage: torch.randn(shape, generator=generator) for stage, shape in shapes.items()},
            image_embed=torch.randn(shapes["prior"], generator=generator),
            small_images=torch.rand(shapes["decoder"], generator=generator) * 2 - 1,
        )


def fresh() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def ours(pipe: UnCLIPPipeline, inputs: Inputs) -> Contender:
    """The verbs of our pipeline, as its ``__call__`` uses them."""
    scales = SCALES[inputs.size]
    with torch.no_grad():
        cond, null = pipe.encode_text(inputs.captions), pipe.encode_text("")

    @torch.no_grad()
    def run(stage: str, steps: int) -> Run:
        ticks: list[float] = []

        def on_step(i: int, t: Tensor, x: Tensor) -> None:
            ticks.append(time.perf_counter())

        options: dict[str, Any] = {"num_inference_steps": steps, "generator": fresh(), "on_step": on_step}
        began = time.perf_counter()
        if stage == "text_encoder":
            output = pipe.encode_text(inputs.captions).text_embed
            pipe.encode_text("")
        elif stage == "prior":
            output = pipe.sample_prior(
                cond, null, guidance_scale=scales["prior"], latents=inputs.noise["prior"], **options
            )
        elif stage == "decoder":
            known = cond.with_image(inputs.image_embed.to(cond.text_embed.dtype))
            output = pipe.decode(
                known, null, guidance_scale=scales["decoder"], latents=inputs.noise["decoder"], **options
            )
        else:
            output = pipe.upsample(inputs.small_images, latents=inputs.noise["super_res"], **options)
        return Run(output, time.perf_counter() - began, [tick - began for tick in ticks])

    return run


def karlo_loop(pipe: UnCLIPPipeline, inputs: Inputs) -> Contender:
    """What Karlo's code does, on our networks: all tokens, two passes as one batch, nothing kept from step to step."""
    scales, count = SCALES[inputs.size], len(inputs.captions)
    parts = pipe.components
    schedulers = {stage: copy.deepcopy(parts[f"{stage}_scheduler"]) for stage in inputs.noise}

    def encoded() -> tuple[Tensor, Tensor, Tensor]:
        """Text embeddings, states and mask, the empty captions' first."""
        options = dict(padding="max_length", max_length=parts["tokenizer"].model_max_length, return_tensors="pt")
        tokens = parts["tokenizer"]([*[""] * count, *inputs.captions], **options)
        made = parts["text_encoder"](tokens.input_ids)
        return made.text_embeds, made.last_hidden_state, tokens.attention_mask.bool()

    with torch.no_grad():
        text_embed, text_states, text_mask = encoded()

    def prior() -> Predict:
        known = dict(proj_embedding=text_embed, encoder_hidden_states=text_states, attention_mask=text_mask)
        return led(lambda x, t: parts["prior"](x, t, **known).predicted_image_embedding, scales["prior"])

    def decoder() -> Predict:
        states, time_embed = parts["text_proj"](
            image_embeddings=inputs.image_embed,
            prompt_embeds=text_embed,
            text_encoder_hidden_states=text_states,
            do_classifier_free_guidance=True,
        )
        mask = F.pad(text_mask, (states.shape[1] - text_mask.shape[1], 0), value=True)
        known = dict(encoder_hidden_states=states, class_labels=time_embed, attention_mask=mask)
        return led(lambda x, t: parts["decoder"](x, t, **known).sample, scales["decoder"])

    def super_res() -> Predict:
        low = resize(inputs.small_images, inputs.noise["super_res"].shape[-2:])
        return lambda x, t: parts["super_res_first"](torch.cat([x, low], dim=1), t).sample

    @torch.no_grad()
    def run(stage: str, steps: int) -> Run:
        began = time.perf_counter()
        if stage == "text_encoder":
            return Run(encoded()[0][count:], time.perf_counter() - began)
        scheduler, x, generator, ticks = schedulers[stage], inputs.noise[stage], fresh(), []
        scheduler.set_timesteps(steps)
        predict = {"prior": prior, "decoder": decoder, "super_res": super_res}[stage]()
        timesteps = list(scheduler.timesteps)
        for t, after in zip(timesteps, [*timesteps[1:], None], strict=True):
            x = scheduler.step(predict(x, t), t, x, prev_timestep=after, generator=generator).prev_sample
            ticks.append(time.perf_counter() - began)
        output = parts["prior"].post_process_latents(x) if stage == "prior" else x.clamp(-1, 1)
        return Run(output, time.perf_counter() - began, ticks)

    return run


def led(model: Predict, scale: float) -> Predict:
    """Guidance over one batch of two passes, the unconditional first; a learned variance is the conditional one's."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        away, towards = model(torch.cat([x, x]), t).chunk(2)
        c = x.shape[1]
        return torch.cat([away[:, :c] + scale * (towards[:, :c] - away[:, :c]), towards[:, c:]], dim=1)

    return predict
