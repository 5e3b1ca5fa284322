"""Numbers with the interval that a bootstrap over captions gives them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


RESAMPLES = 1000
Z = 1.959964  # of 95 %

Statistic = Callable[[Float64[Tensor, "r n"]], Float64[Tensor, "r"]]


class Estimate(NamedTuple):
    """A number of ``n`` cases and its 95 % interval, which of a single case is that number."""

    value: float
    low: float
    high: float
    n: int


def bootstrap(
    statistic: Statistic, groups: Int[Tensor, "n"], *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """The statistic of n cases with the percentile bootstrap's 95 % interval; None where it is not defined.

    Whole groups are drawn, with replacement: cases of a group (wordings of one scene) are no independent evidence.
    Resamples of which the statistic is NaN are left out.

    Args:
        statistic: from weights of the cases, a row for each resample, to a number for each.
        groups: cases that belong together have the same number.

    Raises:
        ValueError: no cases.
    """
    if len(groups) == 0:
        raise ValueError("a bootstrap needs at least 1 case, got 0")
    value = statistic(torch.ones(1, len(groups), dtype=torch.float64)).item()
    if value != value:
        return None
    _, index = groups.cpu().unique(return_inverse=True)
    count = int(index.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (resamples, count), generator=generator)
    times = torch.zeros(resamples, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    resampled = statistic(times[:, index])
    low, high = resampled.nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(value, low, high, len(groups))


def ratio(
    numerator: Float[Tensor, "n"],
    denominator: Float[Tensor, "n"] | None = None,
    *,
    groups: Int[Tensor, "n"],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate | None:
    """The mean of ``numerator`` over that of ``denominator``, by default its mean; None where the latter is 0."""
    above = numerator.double().cpu()
    below = torch.ones_like(above) if denominator is None else denominator.double().cpu()
    if float(below.sum()) == 0:
        return None

    def quotient(weights: Float64[Tensor, "r n"]) -> Float64[Tensor, "r"]:
        under = weights @ below
        return (weights @ above) / under.where(under != 0, torch.nan)

    return bootstrap(quotient, groups, resamples=resamples, seed=seed)


def share(
    values: Float[Tensor, "n"], *, groups: Int[Tensor, "n"], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """The mean of values from 0 to 1. Where all are 0, or all 1, resamples say nothing: then Wilson's interval."""
    found, count = ratio(values, groups=groups, resamples=resamples, seed=seed), len(groups.unique())
    if found is None or found.low < found.high:
        return found
    if found.value == 1:
        return found._replace(low=count / (count + Z**2))
    return found._replace(high=Z**2 / (count + Z**2)) if found.value == 0 else found
