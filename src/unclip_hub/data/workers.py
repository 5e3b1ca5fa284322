"""What all endless batches share: worker processes, errors that cross from them in one line, states that must fit."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from unclip_hub.data.captioned import BrokenSample


def made_ahead(make: Callable[[int], Any], numbers: Sequence[int], *, workers: int) -> Iterator[tuple[int, Any]]:
    """``make(n)`` for each of ``numbers`` with its n, made by processes before it is asked for.

    Raises:
        BrokenSample: raised by ``make``, told as in this process.
    """
    for number, made in loader(_Numbered(make), workers, sampler=numbers):
        yield number, whole(made)


class _Numbered(Dataset):
    """As torch has it, a dataset; its items are batches under their numbers, or what is wrong with them."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> tuple[int, Any]:
        try:
            return number, self.make(number)
        except BrokenSample as problem:
            return number, problem


def loader(dataset: Dataset, workers: int, **options: Any) -> DataLoader:
    # with a generator of its own: torch would draw the workers' seeds from the global one, and change what follows
    own = torch.Generator().manual_seed(0)
    return DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=_as_it_is, generator=own, **options)


def _as_it_is(made: Any) -> Any:
    return made


def whole(made: Any) -> Any:
    """A batch; what a worker found wrong is raised here, so that it is told in one line."""
    if isinstance(made, BrokenSample):
        raise made
    return made


def agree(saved: dict[str, Any], own: dict[str, Any], *, but: str) -> None:
    other = [name for name in own if name not in but.split() and saved.get(name) != own[name]]
    if other:
        then, now = (", ".join(f"{name}={state.get(name)}" for name in other) for state in (saved, own))
        raise ValueError(
            f"the data is not that of the checkpoint, which cannot be continued exactly: {then} then, {now} now"
        )
