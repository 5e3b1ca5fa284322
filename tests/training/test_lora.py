"""Adapters alone train, and can be merged away."""

import copy

import pytest
import torch
from pipelines import tiny
from torch import nn
from torch.testing import assert_close
from training.test_tasks import decoder_task, plain_clip_task, prior_task, seeded, upsampler_task

from unclip_hub.models.lora import save_lora
from unclip_hub.training.lora import add_lora, merge_lora


TASKS = {"prior": prior_task, "decoder": decoder_task, "upsampler": upsampler_task}


def trained(name, steps=3, **options):
    task, batch = TASKS[name]()
    before = copy.deepcopy(task.modules.state_dict())
    add_lora(task.modules, rank=2, **options)
    parameters = [p for p in task.modules.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = task.loss(batch, seeded(3))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return task, batch, before, losses


@pytest.mark.parametrize("name", TASKS)
def test_adapters_alone_train(name):
    task, batch, before, losses = trained(name, steps=20)
    after = task.modules.state_dict()
    kept = {key.replace(".base_layer", ""): value for key, value in after.items() if ".lora_" not in key}
    assert kept.keys() == before.keys()
    for key, value in kept.items():
        assert torch.equal(value, before[key]), key
    adapters = {key: p for key, p in task.modules.named_parameters() if p.requires_grad}
    assert adapters and all(".lora_" in key for key in adapters)
    assert [key for key, p in adapters.items() if p.grad is None or not p.grad.any()] == []
    assert losses[-1] < losses[0]
    assert sum(p.numel() for p in adapters.values()) < 0.3 * sum(v.numel() for v in before.values())


def test_a_new_adapter_changes_nothing():
    task, batch = decoder_task()
    loss = task.loss(batch, seeded())[0]
    add_lora(task.modules, rank=2)
    assert_close(task.loss(batch, seeded())[0], loss)


@pytest.mark.parametrize("name", TASKS)
def test_merged_networks_compute_the_same_and_are_plain_again(name):
    task, batch, before, _ = trained(name)
    task.modules.eval()
    loss = task.loss(batch, seeded())[0]
    merge_lora(task.modules)
    assert task.modules.state_dict().keys() == before.keys()
    assert_close(task.loss(batch, seeded())[0], loss, rtol=1e-4, atol=1e-6)


def test_only_the_networks_named_get_adapters():
    task, _, _, _ = trained("decoder", names=["decoder"])
    assert not any(p.requires_grad for p in task.modules["text_proj"].parameters())
    assert any(p.requires_grad for p in task.modules["decoder"].parameters())


def test_alpha_scales_an_adapter():
    outputs = {}
    for alpha in (None, 2, 6):
        network = nn.ModuleDict({"prior": tiny.components()["prior"]})
        torch.manual_seed(0)
        add_lora(network, rank=2, alpha=alpha)
        layer = network["prior"].transformer_blocks[0].attn1.to_q
        torch.manual_seed(1)
        nn.init.normal_(layer.lora_B["default"].weight)
        x = torch.randn(3, 20, generator=seeded())
        outputs[alpha] = layer(x) - layer.base_layer(x)
    assert_close(outputs[None], outputs[2])
    assert_close(outputs[6], 3 * outputs[2])


def test_what_takes_no_adapters_is_refused(tmp_path):
    clip, _ = plain_clip_task()
    with pytest.raises(ValueError, match="added to none of these modules, got 'text_encoder'"):
        add_lora(clip.modules)
    decoder, _ = decoder_task()
    with pytest.raises(ValueError, match="added to decoder, text_proj, got 'prior'"):
        add_lora(decoder.modules, names=["prior"])
    assert all(p.requires_grad for p in decoder.modules.parameters())
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        add_lora(decoder.modules, rank=0)
    with pytest.raises(ValueError, match="there is no adapter 'default' in decoder, text_proj"):
        save_lora(decoder.modules, tmp_path)
    assert list(tmp_path.iterdir()) == []
