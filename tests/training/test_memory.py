"""What a training takes, before there is any of it."""

import pytest
import torch
from torch import nn

from unclip_hub.training.memory import Memory, dry_run, memory_estimate, saved_bytes
from unclip_hub.training.presets import (
    new_ar_prior,
    new_decoder,
    new_dvae,
    new_image_encoder,
    new_one_step_prior,
    new_prior,
    new_text_encoder,
    new_upsampler,
)


PRIORS = {"diffusion": new_prior, "autoregressive": new_ar_prior, "one_step": new_one_step_prior}


def linear():
    return nn.ModuleDict({"line": nn.Linear(10, 20)})  # 200 + 20 parameters


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "no"}, Memory(880, 880, 1760, 880, 0)),
        ({"precision": "bf16"}, Memory(880 + 400, 880, 1760, 880, 0)),
        ({"precision": "no", "optimizer": "sgd", "average": False}, Memory(880, 880, 0, 0, 0)),
    ],
)
def test_weights_and_all_that_follows_them_are_counted(options, expected):
    assert memory_estimate(linear(), **options) == expected
    assert expected.total == sum(vars(expected).values())


def test_what_is_frozen_has_no_gradient():
    modules = linear()
    modules["line"].weight.requires_grad_(False)
    assert memory_estimate(modules, precision="no") == Memory(880, 80, 160, 80, 0)


def test_activations_are_what_autograd_keeps():
    modules = linear()
    x = torch.randn(3, 10)
    kept = saved_bytes(lambda: modules["line"](x).exp().sum(), modules)
    assert kept == 4 * (3 * 10 + 3 * 20)  # the layer's input and the exponential


def networks(name):
    if name == "clip":
        parts = {"text_encoder": new_text_encoder("tiny"), "image_encoder": new_image_encoder("tiny")}
    elif name == "decoder":
        parts = dict(zip(("decoder", "text_proj"), new_decoder("tiny"), strict=True))
    elif name in PRIORS:
        parts = {"prior": PRIORS[name]("tiny")}
    else:
        parts = {name: new_dvae("tiny") if name == "dvae" else new_upsampler("tiny")}
    return nn.ModuleDict(parts)


@pytest.mark.parametrize("name", ["clip", *PRIORS, "decoder", "upsampler", "dvae"])
def test_activations_grow_with_the_batch(name):
    with torch.device("meta"):
        modules = networks(name)
        one, three = (memory_estimate(modules, forward=dry_run(modules, batch_size=b)) for b in (1, 3))
    assert one.weights == three.weights
    assert 2 < three.activations / one.activations < 3.2


def test_an_estimate_reads_as_a_line():
    assert str(Memory(2_000_000_000, 0, 0, 0, 500_000_000)) == (
        "weights 2.00 GB  gradients 0.00 GB  optimizer 0.00 GB  average 0.00 GB  activations 0.50 GB  total 2.50 GB"
    )


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="optimizer must be one of adamw, sgd, got 'muon'"):
        memory_estimate(linear(), optimizer="muon")
    with pytest.raises(ValueError, match="precision must be 'no' or 'bf16', got 'fp8'"):
        memory_estimate(linear(), precision="fp8")
    with pytest.raises(ValueError, match="expected modules of one of the tasks with .* got line"):
        dry_run(linear(), batch_size=1)
