"""What a call that takes a picture and a prompt checks, and how the two become one image embedding."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.embeddings import slerp
from unclip_hub.images import to_tensor
from unclip_hub.pipelines.base import Pictures, UnCLIPPipelineBase, each
from unclip_hub.pipelines.checks import (
    check_count,
    check_fraction,
    check_negative,
    check_run,
    count_prompts,
    require,
    require_prior,
)
from unclip_hub.pipelines.settings import Settings


def same_sized(image: Pictures | None) -> Float[Tensor, "i 3 h w"]:
    """Pictures of one size as a batch in [-1, 1].

    Raises:
        ValueError: none, or pictures of several sizes.
    """
    if image is None:
        raise ValueError("image must be a picture or several, got None")
    made = [to_tensor(one) for one in each(image)]
    sizes = sorted({(one.shape[-1], one.shape[-2]) for one in made})
    if len(sizes) != 1:
        raise ValueError(f"expected pictures of one size (width, height), got {sizes or 'no pictures'}")
    return torch.cat(made)


def check_prompted(
    pipe: UnCLIPPipelineBase,
    *,
    images: int,
    image_weight: float | int,
    prompt: str | list[str] | None,
    prompt_embeds: Conditioning | None,
    negative_prompt: str | list[str] | None,
    negative_prompt_embeds: Conditioning | None,
    image_embeds: Tensor | None,
    num_images_per_prompt: int,
    settings: Settings,
    **options: Any,
) -> int:
    """Check the arguments of a call with pictures and prompts, and return how many rows the two make together."""
    check_count("num_images_per_prompt", num_images_per_prompt)
    check_fraction("image_weight", image_weight)
    if image_weight and image_embeds is not None:
        raise ValueError("give image_weight or image_embeds, got both: image_embeds are used as they are")
    prompts = count_prompts(prompt, prompt_embeds, None, None)
    rows = max(images, prompts)
    if not {images, prompts} <= {1, rows}:
        raise ValueError(f"expected one picture, one prompt, or as many of both, got {images} and {prompts}")
    check_negative(negative_prompt, negative_prompt_embeds, prompts=rows)
    check_run(pipe, batch=rows * num_images_per_prompt, settings=settings, image_embeds=image_embeds, **options)
    if prompt is not None:
        require(pipe, "a prompt", "text_encoder", "tokenizer", instead="prompt_embeds")
    if negative_prompt_embeds is None and settings.guided:
        require(pipe, "guidance", "text_encoder", "tokenizer", instead="negative_prompt_embeds")
    if image_embeds is None and image_weight < 1:
        require_prior(pipe, "a prompt", instead="image_embeds or image_weight=1")
    if image_weight:
        require(pipe, "image_weight", "image_encoder", "feature_extractor", instead="image_embeds")
    return rows


def check_strength(strength: float | int) -> None:
    """A part of the decoder's steps."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength}")


def mixed(
    prior_embeds: Float[Tensor, "b d"] | None, own_embeds: Float[Tensor, "b d"] | None, *, image_weight: float | int
) -> Float[Tensor, "b d"]:
    """The prior's embedding, the picture's own, or one between them on the sphere; one that is not needed is None."""
    if own_embeds is None or prior_embeds is None:
        made = prior_embeds if own_embeds is None else own_embeds
        assert made is not None
        return made
    return slerp(prior_embeds, own_embeds.to(prior_embeds), theta=image_weight)
