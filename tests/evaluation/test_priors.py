"""Each number against a case worked out by hand."""

import math

import pytest
import torch

from unclip_hub.evaluation import priors
from unclip_hub.evaluation.priors import BEST, Swapped, Truth, report_card


X, Y, Z = torch.eye(3)


def close(found, wanted, **tolerance):
    torch.testing.assert_close(found, torch.as_tensor(wanted, dtype=torch.float64), **tolerance)


def truth(**changes):
    """Three captions, two pictures each; the third means what the second means."""
    pictures = torch.stack([torch.stack([X, X]), torch.stack([Y, 3 * Y]), torch.stack([Y, Y])])
    return Truth(**{"pictures": pictures, "groups": torch.tensor([0, 1, 1])} | changes)


def test_cosine():
    samples = torch.stack([torch.stack([5 * X, X + Y]), torch.stack([-Y, Z])])
    pictures = torch.stack([torch.stack([X, 2 * X]), torch.stack([Y, Y])])
    close(priors.cosine(samples, pictures), [(1 + math.sqrt(0.5)) / 2, -0.5])


def test_retrieval_counts_what_means_the_same():
    samples = torch.stack(
        [torch.stack([X, X + 0.9 * Y, Y]), torch.stack([Y, X, 2 * Y]), torch.stack([Y, Y, Z + 2 * X])]
    )
    pictures, groups = torch.stack([X, Y, Y]), torch.tensor([0, 1, 1])
    close(priors.retrieval(samples, pictures, groups=groups), [2 / 3, 2 / 3, 2 / 3])
    apart = torch.stack([X, Y, Y + 0.01 * Z])
    close(priors.retrieval(samples, apart, groups=torch.arange(3)), [2 / 3, 2 / 3, 0])


def test_bandwidths_are_parts_of_the_median_distance():
    pictures = torch.tensor([[0.0, 0], [0, 0], [8, 0], [8, 6]])  # 0, 8, 10, 8, 10, 6: equal ones aside 6 8 8 10 10
    close(priors.bandwidths(pictures), [1.0, 2.0, 4.0, 8.0])
    with pytest.raises(ValueError, match="one and the same"):
        priors.bandwidths(torch.ones(4, 2))


def test_conditional_mmd():
    sigmas = torch.tensor([1.0, 2.0], dtype=torch.float64)

    def kernel(squared):
        return (math.exp(-squared / 2) + math.exp(-squared / 8)) / 2

    samples = torch.tensor([[[0.0, 0], [3, 0], [0, 4]], [[7, 7], [7, 7], [7, 7]]])
    pictures = torch.tensor([[[0.0, 0], [1, 0]], [[7, 7], [7, 7]]])
    within, among = (kernel(9) + kernel(16) + kernel(25)) / 3, kernel(1)
    across = (kernel(0) + kernel(1) + kernel(9) + kernel(4) + kernel(16) + kernel(17)) / 6
    close(priors.conditional_mmd(samples, pictures, sigmas=sigmas), [within + among - 2 * across, 0.0])


def test_mmd_is_unbiased_and_sees_a_difference():
    draw = torch.Generator().manual_seed(0)
    same, also = torch.randn(2, 2000, 3, 5, generator=draw)
    sigmas = torch.tensor([1.0], dtype=torch.float64)
    found = priors.conditional_mmd(same, also, sigmas=sigmas)
    assert found.mean().abs() < 3 * found.std() / 2000**0.5
    weights = torch.ones(1, 500, dtype=torch.float64)
    terms = [priors.marginal_terms(same[:500, 0], other[:500, 0], sigmas=sigmas) for other in (also, also + 0.5)]
    assert priors.marginal_mmd(terms[0], weights).abs() < 0.004
    assert priors.marginal_mmd(terms[1], weights) > 0.02


