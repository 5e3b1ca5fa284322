"""Geometry of CLIP embeddings: unit vectors and the statistics that a prior is trained in."""

import torch
from jaxtyping import Float
from torch import Tensor


def normalize(embed: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """The unit vector of each embedding."""
    return torch.nn.functional.normalize(embed, dim=-1)


def statistics(embeds: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
    """Mean and standard deviation per dimension, computed in float64: what a prior standardises image embeddings with.

    Raises:
        ValueError: fewer than two embeddings.
    """
    if len(embeds) < 2:
        raise ValueError(f"embedding statistics need at least 2 embeddings, got {len(embeds)}")
    exact = embeds.double()
    return exact.mean(0).to(embeds), exact.std(0).to(embeds)
