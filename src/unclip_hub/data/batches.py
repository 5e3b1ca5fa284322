"""Endless batches of captioned pictures, or of cached embeddings, that continue exactly where a saved run stopped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Generic, TypeVar

from torch.utils.data import Dataset

from unclip_hub.data.captioned import BrokenSample, Indexed
from unclip_hub.data.embeddings import EmbeddedBatch, Embeddings
from unclip_hub.data.order import Order
from unclip_hub.data.pictures import CaptionedBatch, Crop, Preparation
from unclip_hub.data.shards import Shards
from unclip_hub.data.stream import StreamedBatches
from unclip_hub.data.workers import agree, loader, whole


T = TypeVar("T")


class IndexedBatches(Generic[T]):
    """Batches of a dataset in which any sample can be had at once.

    A batch depends on the order and the position alone, whatever the number of workers; the position counts the
    samples of all processes together, so a run may even continue with another number of them.

    Args:
        load: makes a batch of (epoch, index) pairs; it runs in the workers.
    """

    def __init__(self, load: Callable[[list[tuple[int, int]]], T], order: Order, *, workers: int = 0) -> None:
        self.load, self.order, self.workers = load, order, workers
        self.position = 0
        self._running: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._running is None:
            # without a reference to self: in a cycle, torch takes 5 seconds to stop each worker
            batches = map(self.order.at, count(self.position, self.order.stride))
            self._running = iter(loader(_Loads(self.load), self.workers, sampler=batches))
        made = next(self._running)
        self.position += self.order.stride
        return whole(made)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch starts; the same in every process."""
        return {"samples": self.position, "seed": self.order.seed, "count": self.order.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there.

        Raises:
            ValueError: it was saved with another dataset or seed.
        """
        agree(state, self.state_dict(), but="samples")
        self.close()
        self.position = state["samples"]

    def close(self) -> None:
        """Stop the workers; the next batch starts them again."""
        self._running = None


def batches_of(
    source: Indexed | Shards,
    *,
    size: int,
    batch: int,
    crop: Crop = "centre",
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> IndexedBatches[CaptionedBatch] | StreamedBatches:
    """Endless batches of pictures (b, 3, size, size) with captions, for process ``rank`` of ``world``.

    Save ``state_dict()`` of every process with a checkpoint; after ``load_state_dict`` the next batch is the one that
    would have come.

    Args:
        batch: pictures per process.
        workers: processes that decode; 0 decodes in this one.
    """
    preparation = Preparation(size, crop, seed)
    if isinstance(source, Shards):
        return StreamedBatches(source, preparation, batch=batch, rank=rank, world=world, workers=workers)
    order = Order(len(source), batch=batch, seed=seed, rank=rank, world=world)
    return IndexedBatches(_Pictures(source, preparation), order, workers=workers)


def embedding_batches(
    embeddings: Embeddings, *, batch: int, seed: int = 0, rank: int = 0, world: int = 1
) -> IndexedBatches[EmbeddedBatch]:
    """Endless batches of cached embeddings, for process ``rank`` of ``world``; see ``batches_of``."""

    def load(pairs: list[tuple[int, int]]) -> EmbeddedBatch:
        return embeddings.batch([index for _, index in pairs])

    return IndexedBatches(load, Order(len(embeddings), batch=batch, seed=seed, rank=rank, world=world))


@dataclass(frozen=True)
class _Pictures:
    source: Indexed
    preparation: Preparation

    def __call__(self, pairs: list[tuple[int, int]]) -> CaptionedBatch:
        return self.preparation.batch((epoch, self.source[index]) for epoch, index in pairs)


class _Loads(Dataset):
    """As torch has it, a dataset; its items are batches, or what is wrong with them."""

    def __init__(self, load: Callable[[list[tuple[int, int]]], Any]) -> None:
        self.load = load

    def __getitem__(self, pairs: list[tuple[int, int]]) -> Any:
        try:
            return self.load(pairs)
        except BrokenSample as problem:
            return problem
