"""What diffusers' own test suite asks of a pipeline, beyond what the tests of each task show."""

import copy
import inspect

import pytest
import torch
from diffusers import DDIMScheduler
from pipelines import tiny
from torch import nn
from torch.testing import assert_close

from unclip_hub import UnCLIPImageVariationPipeline, UnCLIPPipeline


STEPS = {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2}


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def pipe(request):
    """In float64: random networks magnify the differences between float32's ways to compute a batch."""
    parts = tiny.components(karlo=request.param == "karlo")
    parts |= {name: tiny.components(karlo=False)[name] for name in ("image_encoder", "feature_extractor")}
    made = UnCLIPPipeline(**parts).to(torch.float64)
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, prompt="a house", **options):
    return pipe(prompt, **STEPS | {"generator": seeded(), "output_type": "pt"} | options)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_call_takes_what_pipelines_take():
    parameters = inspect.signature(UnCLIPPipeline.__call__).parameters
    usual = {
        "prompt", "negative_prompt", "num_images_per_prompt", "generator", "output_type", "return_dict",
        "prompt_embeds", "negative_prompt_embeds", "callback_on_step_end", "callback_on_step_end_tensor_inputs",
    }  # fmt: skip
    assert usual <= set(parameters)
    required = [p.name for p in parameters.values() if p.default is p.empty and p.name != "self"]
    assert required == []
    assert parameters["return_dict"].default is True and parameters["output_type"].default == "pil"


def test_exactly_what_may_be_none_is_declared_optional():
    parameters = inspect.signature(UnCLIPPipeline.__init__).parameters
    optional = {p.name for p in parameters.values() if p.default is None and p.name != "sampling_defaults"}
    assert optional == set(UnCLIPPipeline._optional_components)


def test_batches_of_every_size_agree_with_one_by_one(pipe):
    captions = ["a house", "two green cats at night", "a red circle on a blue square"]
    alone = [run(pipe, caption, generator=[seeded(i)]) for i, caption in enumerate(captions)]
    for size in (1, 2, 3):
        together = run(pipe, captions[:size], generator=[seeded(i) for i in range(size)])
        for name in ("images", "image_embeds", "small_images"):
            expected = torch.cat([made[name] for made in alone[:size]])
            assert_close(together[name], expected, atol=1e-6, rtol=0)


def test_components_make_the_same_pipeline_again(pipe):
    again = quiet(UnCLIPPipeline(**pipe.components))
    assert again.components.keys() == pipe.components.keys()
    assert all(again.components[name] is part for name, part in pipe.components.items())
    assert torch.equal(run(again).images, run(pipe).images)


def test_from_pipe_goes_to_the_other_task_and_back(pipe):
    other = UnCLIPImageVariationPipeline.from_pipe(pipe)
    back = quiet(UnCLIPPipeline.from_pipe(other))
    assert other.decoder is pipe.decoder and back.prior is pipe.prior
    assert pipe.dtype == torch.float64  # diffusers would have made it float32
    assert torch.equal(run(back).images, run(pipe).images)


def test_from_pipe_keeps_the_dtype_of_every_network_unless_given_one(pipe):
    mixed = UnCLIPPipeline(**{name: copy.deepcopy(part) for name, part in pipe.components.items()}).to(torch.float32)
    mixed.prior.to(torch.bfloat16)
    mixed.decoder.to(torch.float16)
    weights = copy.deepcopy(mixed.prior.state_dict())
    made = UnCLIPPipeline.from_pipe(mixed)
    assert (made.prior.dtype, made.decoder.dtype, made.text_proj.dtype) == (
        torch.bfloat16,
        torch.float16,
        torch.float32,
    )
    assert all(torch.equal(weights[key], value) for key, value in made.prior.state_dict().items())
    assert UnCLIPPipeline.from_pipe(mixed, dtype=torch.float32).prior.dtype == torch.float32


