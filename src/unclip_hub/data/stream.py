"""Endless batches of shards that are read in a stream, by several readers in several processes."""

from collections.abc import Iterator
from itertools import count, islice
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from unclip_hub.data.captioned import BrokenSample, Sample
from unclip_hub.data.pictures import CaptionedBatch, Preparation
from unclip_hub.data.shards import Shards
from unclip_hub.data.workers import agree, loader, whole


T = TypeVar("T")
Place = tuple[int, int, int]  # in a reader's stream: epoch, group of shards in it, sample of the group
INTERLEAVED = 4  # shards that a reader has open at a time
BARREN = 20  # epochs without a sample after which a reader gives up
BLOCK = 1000  # samples, still encoded, that a reader holds and shuffles


class StreamedBatches:
    """Batches of shards that are read in a stream.

    Each process has ``max(1, workers)`` readers that take whole batches in turn. Every epoch the shards are shuffled
    and dealt out to the readers of all processes; where there are fewer shards than readers, several share one, sample
    by sample. A reader reads 4 shards side by side and shuffles what comes in blocks of ``block`` samples. Within one
    of its epochs no sample comes twice; its epochs follow one another without a gap, and a reader does not wait for
    others, so with shards of unequal size one may be an epoch ahead.
    """

    def __init__(
        self,
        shards: Shards,
        preparation: Preparation,
        *,
        batch: int,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        block: int = BLOCK,
    ) -> None:
        self._given = {
            "seed": preparation.seed,
            "shards": len(shards.addresses),
            "batch": batch,
            "block": block,
            "world": world,
            "workers": workers,
        }
        self.shards, self.preparation, self.rank = shards, preparation, rank
        self.batches = 0
        self.places: list[Place] = [(0, 0, 0)] * max(1, workers)
        self._running: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[CaptionedBatch]:
        return self

    def __next__(self) -> CaptionedBatch:
        if self._running is None:
            given = self._given
            stream = _Stream(
                self.shards,
                self.preparation,
                batch=given["batch"],
                block=given["block"],
                rank=self.rank,
                world=given["world"],
                places=tuple(self.places),
                turn=self.batches,
            )
            self._running = iter(loader(stream, given["workers"]))
        made, place = next(self._running)
        self.places[self.batches % len(self.places)] = place
        self.batches += 1
        return whole(made)

    def state_dict(self) -> dict[str, Any]:
        """Where this process's next batches start; another in every process."""
        return {**self._given, "rank": self.rank, "batches": self.batches, "places": [list(p) for p in self.places]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there.

        Raises:
            ValueError: it was saved with other shards, another seed, or other numbers of processes or workers.
        """
        agree(state, self.state_dict(), but="batches places")
        self.close()
        self.batches = state["batches"]
        self.places = [(epoch, group, sample) for epoch, group, sample in state["places"]]

    def close(self) -> None:
        """Stop the workers; the next batch starts them again."""
        self._running = None


class _Stream(IterableDataset):
    """What one reader reads: batches, each with the place after it."""

    def __init__(
        self,
        shards: Shards,
        preparation: Preparation,
        *,
        batch: int,
        block: int,
        rank: int,
        world: int,
        places: tuple[Place, ...],
        turn: int,
    ) -> None:
        self.shards, self.preparation, self.batch, self.block = shards, preparation, batch, block
        self.rank, self.world, self.places, self.turn = rank, world, places, turn

    def __iter__(self) -> Iterator[tuple[CaptionedBatch | BrokenSample, Place]]:
        info, readers = get_worker_info(), len(self.places)
        # torch asks worker 0 first, but the next batch may be another reader's turn
        reader = ((info.id if info else 0) + self.turn) % readers
        samples = self._samples(self.rank * readers + reader, self.world * readers, place=self.places[reader])
        while True:
            taken = list(islice(samples, self.batch))
            try:
                made = self.preparation.batch((epoch, sample) for epoch, sample, _ in taken)
            except BrokenSample as problem:
                made = problem
            yield made, taken[-1][2]

    def _samples(
        self, reader: int, readers: int, *, place: Place
    ) -> Iterator[tuple[int, Sample | BrokenSample, Place]]:
        """Samples with their epoch and the place after them, without end."""
        first, group, skip = place
        barren = 0
        for epoch in count(first):
            groups = self._groups(epoch, reader=reader, readers=readers)
            barren += 1
            for number in range(group, len(groups)):
                for index, sample in self._shuffled(groups[number], (epoch, number), reader=reader, skip=skip):
                    barren = 0
                    yield epoch, sample, (epoch, number, index + 1)
                skip = 0
            group = skip = 0
            if barren == BARREN:
                raise ValueError(f"a reader found no sample in its shards of {BARREN} epochs in a row")

    def _groups(self, epoch: int, *, reader: int, readers: int) -> list[list[tuple[int, int, int]]]:
        """What one of all processes' readers reads in an epoch: groups of (shard, part, parts)."""
        shards = len(self.shards.addresses)
        parts = -(-readers // shards)
        pieces = [(shard, part) for shard in range(shards) for part in range(parts)]
        order = np.random.default_rng([self.preparation.seed, epoch]).permutation(len(pieces))
        mine = [(*pieces[i], parts) for i in order[reader::readers]]
        return [mine[i : i + INTERLEAVED] for i in range(0, len(mine), INTERLEAVED)]

    def _shuffled(
        self, group: list[tuple[int, int, int]], where: tuple[int, int], *, reader: int, skip: int
    ) -> Iterator[tuple[int, Sample | BrokenSample]]:
        """A group's samples in shuffled blocks, numbered; the first ``skip`` are left out."""
        streams = [self.shards.read(shard, part=part, parts=parts) for shard, part, parts in group]
        interleaved = _in_turn(streams)
        passed = skip // self.block * self.block
        for _ in islice(interleaved, passed):
            pass
        for start in count(passed, self.block):
            block = list(islice(interleaved, self.block))
            rng = np.random.default_rng([self.preparation.seed, *where, reader, start])
            for index, i in enumerate(rng.permutation(len(block)), start=start):
                if index >= skip:
                    yield index, block[i]
            if len(block) < self.block:
                return


def _in_turn(streams: list[Iterator[T]]) -> Iterator[T]:
    """One of each, again and again, until all are empty."""
    while streams:
        for stream in list(streams):
            try:
                yield next(stream)
            except StopIteration:
                streams.remove(stream)