def test_marginal_mmd():
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [2.0]])
    terms = priors.marginal_terms(x, y, sigmas=torch.tensor([1.0], dtype=torch.float64))
    wanted = math.exp(-1 / 2) + math.exp(-9 / 2) - math.exp(-4 / 2) - math.exp(-16 / 2)
    weights = torch.tensor([[1.0, 1.0], [3.0, 2.0]], dtype=torch.float64)
    close(priors.marginal_mmd(terms, weights), [wanted, wanted * 12 / (25 - 13)])


def test_spread():
    close(priors.spread(torch.tensor([[[0.0, 0], [2, 4]], [[1, 1], [1, 1]]])), [10.0, 0.0])


def test_binding():
    samples = torch.stack([torch.stack([X, X + Y, Y, 9 * X + Y]), torch.stack([Z, Z, -Y, Y])])
    own, other = torch.stack([X, Y]), torch.stack([2 * Y, X])
    close(priors.binding(samples, own=own, other=other), [(1 + 0.5 + 0 + 1) / 4, (0.5 + 0.5 + 0 + 1) / 4])


def test_a_card_holds_every_number():
    swapped = {"colour": Swapped(torch.tensor([0, 2]), torch.stack([X, Y]), torch.stack([Z, Z]))}
    samples = torch.stack([torch.stack([X, Z]), torch.stack([Y, Y]), torch.stack([2 * Z, 2 * Y])])
    card = report_card(samples, truth(swapped=swapped))
    assert list(card) == [*BEST, "binding: colour"]
    wanted = {
        "cosine": (0.5 + 1 + 0.5) / 3,
        "retrieval": 5 / 6,  # nothing is like Z: the first picture is taken
        "spread": (1 + 0 + 4) / (2 / 3 + 1 / 3 + 1 / 3),
        "diversity": (1 + 0 + 4) / 2,
        "norm": (1 + 1 + 2) / (1 + 2 + 1),
        "binding": 0.5,
        "binding: colour": 0.5,
    }
    values = {name: one.value for name, one in card.items() if one is not None}
    for name, value in wanted.items():
        assert values[name] == pytest.approx(value), name
    assert card["cosine"].n == 3 and card["binding"].n == 2
    assert all(one.low - 1e-9 <= one.value <= one.high + 1e-9 for one in card.values())


def test_what_cannot_be_measured_is_none_and_not_0():
    one_picture = report_card(torch.randn(3, 2, 3), truth(pictures=torch.eye(3)[:, None]))
    assert {name for name, one in one_picture.items() if one is None} == {"conditional MMD", "diversity", "binding"}
    one_sample = report_card(torch.randn(3, 1, 3), truth())
    assert {name for name, one in one_sample.items() if one is None} == {
        "conditional MMD",
        "spread",
        "diversity",
        "binding",
    }
    alike = report_card(torch.randn(3, 2, 3), truth(pictures=torch.eye(3)[:, None].expand(-1, 2, -1)))
    assert alike["diversity"] is None  # pictures without variance are no measure
    assert alike["conditional MMD"] is not None


def test_a_mean_seeking_prior_is_caught_by_diversity_alone():
    draw = torch.Generator().manual_seed(1)
    means = 4 * torch.randn(50, 1, 8, generator=draw)
    pictures, others, samples = (means + torch.randn(50, 6, 8, generator=draw) for _ in range(3))
    world = Truth(pictures=pictures, groups=torch.arange(50), others=others)
    honest, seeking = report_card(samples, world), report_card(means.expand(-1, 6, -1), world)
    assert seeking["cosine"].low > honest["cosine"].high
    assert seeking["retrieval"].value >= honest["retrieval"].value
    assert seeking["diversity"].high == 0 and honest["diversity"].low < 1 < honest["diversity"].high
    assert seeking["conditional MMD"].low > honest["conditional MMD"].high


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="at least 2 captions, got 1"):
        Truth(pictures=torch.eye(3)[:1, None], groups=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"\(3, k, 3\).*got \(2, 2, 3\)"):
        report_card(torch.zeros(2, 2, 3), truth())