def test_a_call_changes_no_component(pipe):
    parts = {name: part for name, part in pipe.components.items() if part is not None}
    weights = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items() if isinstance(part, nn.Module)}
    training = {name: part.training for name, part in parts.items() if isinstance(part, nn.Module)}
    configs = {name: copy.deepcopy(dict(part.config)) for name, part in parts.items() if "scheduler" in name}
    assert len(weights) >= 6 and len(configs) == 3
    run(pipe, "two green cats at night")
    for name, state in weights.items():
        for key, value in parts[name].state_dict().items():
            assert torch.equal(value, state[key]), f"{name}.{key}"
        assert parts[name].training == training[name]
    assert {name: dict(parts[name].config) for name in configs} == configs


def test_a_call_changes_none_of_its_arguments(pipe):
    arguments = {
        "prior_latents": torch.randn(1, tiny.WIDTH, dtype=torch.float64),
        "decoder_latents": torch.randn(1, 3, 16, 16, dtype=torch.float64),
        "super_res_latents": torch.randn(1, 3, 32, 32, dtype=torch.float64),
    }
    before = {name: value.clone() for name, value in arguments.items()}
    run(pipe, **arguments)
    for name, value in arguments.items():
        assert torch.equal(value, before[name])


def test_a_callback_sees_only_what_it_asked_for_and_may_stop_nothing_else(pipe):
    seen = set()

    def callback(pipeline, step, timestep, tensors):
        assert pipeline is pipe and isinstance(step, int)
        seen.update(tensors)
        return tensors

    expected = run(pipe).images
    assert torch.equal(run(pipe, callback_on_step_end=callback).images, expected)
    assert seen == set(pipe._callback_tensor_inputs)


def test_to_moves_every_network(pipe):
    copied = UnCLIPPipeline(**{name: copy.deepcopy(part) for name, part in pipe.components.items()})
    for dtype in (torch.bfloat16, torch.float32):
        copied.to(dtype)
        assert {part.dtype for part in copied.components.values() if isinstance(part, nn.Module)} == {dtype}
        assert copied.dtype == dtype
    assert copied.to("cpu").device == torch.device("cpu")


def test_dtypes_by_component_load_and_run(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    chosen = {"prior": torch.bfloat16, "decoder": torch.float16, "default": torch.float32}
    loaded = quiet(UnCLIPPipeline.from_pretrained(tmp_path, dtype=chosen))
    dtypes = {name: part.dtype for name, part in loaded.components.items() if isinstance(part, nn.Module)}
    assert dtypes == {name: chosen.get(name, torch.float32) for name in dtypes}
    assert run(loaded).images.isfinite().all()


def test_shards_and_variants_of_every_network_load(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size="20KB")
    assert len(list((tmp_path / "decoder").glob("*.fp16-*-of-*.safetensors"))) > 1
    assert not list(tmp_path.rglob("*.bin"))
    loaded = quiet(UnCLIPPipeline.from_pretrained(tmp_path, variant="fp16", dtype=torch.float64))
    assert_close(run(loaded).images, run(pipe).images, atol=1e-9, rtol=0)


def test_absent_components_stay_absent_on_disk(pipe, tmp_path):
    absent = {"image_encoder": None, "feature_extractor": None, "super_res_last": None}
    without = quiet(UnCLIPPipeline(**pipe.components | absent))
    without.save_pretrained(tmp_path)
    loaded = quiet(UnCLIPPipeline.from_pretrained(tmp_path, dtype=torch.float64))
    assert all(getattr(loaded, name) is None for name in absent)
    assert_close(run(loaded).images, run(without).images, atol=1e-9, rtol=0)


def test_a_swapped_scheduler_is_saved_and_loaded(pipe, tmp_path):
    swapped = quiet(UnCLIPPipeline(**pipe.components))
    swapped.decoder_scheduler = DDIMScheduler.from_config(swapped.decoder_scheduler.config)
    swapped.save_pretrained(tmp_path)
    loaded = quiet(UnCLIPPipeline.from_pretrained(tmp_path, dtype=torch.float64))
    assert type(loaded.decoder_scheduler) is DDIMScheduler
    assert_close(run(loaded).images, run(swapped).images, atol=1e-9, rtol=0)
