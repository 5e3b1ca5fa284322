"""What DALLE2-pytorch's prior does beside what every network does."""

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from models.configs import BY_NAME, outputs, refuses
from torch.testing import assert_close

from unclip_hub import Conditioning
from unclip_hub.models.dalle2_pytorch_blocks import GainNorm, RelativeBias, rotate, rotation_of, sinusoids
from unclip_hub.models.dalle2_pytorch_prior import DALLE2PytorchPrior


OLD, NEW = BY_NAME["dalle2-prior-0.15"], BY_NAME["dalle2-prior-1.15"]
both = pytest.mark.parametrize("case", [OLD, NEW], ids=str)


@pytest.fixture
def restore_backend():
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = before


@both
@torch.no_grad()
def test_text_that_the_mask_discards_has_no_effect(case):
    model, inputs = case.model(), case.inputs()
    other = inputs["encoder_hidden_states"].clone()
    other[~inputs["attention_mask"]] = torch.randn(32)  # an offset would vanish in the norms
    assert_close(outputs(model, {**inputs, "encoder_hidden_states": other}), outputs(model, inputs))
    other[0, 0] = torch.randn(32)
    changed = outputs(model, {**inputs, "encoder_hidden_states": other})[0] - outputs(model, inputs)[0]
    assert changed[0].abs().max() > 1e-3


@both
@torch.no_grad()
def test_a_dropped_caption_has_no_effect_and_dropping_has_one(case):
    model, inputs = case.model(), case.inputs()
    dropped = {**inputs, "proj_embedding": torch.zeros_like(inputs["proj_embedding"])}
    other = {**dropped, "encoder_hidden_states": torch.randn(2, 7, 32), "attention_mask": None}
    assert_close(outputs(model, other), outputs(model, dropped))
    assert (outputs(model, dropped)[0] - outputs(model, inputs)[0])[0].abs().max() > 1e-3


@torch.no_grad()
def test_a_dropped_caption_hides_the_noised_image_where_that_is_learned():
    model, inputs = NEW.model(), NEW.inputs()
    moved = outputs(model, {**inputs, "hidden_states": inputs["hidden_states"] + 1})[0] - outputs(model, inputs)[0]
    assert moved[0].abs().max() > 1e-3  # kept
    assert_close(moved[1], torch.zeros_like(moved[1]))  # dropped


@both
@torch.no_grad()
def test_the_text_embedding_counts_by_its_direction(case):
    model, inputs = case.model(), case.inputs()
    longer = {**inputs, "proj_embedding": 7 * inputs["proj_embedding"]}
    assert_close(outputs(model, longer), outputs(model, inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_text_is_padded_and_cut_to_its_length():
    model, inputs = NEW.model(), NEW.inputs()
    states, mask = inputs["encoder_hidden_states"], inputs["attention_mask"]
    padded = torch.nn.functional.pad(states, (0, 0, 0, 5)), torch.nn.functional.pad(mask, (0, 5))
    longer = {**inputs, "encoder_hidden_states": padded[0], "attention_mask": padded[1]}
    assert_close(outputs(model, longer), outputs(model, inputs))
    none = {**inputs, "encoder_hidden_states": None, "attention_mask": None}
    assert_close(outputs(model, none), outputs(model, {**inputs, "attention_mask": torch.zeros_like(mask)}))


def test_embeddings_leave_at_unit_scale():
    assert_close(OLD.model().post_process_latents(torch.ones(1, 32)), torch.full((1, 32), 32**-0.5))
    assert_close(OLD.model(embedding_scale=4.0).post_process_latents(torch.ones(1, 32)), torch.full((1, 32), 0.25))


def test_null_is_these_captions_dropped():
    cond = Conditioning(torch.randn(2, 32), torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool))
    null = OLD.model().null(cond)
    assert not null.text_embed.any() and not null.text_states.any() and not null.text_mask.any()
    assert null.text_states.shape == cond.text_states.shape
    with refuses("cannot be guided: expected a guidance scale of 1"):
        NEW.model(unconditional="none").null(cond)


@both
@pytest.mark.parametrize("backend", ["native", "_native_math"])
@torch.no_grad()
def test_attention_backends_agree(case, backend, restore_backend):
    model, inputs = case.model(), case.inputs()
    expected = outputs(model, inputs)
    model.set_attention_backend(backend)
    assert_close(outputs(model, inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unconditional": "zeros"}, "unconditional must be one of 'masked', 'none', 'learned', got 'zeros'"),
        ({"stable_norms": "first"}, "stable_norms must be one of"),
        ({"max_text_len": None}, "max_text_len must be None with unconditional='masked', else an int, got None"),
        ({"clip_embed_dim": 12}, "clip_embed_dim must be one of None, 32, got 12"),
    ],
)
def test_refuses_other_configurations(changes, message):
    with refuses(message):
        DALLE2PytorchPrior(**{**NEW.config, **changes})


def test_refuses_a_last_estimate_that_it_has_no_place_for():
    with refuses("last_estimate needs a prior with self_condition=True"):
        OLD.model()(**OLD.inputs(), last_estimate=torch.zeros(2, 32))


def test_the_stable_norm_flips_the_sign_of_negative_rows():
    x = torch.tensor([[1.0, 2.0, 4.0], [-1.0, -2.0, -4.0]])
    stable, plain = GainNorm(3, stable=True)(x), GainNorm(3)(x)
    assert_close(stable[0], plain[0], rtol=1e-3, atol=1e-3)
    assert_close(stable[1], -plain[1], rtol=1e-3, atol=1e-3)
    first = GainNorm(2, channels_first=True)(torch.tensor([[[1.0, 5.0], [3.0, 5.0]]]))
    assert_close(first, torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]]), rtol=1e-4, atol=1e-4)


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
    x, y = torch.randn(1, 9, 2, 40), torch.randn(1, 1, 2, 40)
    rotation = rotation_of(9, head_dim=40, device=torch.device("cpu"))
    turned = rotate(y.expand(-1, 9, -1, -1), rotation)
    assert_close(rotate(x, rotation).norm(dim=-1), x.norm(dim=-1))
    assert_close(turned[..., 32:], y.expand(-1, 9, -1, -1)[..., 32:])  # only the first 32
    products = torch.einsum("bnhd,bmhd->hnm", turned, turned)
    assert_close(products[:, 2, 5], products[:, 4, 7], rtol=1e-4, atol=1e-4)


def test_the_relative_bias_shares_its_far_buckets():
    bias = RelativeBias(2)(200, device=torch.device("cpu"))
    assert bias.shape == (1, 2, 200, 201)
    table = bias[0, :, 199].flip(-1)  # by distance, from -1 on
    assert_close(table[:, 0], table[:, 1])  # what lies ahead counts as distance 0
    distances = {n: int((table[0] == value).sum()) for n, value in enumerate(table[0, 1:18].tolist())}
    assert distances[0] == 2 and all(distances[n] == 1 for n in range(1, 16)) and distances[16] > 1
    assert_close(table[:, 129:], table[:, 129:130].expand(-1, 72))


def test_sinusoids_end_at_one_ten_thousandth():
    got = sinusoids(torch.tensor([0, 10]), 6)
    frequencies = torch.tensor([1.0, 0.01, 0.0001])
    assert_close(got[0], torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]))
    assert_close(got[1], torch.cat([(10 * frequencies).sin(), (10 * frequencies).cos()]))
