"""Priors that sample themselves, in every pipeline with a prior: what they can be told, and what stays as it is."""

import copy
import json

import accelerate
import pytest
import torch
from pipelines import tiny
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

import unclip_hub
from unclip_hub import (
    OneStepPrior,
    PriorTransformer,
    UnCLIPImageToImagePipeline,
    UnCLIPInpaintPipeline,
    UnCLIPInterpolationPipeline,
    UnCLIPPipeline,
)
from unclip_hub.models.ar_prior import AutoregressivePrior


CPU = torch.device("cpu")
STEPS = {"decoder_num_inference_steps": 1, "super_res_num_inference_steps": 1}
CAPTIONS = ["a house", "two green cats at night"]
COMPONENTS = 5


@pytest.fixture(scope="module")
def parts():
    """The bundled model's layout without a scheduler for the prior, which is an autoregressive one."""
    made = tiny.components(karlo=False)
    del made["prior_scheduler"]
    return made | {"prior": autoregressive()}


def autoregressive():
    """Its logits are far from certain, and depend on the caption."""
    torch.manual_seed(0)
    prior = AutoregressivePrior(
        num_attention_heads=2, attention_head_dim=10, num_layers=2, embedding_dim=tiny.WIDTH,
        num_embeddings=tiny.CONTEXT, num_components=COMPONENTS, num_buckets=16, num_similarity_buckets=24,
    )  # fmt: skip
    prior.codec.fit(torch.randn(200, tiny.WIDTH, generator=seeded(1)))
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=seeded(2)))
        for network in (prior.code_out, prior.similarity_out):
            network.smooth.weight.mul_(0.3)
    return prior.eval().requires_grad_(False)


def one_step():
    torch.manual_seed(0)
    return OneStepPrior(
        num_attention_heads=2, attention_head_dim=10, num_layers=2, embedding_dim=tiny.WIDTH,
        num_embeddings=tiny.CONTEXT,
    ).eval().requires_grad_(False)  # fmt: skip


@pytest.fixture(scope="module")
def pipe(parts):
    return tiny.in_float64(UnCLIPPipeline(**parts))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, prompt="a red circle", *, seed=0, **options):
    return pipe(prompt, **STEPS | {"generator": seeded(seed), "output_type": "pt"} | options)


def picture(seed=0):
    return torch.rand(1, 3, 32, 32, generator=seeded(seed), dtype=torch.float64)


def calls(pipe, **options):
    """Every pipeline's call that runs the prior, with the same options, by name."""
    parts, common = pipe.components, STEPS | {"output_type": "pt"} | options
    quiet = {
        kind: kind(**parts)
        for kind in (UnCLIPImageToImagePipeline, UnCLIPInpaintPipeline, UnCLIPInterpolationPipeline)
    }
    for one in quiet.values():
        one.set_progress_bar_config(disable=True)
    img2img, inpaint, between = quiet.values()
    return {
        "text to image": lambda: pipe("a house", generator=seeded(), **common),
        "image to image": lambda: img2img(picture(), "a house", generator=seeded(), **common),
        "inpaint": lambda: inpaint(picture(), picture()[:, :1] > 0.5, "a house", generator=seeded(), **common),
        "interpolation": lambda: between(["a house", picture()], 2, generator=seeded(), **common),
    }


def test_the_pipeline_draws_what_the_prior_draws(pipe):
    cond, null = pipe.encode_text(CAPTIONS), pipe.encode_text("")
    assert_close(run(pipe, CAPTIONS).image_embeds, pipe.prior.sample(cond, generator=seeded()))
    options = {"temperature": 0.5, "guidance_scale": 2.0, "components": 3}
    expected = pipe.prior.sample(cond, null, generator=seeded(), **options)
    assert_close(run(pipe, CAPTIONS, prior_options=options).image_embeds, expected)
    apart = {"prior_guidance_scale": 2.0, "prior_options": {"temperature": 0.5, "components": 3}}
    assert_close(run(pipe, CAPTIONS, **apart).image_embeds, expected)
    strong = [run(pipe, prior_guidance_scale=50.0, negative_prompt=text).image_embeds for text in (None, CAPTIONS[1])]
    assert not torch.allclose(strong[0], strong[1], atol=0.01)  # random networks hear little of a caption


