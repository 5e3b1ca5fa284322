"""Geometry of CLIP embeddings: unit vectors, the way between two of them, and the statistics that priors need."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
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


def slerp(
    a: Float[Tensor, "*b d"], b: Float[Tensor, "*b d"], *, theta: Float[Tensor, "*b"] | float | int
) -> Float[Tensor, "*b d"]:
    """The vector a fraction ``theta`` of the angle from ``a`` to ``b``, on the sphere; norms go linearly.

    Every row for itself, with one ``theta`` or one for each row; 0 gives ``a`` and 1 ``b``. Between opposite vectors
    any way is as short: one is chosen, always the same. Computed in float64 (Shoemake 1985; Ramesh et al. 2022,
    section 3.2).
    """
    at = torch.as_tensor(theta, dtype=torch.float64, device=a.device)[..., None]
    u, v = normalize(a.double()), normalize(b.double())
    angle = _angle(u, v)
    across = v - (u * v).sum(-1, keepdim=True) * u  # the part of v that is orthogonal to u
    across = torch.where(across.norm(dim=-1, keepdim=True) > 1e-14, across, _orthogonal(u))
    turned = torch.cos(at * angle) * u + torch.sin(at * angle) * normalize(across)
    norm = torch.lerp(a.double().norm(dim=-1, keepdim=True), b.double().norm(dim=-1, keepdim=True), at)
    return (norm * turned).to(a.dtype)


def spherical_mean(embeds: Float[Tensor, "n d"], weights: Float[Tensor, "n"]) -> Float[Tensor, "d"]:
    """The point of the sphere whose weighted squared angles to the embeddings are least; its norm is their mean.

    Of two embeddings that is ``slerp``. Weights count relative to each other (Buss & Fillmore 2001, algorithm A1).

    Raises:
        ValueError: a weight is negative or not finite, or all are 0.
    """
    shares = weights.double()
    if not shares.isfinite().all() or (shares < 0).any() or shares.sum() == 0:
        raise ValueError(f"weights must be at least 0, and one above it, got {weights.tolist()}")
    shares = (shares / shares.sum())[:, None]
    u = normalize(embeds.double())
    mean = normalize((shares * u).sum(0, keepdim=True))
    for _ in range(50):
        across = u - (u * mean).sum(-1, keepdim=True) * mean
        step = (shares * _angle(u, mean) * normalize(across)).sum(0, keepdim=True)
        length = step.norm()
        mean = torch.cos(length) * mean + torch.sin(length) * normalize(step)
    norm = (shares * embeds.double().norm(dim=-1, keepdim=True)).sum()
    return (norm * mean[0]).to(embeds.dtype)


def text_diff(target: Float[Tensor, "*b d"], source: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """The direction from one caption's embedding to another's, a unit vector (Ramesh et al. 2022, section 3.3).

    Raises:
        ValueError: two embeddings are the same.
    """
    difference = normalize(target) - normalize(source)
    if (difference.norm(dim=-1) < 1e-6).any():
        raise ValueError("the two captions have the same embedding: there is no direction from one to the other")
    return normalize(difference)


@dataclass(frozen=True)
class PCA:
    """Principal components of embeddings, in float64 and in descending order of their eigenvalues.

    Attributes:
        mean: of the embeddings.
        basis: a component a row, orthonormal.
        eigenvalues: the variance along each.
    """

    mean: Float64[Tensor, "d"]
    basis: Float64[Tensor, "k d"]
    eigenvalues: Float64[Tensor, "k"]

    @classmethod
    def fit(cls, embeds: Float[Tensor, "n d"], *, components: int | None = None) -> "PCA":
        """The first ``components``, by default all of them.

        Raises:
            ValueError: fewer than two embeddings, or ``components`` not within 1 … d.
        """
        n, width = embeds.shape
        if n < 2:
            raise ValueError(f"principal components need at least 2 embeddings, got {n}")
        count = width if components is None else components
        if not 1 <= count <= width:
            raise ValueError(f"components must be within 1 … {width}, got {components}")
        exact = embeds.double()
        centred = exact - exact.mean(0)
        values, vectors = torch.linalg.eigh(centred.T @ centred / (n - 1))  # ascending
        basis = vectors.T.flip(0)[:count]
        largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
        return cls(exact.mean(0), basis * largest.sign(), values.flip(0)[:count].clamp(min=0))

    def transform(self, embeds: Float[Tensor, "b d"]) -> Float64[Tensor, "b k"]:
        """The coordinates of embeddings along the components."""
        return (embeds.double() - self.mean) @ self.basis.T

    def inverse(self, coordinates: Float[Tensor, "b j"]) -> Float64[Tensor, "b d"]:
        """The embeddings of coordinates along the first j components, the mean along the others."""
        count = coordinates.shape[1]
        if count > len(self.basis):
            raise ValueError(f"expected at most {len(self.basis)} coordinates, got {count}")
        return coordinates.double() @ self.basis[:count] + self.mean

    def state_dict(self) -> dict[str, Tensor]:
        """Its three tensors, to save; ``PCA(**state)`` makes it again."""
        return {"mean": self.mean, "basis": self.basis, "eigenvalues": self.eigenvalues}


def _angle(u: Tensor, v: Tensor) -> Tensor:
    """Between unit vectors, precise also where it is small or close to pi (Kahan)."""
    return 2 * torch.atan2((u - v).norm(dim=-1, keepdim=True), (u + v).norm(dim=-1, keepdim=True))


def _orthogonal(u: Tensor) -> Tensor:
    """A vector orthogonal to each unit vector: the axis along which it is shortest, less its part along u."""
    axis = torch.nn.functional.one_hot(u.abs().argmin(-1), u.shape[-1]).to(u)
    return axis - (axis * u).sum(-1, keepdim=True) * u
