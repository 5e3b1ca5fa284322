"""A network with a cache makes what it makes without, and computes its captions once."""

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from models.configs import BY_NAME, Case, D, L, outputs, refuses
from torch import nn
from torch.testing import assert_close

from unclip_hub.models.step_cache import StepCache


CASES = [BY_NAME[name] for name in ("prior-karlo", "prior-norms", "decoder-karlo", "decoder-cross")]
STEPS = [(900, [0, 1, 1]), (437, [1]), (3, [1, 0, 0, 1])]  # timestep, and which caption each sample has
CAPTIONS = ("proj_embedding", "encoder_hidden_states", "attention_mask", "class_labels")

cached = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture
def restore_backend():
    """`set_attention_backend` sets the process's default too."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = before


def steps(case: Case, dtype: torch.dtype = torch.float64, *, masked: bool = True):
    """For each step of a call the captions, and which of them goes with which noisy sample."""
    inputs = case.inputs(dtype)
    captions = {name: value for name, value in inputs.items() if name in CAPTIONS}
    if not masked:
        captions["attention_mask"] = None
    noisy = next(name for name in inputs if name in ("hidden_states", "sample"))
    for t, rows in STEPS:
        x = torch.randn(len(rows), *inputs[noisy].shape[1:], dtype=dtype)
        yield {noisy: x, "timestep": t}, captions, torch.tensor(rows)


def whole(model, step, captions, rows):
    return outputs(model, step | {name: None if x is None else x[rows] for name, x in captions.items()})[0]


def kept(model, step, captions, rows, cache):
    cache.rows = rows
    return outputs(model, step | captions | {"cache": cache})[0]


@torch.no_grad()
def compare(case: Case, model, plain=None, *, dtype=torch.float64, masked=True, tolerance=1e-12):
    cache = StepCache()
    for step, captions, rows in steps(case, dtype, masked=masked):
        expected = whole(plain or model, step, captions, rows)
        assert_close(kept(model, step, captions, rows, cache), expected, rtol=tolerance, atol=tolerance)


@cached
@pytest.mark.parametrize("masked", [True, False])
def test_a_cache_changes_nothing(case: Case, masked: bool):
    compare(case, case.model().double(), masked=masked)
    compare(case, case.model(), dtype=torch.float32, masked=masked, tolerance=2e-5)


@cached
def test_projections_may_be_fused_before_and_between_calls(case: Case):
    model, plain = case.model().double(), case.model().double()
    model.fuse_qkv_projections()
    compare(case, model, plain)
    model.unfuse_qkv_projections()
    compare(case, model, plain)


@pytest.mark.parametrize("case", [BY_NAME["prior-norms"], BY_NAME["decoder-cross"]], ids=str)
@pytest.mark.parametrize("backend", ["_native_math", "flex"])
def test_attention_backends_agree(case: Case, backend: str, restore_backend):
    model, plain = case.model(), case.model()
    model.set_attention_backend(backend)
    compare(case, model, plain, dtype=torch.float32, tolerance=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_the_prior_runs_three_tokens_a_step(case: Case):
    model, cache, seen = case.model().double(), StepCache(), []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, tuple(args[0].shape[:-1]))))
    for i, (step, captions, rows) in enumerate(steps(case)):
        seen.clear()
        kept(model, step, captions, rows, cache)
        within = [shape for name, shape in seen if name.startswith("transformer_blocks")]
        first, others = [(2, L + 1)] * (len(within) // 2), [(len(rows), 3)]
        assert within == (first + others * (len(within) // 2) if i == 0 else others * len(within))
        assert ("encoder_hidden_states_proj" in dict(seen)) == ("embedding_proj" in dict(seen)) == (i == 0)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES[2:], ids=str)
def test_the_decoder_projects_its_context_once(case: Case):
    model, cache, seen = case.model().double(), StepCache(), []
    for name, layer in model.named_modules():
        if name.endswith(("add_k_proj", "add_v_proj")):
            layer.register_forward_pre_hook(lambda _, args, name=name: seen.append((name, tuple(args[0].shape[:-1]))))
    for step, captions, rows in steps(case):
        kept(model, step, captions, rows, cache)
    assert len(seen) == 2 * model.num_attentions == len(dict(seen))
    assert {shape for _, shape in seen} == {(2, L)}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES[:2], ids=str)
def test_the_prior_takes_text_without_its_padding(case: Case):
    model, inputs = case.model().double(), case.inputs(torch.float64)
    inputs["attention_mask"] = torch.arange(L).expand(2, L) < 4
    shorter = {name: inputs[name][:, :4] for name in ("encoder_hidden_states", "attention_mask")}
    expected = outputs(model, inputs)[0]
    assert_close(outputs(model, inputs | shorter)[0], expected, rtol=1e-12, atol=1e-12)
    without = outputs(model, inputs | shorter | {"attention_mask": None})[0]
    assert_close(without, expected, rtol=1e-12, atol=1e-12)


def test_captions_that_do_not_belong_together_are_refused():
    case, cache = BY_NAME["prior-karlo"], StepCache()
    cache.rows = torch.tensor([0, 1, 1])
    with refuses("encoder_hidden_states must be (2, 7, 32), got (1, 7, 32)"):
        case.model()(torch.randn(3, D), 3, torch.randn(2, D), torch.randn(1, L, D), cache=cache)


@cached
@pytest.mark.compile
@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
def test_compiles_without_graph_breaks(case: Case, blocks: bool):
    model, plain = case.model().double(), case.model().double()
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        (model.compile_repeated_blocks if blocks else model.compile)(fullgraph=True, backend="eager")
        compare(case, model, plain)
