"""The dVAE's loss is the evidence bound of the paper, its schedules survive a resumed run, and it learns."""

import json
import math
from dataclasses import replace

import pytest
import torch
from models.configs import DVAE_TINY
from torch.distributions import Laplace
from torch.testing import assert_close

from unclip_hub.models.dvae import DVAE, map_pixels
from unclip_hub.training.dvae import SMALLEST_SCALE, DvaeBatch, DvaeTask
from unclip_hub.training.loop import TrainConfig, train
from unclip_hub.training.proof import prove


B, H, W, V = 2, 16, 24, DVAE_TINY["vocab_size"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def task(*, micro_batches=10, **options):
    torch.manual_seed(0)
    return DvaeTask(DVAE(**DVAE_TINY), micro_batches=micro_batches, **options)


def batch(b=B):
    return DvaeBatch(torch.rand(b, 3, H, W, generator=seeded(1)) * 2 - 1)


def deaf(made):
    """A dVAE of which both halves say the same whatever they see: their last biases."""
    dvae = made.modules["dvae"]
    for half in (dvae.encoder, dvae.decoder):
        half.conv_out.weight.data.zero_()
        half.conv_out.bias.data.copy_(torch.randn(half.conv_out.bias.shape, generator=seeded(2)))
    return dvae


def test_pixels_are_logit_laplace():
    made = task(kl_weight=0.0)
    dvae = deaf(made)
    value, stats = made.loss(batch(), seeded())
    mean, log_scale = dvae.decoder.conv_out.bias.detach().view(2, 3, 1, 1)
    x = map_pixels(batch().pixels)
    logits = (x / (1 - x)).log()
    expected = -Laplace(mean, log_scale.exp() + SMALLEST_SCALE).log_prob(logits).mean()
    assert_close(value, expected - math.log(2 * SMALLEST_SCALE), rtol=1e-5, atol=1e-5)
    assert stats["reconstruction"] == pytest.approx(value.item())


def test_squared_error_is_that_of_the_picture_before_it_is_clamped():
    made = task(kl_weight=0.0, likelihood="l2")
    dvae = deaf(made)
    value, _ = made.loss(batch(), seeded())
    picture = (dvae.decoder.conv_out.bias.detach()[:3].view(3, 1, 1).sigmoid() - 0.1) / 0.8 * 2 - 1
    assert_close(value, (picture - batch().pixels).square().mean(), rtol=1e-5, atol=1e-5)
    value.backward()
    assert all(p.grad is not None for p in made.modules.parameters())


def test_the_divergence_is_that_from_the_uniform_prior_and_counts_beta_over_192():
    values = {}
    for weight in (0.0, 6.6):
        made = task(kl_weight=weight, kl_ramp=0.0)
        dvae = deaf(made)
        value, stats = made.loss(batch(), seeded())
        values[weight] = value.item()
    q = dvae.encoder.conv_out.bias.detach().softmax(0)
    kl = (q * (q * V).log()).sum().item()
    assert stats["kl"] == pytest.approx(kl, rel=1e-4)
    assert values[6.6] - values[0.0] == pytest.approx(6.6 / 192 * kl, rel=1e-3)


def test_codes_are_relaxed_by_noise_of_the_given_generator():
    made = task(kl_weight=0.0)
    one, same, other = (made.loss(batch(), seeded(seed))[0].item() for seed in (3, 3, 4))
    assert one != other
    assert one == pytest.approx(same, rel=1e-2) and one != same  # at the next step it is a little cooler


def test_cold_codes_are_one_hot():
    made = task(temperature=1e-3, temperature_ramp=0.0)
    seen = []
    dvae = made.modules["dvae"]
    dvae.decoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    made.loss(batch(), seeded())
    assert seen[0].shape == (B, V, H // 8, W // 8)
    assert (seen[0].amax(dim=1) > 0.99).float().mean() > 0.8
    assert_close(seen[0].sum(dim=1), torch.ones(B, H // 8, W // 8))


def test_what_codes_are_worth_is_counted():
    made = task()
    deaf(made)
    stats = made.loss(batch(), seeded())[1]
    assert (stats["codes"], stats["perplexity"]) == (1.0, pytest.approx(1.0))
    varied = task()
    encoder = varied.modules["dvae"].encoder
    with torch.no_grad():
        encoder.conv_out.weight *= 100
        encoder.conv_out.bias -= varied.modules["dvae"].encode_logits(batch().pixels).mean(dim=(0, 2, 3))
    codes = varied.modules["dvae"].encode(batch().pixels)
    stats = varied.loss(batch(), seeded())[1]
    assert stats["codes"] == len(codes.unique()) > 1
    assert 1 < stats["perplexity"] <= stats["codes"] + 1e-4
    error = (varied.modules["dvae"].decode(codes) - batch().pixels).square().mean().item()
    assert stats["error"] == pytest.approx(error, rel=1e-4)


def test_schedules_are_parts_of_the_run_and_looking_is_not_training():
    made = task(micro_batches=8, temperature=0.25, temperature_ramp=0.5)
    with torch.no_grad():
        made.loss(batch(), seeded())
    temperatures = [made.loss(batch(), seeded())[1]["temperature"] for _ in range(8)]
    halfway = (1 + 0.25) / 2
    assert temperatures[0] == 1.0 and temperatures[2] == pytest.approx(halfway)
    assert temperatures[4:] == pytest.approx([0.25] * 4)
    assert temperatures[:5] == sorted(temperatures[:5], reverse=True)


def test_a_resumed_run_is_as_warm_as_it_was(tmp_path):
    config = TrainConfig(steps=6, lr=1e-3, warmup=1, log_every=1, decay_from=1.0, precision="no", tracker="none")
    train(task(micro_batches=6), lambda n: batch(), config, output=tmp_path / "whole")
    train(task(micro_batches=6), lambda n: batch(), replace(config, steps=3), output=tmp_path / "halves")
    train(task(micro_batches=6), lambda n: batch(), config, output=tmp_path / "halves")
    whole, halves = (
        [json.loads(line) for line in (tmp_path / name / "stats.jsonl").read_text().splitlines()]
        for name in ("whole", "halves")
    )
    assert [row["temperature"] for row in whole] == [row["temperature"] for row in halves]
    assert [row["loss"] for row in whole] == [row["loss"] for row in halves]


def test_gradients_reach_every_parameter():
    made = task()
    made.loss(batch(), seeded())[0].backward()
    assert [n for n, p in made.modules.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


def test_it_learns_a_batch_and_the_check_knows_that_nothing_conditions_it():
    made = task(micro_batches=200, likelihood="l2", kl_weight=0.0)
    before = {name: value.clone() for name, value in made.modules.state_dict().items()}
    smooth = torch.nn.functional.interpolate(batch().pixels[..., ::8, ::8], scale_factor=8.0)
    proof = prove(made, DvaeBatch(smooth), lr=1e-2, steps=40)
    assert proof.after < 0.7 * proof.before and proof.mismatched is None
    assert str(proof).endswith("nothing conditions this network")
    assert_close(made.modules.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"likelihood": "l1"}, "likelihood must be one of logit_laplace, l2, got 'l1'"),
        ({"temperature": 0.0}, "temperature in .0, 1. .* got .*temperature=0.0"),
        ({"kl_weight": -1.0}, "expected kl_weight >= 0"),
        ({"kl_ramp": 2.0}, "kl_ramp=2.0"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        task(**wrong)
