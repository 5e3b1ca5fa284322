"""The switches that save memory or time leave the pictures as they were, the prior's included."""

import copy

import accelerate
import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from diffusers.utils.import_utils import is_xformers_available
from pipelines import tiny
from torch import nn
from torch.testing import assert_close

from unclip_hub import UnCLIPPipeline
from unclip_hub.pipelines.stage import decoder_condition


CPU = torch.device("cpu")
STEPS = {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2}
NETWORKS = ("prior", "text_proj", "decoder", "super_res_first")


@pytest.fixture(scope="module")
def parts():
    """Every network there is: two upsamplers of the same layers, an image encoder, and statistics that matter."""
    made = tiny.components(karlo=True)
    made |= {name: tiny.components(karlo=False)[name] for name in ("image_encoder", "feature_extractor")}
    made["prior"].clip_mean.normal_(generator=torch.Generator().manual_seed(1))
    made["prior"].clip_std.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    return made


@pytest.fixture
def pipe(parts):
    return fresh(parts)


@pytest.fixture(scope="module")
def before(parts):
    return run(fresh(parts))


@pytest.fixture
def double(parts):
    """In float64: where weights lie in memory changes float32's last bit, and random networks magnify it."""
    return fresh(parts).to(torch.float64)


@pytest.fixture(scope="module")
def before_double(parts):
    return run(fresh(parts).to(torch.float64))


@pytest.fixture
def restore_backend():
    """``set_attention_backend`` sets the process's default too."""
    active = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = active


def fresh(parts):
    pipe = UnCLIPPipeline(**{name: copy.deepcopy(part) for name, part in parts.items()})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, **options):
    return pipe("a house", generator=torch.Generator().manual_seed(0), output_type="pt", **STEPS | options)


def networks(pipe):
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def assert_unchanged(made, before):
    for name in ("image_embeds", "small_images", "images"):
        assert_close(made[name].to(before[name].dtype), before[name], atol=1e-5, rtol=1e-5)


def relative_error(made, before):
    return ((made.double() - before.double()).norm() / before.double().norm()).item()


def assert_prior_and_decoder_close(parts, pipe, tolerance):
    """Network by network, from the same inputs: a whole chain of random networks magnifies everything."""
    exact = fresh(parts)
    cond = exact.encode_text("a house")
    embeds = exact.sample_prior(cond, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    made = pipe.sample_prior(cond, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert relative_error(made, embeds) < tolerance
    t = torch.tensor(500)
    cond = cond.with_image(embeds)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    outputs = [
        p.decoder(x.to(p.decoder.dtype), t, **decoder_condition(p, cond)).sample.double() for p in (exact, pipe)
    ]
    assert relative_error(outputs[1], outputs[0]) < tolerance
    big = torch.randn(1, 6, 32, 32, generator=torch.Generator().manual_seed(4))
    outputs = [p.super_res_first(big.to(p.super_res_first.dtype), t).sample.double() for p in (exact, pipe)]
    assert relative_error(outputs[1], outputs[0]) < tolerance


def test_model_offload_knows_every_network_in_the_order_of_use(double, before_double):
    order = double.model_cpu_offload_seq.split("->")
    assert set(networks(double)) <= set(order)
    called = []
    for name, network in networks(double).items():
        network.register_forward_hook(lambda *_, name=name: called.append(name))
    run(double)
    ran = list(dict.fromkeys(called))
    assert [name for name in order if name in ran] == sorted(ran, key=order.index)
    assert ran.index("prior") < ran.index("text_proj") < ran.index("decoder") < ran.index("super_res_first")
    double.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(network, "_hf_hook") for network in networks(double).values())
    assert_unchanged(run(double), before_double)
    assert_unchanged(run(double), before_double)  # and again: the hooks were freed for the next call


def test_sequential_offload_fetches_what_is_needed_outside_forward(double, before_double):
    """The hooks that ``enable_sequential_cpu_offload`` sets; itself it needs an accelerator."""
    for network in networks(double).values():
        accelerate.cpu_offload(network, CPU, offload_buffers=len(network._parameters) > 0)
    assert double.prior.clip_std.is_meta
    assert double.text_proj.learned_classifier_free_guidance_embeddings.is_meta
    cond = double.encode_text("a house")
    null = double.encode_text("")
    seeded = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0)}
    embeds = double.sample_prior(cond, null, guidance_scale=4.0, **seeded)
    assert_close(embeds, before_double.image_embeds)
    small = double.decode(cond.with_image(embeds), null, guidance_scale=8.0, **seeded)
    assert_close(small / 2 + 0.5, before_double.small_images)
    assert double.prior.clip_std.is_meta


def test_sequential_offload_without_an_accelerator_says_so(pipe):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(RuntimeError, match="requires accelerator"):
        pipe.enable_sequential_cpu_offload()


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offload(double, before_double, level, where, tmp_path):
    options = {"offload_to_disk_path": str(tmp_path)} if where == "disk" else {}
    double.enable_group_offload(CPU, CPU, offload_type=level, num_blocks_per_group=1, **options)
    assert_unchanged(run(double), before_double)
    if where == "disk":
        assert {path.name for path in tmp_path.iterdir()} == set(networks(double))


