import pytest
import torch

from unclip_hub.evaluation.prior_ladder import EXPECTED, RUNGS, ladder, verdicts
from unclip_hub.evaluation.priors import Swapped, Truth, report_card


@pytest.fixture(scope="module")
def world():
    """60 captions with 4 + 4 pictures each and two attributes, one of which every second caption lacks."""
    draw = torch.Generator().manual_seed(0)
    means = 5 * torch.randn(60, 1, 12, generator=draw)
    pictures, others = (means + torch.randn(60, 4, 12, generator=draw) for _ in range(2))
    swapped = {}
    for name, rows in {"colour": torch.arange(60), "relation": torch.arange(0, 60, 2)}.items():
        own = pictures[rows, 0]
        swapped[name] = Swapped(rows, own, own + 3 * torch.randn(own.shape, generator=draw))
    return Truth(pictures=pictures, groups=torch.arange(60), others=others, swapped=swapped)


@pytest.fixture(scope="module")
def cards(world):
    return {
        name: {amount: report_card(embeds, world, resamples=200) for amount, embeds in rungs.items()}
        for name, rungs in ladder(world, samples=4).items()
    }


def test_every_number_goes_as_it_must(world, cards):
    found = verdicts(report_card(world.others, world, resamples=200), cards)
    assert {name: set(one) for name, one in found.items()} == {name: set(one) for name, one in EXPECTED.items()}
    assert not [(name, metric) for name, one in found.items() for metric, right in one.items() if not right]


def test_what_goes_the_wrong_way_is_told(world, cards):
    backwards = {name: dict(reversed(rungs.items())) for name, rungs in cards.items()}
    found = verdicts(report_card(world.others, world, resamples=200), backwards)
    assert found["noise"]["cosine"] is False and found["shrunk"]["diversity"] is False
    assert found["shortened"]["cosine"] is True  # it stays, whatever the order


def test_the_rungs_are_what_they_say(world):
    made = ladder(world, samples=4)
    assert {name: tuple(rungs) for name, rungs in made.items()} == RUNGS
    real = world.others
    assert made["shrunk"][1.0].var(1).max() < 1e-10
    torch.testing.assert_close(made["shrunk"][0.5].mean(1), real.mean(1))
    torch.testing.assert_close(made["shortened"][0.25], 0.75 * real)
    noise = (made["noise"][2.0] - real) / world.pictures[:, 0].std(0)
    torch.testing.assert_close(noise.std(), torch.tensor(2.0), atol=0.1, rtol=0)
    for share in RUNGS["shuffled"]:
        moved = (made["shuffled"][share] != real).flatten(1).any(1)
        assert moved.sum() == round(60 * share)
        assert (made["swapped"][share] != real).flatten(1).any(1).sum() == moved.sum()
    whole = made["shuffled"][1.0].flatten(1)
    assert {tuple(row.tolist()) for row in whole} == {tuple(row.tolist()) for row in real.flatten(1)}


def test_a_swapped_sample_is_a_picture_of_the_swap(world):
    shift = (ladder(world, samples=4)["swapped"][1.0] - world.others)[:, 0]
    ways = [(one.rows.tolist(), one.other - one.own) for one in world.swapped.values()]
    taken = [
        [row for i, row in enumerate(rows) if torch.allclose(shift[row], way[i], atol=1e-4)] for rows, way in ways
    ]
    assert sorted(taken[0] + taken[1]) == list(range(60))
    assert len(taken[1]) > 5  # where there are two attributes, each is taken sometimes


def test_a_seed_is_a_ladder(world):
    first, again, other = (ladder(world, samples=4, seed=seed)["noise"][1.0] for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.allclose(first, other)


def test_one_picture_of_each_caption_leaves_some_out(world):
    single = Truth(pictures=world.pictures[:, :1], groups=world.groups)
    made = ladder(single, samples=3)
    assert set(made) == {"noise", "shuffled", "shortened"}
    assert made["noise"][1.0].shape == (60, 3, 12)
    assert (made["noise"][1.0][:, 0] != made["noise"][1.0][:, 1]).any()
    real = report_card(single.pictures.expand(-1, 3, -1), single, resamples=50)
    found = verdicts(
        real, {name: {a: report_card(x, single, resamples=50) for a, x in r.items()} for name, r in made.items()}
    )
    assert found["noise"]["cosine"] is True and found["noise"]["conditional MMD"] is None
