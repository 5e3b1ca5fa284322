"""Batches: every sample once an epoch whatever reads it, and a resumed run gets the very batches it would have got."""

import copy
import json
import pickle
from collections import Counter
from itertools import islice

import pytest
import torch
from data import made

from unclip_hub.data.batches import batches_of
from unclip_hub.data.captioned import BrokenSample
from unclip_hub.data.drawn import open_scenes
from unclip_hub.data.folder import open_folder
from unclip_hub.data.order import Order
from unclip_hub.data.pictures import Preparation
from unclip_hub.data.shards import Shards
from unclip_hub.data.stream import StreamedBatches
from unclip_hub.data.workers import made_ahead


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return open_folder(made.folder(tmp_path_factory.mktemp("folder"), 21))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """31 samples in 6 shards of unequal sizes."""
    return Shards(tuple(map(str, made.shards(tmp_path_factory.mktemp("shards"), [7, 3, 6, 2, 8, 5]))))


def streamed(shards, *, batch=2, **options):
    preparation = Preparation(16, "random", options.pop("seed", 0))
    return StreamedBatches(shards, preparation, batch=batch, **{"block": 4, **options})


def assert_same(one, other):
    assert (one.keys, one.captions) == (other.keys, other.captions)
    torch.testing.assert_close(one.pixels, other.pixels, rtol=0, atol=0)


def test_order_holds_every_sample_once_an_epoch():
    order = Order(10, batch=3, seed=5)
    taken = [pair for number in range(20) for pair in order.at(number)]
    assert Counter(taken) == Counter((epoch, index) for epoch in range(6) for index in range(10))
    first, second = ([index for epoch, index in taken if epoch == wanted] for wanted in (0, 1))
    assert first != second and first != sorted(first)


def test_two_processes_take_what_one_with_twice_the_batch_takes():
    one, half = Order(10, batch=6, seed=5), Order(10, batch=3, seed=5)
    for number in (0, 1, 2, 100):
        assert one.at(number) == half.at(2 * number) + half.at(2 * number + 1)
    assert Order(10, batch=6, seed=6).at(0) != one.at(0)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"batch": 0}])
def test_orders_that_cannot_be(wrong):
    with pytest.raises(ValueError, match="expected a count and a batch of at least 1"):
        Order(**{"count": 10, "batch": 3, **wrong})


def test_a_batch_holds_what_its_keys_say(folder):
    made_batch = batches_of(folder, size=16, batch=5)(0)
    assert made_batch.pixels.shape == (5, 3, 16, 16)
    for pixels, caption, key in zip(made_batch.pixels, made_batch.captions, made_batch.keys, strict=True):
        number = int(key)
        assert caption == f"picture {number}"
        expected = torch.tensor(made.picture(number).getpixel((0, 0))) / 127.5 - 1
        torch.testing.assert_close(pixels, expected[:, None, None].expand(3, 16, 16), atol=1e-5, rtol=0)


def test_a_batch_is_a_function_of_its_number(folder):
    batches, again = (batches_of(folder, size=16, batch=4, crop="random", seed=3) for _ in range(2))
    for number in (7, 0, 3):
        assert_same(batches(number), again(number))
    assert batches(0).keys != batches(1).keys
    assert batches_of(folder, size=16, batch=4, seed=4)(0).keys != batches(0).keys


def test_workers_change_nothing(folder):
    batches = pickle.loads(pickle.dumps(batches_of(folder, size=16, batch=4, crop="random", seed=3)))
    for number, ahead in made_ahead(batches, range(1, 16, 2), workers=2):
        assert_same(batches(number), ahead)


def test_batches_leave_the_global_generator_alone(folder, shards):
    state = torch.get_rng_state()
    list(made_ahead(batches_of(folder, size=16, batch=4), range(2), workers=1))
    next(streamed(shards))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_every_streamed_sample_comes_once_an_epoch(world, workers, shards):
    taken = Counter()
    for rank in range(world):
        reader_epochs = [Counter() for _ in range(max(1, workers))]
        batches = streamed(shards, batch=1, rank=rank, world=world, workers=workers)
        for step, batch in enumerate(batches):
            reader = step % len(reader_epochs)
            epoch = batches.places[reader][0]
            reader_epochs[reader][epoch] += 1
            if epoch == 0:
                taken.update(batch.keys)
            if all(set(epochs) >= {0, 1} for epochs in reader_epochs):
                break
    assert sorted(int(key.split("/")[1]) for key in taken) == list(range(31))
    assert set(taken.values()) == {1}


