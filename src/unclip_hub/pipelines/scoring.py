"""How well captions fit pictures, to the checkpoint's CLIP; with captions as classes, zero-shot classification."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unclip_hub.embeddings import normalize
from unclip_hub.pipelines.base import Pictures, UnCLIPPipelineBase


@dataclass(frozen=True)
class Scores:
    """Of i pictures and c captions.

    Attributes:
        similarities: cosines between their CLIP embeddings, in [-1, 1].
        probabilities: of each caption for a picture, were one of these captions its own; rows add up to 1.
    """

    similarities: Float[Tensor, "i c"]
    probabilities: Float[Tensor, "i c"]


def score(
    pipe: UnCLIPPipelineBase, images: Pictures, *, captions: list[str], logit_scale: float | int = 100.0
) -> Scores:
    """Compare every picture with every caption (Radford et al. 2021, arXiv:2103.00020, section 3.1).

    Args:
        pipe: any pipeline with an image encoder; text_encoder, tokenizer and feature_extractor are used too.
        images: pictures of any sizes, see ``encode_image``.
        logit_scale: what cosines are multiplied by before the softmax. A checkpoint's two encoders do not hold it (it
            is a parameter of neither); 100 is where training clips it and what all of OpenAI's models ended at. It
            changes how sure the probabilities are, never their order.

    Raises:
        ValueError: no captions, a scale that is not above 0, or a checkpoint without an image or text encoder.
    """
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"captions must be a list of at least one string, got {captions!r}")
    if not 0 < logit_scale < float("inf"):
        raise ValueError(f"logit_scale must be a finite number above 0, got {logit_scale}")
    with torch.no_grad():
        text = normalize(pipe.encode_text(captions).text_embed.float())
        cosines = normalize(pipe.encode_image(images).float()) @ text.T
    return Scores(cosines, (logit_scale * cosines).softmax(dim=1))