@pytest.mark.parametrize("task", ["text to image", "image to image", "inpaint", "interpolation"])
def test_every_pipeline_passes_the_priors_options_on(pipe, task):
    fewest, coarse = (calls(pipe, prior_options={"components": k})[task]().image_embeds[:1] for k in (1, 3))
    spans = [(embeds - pipe.prior.codec.mean) @ pipe.prior.codec.basis.T for embeds in (fewest, coarse)]
    assert [int((span.abs() > 1e-4).sum()) for span in spans] == [1, 3]
    with pytest.raises(ValueError, match="AutoregressivePrior can be told temperature, .*got num_inference_steps"):
        calls(pipe, prior_num_inference_steps=3)[task]()
    with pytest.raises(ValueError, match="got temprature"):
        calls(pipe, prior_options={"temprature": 1.0})[task]()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prior_guidance_interval": (0.2, 5.0)}, "got guidance_interval"),
        ({"prior_guidance_rescale": 0.5}, "got guidance_rescale"),
        ({"prior_latents": torch.randn(1, tiny.WIDTH)}, "AutoregressivePrior samples by itself: .* prior_latents"),
        ({"prior_guidance_scale": 2.0, "prior_options": {"guidance_scale": 2.0}}, "which prior_guidance_scale"),
        ({"prior_options": {"temperature": -1.0}}, "temperature must be at least 0"),
        ({"prior_guidance_scale": -1.0}, "prior_guidance_scale must be a finite number of at least 0"),
    ],
    ids=str,
)
def test_what_the_prior_cannot_be_told_is_refused(pipe, given, message):
    with pytest.raises(ValueError, match=message):
        run(pipe, **given)


def test_a_diffusion_prior_is_told_its_own_options_and_no_others():
    pipe = tiny.in_float64(UnCLIPPipeline(**tiny.components(karlo=False)))
    expected = run(pipe, prior_num_inference_steps=2, prior_guidance_scale=3.0)
    made = run(pipe, prior_options={"num_inference_steps": 2}, prior_guidance_scale=3.0)
    assert torch.equal(made.images, expected.images)
    with pytest.raises(ValueError, match="PriorTransformer can be told num_inference_steps, .*got temperature"):
        run(pipe, prior_options={"temperature": 0.5})


