"""Our networks are diffusers' of the same names: same configurations, same keys, same outputs, same gradients."""

import hashlib
import inspect
import json
import math
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from models import configs
from models.configs import Case, loss, outputs, randomise


THEIRS = {c.__name__: c for c in (PriorTransformer, UNet2DModel, UNet2DConditionModel, UnCLIPTextProjModel)}
CASES = [
    case
    for case in configs.CASES
    if case.model_class.__name__ in THEIRS and not case.config.get("self_conditioning")  # which is ours alone
]
OURS = {case.model_class.__name__: case.model_class for case in CASES}
REAL = json.loads((Path(__file__).parents[1] / "golden" / "real_size_models.json").read_text())


def pair(case: Case):
    torch.manual_seed(0)
    theirs = randomise(THEIRS[case.model_class.__name__](**case.config)).eval()
    ours = case.model_class.from_config(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def run(model, inputs):
    """Outputs and the gradients of parameters and inputs, each by name."""
    inputs = {k: v.clone().requires_grad_() if _is_float(v) else v for k, v in inputs.items()}
    tensors = outputs(model, inputs)
    loss(tensors).backward()
    found = {f"output {i}": t.detach() for i, t in enumerate(tensors)}
    found |= {f"gradient of {k}": v.grad for k, v in inputs.items() if _is_float(v)}
    found |= {f"gradient of {k}": v.grad for k, v in model.named_parameters() if not k.startswith("clip_")}
    return found


def _is_float(value) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


# Relative to the largest element, as single ones cancel; and some whole gradients are 0 but for rounding (a bias that
# shifts every key alike shifts every score alike, which the softmax does not see). CPUs differ in the order of float32
# sums, and deviations of 1.4e-5 were seen; float64 is the proof.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 5e-5), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients(case: Case, dtype: torch.dtype, tolerance: float):
    ours, theirs = (model.to(dtype) for model in pair(case))
    inputs = case.inputs(dtype)
    if (
        case.name == "decoder-cross"
    ):  # diffusers fails on a mask with only_cross_attention: it pads it for image tokens
        inputs["attention_mask"] = None
    expected, got = run(theirs, inputs), run(ours, inputs)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=0.1)
        close = dict(rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")
        torch.testing.assert_close(got[name] / scale, value / scale, **close)


@pytest.mark.parametrize("guidance", [True, False])
def test_text_proj_with_and_without_guidance(guidance: bool):
    case = CASES[-1]
    ours, theirs = pair(case)
    inputs = case.inputs() | {"image_embeddings": torch.randn(1 if guidance else 2, 32)}
    inputs["do_classifier_free_guidance"] = guidance
    torch.testing.assert_close(ours(**inputs), theirs(**inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if c.name.startswith("prior")], ids=str)
def test_post_process_latents(case: Case):
    ours, theirs = pair(case)
    latents = torch.randn(2, theirs.clip_mean.shape[1])
    torch.testing.assert_close(ours.post_process_latents(latents), theirs.post_process_latents(latents))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_diffusers_reads_what_we_save(case: Case, tmp_path: Path):
    ours = case.model()
    ours.save_pretrained(tmp_path)
    theirs, info = THEIRS[case.model_class.__name__].from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = case.inputs()
    if case.name == "decoder-cross":
        inputs["attention_mask"] = None
    torch.testing.assert_close(outputs(ours, inputs), outputs(theirs, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", REAL)
def test_real_sizes_have_the_released_keys_and_shapes(name: str):
    real = REAL[name]
    with torch.device("meta"):
        ours = OURS[real["class_name"]].from_config(real["config"])
        theirs = THEIRS[real["class_name"]].from_config(real["config"])
    shapes = {key: list(value.shape) for key, value in ours.state_dict().items()}
    assert shapes == {key: list(value.shape) for key, value in theirs.state_dict().items()}
    assert len(shapes) == real["tensors"]
    assert sum(math.prod(shape) for shape in shapes.values()) == real["elements"]
    lines = sorted(f"{key} {shape}" for key, shape in shapes.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == real["sha256"]
    assert {key: ours.config[key] for key in real["config"]} == real["config"]


def test_the_prior_takes_its_inputs_by_position_as_diffusers_does():
    mine, other = (inspect.signature(c.forward).parameters for c in (OURS["PriorTransformer"], PriorTransformer))
    by_position = [name for name, p in mine.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert by_position == list(other)
