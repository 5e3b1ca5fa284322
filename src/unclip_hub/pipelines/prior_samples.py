"""Many samples of a pipeline's prior for each of many captions, as its calls would draw them, and what they cost."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from unclip_hub.pipelines.base import UnCLIPPipelineBase
from unclip_hub.pipelines.checks import require_prior
from unclip_hub.pipelines.settings import settings


@dataclass(frozen=True)
class PriorSamples:
    """Of n captions, k each.

    Attributes:
        embeds: image embeddings, not normalised, in float32.
        text_embeds: the captions' own.
        seconds: of the prior alone, by batch, and the ``rows`` of each; a batch before them is not counted.
    """

    embeds: Float[Tensor, "n k d"]
    text_embeds: Float[Tensor, "n d"]
    seconds: Float64[Tensor, "c"]
    rows: Int[Tensor, "c"]


@torch.no_grad()
def draw_prior_samples(
    pipe: UnCLIPPipelineBase,
    captions: list[str],
    *,
    samples: int,
    batch: int,
    seed: int = 0,
    **given: Any,
) -> PriorSamples:
    """Draw ``samples`` embeddings for each caption, ``batch`` captions at a time, every one from a seed of its own.

    ``given`` are settings of the prior under the names of a call's arguments, such as ``prior_guidance_scale``; the
    others are the checkpoint's. Its ``num_prior_samples``, a choice among samples, is none of the prior's.
    """
    require_prior(pipe, "draw_prior_samples")
    options = settings(pipe, **given).prior
    null = pipe.encode_text("") if options.get("guidance_scale", 1) != 1 else None
    embeds, texts, seconds, rows = [], [], [], []
    for at in [0, *range(0, len(captions), batch)]:  # the first twice: what is slow only once must not count
        text = pipe.encode_text(captions[at : at + batch])
        first = seed + at * samples
        generators = [torch.Generator().manual_seed(first + i) for i in range(len(text) * samples)]
        cond = text.repeat(samples)
        _wait(pipe)
        started = time.perf_counter()
        drawn = pipe.sample_prior(cond, null, generator=generators, **options)
        _wait(pipe)
        seconds.append(time.perf_counter() - started)
        rows.append(len(cond))
        embeds.append(drawn.float().view(len(text), samples, -1))
        texts.append(text.text_embed.float())
    pipe.maybe_free_model_hooks()
    return PriorSamples(
        torch.cat(embeds[1:]),
        torch.cat(texts[1:]),
        torch.tensor(seconds[1:], dtype=torch.float64),
        torch.tensor(rows[1:]),
    )


def _wait(pipe: UnCLIPPipelineBase) -> None:
    if pipe._execution_device.type == "cuda":
        torch.cuda.synchronize(pipe._execution_device)
