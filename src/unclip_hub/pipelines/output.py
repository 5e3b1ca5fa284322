"""What a pipeline returns, and its pictures in the form asked for."""

from dataclasses import dataclass

import numpy as np
from diffusers.utils.outputs import BaseOutput
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unclip_hub.images import to_numpy, to_pil


Images = list[Image.Image] | np.ndarray | Tensor


@dataclass
class UnCLIPPipelineOutput(BaseOutput):
    """What a call made, one row per picture; ``images`` and ``small_images`` in the ``output_type`` asked for.

    Attributes:
        images: the finished pictures: PIL, an array (b, h, w, 3) in [0, 1], or a tensor (b, 3, h, w) in [0, 1].
        image_embeds: the CLIP image embeddings that they were decoded from, (b, d), not normalised; None if
            the call was given ``small_images`` alone.
        small_images: the decoder's pictures, before the upsampler.
        scores: how near CLIP finds each picture to its caption, (b,) cosines, if the call chose the best of several;
            None otherwise. Not part of the tuple.
    """

    images: Images
    image_embeds: Float[Tensor, "b d"] | None
    small_images: Images
    scores: Float[Tensor, "b"] | None = None


def as_output(images: Float[Tensor, "b 3 h w"], output_type: str) -> Images:
    """Pictures in [-1, 1] as ``"pil"``, ``"np"`` or ``"pt"``; the last two in [0, 1]."""
    if output_type == "pil":
        return to_pil(images)
    if output_type == "np":
        return to_numpy(images)
    return ((images + 1) / 2).clamp(0, 1)
