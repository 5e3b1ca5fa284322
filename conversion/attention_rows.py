"""Fused projections of attention, split into queries, keys and values.

In the guided-diffusion family (GLIDE, Karlo, Kandinsky 2.1) the output rows of a fused projection run head by head,
``[head 0: q, k, v][head 1: q, k, v] ...``; in ``nn.MultiheadAttention`` (CLIP) they are thirds, all queries first. A
file does not say which. Its U-Nets project with 1x1 convolutions, whose last dimension is dropped here.
"""

from jaxtyping import Float
from torch import Tensor


def per_head(weight: Tensor, *, head_dim: int, parts: int = 3) -> tuple[Tensor, ...]:
    """Rows that run head by head, as ``parts`` tensors: q, k, v, or k, v where ``parts`` is 2.

    Args:
        weight: (parts * heads * head_dim, ...) weight or bias; a weight of a 1x1 convolution loses its last dimension.

    Raises:
        ValueError: the rows are no whole number of heads.
    """
    weight = pointwise(weight)
    rows = parts * head_dim
    if weight.shape[0] % rows:
        raise ValueError(f"a projection of {weight.shape[0]} rows has no whole number of heads of {head_dim} channels")
    by_head = weight.unflatten(0, (-1, parts, head_dim))  # (heads, parts, head_dim, ...)
    return tuple(by_head[:, part].flatten(0, 1) for part in range(parts))


def thirds(weight: Tensor) -> tuple[Tensor, ...]:
    """Rows that run queries, keys, values.

    Raises:
        ValueError: their number is no multiple of three.
    """
    if weight.shape[0] % 3:
        raise ValueError(f"a projection of {weight.shape[0]} rows cannot hold queries, keys and values")
    return weight.chunk(3)


def pointwise(weight: Float[Tensor, "o ..."]) -> Tensor:
    """The weight of a 1x1 convolution as that of a linear layer; others unchanged."""
    return weight[:, :, 0] if weight.ndim == 3 and weight.shape[2] == 1 else weight