def test_a_diffusion_priors_embeddings_are_shortened_to_what_is_asked_for():
    pipe = tiny.in_float64(UnCLIPPipeline(**tiny.components(karlo=False)))
    free = run(pipe, CAPTIONS, prior_num_inference_steps=2).image_embeds
    limit = free.norm(dim=1).mean().item()  # one of the two is longer
    held = run(pipe, CAPTIONS, prior_num_inference_steps=2, prior_options={"max_norm": limit}).image_embeds
    assert_close(held.norm(dim=1), free.norm(dim=1).clamp(max=limit))
    assert_close(cosine_similarity(held, free), torch.ones(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="max_norm must be above 0, got 0"):
        run(pipe, prior_options={"max_norm": 0})


@pytest.mark.parametrize("interval", [None, (1.0, 100.0)])
def test_a_self_conditioned_prior_sees_what_it_predicted_at_the_step_before(interval):
    made = tiny.components(karlo=False)
    made["prior"] = PriorTransformer.from_config(made["prior"].config, self_conditioning=True).eval()
    pipe = tiny.in_float64(UnCLIPPipeline(**made))
    seen, predicted = [], []

    def spy(network, inputs, options, output):
        seen.append(options.get("self_condition"))
        predicted.append(output.predicted_image_embedding)

    pipe.prior.register_forward_hook(spy, with_kwargs=True)
    for _ in range(2):  # nothing is left of the call before
        seen.clear(), predicted.clear()
        cond, null = pipe.encode_text(CAPTIONS), pipe.encode_text("")
        options = {"num_inference_steps": 4, "guidance_scale": 2.0, "guidance_interval": interval}
        pipe.sample_prior(cond, null, generator=seeded(), **options)
        assert seen[0] is None and len(seen) == 4
        for before, condition, made in zip(predicted, seen[1:], predicted[1:], strict=False):
            if len(made) > len(before):  # guidance begins: the other half has nothing to go by
                assert condition is None
            else:
                assert torch.equal(condition, before[-len(made) :])
    assert [len(one) for one in predicted] == ([4, 4, 4, 4] if interval is None else [2, 4, 2, 2])


def test_a_checkpoints_defaults_hold_as_far_as_they_mean_something(pipe):
    own = {"prior_num_inference_steps": 3, "prior_guidance_interval": [0.2, 5], "prior_options": {"components": 2}}
    asking = UnCLIPPipeline(**pipe.components | {"sampling_defaults": own})
    asking.set_progress_bar_config(disable=True)
    assert torch.equal(run(asking).image_embeds, run(pipe, prior_options={"components": 2}).image_embeds)
    assert torch.equal(run(asking, prior_options={"components": 5}).image_embeds, run(pipe).image_embeds)
    asking.prior = one_step().double()
    run(asking)  # which has no option at all


def test_the_nearest_of_several_samples_is_decoded(pipe):
    cond = pipe.encode_text(CAPTIONS)
    drawn = pipe.sample_prior(cond.repeat(3), generator=seeded()).view(2, 3, -1)
    near = cosine_similarity(drawn, cond.text_embed[:, None], dim=-1)
    made = run(pipe, CAPTIONS, num_prior_samples=3)
    assert near.std(dim=1).min() > 0
    assert_close(made.scores, near.max(dim=1).values.float())
    assert_close(made.image_embeds, drawn[torch.arange(2), near.argmax(dim=1)])


def test_a_batch_equals_its_rows_one_by_one(pipe):
    options = {"prior_options": {"guidance_scale": 2.0}, "num_images_per_prompt": 2}
    both = run(pipe, CAPTIONS, generator=[seeded(i) for i in range(4)], **options)
    second = run(pipe, CAPTIONS[1], generator=[seeded(2), seeded(3)], **options)
    assert_close(both.images[2:], second.images, atol=1e-8, rtol=0)


def test_a_one_step_prior_needs_no_scheduler(parts):
    pipe = tiny.in_float64(UnCLIPPipeline(**parts | {"prior": one_step()}))
    expected = pipe.prior.sample(pipe.encode_text(CAPTIONS), generator=seeded())
    assert_close(run(pipe, CAPTIONS).image_embeds, expected)
    with pytest.raises(ValueError, match="OneStepPrior can be told nothing .*got guidance_scale"):
        run(pipe, prior_guidance_scale=2.0)


def test_the_stage_and_the_progress_bar_name_the_prior(parts, capsys):
    pipe = tiny.in_float64(UnCLIPPipeline(**parts))
    pipe.set_progress_bar_config(disable=False)
    stages = []
    hook = pipe.prior.register_forward_hook(lambda *_: stages.append(pipe.stage))
    seen = []
    run(pipe, callback_on_step_end=lambda pipe, i, t, kept: seen.append(pipe.stage) or kept)
    hook.remove()
    assert set(stages) == {"prior"} and len(stages) == 1 + COMPONENTS
    assert seen == ["decoder", "super_res"]  # only a diffusion has steps
    assert "prior: 100%" in capsys.readouterr().err


def test_without_a_prior_the_message_asks_for_no_scheduler(parts):
    pipe = UnCLIPPipeline(**{name: part for name, part in parts.items() if name != "prior"})
    with pytest.raises(ValueError, match="needs prior and prior_scheduler"):
        run(pipe)


@pytest.mark.parametrize("make", [autoregressive, one_step])
def test_a_saved_pipeline_loads_again(parts, tmp_path, make):
    UnCLIPPipeline(**parts | {"prior": make()}).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["prior"] == ["unclip_hub", type(make()).__name__]
    assert "prior_scheduler" not in index
    loaded = UnCLIPPipeline.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(loaded.prior) is type(make())
    cond = loaded.encode_text(CAPTIONS)
    expected = make().double().sample(cond, generator=seeded())
    assert_close(loaded.sample_prior(cond, generator=seeded()), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [autoregressive, one_step])
def test_half_precision_makes_finite_embeddings_in_float32(parts, make, dtype):
    pipe = UnCLIPPipeline(**{name: copy.deepcopy(part) for name, part in parts.items()} | {"prior": make()})
    pipe.set_progress_bar_config(disable=True)
    made = run(pipe.to(dtype), prior_guidance_scale=None if make is one_step else 2.0)
    assert made.images.isfinite().all() and made.image_embeds.dtype == torch.float32


@pytest.mark.parametrize("level", ["leaf_level", "block_level"])
def test_group_offload_changes_nothing(parts, pipe, level):
    offloaded = tiny.in_float64(UnCLIPPipeline(**parts))
    offloaded.enable_group_offload(CPU, CPU, offload_type=level, num_blocks_per_group=1)
    options = {"prior_guidance_scale": 2.0}
    assert_close(run(offloaded, **options).image_embeds, run(pipe, **options).image_embeds)


def test_model_offload_changes_nothing(parts, pipe):
    offloaded = tiny.in_float64(UnCLIPPipeline(**parts))
    offloaded.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert_close(run(offloaded).image_embeds, run(pipe).image_embeds)


@pytest.mark.parametrize("make", [autoregressive, one_step])
def test_sequential_offload_fetches_what_sampling_needs(parts, make):
    """The hooks that ``enable_sequential_cpu_offload`` sets; itself it needs an accelerator."""
    pipe = tiny.in_float64(UnCLIPPipeline(**parts | {"prior": make()}))
    cond, null = pipe.encode_text(CAPTIONS), pipe.encode_text("")
    expected = pipe.sample_prior(cond, null, generator=seeded())
    accelerate.cpu_offload(pipe.prior, CPU, offload_buffers=True)
    assert all(tensor.is_meta for tensor in pipe.prior.state_dict().values())
    assert_close(pipe.sample_prior(cond, null, generator=seeded()), expected)
    assert all(tensor.is_meta for tensor in pipe.prior.state_dict().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "switch", ["enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"]
)
def test_offload_to_a_gpu_makes_what_the_gpu_makes(parts, switch):
    expected = run(tiny.in_float64(UnCLIPPipeline(**parts)).to("cuda"), prior_guidance_scale=2.0)
    pipe = tiny.in_float64(UnCLIPPipeline(**parts))
    options = {"onload_device": torch.device("cuda"), "offload_type": "block_level", "num_blocks_per_group": 1}
    getattr(pipe, switch)(**options if switch == "enable_group_offload" else {})
    made = run(pipe, prior_guidance_scale=2.0)
    assert_close(made.image_embeds, expected.image_embeds)
    assert_close(made.images, expected.images, atol=1e-6, rtol=0)


def test_its_class_is_public():
    assert unclip_hub.AutoregressivePrior is AutoregressivePrior