@pytest.mark.parametrize(("world", "workers"), [(3, 0), (2, 2)])
def test_readers_share_a_shard_where_there_are_too_few(world, workers, tmp_path):
    shards = Shards(tuple(map(str, made.shards(tmp_path, [13]))))
    taken = []
    for rank in range(world):
        batches = streamed(shards, batch=1, rank=rank, world=world, workers=workers)
        for step, batch in enumerate(batches):
            if batches.places[step % max(1, workers)][0] == 0:
                taken += batch.keys
            if all(epoch for epoch, _, _ in batches.places):
                break
    assert sorted(taken) == [f"part-00/{i:04d}" for i in range(13)]


def test_streams_are_shuffled_anew_by_epoch_and_seed(shards):
    def epochs(seed):
        keys = [key for batch in islice(streamed(shards, batch=31, seed=seed), 2) for key in batch.keys]
        return keys[:31], keys[31:]

    first, second = epochs(0)
    assert sorted(first) == sorted(second) and first != second
    assert epochs(0) == (first, second) != epochs(1)


@pytest.mark.parametrize(("rank", "workers", "steps"), [(0, 0, 1), (1, 0, 7), (0, 2, 3), (1, 2, 8)])
def test_streamed_batches_resume_exactly(rank, workers, steps, shards):
    def new():
        return streamed(shards, batch=3, seed=4, rank=rank, world=2, workers=workers)

    whole = list(islice(new(), steps + 9))
    begun = new()
    list(islice(begun, steps))
    state = json.loads(json.dumps(begun.state_dict()))
    resumed = new()
    resumed.load_state_dict(copy.deepcopy(state))
    for one, other in zip(whole[steps:], islice(resumed, 9), strict=True):
        assert_same(one, other)
    assert begun.state_dict() == state, "a state is not changed by what is read later"


def test_states_of_other_data_are_refused(shards):
    state = streamed(shards, workers=2).state_dict()
    with pytest.raises(ValueError, match="seed=0 then, seed=1 now"):
        streamed(shards, workers=2, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match="workers=2 then, workers=1 now"):
        streamed(shards, workers=1).load_state_dict(state)
    with pytest.raises(ValueError, match="world=1, rank=0 then, world=2, rank=1 now"):
        streamed(shards, workers=2, rank=1, world=2).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_sample_is_named(workers, tmp_path):
    made.folder(tmp_path, 4)
    (tmp_path / "0002.png").write_bytes(made.truncated())
    batches = batches_of(open_folder(tmp_path), size=16, batch=1)
    seen, broken = [], []
    for number in range(4):  # each asked for alone: what raised an error yields no more
        try:
            seen += next(made_ahead(batches, [number], workers=workers))[1].keys
        except BrokenSample as problem:
            broken.append(str(problem))
    assert sorted(seen) == ["0000", "0001", "0003"]
    (message,) = broken
    assert message.startswith("0002: the picture is broken") and "\n" not in message


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_shard_is_an_error_not_a_hang(workers, tmp_path):
    (path,) = made.shards(tmp_path, [6])
    path.write_bytes(path.read_bytes()[:9000])
    batches = streamed(Shards((str(path),)), batch=2, workers=workers)
    with pytest.raises(BrokenSample, match=r"part-00: .*part-00\.tar breaks off at sample"):
        for _ in range(9):
            next(batches)
    batches.close()


def test_shards_without_samples_are_an_error_not_a_hang(tmp_path):
    path = made.shard(tmp_path / "x.tar", [("readme", b"nothing here")])
    with pytest.raises(ValueError, match="no sample"):
        next(streamed(Shards((str(path),))))


def test_scenes_are_the_same_whatever_their_number():
    few, many = open_scenes(3), open_scenes(50)
    assert few[2].captions == many[2].captions and few.scene(2) == many.scene(2)
    assert few[2].image.tobytes() == many[2].image.tobytes() != many[3].image.tobytes()
    with pytest.raises(ValueError, match="size among"):
        open_scenes(3, size=100)
    with pytest.raises(IndexError):
        few[3]
