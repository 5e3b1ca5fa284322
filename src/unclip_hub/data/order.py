"""Which samples a batch holds: a function of the seed and of the batch's number."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class Order:
    """Every sample once an epoch, in an order of its own.

    Epochs follow one another without a gap: where an epoch ends within a batch, the next one fills it, so all batches
    are full and nothing is dropped. Processes share the numbers, so w of them in one step take together what one would
    take with ``batch * w``.

    Raises:
        ValueError: the dataset is empty, or the batch.
    """

    def __init__(self, count: int, *, batch: int, seed: int = 0) -> None:
        if count < 1 or batch < 1:
            raise ValueError(f"expected a count and a batch of at least 1, got count={count}, batch={batch}")
        self.count, self.batch, self.seed = count, batch, seed

    def at(self, number: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of a batch; numbers begin with 0."""
        first = number * self.batch
        places = [divmod(place, self.count) for place in range(first, first + self.batch)]
        return [(epoch, int(_permutation(self.count, self.seed, epoch)[place])) for epoch, place in places]


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
