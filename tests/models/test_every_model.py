"""What every network of the library must do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from models.configs import BY_NAME, CASES, Case, loss, outputs, refuses, returns_a_dict
from peft import LoraConfig


def those(keep: Callable[[Case], bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", [case for case in CASES if keep(case)], ids=str)


every_model = those(lambda case: True)
with_blocks = those(lambda case: case.model_class._supports_gradient_checkpointing)
with_timestep = those(lambda case: "timestep" in case.inputs())
with_dict = those(lambda case: returns_a_dict(case.model_class))
with_attention = those(lambda case: "to_q" in case.lora)
with_optional_mask = those(lambda case: "to_q" in case.lora and case.name != "glide-text")


@pytest.fixture
def restore_backend():
    """`set_attention_backend` sets the process's default too."""
    before = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = before


def public(config) -> dict:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def gradients(case: Case, model) -> dict[str, torch.Tensor]:
    loss(outputs(model, case.inputs())).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@every_model
def test_saves_and_loads(case: Case, tmp_path: Path):
    model = case.model()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    loaded, info = case.model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert public(loaded.config) == public(model.config)
    torch.testing.assert_close(outputs(loaded, case.inputs()), outputs(model, case.inputs()), rtol=1e-5, atol=1e-5)


@every_model
def test_runs_in_bfloat16(case: Case):
    expected = outputs(case.model(), case.inputs())
    got = outputs(case.model().to(torch.bfloat16), case.inputs(torch.bfloat16))
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == torch.bfloat16
        torch.testing.assert_close(x.float(), y, rtol=0, atol=0.1 * y.abs().max().item())


@every_model
def test_trains_under_bfloat16_autocast(case: Case):
    model = case.model().train()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(outputs(model, case.inputs()))
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@every_model
def test_gradients_reach_every_parameter(case: Case):
    assert [name for name, g in gradients(case, case.model()).items() if g is None or not g.any()] == []


@every_model
def test_a_batch_equals_its_samples_one_by_one(case: Case):
    model, inputs = case.model(), case.inputs()
    if "do_classifier_free_guidance" in inputs:
        inputs |= {"image_embeddings": torch.randn(2, 32), "do_classifier_free_guidance": False}
    together = outputs(model, inputs)
    for i in range(2):
        one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
        torch.testing.assert_close(outputs(model, one), tuple(t[i : i + 1] for t in together), rtol=1e-4, atol=1e-5)


@every_model
def test_leaves_its_inputs_alone(case: Case):
    inputs = case.inputs()
    outputs(case.model(), inputs)
    torch.testing.assert_close(inputs, case.inputs(), rtol=0, atol=0)


@with_dict
def test_returns_a_dict_unless_told_otherwise(case: Case):
    model, inputs = case.model(), case.inputs()
    torch.testing.assert_close(model(**inputs).to_tuple(), model(**inputs, return_dict=False), rtol=1e-5, atol=1e-5)


@with_timestep
@pytest.mark.parametrize("timestep", [3, 3.0, torch.tensor(3), torch.tensor([3]), torch.tensor([3.0, 3.0])], ids=repr)
def test_takes_every_form_of_timestep(case: Case, timestep):
    model, inputs = case.model(), case.inputs()
    expected = outputs(model, {**inputs, "timestep": torch.tensor([3, 3])})
    torch.testing.assert_close(outputs(model, {**inputs, "timestep": timestep}), expected, rtol=1e-5, atol=1e-5)


@with_timestep
def test_refuses_a_wrong_number_of_timesteps(case: Case):
    with refuses("timestep must be one number or (2,), got (3,)"):
        outputs(case.model(), {**case.inputs(), "timestep": torch.tensor([1, 2, 3])})


@with_blocks
def test_gradient_checkpointing_changes_nothing(case: Case):
    model = case.model()
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    expected = gradients(case, case.model())
    torch.testing.assert_close(gradients(case, model), expected, rtol=1e-5, atol=1e-5)


@with_optional_mask
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_attention_backends_agree(case: Case, backend: str, masked: bool, restore_backend):
    model, inputs = case.model(), case.inputs()
    inputs["attention_mask"] = inputs["attention_mask"] if masked else None
    with torch.no_grad():
        expected = outputs(model, inputs)
        model.set_attention_backend(backend)
        torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-4, atol=1e-5)


@with_optional_mask
def test_set_attention_backend_is_effective(case: Case, restore_backend):
    model, inputs = case.model(), case.inputs()
    model.set_attention_backend("_native_flash")  # takes no mask, and says so
    outputs(model, {**inputs, "attention_mask": None})
    with pytest.raises((ValueError, RuntimeError)):
        outputs(model, inputs)


@with_attention
def test_fused_projections_change_nothing(case: Case):
    model, inputs = case.model(), case.inputs()
    expected = outputs(model, inputs)
    model.fuse_qkv_projections()
    assert any("to_qkv" in name for name, _ in model.named_parameters())
    torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-4, atol=1e-5)
    model.unfuse_qkv_projections()
    torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-5, atol=1e-5)


@every_model
def test_takes_a_lora_adapter(case: Case, tmp_path: Path):
    model, inputs = case.model(), case.inputs()
    before = outputs(model, inputs)[0]
    model.add_adapter(LoraConfig(r=2, target_modules=list(case.lora), init_lora_weights=False))
    after = outputs(model, inputs)[0]
    assert (after - before).abs().max() > 1e-4
    model.save_lora_adapter(tmp_path, safe_serialization=True)
    other = case.model()
    other.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(outputs(other, inputs)[0], after, rtol=1e-5, atol=1e-5)
    model.disable_adapters()
    torch.testing.assert_close(outputs(model, inputs)[0], before, rtol=1e-5, atol=1e-5)


@every_model
def test_stores_its_weights_in_fp8(case: Case):
    model, inputs = case.model(), case.inputs()
    expected = outputs(model, inputs)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert sum(p.dtype == torch.float8_e4m3fn for p in model.parameters()) >= 3
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if "norm" in name)
    for x, y in zip(outputs(model, inputs), expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0.5 * y.abs().max().item())


@every_model
@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offload_changes_nothing(case: Case, level: str):
    model, inputs = case.model(), case.inputs()
    expected = outputs(model, inputs)
    cpu = torch.device("cpu")
    model.enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type=level, num_blocks_per_group=1)
    torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-5, atol=1e-5)


@every_model
@pytest.mark.compile
def test_compiles_without_graph_breaks(case: Case):
    model, inputs = case.model(), case.inputs()
    expected = outputs(model, inputs)
    torch._dynamo.reset()
    model.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [BY_NAME[n] for n in ("decoder-cross", "prior-norms")], ids=str)
@pytest.mark.compile
def test_compiles_its_repeated_blocks(case: Case):
    model, inputs = case.model(), case.inputs()
    expected = outputs(model, inputs)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
        torch.testing.assert_close(outputs(model, inputs), expected, rtol=1e-5, atol=1e-5)
