"""Which samples a batch holds: a function of the seed, the place in the run, and the process."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


class Order:
    """Every sample once an epoch, in an order of its own; batches of all processes side by side.

    Epochs follow one another without a gap: where an epoch ends within a batch, the next one fills it, so all batches
    are full, nothing is dropped, and no process waits for another. The batches that ``world`` processes take in one
    step are together the batch that one process would take with ``batch * world``.

    Raises:
        ValueError: the dataset is empty, or the numbers do not fit one another.
    """

    def __init__(self, count: int, *, batch: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        if count < 1 or batch < 1 or not 0 <= rank < world:
            raise ValueError(
                "expected a count and a batch of at least 1 and 0 <= rank < world, got "
                f"count={count}, batch={batch}, rank={rank}, world={world}"
            )
        self.count, self.batch, self.seed, self.rank, self.world = count, batch, seed, rank, world

    @property
    def stride(self) -> int:
        """How many samples all processes take together in one step."""
        return self.batch * self.world

    def at(self, position: int) -> list[tuple[int, int]]:
        """The (epoch, index) pairs of this process's batch, ``position`` samples into the run of all processes."""
        first = position + self.rank * self.batch
        places = [divmod(place, self.count) for place in range(first, first + self.batch)]
        return [(epoch, int(_permutation(self.count, self.seed, epoch)[place])) for epoch, place in places]


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)
