"""A prior's report card: do its image embeddings fit the caption, and are they as various as its pictures are?

Numbers of alignment alone reward a prior that returns the mean of all pictures of a caption: its cosine and retrieval
rise above those of real pictures while its diversity falls to 0. Every number here has an interval, by a bootstrap
over captions, and a floor: that of other real pictures of the same captions. `prior_ladder` proves their order.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from unclip_hub.embeddings import normalize
from unclip_hub.evaluation.intervals import RESAMPLES, Estimate, bootstrap, ratio, share


COSINE, RETRIEVAL, CONDITIONAL, MARGINAL = "cosine", "retrieval", "conditional MMD", "marginal MMD"
SPREAD, DIVERSITY, NORM, BINDING = "spread", "diversity", "norm", "binding"
BEST = {  # what a perfect prior has; "floor" is what other pictures of the same caption have
    COSINE: "floor",
    RETRIEVAL: "floor",
    CONDITIONAL: "0",
    MARGINAL: "0",
    SPREAD: "floor",
    DIVERSITY: "1",
    NORM: "1",
    BINDING: "floor",
}
SCALES = (0.125, 0.25, 0.5, 1.0)  # of the kernels, times the median distance between pictures of two captions

Card = dict[str, Estimate | None]  # None: not measured


class Swapped(NamedTuple):
    """Captions of which one attribute can be swapped: their ``rows``, their own picture, the one it then is."""

    rows: Int[Tensor, "s"]
    own: Float[Tensor, "s d"]
    other: Float[Tensor, "s d"]


@dataclass(frozen=True)
class Truth:
    """The image embeddings, not normalised, of what n captions mean.

    Attributes:
        pictures: m pictures of each caption, drawn independently; the first is the one that the caption was written
            to. With m = 1 what needs several is not measured.
        groups: captions that mean the same have the same number; a retrieval of either is right.
        others: further pictures of each caption, as many as a prior is to draw samples: the floor.
        swapped: by attribute.
    """

    pictures: Float[Tensor, "n m d"]
    groups: Int[Tensor, "n"]
    others: Float[Tensor, "n k d"] | None = None
    swapped: dict[str, Swapped] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.pictures) < 2:
            raise ValueError(f"a report card needs at least 2 captions, got {len(self.pictures)}")


def report_card(samples: Float[Tensor, "n k d"], truth: Truth, *, resamples: int = RESAMPLES, seed: int = 0) -> Card:
    """Every number of k sampled embeddings for each caption; None where the data or k does not allow it.

    Raises:
        ValueError: samples of other captions or another width than the truth's.
    """
    n, _, d = truth.pictures.shape
    if samples.shape[::2] != (n, d):
        raise ValueError(f"samples must be ({n}, k, {d}) to match the truth, got {tuple(samples.shape)}")
    pictures, first, groups = truth.pictures, truth.pictures[:, 0], truth.groups
    several, varied = samples.shape[1] > 1, pictures.shape[1] > 1
    drawing: dict[str, Any] = {"groups": groups, "resamples": resamples, "seed": seed}
    sigmas = bandwidths(first)
    terms = marginal_terms(samples[:, 0], first, sigmas=sigmas)
    conditional = diversity = None
    if several and varied:
        conditional = ratio(conditional_mmd(samples, pictures, sigmas=sigmas), **drawing)
        diversity = ratio(spread(samples), spread(pictures), **drawing)
    card: Card = {
        COSINE: ratio(cosine(samples, pictures), **drawing),
        RETRIEVAL: share(retrieval(samples, first, groups=groups), **drawing),
        CONDITIONAL: conditional,
        MARGINAL: bootstrap(lambda w: marginal_mmd(terms, w), **drawing),
        SPREAD: ratio(spread(samples), (first - first.mean(0)).square().sum(1), **drawing) if several else None,
        DIVERSITY: diversity,
        NORM: ratio(samples.norm(dim=-1).mean(1), pictures.norm(dim=-1).mean(1), **drawing),
    }
    return card | _bindings(samples, truth, resamples=resamples, seed=seed)


def cosine(samples: Float[Tensor, "n k d"], pictures: Float[Tensor, "n m d"]) -> Float64[Tensor, "n"]:
    """The mean cosine between a caption's samples and its pictures."""
    return (normalize(samples.double()).mean(1) * normalize(pictures.double()).mean(1)).sum(-1)


def retrieval(
    samples: Float[Tensor, "n k d"], pictures: Float[Tensor, "n d"], *, groups: Int[Tensor, "n"]
) -> Float64[Tensor, "n"]:
    """The share of a caption's samples that are nearer, by cosine, to a picture of its group than to all others."""
    gallery, points = normalize(pictures).T, normalize(samples)
    hits = [groups[(points[:, i] @ gallery).argmax(1)] == groups for i in range(points.shape[1])]
    return torch.stack(hits, 1).double().mean(1)


