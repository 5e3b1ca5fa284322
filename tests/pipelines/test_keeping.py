"""Pipelines keep what they compute of their captions for one call, and make what they make without.

Where gradients are, nothing is kept: with them switched on, the verbs are the pipelines without.
"""

import dataclasses
import math
from contextlib import nullcontext

import pytest
import torch
from pipelines import tiny
from torch import nn
from torch.testing import assert_close

from unclip_hub import UnCLIPInpaintPipeline, UnCLIPPipeline
from unclip_hub.images import shrink_known
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.pipelines.known import Known


CAPTIONS = ["two green cats at night", "a house", "a red circle on a blue square"]  # of three lengths
STEPS = 4


@pytest.fixture(scope="module")
def parts():
    return tiny.components(karlo=True)


@pytest.fixture(scope="module")
def pipe(parts):
    return tiny.in_float64(UnCLIPPipeline(**parts))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chain(pipe, cond, null, *, gradients, **options):
    """What prior and decoder make of every step: the result itself is clamped."""
    steps = []
    given = {"num_inference_steps": STEPS, "generator": seeded(), "on_step": lambda i, t, x: steps.append(x)} | options
    with nullcontext() if gradients else torch.no_grad():
        embeds = pipe.sample_prior(cond, null, **given)
        pipe.decode(cond.with_image(embeds), null, **given)
    return [*steps, embeds]


def compare(pipe, cond, null, *, tolerance=1e-9, **options):
    """Random networks magnify rounding some 10,000 times."""
    got, expected = (chain(pipe, cond, null, gradients=on, **options) for on in (False, True))
    assert len(got) == 2 * STEPS + 1
    assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guidance_scale": 4.0},
        {"guidance_scale": 4.0, "guidance_interval": (0.2, 5.0), "guidance_rescale": 0.5},
        {"guidance_scale": 4.0, "guidance_interval": (1e6, 2e6)},
    ],
    ids=["unguided", "guided", "interval", "never"],
)
def test_captions_of_different_lengths(pipe, options):
    compare(pipe, pipe.encode_text(CAPTIONS).repeat(2), pipe.encode_text(""), **options)


def test_a_negative_prompt_for_each_caption_longer_than_it(pipe):
    compare(pipe, pipe.encode_text(CAPTIONS[:2]), pipe.encode_text([CAPTIONS[2], "a cat"]), guidance_scale=3.0)


@pytest.mark.parametrize("which", ["caption", "null", "both"])
def test_captions_of_padding_alone(pipe, which):
    cond, null = pipe.encode_text(CAPTIONS[:2]), pipe.encode_text("")
    cond, null = (
        dataclasses.replace(one, text_mask=torch.zeros_like(one.text_mask)) if which in (name, "both") else one
        for name, one in (("caption", cond), ("null", null))
    )
    compare(pipe, cond, null, guidance_scale=3.0)


def test_captions_that_fill_the_context(pipe):
    cond = pipe.encode_text(CAPTIONS[:2])
    full = dataclasses.replace(cond, text_mask=torch.ones_like(cond.text_mask))
    compare(pipe, full, full.roll(1), guidance_scale=3.0)


def test_a_mask_with_holes(pipe):
    cond, null = pipe.encode_text(CAPTIONS[:2]), pipe.encode_text("")
    mask = cond.text_mask.clone()
    mask[:, 1] = False
    compare(pipe, dataclasses.replace(cond, text_mask=mask), null, guidance_scale=3.0)


def test_whole_calls_one_after_the_other(parts, pipe):
    """Each makes what a new pipeline makes: nothing outlives its call."""
    options = {f"{stage}_num_inference_steps": 2 for stage in ("prior", "decoder", "super_res")}
    options |= {"num_images_per_prompt": 2, "output_type": "pt", "prior_guidance_scale": 4.0}
    for captions, negative in ((CAPTIONS[1:], None), (CAPTIONS[:1], CAPTIONS[1])):
        made = pipe(captions, negative_prompt=negative, generator=seeded(), **options)
        fresh = tiny.in_float64(UnCLIPPipeline(**parts))(
            captions, negative_prompt=negative, generator=seeded(), **options
        )
        assert_close(made.image_embeds, fresh.image_embeds, rtol=1e-9, atol=1e-9)
        assert_close(made.images, fresh.images, rtol=1e-6, atol=1e-6)


