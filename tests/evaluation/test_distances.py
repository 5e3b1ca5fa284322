import numpy as np
import pytest
import torch

from unclip_hub.evaluation.distances import frechet_distance, kernel_distance


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(0)
    return lambda n, d=6, shift=0.0, scale=1.0: shift + scale * torch.randn(n, d, generator=generator)


def test_frechet_of_normals_is_its_formula(normal):
    """Of independent components: the squared difference of the means plus that of the standard deviations."""
    found = frechet_distance(normal(200_000), normal(200_000, shift=0.5, scale=2.0))
    assert found == pytest.approx(6 * (0.5**2 + 1.0**2), rel=0.02)


def test_frechet_with_correlated_components():
    generator = np.random.default_rng(1)
    first, second = (generator.normal(size=(500, 3)) @ generator.normal(size=(3, 3)) for _ in range(2))
    a, b = np.cov(first.T), np.cov(second.T)
    root = np.sqrt(np.linalg.eigvals(a @ b).real).sum()
    wanted = ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    found = frechet_distance(torch.from_numpy(first), torch.from_numpy(second))
    assert found == pytest.approx(wanted, rel=1e-6)


def test_both_are_about_nothing_for_one_distribution_and_grow_with_distance(normal):
    real = normal(1000)
    value, error = kernel_distance(real, normal(1000))
    assert abs(value) < 4 * error and error > 0
    near, far = (kernel_distance(real, normal(1000, shift=shift))[0] for shift in (0.3, 0.6))
    assert 4 * error < near < far
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert 0 < frechet_distance(real, normal(1000)) < frechet_distance(real, normal(1000, shift=0.3))


def test_sets_as_small_as_a_subset_still_have_an_error(normal):
    value, error = kernel_distance(normal(200), normal(200), size=200)
    assert error > 0 and abs(value) < 5 * error


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_sets_that_have_no_distance_are_refused(distance, normal):
    with pytest.raises((ValueError, TypeError)):  # the second where shapes are checked in the signature
        distance(normal(5), normal(5, d=7))
    with pytest.raises(ValueError, match=r"at least 2 features .* got \(1, 6\)"):
        distance(normal(1), normal(5))
