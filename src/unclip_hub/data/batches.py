"""Endless batches of captioned pictures, or of cached embeddings: functions of their number, or read in a stream."""

from collections.abc import Callable
from dataclasses import dataclass

from unclip_hub.data.captioned import Indexed
from unclip_hub.data.embeddings import EmbeddedBatch, Embeddings
from unclip_hub.data.order import Order
from unclip_hub.data.pictures import CaptionedBatch, Crop, Preparation
from unclip_hub.data.shards import Shards
from unclip_hub.data.stream import StreamedBatches


def batches_of(
    source: Indexed | Shards | Embeddings,
    *,
    batch: int,
    size: int,
    crop: Crop = "centre",
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
) -> Callable[[int], CaptionedBatch | EmbeddedBatch] | StreamedBatches:
    """Batches of pictures (b, 3, size, size) with captions, or of their embeddings.

    Where any sample can be had at once, batch n is a function of n alone: processes share the numbers, and a run
    continues at any of them. Shards are read in a stream, which is this process's own and has a place to save.

    Args:
        batch: samples in each.
        rank, world: of a stream: which process reads it, and how many read.
        workers: of a stream: processes that decode; 0 decodes in this one.
    """
    if isinstance(source, Shards):
        preparation = Preparation(size, crop, seed)
        return StreamedBatches(source, preparation, batch=batch, rank=rank, world=world, workers=workers)
    order = Order(len(source), batch=batch, seed=seed)
    if isinstance(source, Embeddings):
        return _EmbeddedAt(source, order)
    return _PicturesAt(source, order, Preparation(size, crop, seed))


@dataclass(frozen=True)
class _PicturesAt:
    """A class, not a closure: worker processes that are spawned get it pickled."""

    source: Indexed
    order: Order
    preparation: Preparation

    def __call__(self, number: int) -> CaptionedBatch:
        pairs = self.order.at(number)
        return self.preparation.batch((epoch, self.source[index]) for epoch, index in pairs)


@dataclass(frozen=True)
class _EmbeddedAt:
    source: Embeddings
    order: Order

    def __call__(self, number: int) -> EmbeddedBatch:
        return self.source.batch([index for _, index in self.order.at(number)])