def test_group_offload_to_a_folder_in_use_is_refused(pipe, tmp_path):
    (tmp_path / "decoder").mkdir()
    with pytest.raises(ValueError, match="offload_to_disk_path must be an empty or a new folder"):
        pipe.enable_group_offload(CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))


def test_group_offload_leaves_out_what_it_is_told_to(double, before_double, tmp_path):
    excluded = ["prior", "text_encoder"]
    double.enable_group_offload(
        CPU, offload_type="leaf_level", offload_to_disk_path=str(tmp_path / "new"), exclude_modules=excluded
    )
    assert not any((tmp_path / "new" / name).exists() for name in excluded)
    assert_unchanged(run(double), before_double)


def test_fp8_storage_is_close(parts, pipe):
    for name in NETWORKS:
        network = getattr(pipe, name)
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        assert any(p.dtype == torch.float8_e4m3fn for p in network.parameters())
        assert network.dtype == torch.float32
    assert_prior_and_decoder_close(parts, pipe, 0.2)
    assert run(pipe).images.isfinite().all()


def test_int8_weights_are_close(parts, pipe):
    quantization = pytest.importorskip("torchao.quantization")
    for name in NETWORKS:
        quantization.quantize_(getattr(pipe, name), quantization.Int8WeightOnlyConfig())
    assert_prior_and_decoder_close(parts, pipe, 0.1)
    assert run(pipe).images.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_throughout_is_close(parts, pipe, dtype):
    pipe.to(dtype)
    assert all(network.dtype == dtype for network in networks(pipe).values())
    assert_prior_and_decoder_close(parts, pipe, 0.1)
    made = run(pipe)
    assert made.images.isfinite().all()
    assert made.image_embeds.dtype == torch.float32  # x itself is never rounded to the networks' dtype


@pytest.mark.parametrize(
    "name", ["text_encoder", "prior", "text_proj", "decoder", "super_res_first", "super_res_last"]
)
def test_any_one_network_may_be_of_another_dtype(pipe, name):
    getattr(pipe, name).to(torch.bfloat16)
    assert run(pipe).images.isfinite().all()


@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_attention_backends_agree(pipe, backend, restore_backend):
    unguided = {"prior_guidance_scale": 1.0, "decoder_guidance_scale": 1.0}
    expected = run(pipe, **unguided)
    for name in NETWORKS:
        getattr(pipe, name).set_attention_backend(backend)
    assert_close(run(pipe, **unguided).image_embeds, expected.image_embeds, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", ["flash", "sage", "xformers"])
def test_attention_backends_that_are_not_installed_say_so(pipe, backend, restore_backend):
    package = {"flash": "flash_attn", "sage": "sageattention"}.get(backend, backend)
    try:
        __import__(package)
    except ImportError:
        for name in ("prior", "decoder"):
            with pytest.raises(Exception, match=f"(?i){backend}"):
                getattr(pipe, name).set_attention_backend(backend)


def test_xformers_by_its_old_name_says_what_is_missing(pipe, restore_backend):
    if torch.cuda.is_available() and is_xformers_available():
        pytest.skip("nothing is")
    with pytest.raises((ModuleNotFoundError, ValueError), match="xformers"):
        pipe.enable_xformers_memory_efficient_attention()


@pytest.mark.compile
def test_compiled_networks_make_the_same_picture(pipe, before):
    torch._dynamo.reset()
    for name in (*NETWORKS, "super_res_last"):
        getattr(pipe, name).compile(fullgraph=True, backend="eager")
    assert_unchanged(run(pipe), before)


@pytest.mark.compile
def test_compiled_repeated_blocks_make_the_same_picture(pipe, before):
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        for name in ("prior", "decoder", "super_res_first", "super_res_last"):
            getattr(pipe, name).compile_repeated_blocks(fullgraph=True, backend="eager")
        assert_unchanged(run(pipe), before)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    "switch",
    ["enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"],
)
def test_offload_to_a_gpu_makes_what_the_gpu_makes(parts, pipe, switch):
    on_gpu = fresh(parts).to("cuda", torch.float64)
    expected = run(on_gpu)
    pipe.to(torch.float64)
    options = (
        {"onload_device": torch.device("cuda"), "offload_type": "leaf_level", "use_stream": True}
        if switch == "enable_group_offload"
        else {}
    )
    getattr(pipe, switch)(**options)
    made = run(pipe)
    assert_close(made.images, expected.images, atol=1e-6, rtol=0)
    assert torch.device(pipe._execution_device).type == "cuda"


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_on_a_gpu(pipe, dtype):
    assert run(pipe.to("cuda", dtype)).images.isfinite().all()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.skipif(not is_xformers_available(), reason="needs xformers")
def test_xformers_by_its_old_name_switches_the_backend(pipe, restore_backend):
    pipe.to("cuda", torch.float16).enable_xformers_memory_efficient_attention()
    backends = {
        module.processor._attention_backend
        for network in (pipe.prior, pipe.decoder)
        for module in network.modules()
        if hasattr(module, "processor")
    }
    assert backends == {"xformers"}
    assert run(pipe).images.isfinite().all()
