"""Geometry of embeddings: on the sphere, row by row, precise where formulas usually are not."""

import math

import pytest
import torch
from torch.testing import assert_close

from unclip_hub.embeddings import PCA, normalize, slerp, spherical_mean, statistics, text_diff


def rows(n=5, d=7, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def angle(a, b):
    return (normalize(a) * normalize(b)).sum(-1).clamp(-1, 1).acos()


def test_slerp_divides_the_angle_and_the_norms():
    a, b = rows(), 3 * rows(seed=1)
    for theta in (0.25, 0.5, 0.9):
        between = slerp(a, b, theta=theta)
        assert_close(angle(a, between), theta * angle(a, b))
        assert_close(angle(between, b), (1 - theta) * angle(a, b))
        assert_close(between.norm(dim=-1), (1 - theta) * a.norm(dim=-1) + theta * b.norm(dim=-1))


def test_slerp_of_unit_vectors_at_a_right_angle():
    a, b = torch.eye(3)[:1], torch.eye(3)[1:2]
    assert_close(slerp(a, b, theta=0.5), torch.tensor([[0.5**0.5, 0.5**0.5, 0.0]]))
    assert_close(slerp(a, b, theta=1 / 3), torch.tensor([[math.cos(math.pi / 6), 0.5, 0.0]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_the_vectors_themselves(dtype):
    a, b = rows(dtype=dtype), rows(seed=1, dtype=dtype)
    assert_close(slerp(a, b, theta=0), a)
    assert_close(slerp(a, b, theta=1), b)
    assert slerp(a, b, theta=0.5).dtype == dtype


def test_every_row_has_its_own_theta():
    a, b, theta = rows(3), rows(3, seed=1), torch.tensor([0.1, 0.6, 1.0])
    expected = torch.cat([slerp(a[i : i + 1], b[i : i + 1], theta=theta[i].item()) for i in range(3)])
    assert_close(slerp(a, b, theta=theta), expected, atol=1e-6, rtol=1e-6)


def test_equal_and_nearly_equal_vectors():
    a = rows()
    assert_close(slerp(a, 2 * a, theta=0.5), 1.5 * a)
    near = a + 1e-9 * rows(seed=1)
    assert_close(slerp(a, near, theta=0.5), (a + near) / 2, atol=1e-12, rtol=0)


def test_opposite_vectors_have_a_way_between_them():
    a = torch.cat([rows(), torch.eye(7, dtype=torch.float64)[:2]])
    middle = slerp(a, -a, theta=0.5)
    assert_close(angle(a, middle), torch.full((7,), math.pi / 2, dtype=torch.float64), atol=1e-7, rtol=0)
    assert_close(middle.norm(dim=-1), a.norm(dim=-1))
    assert_close(slerp(a, -a, theta=1), -a, atol=1e-9, rtol=0)


def test_the_mean_of_two_is_slerp_and_of_equals_is_themselves():
    a, b = rows(2)
    assert_close(spherical_mean(torch.stack([a, b]), torch.tensor([3.0, 1.0])), slerp(a, b, theta=0.25))
    assert_close(spherical_mean(torch.stack([a, a, a]), torch.tensor([1.0, 0.0, 2.0])), a)


def test_the_mean_has_no_torque_and_does_not_depend_on_order():
    points, weights = 0.3 * rows(4) + 1, torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    mean = spherical_mean(points, weights)
    order = [2, 0, 3, 1]
    assert_close(spherical_mean(points[order], weights[order]), mean)
    unit = normalize(mean)
    across = normalize(points) - (normalize(points) @ unit)[:, None] * unit
    pull = (weights * angle(points, mean.expand(4, -1)))[:, None] * normalize(across)
    assert_close(pull.sum(0), torch.zeros(7, dtype=torch.float64), atol=1e-8, rtol=0)


@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, -0.1], [math.nan, 1.0]])
def test_weights_that_weigh_nothing(weights):
    with pytest.raises(ValueError, match="weights must be at least 0"):
        spherical_mean(rows(2), torch.tensor(weights))


def test_text_diff_is_a_unit_vector_from_source_to_target_whatever_their_norms():
    target, source = rows(), rows(seed=1)
    difference = text_diff(target, source)
    assert_close(difference.norm(dim=-1), torch.ones(5, dtype=torch.float64))
    assert_close(text_diff(4 * target, 0.1 * source), difference)
    assert_close(text_diff(source, target), -difference)
    assert ((normalize(target) - normalize(source)) * difference).sum(-1).min() > 0
    with pytest.raises(ValueError, match="same embedding"):
        text_diff(target, 2 * target)


def test_components_are_those_that_the_embeddings_were_made_of():
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([5.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    axes = torch.linalg.qr(rows(6, 4)).Q.T  # 4 directions in 6
    embeds = torch.randn(20_000, 4, generator=generator, dtype=torch.float64) * spread @ axes + 3
    pca = PCA.fit(embeds, components=4)
    assert_close(pca.eigenvalues.sqrt(), spread, atol=0.08, rtol=0)
    assert_close((pca.basis[:3] @ axes[:3].T).abs(), torch.eye(3, dtype=torch.float64), atol=0.05, rtol=0)
    assert_close(pca.basis @ pca.basis.T, torch.eye(4, dtype=torch.float64), atol=1e-10, rtol=0)
    coordinates = pca.transform(embeds)
    assert_close(coordinates.std(0)[:3], pca.eigenvalues.sqrt()[:3])
    assert_close(pca.inverse(coordinates), embeds, atol=1e-6, rtol=0)
    left = [(pca.inverse(coordinates[:, :k]) - embeds).pow(2).sum(1).mean().item() for k in (1, 2, 3)]
    assert_close(torch.tensor(left), torch.tensor([4.25, 0.25, 0.0]), atol=0.15, rtol=0)


def test_components_do_not_depend_on_precision_and_survive_saving():
    embeds = rows(30, dtype=torch.float32)
    pca = PCA.fit(embeds)
    assert pca.basis.dtype == torch.float64 and pca.basis.shape == (7, 7)
    again = PCA(**pca.state_dict())
    assert_close(again.inverse(again.transform(embeds)), embeds.double())
    assert_close(PCA.fit(embeds, components=2).basis, pca.basis[:2])


def test_components_that_cannot_be():
    with pytest.raises(ValueError, match="at least 2 embeddings, got 1"):
        PCA.fit(rows(1))
    with pytest.raises(ValueError, match="within 1 … 7, got 8"):
        PCA.fit(rows(), components=8)
    with pytest.raises(ValueError, match="at most 2 coordinates, got 3"):
        PCA.fit(rows(), components=2).inverse(rows(4, 3))


def test_statistics():
    embeds = rows(9, dtype=torch.float32)
    mean, std = statistics(embeds)
    assert_close(mean, embeds.mean(0))
    assert_close(std, embeds.std(0))
    with pytest.raises(ValueError, match="at least 2 embeddings, got 1"):
        statistics(embeds[:1])
