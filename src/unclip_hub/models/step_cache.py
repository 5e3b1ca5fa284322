"""Keys and values that attention layers compute in the first step of a call and read in all the others."""

from jaxtyping import Float, Int
from torch import Tensor


class KeyValues:
    """One attention layer's keys and values of each caption's tokens; ``pair`` is None until the layer sets it.

    Attributes:
        rows: which of the captions each sample has.
    """

    rows: Int[Tensor, " b"]

    def __init__(self) -> None:
        self.pair: tuple[Float[Tensor, "u l ..."], Float[Tensor, "u l ..."]] | None = None

    def of_each_sample(self) -> tuple[Float[Tensor, "b l ..."], Float[Tensor, "b l ..."]]:
        """The keys and the values of each sample's caption."""
        assert self.pair is not None
        key, value = self.pair
        return key[self.rows], value[self.rows]


class StepCache:
    """What one network's attention layers keep during one call: the same captions, the same weights, no gradients.

    Samples may share a caption, which is then computed once.

    Attributes:
        rows: which of the captions each sample has; set before every step.
    """

    rows: Int[Tensor, " b"]

    def __init__(self) -> None:
        self._layers: list[KeyValues] = []

    def layers(self, count: int) -> list[KeyValues]:
        """What each of the network's ``count`` attention layers keeps, at this step's rows."""
        if not self._layers:
            self._layers = [KeyValues() for _ in range(count)]
        for kept in self._layers:
            kept.rows = self.rows
        return self._layers
