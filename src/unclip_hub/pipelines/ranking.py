"""Best of N by CLIP: the prior's samples before a decode, finished pictures after it."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.embeddings import normalize
from unclip_hub.pipelines.base import UnCLIPPipelineBase
from unclip_hub.pipelines.checks import check_count, require
from unclip_hub.pipelines.stage import Generator


def check_ranking(
    pipe: UnCLIPPipelineBase,
    *,
    num_prior_samples: int | None,
    num_candidates: int | None,
    num_images_per_prompt: int,
    **instead: Any,
) -> None:
    """Numbers that mean something in this call; ``instead`` are its arguments that leave the prior no choice."""
    if num_prior_samples is not None:
        check_count("num_prior_samples", num_prior_samples)
        given = [name for name, value in instead.items() if value is not None]
        if num_prior_samples > 1 and given:
            raise ValueError(f"num_prior_samples={num_prior_samples} has nothing to choose from beside {given[0]}")
    if num_candidates is not None:
        check_count("num_candidates", num_candidates)
        check_count("num_images_per_prompt", num_images_per_prompt)
        if num_candidates < num_images_per_prompt:
            raise ValueError(
                f"num_candidates must be num_images_per_prompt = {num_images_per_prompt} or more, got {num_candidates}"
            )
        if instead["small_images"] is not None:
            raise ValueError("num_candidates needs pictures made from the prompt, got small_images")
        require(pipe, "num_candidates", "image_encoder", "feature_extractor")


def similarity(image_embeds: Float[Tensor, "b d"], text_embeds: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    """The cosine between each picture and its caption."""
    return (normalize(image_embeds.float()) * normalize(text_embeds.float())).sum(1)


def best_prior_sample(
    pipe: UnCLIPPipelineBase,
    cond: Conditioning,
    null: Conditioning | None,
    *,
    samples: int,
    generator: Generator,
    **options: Any,
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b"]]:
    """Of ``samples`` draws of the prior the one nearest to the caption, and its cosine (Ramesh et al. 2022, 2.2)."""
    if isinstance(generator, list):
        generator = [one for one in generator for _ in range(samples)]
    if null is not None and len(null) > 1:
        null = null.repeat(samples)
    drawn = pipe.sample_prior(cond.repeat(samples), null, generator=generator, **options)
    near = similarity(drawn, cond.repeat(samples).text_embed).view(-1, samples)  # (b, n)
    scores, index = near.max(dim=1)
    return drawn.view(-1, samples, drawn.shape[-1])[torch.arange(len(index)), index], scores


def best_pictures(
    pipe: UnCLIPPipelineBase,
    images: Float[Tensor, "n 3 h w"],
    text_embeds: Float[Tensor, "n d"],
    *,
    candidates: int,
    keep: int,
) -> tuple[Int[Tensor, "b"], Float[Tensor, "b"]]:
    """Which of every ``candidates`` pictures look to CLIP most like their caption, the best first, and how much."""
    near = similarity(pipe.encode_image(((images + 1) / 2).clamp(0, 1)), text_embeds).view(-1, candidates)
    scores, index = near.sort(dim=1, descending=True)
    rows = index + candidates * torch.arange(len(near), device=index.device)[:, None]
    return rows[:, :keep].flatten(), scores[:, :keep].flatten()
