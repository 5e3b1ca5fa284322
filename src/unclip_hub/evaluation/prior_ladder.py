"""The degradation ladder: real embeddings made worse in steps, in ways of which it is known what they must do.

A number that does not follow the ladder measures something else than it says. Each row can stand in the same table as
the priors' rows.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from unclip_hub.evaluation import priors
from unclip_hub.evaluation.priors import Card, Truth


RUNGS = {
    "shrunk": (0.25, 0.5, 0.75, 1.0),  # part of the way from each sample to its caption's mean: mean-seeking
    "noise": (0.5, 1.0, 2.0),  # Gaussian, in units of the pictures' standard deviation
    "shuffled": (0.25, 0.5, 1.0),  # share of the captions that get another caption's samples
    "swapped": (0.25, 0.5, 1.0),  # share of the captions whose samples are moved to another attribute
    "shortened": (0.1, 0.25, 0.5),  # part of the norm that is taken away
}
RISES, FALLS, STAYS = 1, -1, 0
EXPECTED = {  # what each degradation must do, step by step; where it says nothing, it depends on the data
    "shrunk": {priors.DIVERSITY: FALLS, priors.CONDITIONAL: RISES, priors.COSINE: RISES},
    "noise": {
        priors.COSINE: FALLS,
        priors.RETRIEVAL: FALLS,
        priors.CONDITIONAL: RISES,
        priors.MARGINAL: RISES,
        priors.DIVERSITY: RISES,
        priors.NORM: RISES,
        priors.BINDING: FALLS,
    },
    "shuffled": {
        priors.COSINE: FALLS,
        priors.RETRIEVAL: FALLS,
        priors.CONDITIONAL: RISES,
        priors.BINDING: FALLS,
    },
    "swapped": {priors.COSINE: FALLS, priors.RETRIEVAL: FALLS, priors.CONDITIONAL: RISES, priors.BINDING: FALLS},
    "shortened": {
        priors.NORM: FALLS,
        priors.CONDITIONAL: RISES,
        priors.MARGINAL: RISES,
        priors.COSINE: STAYS,
        priors.RETRIEVAL: STAYS,
        priors.BINDING: STAYS,
    },
}


def ladder(truth: Truth, *, samples: int, seed: int = 0) -> dict[str, dict[float, Float[Tensor, "n k d"]]]:
    """For each degradation and amount of it, embeddings to be measured as if a prior had sampled them.

    What is degraded are ``samples`` of ``truth.others`` or, where the data has one picture of each caption, that one,
    repeated. What the data does not allow is left out: shrinking then, swapping where nothing is swapped.
    """
    one = truth.pictures[:, :1].expand(-1, samples, -1)
    real = one if truth.others is None else truth.others[:, :samples]
    n = len(real)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(real.shape, generator=generator).to(real) * truth.pictures[:, 0].std(0)
    order = torch.randperm(n, generator=generator).to(real.device)
    shift = _to_another_attribute(truth, generator=generator)

    def shuffled(share: float) -> Tensor:
        chosen = order[: round(share * n)]
        return real.index_copy(0, chosen, real[chosen.roll(1)])

    def swapped(share: float) -> Tensor:
        chosen = order[: round(share * n)]
        return real.index_copy(0, chosen, real[chosen] + shift[chosen, None])

    rungs = {
        "shrunk": lambda part: torch.lerp(real, real.mean(1, keepdim=True), part),
        "noise": lambda amount: real + amount * noise,
        "shuffled": shuffled,
        "swapped": swapped,
        "shortened": lambda part: (1 - part) * real,
    }
    impossible = {"shrunk"} if truth.others is None else set()
    impossible |= set() if truth.swapped else {"swapped"}
    return {
        name: {amount: rungs[name](amount) for amount in amounts}
        for name, amounts in RUNGS.items()
        if name not in impossible
    }


def verdicts(floor: Card, cards: Mapping[str, Mapping[float, Card]]) -> dict[str, dict[str, bool | None]]:
    """Whether each number goes, from the floor up the rungs of a degradation, as it must; None if not measured.

    One that must rise or fall does so or stays at every step, and differs at the last; one that must stay has
    intervals that overlap the floor's.
    """
    return {
        name: {metric: _follows([floor, *rungs.values()], metric, sign) for metric, sign in EXPECTED[name].items()}
        for name, rungs in cards.items()
    }


def _follows(cards: list[Card], metric: str, sign: int) -> bool | None:
    found = [estimate for card in cards if (estimate := card[metric]) is not None]
    if len(found) < len(cards):
        return None
    first = found[0]
    if sign == STAYS:
        return all(one.low <= first.high and first.low <= one.high for one in found[1:])
    steps = [sign * (b.value - a.value) for a, b in zip(found, found[1:], strict=False)]
    return min(steps) >= -1e-9 and sum(steps) > 1e-9


def _to_another_attribute(truth: Truth, *, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """For each caption the way from its picture to that with one attribute swapped, a random one; 0 without any."""
    n, _, width = truth.pictures.shape
    shift, drawn = truth.pictures.new_zeros(n, width), torch.zeros(n)
    for rows, own, other in truth.swapped.values():
        lot = torch.rand(len(rows), generator=generator)
        won = lot > drawn[rows.cpu()]
        drawn[rows.cpu()[won]] = lot[won]
        shift[rows[won]] = (other - own)[won]
    return shift