def test_adapters_switched_between_two_calls(parts):
    from peft import LoraConfig

    pipe = tiny.in_float64(UnCLIPPipeline(**parts))
    cond, null = pipe.encode_text(CAPTIONS), pipe.encode_text("")
    torch.manual_seed(1)
    for network in (pipe.prior, pipe.decoder):
        targets = ["to_k", "to_v", "add_k_proj", "add_v_proj"][: 2 if network is pipe.prior else 4]
        network.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    made = []
    for switch in (pipe.enable_lora, pipe.disable_lora, pipe.enable_lora):
        switch()
        compare(pipe, cond, null, guidance_scale=3.0)
        made.append(chain(pipe, cond, null, gradients=False, guidance_scale=3.0)[-1])
    assert (made[0] - made[1]).abs().max() > 1e-3
    assert_close(made[0], made[2], rtol=1e-12, atol=1e-12)


def test_a_decoder_that_is_shown_what_is_known(parts):
    config = {**parts["decoder"].config, "in_channels": 7}
    torch.manual_seed(2)
    parts = parts | {"decoder": UNet2DConditionModel.from_config(config).eval().requires_grad_(False)}
    pipe = tiny.in_float64(UnCLIPInpaintPipeline(**parts))
    canvas = torch.rand(2, 3, 32, 48, dtype=torch.float64, generator=seeded(3)) * 2 - 1  # two windows
    mask = torch.zeros(2, 1, 32, 48, dtype=torch.float64)
    mask[..., 10:30] = 1
    cond = pipe.encode_text(CAPTIONS[:2]).with_image(torch.randn(2, tiny.WIDTH, generator=seeded(4)).double())
    made = []
    for gradients in (False, True):
        steps = []
        with nullcontext() if gradients else torch.no_grad():
            pipe.repaint(
                cond, pipe.encode_text(""), known=Known(*shrink_known(canvas, mask, (16, 24))), num_inference_steps=3,
                guidance_scale=3.0, generator=seeded(), on_step=lambda i, t, x, steps=steps: steps.append(x),
            )  # fmt: skip
        made.append(steps)
    assert len(made[0]) == 3
    assert_close(made[0], made[1], rtol=1e-9, atol=1e-9)


def test_the_work_of_a_call(parts):
    """12 samples of one caption, guided: two captions are computed, once, without their padding."""
    pipe = tiny.in_float64(UnCLIPPipeline(**parts))
    cond, null = pipe.encode_text("a house"), pipe.encode_text("")
    length, seen = int(cond.text_mask.sum()), []
    assert length < tiny.CONTEXT
    for network in ("prior", "decoder", "text_proj"):
        for name, layer in getattr(pipe, network).named_modules():
            if isinstance(layer, nn.Linear):
                name = f"{network}.{name}"
                layer.register_forward_pre_hook(
                    lambda _, args, name=name: seen.append((name, math.prod(args[0].shape[:-1])))
                )
    chain(pipe, cond.repeat(12), null, gradients=False, guidance_scale=3.0)
    blocks = [rows for name, rows in seen if name.startswith("prior.transformer_blocks.0.attn1.to_k")]
    assert blocks == [2 * (length + 1)] + STEPS * [24 * 3]
    context = [rows for name, rows in seen if name.endswith("add_k_proj")]
    images = pipe.text_proj.config["clip_extra_context_tokens"]
    assert context == pipe.decoder.num_attentions * [(12 + 1) * (images + length)]  # each its own image embedding


def test_networks_that_are_offloaded_in_groups_run_every_step_whole(parts):
    """They are fetched in the order in which the first step ran them."""
    pipe, calls, cpu = tiny.in_float64(UnCLIPPipeline(**parts)), [], torch.device("cpu")
    cond, null = pipe.encode_text(CAPTIONS), pipe.encode_text("")
    expected = chain(pipe, cond, null, gradients=True, guidance_scale=3.0)
    for network in (pipe.prior, pipe.decoder):
        network.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    pipe.decoder.mid_block.attentions[0].add_k_proj.register_forward_hook(lambda *_: calls.append(1))
    made = chain(pipe, cond, null, gradients=False, guidance_scale=3.0)
    assert_close(made, expected, rtol=1e-9, atol=1e-9)
    assert len(calls) == STEPS


def test_gradients_are_those_of_every_step(pipe):
    cond, null = pipe.encode_text(CAPTIONS[:2]), pipe.encode_text("")
    for name in ("text_embed", "text_states"):
        given = getattr(cond, name).clone().requires_grad_()
        made = chain(pipe, dataclasses.replace(cond, **{name: given}), null, gradients=True, guidance_scale=3.0)[-1]
        (gradient,) = torch.autograd.grad(made.sum(), given)
        assert gradient.flatten(1).abs().amax(1).min() > 0
