"""How far two sets of pictures are apart, by what an encoder sees in them.

A distance says little by itself: set it beside that of two sets of real pictures of the same number, in the same
encoder's space.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def frechet_distance(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Fréchet distance of two sets of features as normal distributions (Heusel et al. 2017, arXiv:1706.08500, eq. 6).

    It grows as the sets get smaller: compare only distances of sets of one size.

    Raises:
        ValueError: sets of less than 2, or of different widths.
    """
    a, b = _checked(a, b)
    first, second = torch.cov(a.T), torch.cov(b.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    means = (a.mean(0) - b.mean(0)).square().sum()
    return float((means + first.trace() + second.trace() - 2 * shared).clamp(min=0))


def kernel_distance(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, subsets: int = 100, size: int = 200, seed: int = 0
) -> tuple[float, float]:
    """Squared kernel distance of two sets of features, unbiased, and its standard error.

    The kernel is (x · y / d + 1)^3; the mean over random subsets (Binkowski et al. 2018, arXiv:1801.01401, section 4).

    Raises:
        ValueError: sets of less than 2, or of different widths.
    """
    a, b = _checked(a, b)
    # at most half of a set, or all subsets would be the same and their spread nothing
    size = max(2, min(size, len(a) // 2, len(b) // 2))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x, y = (rows[torch.randperm(len(rows), generator=generator)[:size]] for rows in (a, b))
        values.append(_within(x) + _within(y) - 2 * _kernel(x, y).mean())
    drawn = torch.stack(values)
    # subsets of one set overlap: as many are independent as it holds
    return float(drawn.mean()), float(drawn.std() / max(1.0, min(len(a), len(b)) / size) ** 0.5)


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: Tensor) -> Tensor:
    kernel = _kernel(x, x)
    return (kernel.sum() - kernel.diagonal().sum()) / (len(x) * (len(x) - 1))


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"expected two sets of at least 2 features of one width, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    return a.double(), b.double()
