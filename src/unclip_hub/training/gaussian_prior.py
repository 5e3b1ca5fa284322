"""Fitting the Gaussian prior: one pass that sums up the data, and what follows from the sums in closed form."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from unclip_hub.models.gaussian_prior import GaussianPrior
from unclip_hub.training.prior import PriorBatch, cosines


# tried strengths: of the ridge, relative to the features' mean variance; of the shrinkage towards one variance for all
RIDGES = torch.logspace(-6, 3, 37, dtype=torch.float64)
SHRINKAGES = torch.logspace(-9, -0.01, 73, dtype=torch.float64)
LEAST = 1e-8  # of the embeddings' variance is left unexplained, or there would be no density


class Moments:
    """Mean and scatter of rows that come in batches, in float64 (Chan et al. 1979, eq. 2.1)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)  # sum of (x - mean) (x - mean)'

    def add(self, rows: Float[Tensor, "n k"]) -> None:
        """Take a batch in."""
        rows = rows.detach().double().cpu()
        own = rows.mean(dim=0)
        apart, total = own - self.mean, self.count + len(rows)
        self.scatter += (rows - own).T @ (rows - own) + torch.outer(apart, apart) * (self.count * len(rows) / total)
        self.mean = self.mean + apart * (len(rows) / total)
        self.count = total


@dataclass(frozen=True)
class Fit:
    """What a fit chose, and how much of the image embeddings' variance the captions explain."""

    rows: int
    ridge: float
    shrinkage: float
    explained: float


def fit_gaussian_prior(prior: GaussianPrior, moments: Moments) -> Fit:
    """Set a prior's mean and covariance from the moments of rows [features, image embedding].

    The mean is ridge regression, its strength the one of ``RIDGES`` with the least generalised cross-validation error
    (Golub et al. 1979, eq. 1.4). The covariance is that of the residuals with their degrees of freedom, see
    ``shrunk_covariance``.

    Raises:
        ValueError: fewer than two rows, or image embeddings that are not finite or are all the same.
    """
    n, width = moments.count, prior.mean.in_features
    if n < 2:
        raise ValueError(f"a Gaussian prior is fitted to at least 2 embeddings, got {n}")
    across, outer = moments.scatter[:width, width:], moments.scatter[width:, width:]
    total = outer.trace()
    if not (moments.scatter.isfinite().all() and total > 0):
        raise ValueError("the embeddings that a Gaussian prior is fitted to must be finite and differ")
    values, vectors = torch.linalg.eigh(moments.scatter[:width, :width])
    values, rotated = values.clamp(min=0), vectors.T @ across
    mean = moments.mean[:width]
    # features that hardly vary have only rounding errors to be regressed on
    ridges = RIDGES * max(values.mean().item(), 1e-12 * n * mean.square().sum().item(), torch.finfo().tiny)
    powers = rotated.square().sum(dim=1)
    left = total - (powers * (values + 2 * ridges[:, None]) / (values + ridges[:, None]) ** 2).sum(dim=1)
    free = n - 1 - (values / (values + ridges[:, None])).sum(dim=1)
    best = int((left.clamp(min=0) / free**2).argmin())
    ridge = ridges[best]
    weight = vectors @ (rotated / (values + ridge)[:, None])  # (f, d)
    kept = ((values + 2 * ridge) / (values + ridge) ** 2)[:, None]
    residual = (outer - rotated.T @ (kept * rotated)) / free[best]
    least = LEAST * total.item() / (n * len(outer))
    covariance, shrinkage = shrunk_covariance((residual + residual.T) / 2, rows=n, least=least)
    with torch.no_grad():
        prior.mean.weight.copy_(weight.T)
        prior.mean.bias.copy_(moments.mean[width:] - mean @ weight)
        prior.factor.copy_(torch.linalg.cholesky(covariance))
    return Fit(n, (ridge / n).item(), shrinkage, 1 - (left[best] / total).item())


def shrunk_covariance(
    covariance: Float64[Tensor, "d d"], *, rows: int, least: float = 0.0
) -> tuple[Float64[Tensor, "d d"], float]:
    """(1 - a) S + a m 1, m the mean variance and at least ``least``: invertible however few the rows; and a.

    a is the one of ``SHRINKAGES`` with the highest leave-one-out likelihood, for which every row's Mahalanobis
    distance is taken to be their mean (Theiler 2012, "The incredible shrinking covariance estimator"): without row x
    the covariance is G - b x x', and its determinant and inverse follow from those of G. A rule for the squared error
    of S, as Ledoit and Wolf's, would bury the small variances, of which CLIP's embeddings have many.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    mean = values.mean().clamp(min=least)
    a = SHRINKAGES[:, None]
    whole = (1 - a) * rows / (rows - 1) * values + a * mean  # eigenvalues of G
    distance = (values / whole).sum(dim=1)
    rest = 1 - (1 - SHRINKAGES) / (rows - 1) * distance
    best = int((whole.log().sum(dim=1) + rest.log() + distance / rest).argmin())
    chosen = SHRINKAGES[best]
    return vectors @ torch.diag((1 - chosen) * values + chosen * mean) @ vectors.T, chosen.item()


@torch.no_grad()
def fit_to_batches(prior: GaussianPrior, batches: Iterable[PriorBatch], *, held_out: int = 0) -> dict[str, str]:
    """Fit a prior in one pass, and say what a report should of it.

    Args:
        held_out: how many batches, the last ones, are not fitted to: the prior is judged by them.
    """
    moments = Moments(prior.mean.in_features + prior.embedding_dim)
    waiting: list[PriorBatch] = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > held_out:
            first = waiting.pop(0)
            moments.add(torch.cat([prior.features(first.caption), first.image_embed], dim=1))
    fit = fit_gaussian_prior(prior, moments)
    facts = {
        "fitted to": f"{fit.rows:,} embeddings",
        "variance that the captions explain": f"{100 * fit.explained:.2f} %",
        "ridge, shrinkage": f"{fit.ridge:.3g} of the features' variance, {fit.shrinkage:.3g}",
    }
    return facts | (_judged(prior, waiting, moments) if held_out else {})


def _judged(prior: GaussianPrior, held_out: list[PriorBatch], moments: Moments) -> dict[str, str]:
    """Log-density of batches that were not fitted to, beside that of a Gaussian which knows no captions."""
    width = prior.mean.in_features
    alone = GaussianPrior(prior.embedding_dim, prior.text_embed_dim)
    covariance, _ = shrunk_covariance(moments.scatter[width:, width:] / (moments.count - 1), rows=moments.count)
    alone.mean.weight.zero_()
    alone.mean.bias.copy_(moments.mean[width:])
    alone.factor.copy_(torch.linalg.cholesky(covariance))
    count = sum(len(batch.image_embed) for batch in held_out)
    own, without, cosine, baseline = 0.0, 0.0, 0.0, 0.0
    for batch in held_out:
        share = len(batch.image_embed) / count
        own += share * prior.log_prob(batch.image_embed, batch.caption).mean().item()
        without += share * alone.log_prob(batch.image_embed, batch.caption).mean().item()
        mean = cosines(F.linear(prior.features(batch.caption), prior.mean.weight, prior.mean.bias), batch)
        cosine, baseline = cosine + share * mean["cosine"], baseline + share * mean["baseline_cosine"]
    return {
        "log-density of held-out embeddings": f"{own:.1f} nats ({count:,} embeddings); {without:.1f} without captions",
        "cosine of the mean to the true embedding": f"{cosine:.3f} (baseline {baseline:.3f})",
    }
