"""What all endless batches share: worker processes, errors that cross from them in one line, states that must fit."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from unclip_hub.data.captioned import BrokenSample


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
