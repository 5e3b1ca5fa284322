"""What the best linear filter reaches, known in closed form for Gaussian noise, and who is told to be no better."""

import pytest
import torch

from unclip_hub.training.bands import filter_losses, outside
from unclip_hub.training.objective import Objective


B, C, H, W = 96, 2, 8, 12


def white(std=0.5):
    generator = torch.Generator().manual_seed(1)
    mean = torch.randn(C, H, W, generator=generator)
    return mean + std * torch.randn(B, C, H, W, generator=generator)


def expected(kind, *, variance):
    """Of independent Gaussian pixels, whose filter is the optimal predictor, by fifths of the timesteps."""
    abar = Objective().alphas_cumprod
    x0 = variance * (1 - abar) / (abar * variance + 1 - abar)
    per_error = {"sample": torch.ones_like(abar), "epsilon": (1 - abar) / abar, "v_prediction": 1 - abar}[kind]
    return {f"v{i}": part.mean().item() for i, part in enumerate((x0 / per_error).chunk(5))}


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_for_white_noise_it_is_the_optimal_predictor(kind):
    losses = filter_losses(Objective(prediction_type=kind, weighting="simple"), white())
    assert losses == pytest.approx(expected(kind, variance=0.25), rel=0.08)
    assert list(losses) == ["v0", "v1", "v2", "v3", "v4"]


def test_what_is_smooth_is_easier_to_make_out():
    rough = white()
    smooth = torch.nn.functional.interpolate(rough[..., ::4, ::4], scale_factor=4.0, mode="bicubic")
    smooth = smooth * rough.std(dim=0).mean() / smooth.std(dim=0).mean()
    easy, hard = (filter_losses(Objective(), pictures) for pictures in (smooth, rough))
    assert all(easy[name] < 0.6 * hard[name] for name in ("v0", "v1", "v2"))


def test_a_weighting_by_the_error_of_x0_makes_predictions_alike():
    losses = [filter_losses(Objective(prediction_type=kind), white()) for kind in ("sample", "epsilon")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_one_picture_has_no_spectrum():
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        filter_losses(Objective(), white()[:1])


def test_who_is_no_better_is_named():
    bands = {"v0": 0.2, "v1": 0.1, "v2": 0.3}
    assert outside({"v0": 0.1, "v1": 0.05, "loss": 9.0}, bands).startswith("at every noise level")
    line = outside({"v0": 0.1, "v1": 0.15, "v2": float("nan")}, bands)
    assert "v1 0.15 (filter 0.1)" in line and "v2 nan (filter 0.3)" in line and "v0" not in line