def bandwidths(pictures: Float[Tensor, "n d"]) -> Float64[Tensor, "s"]:
    """The kernels' sigmas: ``SCALES`` of the median distance between the first 1,000 pictures, equal ones aside.

    They depend on the pictures alone, so all priors of a table are measured by the same kernel; several of them, as
    one must be as fine as the differences within a caption and one as coarse as those between captions.

    Raises:
        ValueError: all pictures have the same embedding.
    """
    distances = torch.nn.functional.pdist(pictures[:1000].double())
    apart = distances[distances > 1e-6]
    if len(apart) == 0:
        raise ValueError("the pictures have one and the same embedding: there is nothing to compare with")
    return apart.median() * torch.tensor(SCALES, dtype=torch.float64, device=pictures.device)


def conditional_mmd(
    samples: Float[Tensor, "n k d"], pictures: Float[Tensor, "n m d"], *, sigmas: Float64[Tensor, "s"]
) -> Float64[Tensor, "n"]:
    """The squared maximum mean discrepancy between a caption's samples and its pictures, for each caption.

    The unbiased estimator (Gretton et al. 2012, lemma 6), which may be negative, of the mean of Gaussian kernels with
    ``sigmas``; k and m must be 2 or more. 0 for the same distribution; 2 for points that have nothing in common.
    """
    k, m = samples.shape[1], pictures.shape[1]
    both = torch.cat([samples, pictures], 1).double()
    kernel = _kernel(torch.cdist(both, both), sigmas)  # (n, k + m, k + m)
    trace = kernel.diagonal(dim1=1, dim2=2)
    within = (kernel[:, :k, :k].sum((1, 2)) - trace[:, :k].sum(1)) / (k * (k - 1))
    among = (kernel[:, k:, k:].sum((1, 2)) - trace[:, k:].sum(1)) / (m * (m - 1))
    return within + among - 2 * kernel[:, :k, k:].mean((1, 2))


def marginal_terms(
    samples: Float[Tensor, "n d"], pictures: Float[Tensor, "n d"], *, sigmas: Float64[Tensor, "s"]
) -> Float64[Tensor, "n n"]:
    """What every pair of captions contributes to ``marginal_mmd``; 0 for a caption with itself."""
    x, y = samples.double(), pictures.double()
    cross = _kernel(torch.cdist(x, y), sigmas)
    terms = _kernel(torch.cdist(x, x), sigmas) + _kernel(torch.cdist(y, y), sigmas) - cross - cross.T
    return terms.fill_diagonal_(0).cpu()


def marginal_mmd(terms: Float64[Tensor, "n n"], weights: Float64[Tensor, "r n"]) -> Float64[Tensor, "r"]:
    """The same discrepancy between one sample and one picture of all captions together.

    It does not see which sample belongs to which caption: that of another caption is as good. The U-statistic over
    pairs of different captions, weighted as in a bootstrap.
    """
    pairs = weights.sum(1) ** 2 - (weights**2).sum(1)
    return ((weights @ terms) * weights).sum(1) / pairs


def spread(embeds: Float[Tensor, "n k d"]) -> Float64[Tensor, "n"]:
    """The variance within a caption, all dimensions added up; unbiased, of k >= 2 embeddings."""
    return embeds.double().var(dim=1).sum(-1)


def binding(
    samples: Float[Tensor, "s k d"], *, own: Float[Tensor, "s d"], other: Float[Tensor, "s d"]
) -> Float64[Tensor, "s"]:
    """The share of samples nearer, by cosine, to their caption's picture than to it with one attribute swapped.

    Equally near counts as half, so what knows nothing of the attribute has 0.5.
    """
    points = normalize(samples.double())
    nearer = (points * (normalize(own.double()) - normalize(other.double()))[:, None]).sum(-1)
    return ((nearer.sign() + 1) / 2).mean(1)


def _bindings(samples: Tensor, truth: Truth, **drawing: Any) -> Card:
    """Of all swaps together, and of each attribute."""
    right = {name: binding(samples[s.rows], own=s.own, other=s.other) for name, s in truth.swapped.items()}
    groups = {name: truth.groups[swapped.rows] for name, swapped in truth.swapped.items()}
    if not right:
        return {BINDING: None}
    together = share(torch.cat([*right.values()]), groups=torch.cat([*groups.values()]), **drawing)
    return {BINDING: together} | {
        f"{BINDING}: {name}": share(right[name], groups=groups[name], **drawing) for name in right
    }


def _kernel(distances: Float64[Tensor, "*b x y"], sigmas: Float64[Tensor, "s"]) -> Float64[Tensor, "*b x y"]:
    squared = distances**2
    return torch.stack([torch.exp(-squared / (2 * sigma**2)) for sigma in sigmas]).mean(0)
