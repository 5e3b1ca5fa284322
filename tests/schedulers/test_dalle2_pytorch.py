"""DALLE2-pytorch's sampler against its formulas; against its recorded runs it is in tests/conversion."""

import pytest
import torch
from torch.testing import assert_close

from unclip_hub import UnCLIPScheduler, denoise
from unclip_hub.schedulers.dalle2_pytorch import SCHEDULES, DALLE2PytorchScheduler


def halved(x, t):
    return x / 2


def test_all_timesteps_are_the_ancestral_sampler():
    one, other = DALLE2PytorchScheduler(50), UnCLIPScheduler(50)
    results = []
    for scheduler in (one, other):
        scheduler.set_timesteps(50)
        x = torch.ones(2, 3, 4, 5)
        results.append(denoise(halved, x, scheduler, generator=torch.Generator().manual_seed(0)))
    assert_close(*results)


def test_its_grids():
    scheduler = DALLE2PytorchScheduler(100)
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [88, 77, 66, 55, 44, 33, 22, 11]
    assert scheduler._next_timestep(11) == 0
    scheduler = DALLE2PytorchScheduler(100, ddim_grid="from_minus")
    scheduler.set_timesteps(8)
    assert scheduler.timesteps.tolist() == [87, 74, 62, 49, 36, 24, 11]
    assert scheduler._next_timestep(11) == -1


@pytest.mark.parametrize("grid", ["from_zero", "from_minus"])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_exact_predictions_are_sampled_exactly(grid, kind):
    """Of a single picture the predictions are known; every step of DDIM then stays on its path."""
    truth = torch.linspace(-1, 1, 12).view(1, 3, 2, 2)
    scheduler = DALLE2PytorchScheduler(100, prediction_type=kind, ddim_grid=grid)
    scheduler.set_timesteps(8)
    abar = scheduler.alphas_cumprod

    def exact(x, t):
        eps = (x - abar[t].sqrt() * truth) / (1 - abar[t]).sqrt()
        return {"epsilon": eps, "sample": truth, "v_prediction": abar[t].sqrt() * eps - (1 - abar[t]).sqrt() * truth}[
            kind
        ]

    start = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = denoise(exact, start, scheduler)
    first = int(scheduler.timesteps[0])
    eps = (start - abar[first].sqrt() * truth) / (1 - abar[first]).sqrt()
    end = truth if grid == "from_minus" else abar[0].sqrt() * truth + (1 - abar[0]).sqrt() * eps
    assert_close(made, end.to(made.dtype), rtol=1e-5, atol=1e-5)


def test_fresh_noise_has_the_variance_of_the_formula():
    scheduler = DALLE2PytorchScheduler(100, prediction_type="sample", eta=1.0, clip_sample=False)
    scheduler.set_timesteps(8)
    t, s = 88, 77
    x = torch.zeros(1, 1, 200, 200)
    made = scheduler.step(x, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    a, b = scheduler.alphas_cumprod[[t, s]]
    expected = ((1 - a / b) * (1 - b) / (1 - a)).sqrt().item()
    assert abs(made.std().item() / expected - 1) < 0.02


def test_older_releases_take_the_alphas_of_one_timestep_before():
    results = {}
    for alphas in ("own", "previous"):
        scheduler = DALLE2PytorchScheduler(100, prediction_type="sample", ddim_alphas=alphas, clip_sample=False)
        scheduler.set_timesteps(8)
        results[alphas] = scheduler.step(torch.ones(1, 2), 88, torch.zeros(1, 2)).prev_sample
    a, s = scheduler.alphas_cumprod[[88, 76]]
    eps = -a.sqrt() / (1 - a).sqrt()
    assert_close(results["previous"], (s.sqrt() + (1 - s).sqrt() * eps).float().expand(1, 2), rtol=1e-5, atol=1e-6)
    assert (results["own"] - results["previous"]).abs().max() > 1e-3


def test_what_noise_is_predicted_where_x0_is_clamped():
    results = []
    for noise in ("implied", "predicted"):
        scheduler = DALLE2PytorchScheduler(100, ddim_noise=noise)
        scheduler.set_timesteps(8)
        results.append(scheduler.step(torch.ones(1, 2), 88, torch.full((1, 2), 3.0)))
    assert_close(results[0].pred_original_sample, torch.ones(1, 2))  # clamped
    a, s = scheduler.alphas_cumprod[[88, 77]]
    assert_close(results[1].prev_sample, (s.sqrt() + (1 - s).sqrt()).float().expand(1, 2))
    implied = (3 - a.sqrt()) / (1 - a).sqrt()
    assert_close(results[0].prev_sample, (s.sqrt() + (1 - s).sqrt() * implied).float().expand(1, 2))


def test_clamps():
    x0 = torch.tensor([[3.0, -4.0], [0.3, 0.4]])
    assert_close(DALLE2PytorchScheduler(clip_sample_range=3.5)._clamped(x0), torch.tensor([[3.0, -3.5], [0.3, 0.4]]))
    assert_close(DALLE2PytorchScheduler(clip_norm=2.0)._clamped(x0), torch.tensor([[1.2, -1.6], [1.2, 1.6]]))
    got = DALLE2PytorchScheduler(dynamic_threshold=1.0)._clamped(x0)
    assert_close(got, torch.tensor([[0.75, -1.0], [0.3, 0.4]]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_to_little_signal(schedule):
    table = DALLE2PytorchScheduler(200, beta_schedule=schedule).alphas_cumprod
    assert table.dtype == torch.float64 and len(table) == 200
    assert (table.diff() < 0).all() and table[0] > 0.99 and 0 < table[-1] < 0.01


def test_saves_and_loads(tmp_path):
    scheduler = DALLE2PytorchScheduler(40, beta_schedule="linear", eta=0.5, variance_type="learned_range")
    scheduler.save_pretrained(tmp_path)
    loaded = DALLE2PytorchScheduler.from_pretrained(tmp_path)
    assert_close(loaded.alphas_cumprod, scheduler.alphas_cumprod)
    assert (loaded.config["eta"], loaded.config["variance_type"]) == (0.5, "learned_range")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_schedule": "jsd"}, "beta_schedule must be one of .* got 'jsd'"),
        ({"ddim_grid": "leading"}, "ddim_grid must be one of"),
        ({"num_train_timesteps": 20, "beta_schedule": "linear"}, "needs more than 20 timesteps"),
    ],
)
def test_refuses_other_configurations(options, message):
    with pytest.raises(ValueError, match=message):
        DALLE2PytorchScheduler(**options)


def test_refuses_step_counts_outside_its_timesteps():
    with pytest.raises(ValueError, match="within 1 … 30, got 31"):
        DALLE2PytorchScheduler(30).set_timesteps(31)
    with pytest.raises(ValueError, match="within 2 … 30, got 1"):
        DALLE2PytorchScheduler(30, ddim_grid="from_minus").set_timesteps(1)
