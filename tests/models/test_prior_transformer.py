import inspect
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer as Theirs
from models.configs import BY_NAME, PRIOR_KARLO, refuses, text_mask
from torch.testing import assert_close

from unclip_hub.models.prior_transformer import PriorTransformer


CASE = BY_NAME["prior-karlo"]


def test_has_diffusers_keys_with_diffusers_defaults():
    ours = {k: v.default for k, v in inspect.signature(PriorTransformer.__init__).parameters.items()}
    assert ours.pop("self_conditioning") is False
    assert ours == {k: v.default for k, v in inspect.signature(Theirs.__init__).parameters.items()}


@pytest.mark.parametrize(
    "key, value",
    [
        ("additional_embeddings", 3),
        ("time_embed_act_fn", "gelu"),
        ("norm_in_type", "rms"),
        ("embedding_proj_norm_type", "rms"),
        ("encoder_hid_proj_type", None),
        ("added_emb_type", None),
    ],
)
def test_refuses_configurations_of_other_families(key: str, value):
    with pytest.raises(ValueError, match=rf"^{key} must .*got "):
        PriorTransformer.from_config(PRIOR_KARLO | {key: value})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_states": torch.randn(2, 31)}, "hidden_states must be (2, 32), got (2, 31)"),
        ({"proj_embedding": torch.randn(2, 31)}, "proj_embedding must be (2, 32), got (2, 31)"),
        (
            {"encoder_hidden_states": torch.randn(2, 8, 32), "attention_mask": text_mask(8)},
            "encoder_hidden_states must be (2, 7, 32), got (2, 8, 32)",
        ),
        ({"attention_mask": text_mask(11)}, "the text mask must be (2, 7), one per text token, got (2, 11)"),
        ({"attention_mask": torch.zeros(2, 7)}, "the text mask must be bool or integer"),
    ],
)
def test_refuses_inputs_that_do_not_fit(change, message: str):
    with refuses(message):
        CASE.model()(**(CASE.inputs() | change))


def test_what_was_predicted_before_is_zeros_at_first_and_matters_later():
    case = BY_NAME["prior-self-conditioned"]
    model, inputs = case.model(), case.inputs()
    before = inputs.pop("self_condition")
    first = model(**inputs).predicted_image_embedding
    assert_close(first, model(**inputs, self_condition=torch.zeros_like(before)).predicted_image_embedding)
    later = model(**inputs, self_condition=before).predicted_image_embedding
    assert (first - later).abs().amax(dim=1).min() > 1e-3
    with refuses("self_condition needs a prior with self_conditioning=True"):
        CASE.model()(**CASE.inputs(), self_condition=torch.zeros(2, 32))


@pytest.mark.parametrize("name", ["hidden_states", "timestep", "proj_embedding", "encoder_hidden_states"])
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


def test_no_mask_keeps_every_token():
    model, inputs = CASE.model(), CASE.inputs()
    without = model(**(inputs | {"attention_mask": None})).predicted_image_embedding
    for mask in (torch.ones(2, 7, dtype=torch.bool), torch.ones(2, 7, dtype=torch.long)):
        torch.testing.assert_close(model(**(inputs | {"attention_mask": mask})).predicted_image_embedding, without)


def test_a_caption_of_padding_alone_is_finite():
    """Training without text masks a whole caption; no softmax may be empty on any backend."""
    inputs = CASE.inputs() | {"attention_mask": torch.zeros(2, 7, dtype=torch.bool)}
    assert CASE.model()(**inputs).predicted_image_embedding.isfinite().all()


@pytest.mark.parametrize("mask", [None, text_mask()], ids=["unmasked", "masked"])
def test_text_tokens_do_not_see_what_follows_them(mask):
    """The text tokens' states depend on nothing that changes from step to step: their keys can be computed once."""
    model, inputs = CASE.model(), CASE.inputs() | {"attention_mask": mask}
    seen = []
    model.transformer_blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output))
    model(**inputs)
    model(**(inputs | {"timestep": 9, "hidden_states": torch.randn(2, 32)}))
    torch.testing.assert_close(seen[0][:, :8], seen[1][:, :8])
    assert (seen[0][:, 8:] - seen[1][:, 8:]).abs().amin(dim=(0, 2)).min() > 0


def test_statistics_are_buffers_that_start_at_the_identity(tmp_path: Path):
    model = PriorTransformer(**PRIOR_KARLO)
    latents = torch.randn(2, 32)
    assert {"clip_mean", "clip_std"} <= model.state_dict().keys()
    assert not {"clip_mean", "clip_std"} & {name for name, _ in model.named_parameters()}
    torch.testing.assert_close(model.post_process_latents(latents), latents, rtol=0, atol=0)
    model.clip_mean, model.clip_std = torch.randn(1, 32), torch.rand(1, 32) + 0.5
    model.save_pretrained(tmp_path)
    loaded = PriorTransformer.from_pretrained(tmp_path, dtype=torch.bfloat16)
    expected = latents * model.clip_std + model.clip_mean
    torch.testing.assert_close(model.post_process_latents(latents), expected, rtol=0, atol=0)
    half = loaded.post_process_latents(latents.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02)


def test_statistics_are_at_hand_after_offloading():
    model = CASE.model()
    model.clip_mean += 0.5
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    latents = torch.randn(2, 32)
    torch.testing.assert_close(model.post_process_latents(latents), latents + 0.5)
