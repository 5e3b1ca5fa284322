"""What a conversion makes, and an account of where every key of the original went."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

from torch import Tensor


SHOWN = 5  # of more keys than these only the first are named


class Converted(dict[str, dict[str, Tensor]]):
    """Component → key → tensor, filled by moving tensors out of ``state``; nothing is left behind unsaid.

    Args:
        state: key → tensor of the original; not changed.
        what: the original in words, for errors: ``"Karlo's prior"``.
    """

    def __init__(self, state: Mapping[str, Tensor], *, what: str) -> None:
        super().__init__()
        self.what = what
        self.fates: dict[str, str] = {}  # key of the original → what became of it
        self.computed: dict[str, str] = {}  # "component/key" → how, where no key of the original became it
        self._left = dict(state)

    def __contains__(self, key: object) -> bool:
        raise TypeError("ask `has` for a key of the original, or `dict.get` for a component")

    def has(self, key: str) -> bool:
        """Whether the original has this key, and it was not moved yet."""
        return key in self._left

    def left(self, pattern: str = "") -> Iterator[str]:
        """Keys not moved yet that match a regular expression from their beginning."""
        return iter([key for key in self._left if re.match(pattern, key)])

    def take(self, source: str) -> Tensor:
        """A tensor of the original, whose fate the caller writes into ``fates``.

        Raises:
            ValueError: the original has no such key.
        """
        if source not in self._left:
            raise ValueError(f"this is not {self.what}: it has no {source}")
        return self._left.pop(source)

    def move(
        self, source: str, component: str, target: str, *, change: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """One tensor under its new name; ``change``, a named function, may reshape it."""
        tensor = self.take(source)
        self._put(component, target, tensor if change is None else change(tensor))
        how = "" if change is None else f" ({change.__name__.replace('_', ' ')})"
        self.fates[source] = f"{component}/{target}{how}"

    def split(
        self, source: str, component: str, targets: Sequence[str], *, change: Callable[[Tensor], Sequence[Tensor]]
    ) -> None:
        """One tensor as several."""
        for target, part in zip(targets, change(self.take(source)), strict=True):
            self._put(component, target, part)
        self.fates[source] = "split into " + ", ".join(f"{component}/{target}" for target in targets)

    def drop(self, source: str, reason: str) -> None:
        """Leave a tensor out, for a reason that the report gives."""
        self.take(source)
        self.fates[source] = f"dropped: {reason}"

    def compute(self, component: str, target: str, tensor: Tensor, *, how: str) -> None:
        """A tensor that no key of the original becomes."""
        self._put(component, target, tensor)
        self.computed[f"{component}/{target}"] = how

    def finish(self) -> Self:
        """Itself, once every key has its fate.

        Raises:
            ValueError: keys are left that this conversion does not know.
        """
        if self._left:
            more = f" and {len(self._left) - SHOWN} more" if len(self._left) > SHOWN else ""
            keys = ", ".join(list(self._left)[:SHOWN])
            raise ValueError(f"this is not {self.what}: it has keys that are not known, {keys}{more}")
        return self

    def _put(self, component: str, target: str, tensor: Tensor) -> None:
        tensors = self.setdefault(component, {})
        assert target not in tensors, f"{component}/{target} is made twice"
        tensors[target] = tensor
