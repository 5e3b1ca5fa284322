"""What an error counts at each noise level, whatever the network predicts."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from unclip_hub.diffusion import q_sample
from unclip_hub.training.objective import WEIGHTINGS, Noised, Objective


KINDS = ("sample", "epsilon", "v_prediction")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def outputs(noised, x0, abar, wrong):
    """What a network says of each kind that takes ``wrong`` for x_0."""
    a, s = abar.sqrt(), (1 - abar).sqrt()
    eps = (noised.x_t - a * wrong) / s
    return {"sample": wrong, "epsilon": eps, "v_prediction": a * eps - s * wrong}


@pytest.mark.parametrize(
    ("weighting", "schedule"), [*product(["velocity", "min_snr"], ["cosine", "linear"]), ("flow", "flow")]
)
def test_the_same_prediction_costs_the_same_in_every_form(weighting, schedule):
    x0 = torch.randn(6, 3, 4, 5, generator=seeded())
    losses = {}
    for kind in KINDS:
        objective = Objective(kind, weighting, schedule)
        t = torch.tensor([5, 50, 200, 400, 500, 600])  # later, x_0 is lost in rounding if it is not predicted itself
        noise = torch.randn(x0.shape, generator=seeded(4))
        noised = Noised(q_sample(x0, noise, abar=objective.alphas_cumprod[t]), t, noise)
        abar = objective.alphas_cumprod[t].float().view(-1, 1, 1, 1)
        wrong = x0 + 0.1 * torch.randn(x0.shape, generator=seeded(2))
        losses[kind], error = objective.losses(outputs(noised, x0, abar, wrong)[kind], x0, noised)
        assert_close(error, (wrong - x0).square().mean(dim=(1, 2, 3)), rtol=1e-3, atol=1e-6)
    for kind in KINDS[1:]:
        assert_close(losses[kind], losses["sample"], rtol=1e-3, atol=1e-6)


def test_weightings_are_those_of_the_formulas():
    x0, output = torch.randn(7, 5, generator=seeded()), torch.randn(7, 5, generator=seeded(1))
    for weighting in WEIGHTINGS:
        objective = Objective("sample", weighting, gamma=4.0, min_noise=0.3)
        noised = objective.noised(x0, seeded(3))
        abar = objective.alphas_cumprod[noised.t].float()
        snr = abar / (1 - abar)
        weight = {
            "simple": torch.ones(7),
            "velocity": 1 / (1 - abar).clamp(min=0.09),
            "min_snr": torch.minimum(snr, torch.tensor(4.0)),
            "flow": (1 + snr.sqrt()) ** 2 * (1 / (1 + snr.sqrt()) / 0.3).clamp(max=1) ** 2,
        }[weighting]
        losses, _ = objective.losses(output, x0, noised)
        assert_close(losses, weight * (output - x0).square().mean(1))


def test_noise_is_that_of_the_schedule():
    objective = Objective(schedule="linear")
    x0 = torch.full((4000, 1), 2.0)
    noised = objective.noised(x0, seeded())
    assert noised.t.min() < 20 and noised.t.max() > 979
    abar = objective.alphas_cumprod[noised.t].float()[:, None]
    assert_close(noised.x_t, abar.sqrt() * x0 + (1 - abar).sqrt() * noised.noise)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prediction_type": "flow"}, "prediction_type must be one of epsilon, sample, v_prediction, got 'flow'"),
        ({"weighting": "p2"}, "weighting must be one of simple, velocity, min_snr, flow, got 'p2'"),
        ({"schedule": "sigmoid"}, "schedule must be one of cosine, linear, flow, got 'sigmoid'"),
        ({"gamma": 0.0}, "gamma must be above 0"),
        ({"bound_weight": -1.0}, "bound_weight must be at least 0"),
    ],
)
def test_objectives_that_do_not_exist_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Objective(**wrong)


def test_a_share_of_the_rows_is_drawn_from_the_noisiest_fifth():
    rows = torch.zeros(4000, 1)
    uniform = Objective().noised(rows, torch.Generator().manual_seed(0)).t
    skewed = Objective(noisiest=0.5).noised(rows, torch.Generator().manual_seed(0)).t
    assert (uniform >= 800).float().mean() == pytest.approx(0.2, abs=0.03)
    assert (skewed >= 800).float().mean() == pytest.approx(0.6, abs=0.03)
    assert skewed.max() <= 999 and (skewed < 200).float().mean() == pytest.approx(0.1, abs=0.02)
    with pytest.raises(ValueError, match=r"noisiest must be a share from 0 to 1, got 1\.5"):
        Objective(noisiest=1.5)
