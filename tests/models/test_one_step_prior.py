from pathlib import Path

import pytest
import torch
from models.configs import BY_NAME, PRIOR_ECLIPSE, refuses, text_mask
from safetensors.torch import load_file, save_file

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.one_step_prior import OneStepPrior


CASE = BY_NAME["one-step-prior"]


@pytest.mark.parametrize(
    "key, value",
    [
        ("additional_embeddings", 4),
        ("norm_in_type", "rms"),
        ("embedding_proj_norm_type", "rms"),
        ("encoder_hid_proj_type", None),
        ("added_emb_type", None),
    ],
)
def test_refuses_configurations_of_other_families(key: str, value):
    with pytest.raises(ValueError, match=rf"^{key} must .*got "):
        OneStepPrior.from_config(PRIOR_ECLIPSE | {key: value})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_states": torch.randn(2, 31)}, "hidden_states must be (2, 32), got (2, 31)"),
        ({"proj_embedding": torch.randn(2, 31)}, "proj_embedding must be (2, 32), got (2, 31)"),
        (
            {"encoder_hidden_states": torch.randn(2, 6, 32), "attention_mask": text_mask(6)},
            "encoder_hidden_states must be (2, 7, 32), got (2, 6, 32)",
        ),
        ({"attention_mask": text_mask(11)}, "the text mask must be (2, 7), one per text token, got (2, 11)"),
    ],
)
def test_refuses_inputs_that_do_not_fit(change, message: str):
    with refuses(message):
        CASE.model()(**(CASE.inputs() | change))


@pytest.mark.parametrize("name", ["hidden_states", "proj_embedding", "encoder_hidden_states"])
def test_every_input_changes_the_output(name: str):
    model, inputs = CASE.model(), CASE.inputs()
    before = model(**inputs).predicted_image_embedding
    after = model(**(inputs | {name: torch.zeros_like(inputs[name])})).predicted_image_embedding
    assert (before - after).abs().amax(dim=1).min() > 1e-3


def test_a_masked_token_does_not_matter_and_the_others_do():
    model, inputs = CASE.model(), CASE.inputs()
    states, masked = inputs["encoder_hidden_states"], ~inputs["attention_mask"][..., None]
    before = model(**inputs).predicted_image_embedding
    other = torch.where(masked, torch.randn_like(states), states)
    torch.testing.assert_close(model(**(inputs | {"encoder_hidden_states": other})).predicted_image_embedding, before)
    other = torch.where(masked, states, torch.randn_like(states))
    after = model(**(inputs | {"encoder_hidden_states": other})).predicted_image_embedding
    assert (before - after).abs().amax(dim=1).min() > 1e-3


@pytest.mark.parametrize("mask, causal", [(text_mask(), True), (None, False)], ids=["masked", "unmasked"])
def test_attention_is_causal_where_a_mask_is_given(mask, causal: bool):
    model, inputs = CASE.model(), CASE.inputs() | {"attention_mask": mask}
    seen = []
    model.transformer_blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    model(**inputs)
    model(**(inputs | {"hidden_states": torch.randn(2, 32)}))
    before_the_noise = (seen[0][:, :8] - seen[1][:, :8]).abs().amax(dim=(0, 2))
    assert before_the_noise.max() < 1e-6 if causal else before_the_noise.min() > 1e-6
    assert (seen[0][:, 8:] - seen[1][:, 8:]).abs().amax(dim=(0, 2)).min() > 0


def test_the_statistics_in_a_file_are_not_read_and_nothing_else_is_passed_over(tmp_path: Path):
    model, inputs = CASE.model(), CASE.inputs()
    model.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    save_file(state | {"clip_mean": torch.rand(1, 32), "clip_std": torch.rand(1, 32)}, file)
    got = OneStepPrior.from_pretrained(tmp_path)(**inputs).predicted_image_embedding
    torch.testing.assert_close(got, model(**inputs).predicted_image_embedding, rtol=1e-5, atol=1e-5)
    save_file(state | {"time_embedding.linear_1.bias": torch.rand(24)}, file)
    with pytest.raises(ValueError, match="1 unexpected keys: time_embedding.linear_1.bias"):
        OneStepPrior.from_pretrained(tmp_path)


def captions() -> Conditioning:
    inputs = CASE.inputs()
    return Conditioning(inputs["proj_embedding"], inputs["encoder_hidden_states"], inputs["attention_mask"])


def test_a_sample_is_what_the_network_makes_of_noise_and_the_caption():
    model, cond = CASE.model(), captions()
    noise = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    expected = model(noise, cond.text_embed, cond.text_states, cond.text_mask).predicted_image_embedding
    torch.testing.assert_close(model.sample(cond, generator=torch.Generator().manual_seed(3)), expected)


def test_a_row_with_its_own_generator_is_the_same_alone():
    model, cond = CASE.model(), captions()
    together = model.sample(cond, generator=[torch.Generator().manual_seed(i) for i in range(2)])
    alone = model.sample(cond.roll(1).take(1), generator=[torch.Generator().manual_seed(1)])
    torch.testing.assert_close(alone, together[1:], rtol=1e-4, atol=1e-5)
    assert (together[0] - model.sample(cond, generator=torch.Generator().manual_seed(7))[0]).abs().max() > 1e-4


def test_samples_of_a_half_precision_network_are_float32():
    cond = captions()
    drawn = CASE.model().to(torch.bfloat16).sample(cond, generator=torch.Generator().manual_seed(3))
    expected = CASE.model().sample(cond, generator=torch.Generator().manual_seed(3))
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, expected, rtol=0, atol=0.1 * expected.abs().max().item())


def test_guidance_is_not_among_its_options():
    with pytest.raises(TypeError, match="guidance_scale"):
        CASE.model().sample(captions(), guidance_scale=2.0)
