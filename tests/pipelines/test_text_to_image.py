"""What a user of the text-to-image pipeline relies on, with tiny real components in two layouts."""

import json
import re

import diffusers
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from pipelines import tiny
from torch.testing import assert_close

import unclip_hub
from unclip_hub import Conditioning, UnCLIPPipeline
from unclip_hub.pipelines.captions import tokenize


STEPS = {"prior_num_inference_steps": 3, "decoder_num_inference_steps": 3, "super_res_num_inference_steps": 2}


@pytest.fixture(scope="module", params=["karlo", "bundled"])
def pipe(request):
    made = UnCLIPPipeline(**tiny.components(karlo=request.param == "karlo"))
    made.set_progress_bar_config(disable=True)
    return made


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, prompt="a red circle", *, seed=0, **options):
    options = STEPS | {"generator": seeded(seed), "output_type": "pt"} | options
    return pipe(prompt, **options)


def test_same_seed_same_picture_other_seed_another(pipe):
    first, again, other = run(pipe).images, run(pipe).images, run(pipe, seed=1).images
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 1e-2


def test_shapes_and_ranges_of_everything_returned(pipe):
    made = run(pipe, ["a house", "two cats"], num_images_per_prompt=3)
    assert made.images.shape == (6, 3, 32, 32)
    assert made.small_images.shape == (6, 3, 16, 16)
    assert made.image_embeds.shape == (6, tiny.WIDTH)
    assert made.images.min() >= 0 and made.images.max() <= 1


def test_captions_are_read_to_their_ends_only_and_as_if_alone(pipe):
    captions, lengths = ["a house", "two green cats at night"], []
    watch = pipe.text_encoder.register_forward_pre_hook(lambda network, tokens: lengths.append(tokens[0].shape[1]))
    with torch.no_grad():
        short, both = pipe.encode_text(captions[0]), pipe.encode_text(captions)
        whole = pipe.text_encoder(tokenize(pipe.tokenizer, captions, length=tiny.CONTEXT)[0])
    watch.remove()
    assert lengths[0] < lengths[1] < lengths[2] == tiny.CONTEXT
    assert both.text_states.shape == whole.last_hidden_state.shape
    assert_close(both.text_embed, whole.text_embeds)
    assert_close(both.text_states[both.text_mask], whole.last_hidden_state[both.text_mask])
    assert not both.text_states[~both.text_mask].any()
    for name in ("text_embed", "text_states", "text_mask"):
        assert_close(getattr(both, name)[:1], getattr(short, name))


def test_output_types_hold_the_same_picture(pipe):
    tensor, array, pictures = (run(pipe, output_type=kind).images for kind in ("pt", "np", "pil"))
    assert isinstance(array, np.ndarray) and array.shape == (1, 32, 32, 3)
    assert isinstance(pictures[0], Image.Image) and pictures[0].size == (32, 32)
    assert_close(tensor.permute(0, 2, 3, 1), torch.from_numpy(array))
    assert_close(np.asarray(pictures[0]) / 255, array[0].astype(np.float64), atol=1 / 255, rtol=0)


def test_tuple_and_output_object_agree(pipe):
    made, (images, embeds, small) = run(pipe), run(pipe, return_dict=False)
    assert torch.equal(made.images, images)
    assert torch.equal(made.image_embeds, embeds)
    assert torch.equal(made.small_images, small)


def test_a_generator_per_picture_gives_the_same_pictures_alone_and_in_a_batch(pipe):
    pipe = tiny.in_float64(pipe)
    captions = ["a house", "two green cats at night", "a red circle"]
    batch = run(pipe, captions, generator=[seeded(5 + i) for i in range(3)]).images
    for i, caption in enumerate(captions):
        alone = run(pipe, caption, generator=[seeded(5 + i)]).images
        assert_close(batch[i : i + 1], alone, atol=1e-8, rtol=0)


def test_pictures_of_one_prompt_lie_side_by_side(pipe):
    generators = [seeded(i) for i in range(4)]
    both = run(pipe, ["a house", "two cats"], num_images_per_prompt=2, generator=generators).images
    second = run(pipe, "two cats", num_images_per_prompt=2, generator=[seeded(2), seeded(3)]).images
    assert_close(both[2:], second, atol=2e-4, rtol=0)


def test_one_step_at_every_stage_is_enough_to_run(pipe):
    made = run(pipe, **dict.fromkeys(STEPS, 1))
    assert made.images.isfinite().all()


@pytest.mark.parametrize("prompt", ["", "word " * 300, "🐨 naïve 北京 \n\t!!", "<|endoftext|>"])
def test_any_text_makes_a_picture(pipe, prompt):
    assert run(pipe, prompt).images.isfinite().all()


def test_what_is_cut_off_a_long_prompt_is_said(pipe, caplog):
    diffusers.utils.logging.enable_propagation()
    run(pipe, "a red circle on a blue square " * 5)
    diffusers.utils.logging.disable_propagation()
    assert "this part of the prompt is ignored: 'circle" in caplog.text or "is ignored:" in caplog.text


def test_words_that_a_small_model_never_read_are_named_once(caplog):
    pipe = UnCLIPPipeline(**tiny.components())
    diffusers.utils.logging.enable_propagation()
    with torch.no_grad():
        pipe.encode_text("a red zzcircle")
        pipe.encode_text(["a red zzcircle at night", "a house"])
    diffusers.utils.logging.disable_propagation()
    assert caplog.text.count("not trained on the word") == 1
    assert "'zzcircle'; it knows circle" in caplog.text


def test_guidance_one_is_the_conditional_pass_whatever_the_negative_prompt(pipe):
    scales = {"prior_guidance_scale": 1.0, "decoder_guidance_scale": 1.0}
    assert torch.equal(run(pipe, **scales).images, run(pipe, negative_prompt="two cats", **scales).images)


def test_negative_prompts_change_the_picture_and_may_be_one_per_prompt(pipe):
    pipe = tiny.in_float64(pipe)
    plain = run(pipe, ["a house", "a house"], generator=[seeded(), seeded()]).images
    one = run(pipe, ["a house", "a house"], generator=[seeded(), seeded()], negative_prompt="two cats").images
    each = run(pipe, ["a house", "a house"], generator=[seeded(), seeded()], negative_prompt=["two cats", ""]).images
    assert (plain - one).abs().max() > 1e-4
    assert_close(each[0], one[0])
    assert_close(each[1], plain[1])


def test_every_condition_matters(pipe):
    """The caption reaches the prior; caption and image embedding each reach the decoder."""
    cond, null = pipe.encode_text("two green cats at night"), pipe.encode_text("")
    embeds = torch.randn(1, tiny.WIDTH, generator=seeded(1))

    def decode(c):
        return pipe.decode(c, num_inference_steps=2, generator=seeded())

    def prior(c):
        return pipe.sample_prior(c, num_inference_steps=2, generator=seeded())

    assert (prior(cond) - prior(null)).abs().max() > 1e-4
    same = decode(cond.with_image(embeds))
    assert (same - decode(null.with_image(embeds))).abs().max() > 1e-5
    assert (same - decode(cond.with_image(-embeds))).abs().max() > 1e-5


def test_intermediates_come_back_in_as_they_went_out(pipe):
    made = run(pipe)
    latents = torch.randn(1, 3, 16, 16, generator=seeded(9))
    big = torch.randn(1, 3, 32, 32, generator=seeded(8))
    full = run(pipe, decoder_latents=latents, super_res_latents=big)
    again = run(pipe, image_embeds=full.image_embeds, decoder_latents=latents, super_res_latents=big, seed=3)
    deterministic = {"prior_num_inference_steps": 1, "decoder_num_inference_steps": 1}
    first = run(pipe, decoder_latents=latents, super_res_latents=big, **deterministic)
    second = run(
        pipe, image_embeds=first.image_embeds, decoder_latents=latents, super_res_latents=big, seed=3, **deterministic
    )
    assert_close(first.small_images, second.small_images)
    assert torch.equal(full.image_embeds, again.image_embeds)
    upsampled = run(pipe, small_images=made.small_images * 2 - 1, super_res_latents=big)
    assert torch.equal(upsampled.small_images, made.small_images) or (
        (upsampled.small_images - made.small_images).abs().max() < 1e-6
    )
    assert upsampled.image_embeds is None


def test_prompt_embeds_replace_the_prompt(pipe):
    embeds = pipe.encode_text(["a red circle"])
    assert isinstance(embeds, Conditioning)
    assert torch.equal(run(pipe, None, prompt_embeds=embeds).images, run(pipe).images)


def test_text_model_output_of_older_code_still_works(pipe):
    embeds = pipe.encode_text(["a red circle"])
    old = {"text_model_output": (embeds.text_embed, embeds.text_states), "text_attention_mask": embeds.text_mask}
    assert torch.equal(run(pipe, None, **old).images, run(pipe).images)


def test_callbacks_see_every_step_of_every_stage_and_may_replace_latents(pipe):
    seen = []

    def callback(self, step, timestep, tensors):
        seen.append((self.stage, step))
        return {"latents": torch.zeros_like(tensors["latents"])} if self.stage == "super_res" else None

    made = run(pipe, callback_on_step_end=callback)
    stages = {"prior": 3, "decoder": 3, "super_res": 2}
    assert seen == [(stage, i) for stage, count in stages.items() for i in range(count)]
    assert_close(made.images, torch.full_like(made.images, 0.5))


def test_progress_bars_name_their_stage(pipe, capsys):
    pipe.set_progress_bar_config(disable=False)
    run(pipe)
    pipe.set_progress_bar_config(disable=True)
    shown = capsys.readouterr().err
    assert all(stage in shown for stage in ("prior:", "decoder:", "super_res:"))


def test_the_checkpoints_own_steps_are_the_default():
    own = {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 3, "super_res_num_inference_steps": 1}
    pipe = UnCLIPPipeline(**tiny.components(), sampling_defaults=own)
    pipe.set_progress_bar_config(disable=True)
    steps = []
    pipe("a house", callback_on_step_end=lambda self, i, t, tensors: steps.append(self.stage))
    assert [steps.count(stage) for stage in ("prior", "decoder", "super_res")] == [2, 3, 1]
    with pytest.raises(ValueError, match="sampling_defaults may hold .* got also \\['steps'\\]"):
        UnCLIPPipeline(**tiny.components(), sampling_defaults={"steps": 3})


def test_without_an_upsampler_the_decoders_picture_is_the_result():
    parts = tiny.components() | {"super_res_first": None, "super_res_last": None, "super_res_scheduler": None}
    pipe = UnCLIPPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    made = run(pipe)
    assert made.images.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="super_res_latents were given"):
        run(pipe, super_res_latents=torch.zeros(1, 3, 32, 32))


def test_a_1024_stage_is_run_when_present():
    larger = tiny.upsampler()
    larger.register_to_config(sample_size=64)
    parts = tiny.components(karlo=False)
    pipe = UnCLIPPipeline(**parts, super_res_1024=larger, super_res_1024_scheduler=parts["super_res_scheduler"])
    pipe.set_progress_bar_config(disable=True)
    assert run(pipe).images.shape == (1, 3, 64, 64)


@pytest.mark.parametrize(("size", "stages"), [(16, 0), (32, 1), (64, 2), (None, 2)])
def test_the_pictures_are_as_large_as_asked(size, stages):
    larger = tiny.upsampler()
    larger.register_to_config(sample_size=64)
    parts = tiny.components(karlo=False)
    pipe = UnCLIPPipeline(**parts, super_res_1024=larger, super_res_1024_scheduler=parts["super_res_scheduler"])
    pipe.set_progress_bar_config(disable=True)
    ran = []
    made = run(pipe, output_size=size, callback_on_step_end=lambda pipe, *_: ran.append(pipe.stage))
    assert made.images.shape[-1] == (size or 64)
    assert set(ran) - {"prior", "decoder"} == set(("super_res", "super_res_1024")[:stages])
    preferring = UnCLIPPipeline(**{**pipe.components, "sampling_defaults": {"output_size": 32}})
    preferring.set_progress_bar_config(disable=True)
    assert run(preferring).images.shape[-1] == 32
    assert run(preferring, output_size=size).images.shape[-1] == (size or 32)


WRONG = [
    ({"output_size": 100}, r"output_size must be one of \[16, 32\], which this checkpoint makes, got 100"),
    ({"prompt": None}, "exactly one of prompt, prompt_embeds and text_model_output, got none"),
    ({"prompt": 3}, "prompt must be a string or a non-empty list of strings, got int"),
    ({"prompt": []}, "prompt must be a string or a non-empty list"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt must be a whole number of at least 1, got 0"),
    ({"decoder_num_inference_steps": -2}, "decoder_num_inference_steps must be a whole number of at least 1, got -2"),
    ({"prior_num_inference_steps": 2.5}, "prior_num_inference_steps must be a whole number"),
    ({"prior_guidance_scale": float("nan")}, "prior_guidance_scale must be a finite number"),
    ({"decoder_guidance_scale": -1.0}, "decoder_guidance_scale must be a finite number of at least 0"),
    ({"decoder_latents": torch.zeros(1, 3, 8, 16)}, r"decoder_latents must be \(1, 3, 16, 16\), got \(1, 3, 8, 16\)"),
    ({"prior_latents": torch.zeros(2, 32)}, r"prior_latents must be \(1, 32\), got \(2, 32\)"),
    ({"image_embeds": torch.zeros(1, 31)}, r"image_embeds must be \(1, 32\), got \(1, 31\)"),
    ({"small_images": np.zeros((1, 3, 16, 16))}, "small_images must be a tensor .* got ndarray"),
    ({"generator": [torch.Generator()] * 2}, "a list of 1, one per picture, got 2"),
    ({"output_type": "latent"}, "output_type must be one of .* got 'latent'"),
    ({"negative_prompt": ["a", "b"]}, "expected one negative prompt or 1, one per prompt, got 2"),
    ({"prompt_embeds": torch.zeros(1, 32), "prompt": None}, "prompt_embeds must be a Conditioning"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "may hold"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_nonsense_is_refused_before_anything_is_computed(pipe, options, message, monkeypatch):
    monkeypatch.setattr(type(pipe), "encode_text", lambda *_: pytest.fail("computed before checking"))
    arguments = {"prompt": "a house"} | options
    # where signatures are checked (make test), a wrong type is refused by them
    with pytest.raises((ValueError, TypeCheckError)) as caught:
        run(pipe, **arguments)
    assert isinstance(caught.value, TypeCheckError) or re.search(message, str(caught.value))


def test_save_and_reload_gives_the_same_pictures(pipe, tmp_path):
    pipe = tiny.in_float64(pipe)
    pipe.save_pretrained(tmp_path)
    reloaded = UnCLIPPipeline.from_pretrained(tmp_path, dtype=torch.float64)
    reloaded.set_progress_bar_config(disable=True)
    assert type(reloaded.prior) is unclip_hub.PriorTransformer
    assert_close(run(reloaded).images, run(pipe).images, atol=1e-8, rtol=0)


def test_the_index_names_classes_as_karlos_repository_does(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "UnCLIPPipeline"
    assert index["prior"] == ["diffusers", "PriorTransformer"]
    assert index["decoder"] == ["diffusers", "UNet2DConditionModel"]
    assert index["super_res_first"] == ["diffusers", "UNet2DModel"]
    assert index["text_proj"] == ["unclip", "UnCLIPTextProjModel"]
    assert index["prior_scheduler"] == ["diffusers", "UnCLIPScheduler"]
    assert "super_res_1024" not in index


@pytest.mark.parametrize("stage", ["prior", "decoder", "super_res"])
def test_other_schedulers_plug_into_every_stage(pipe, stage):
    parts = dict(pipe.components)
    scheduler = parts[f"{stage}_scheduler"]
    parts[f"{stage}_scheduler"] = diffusers.DPMSolverMultistepScheduler.from_config(
        scheduler.config, variance_type=None, timestep_spacing="trailing"
    )
    swapped = UnCLIPPipeline(**parts)
    swapped.set_progress_bar_config(disable=True)
    assert run(swapped).images.isfinite().all()


def test_model_offload_gives_the_same_picture(pipe):
    parts = tiny.components(karlo=pipe.super_res_last is not None)
    offloaded = UnCLIPPipeline(**parts)
    offloaded.set_progress_bar_config(disable=True)
    before = run(offloaded).images
    offloaded.enable_model_cpu_offload(device="cpu")
    assert_close(run(offloaded).images, before)


def test_bfloat16_runs_on_a_cpu():
    pipe = UnCLIPPipeline(**tiny.components()).to(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    assert run(pipe).images.isfinite().all()


def test_the_verbs_are_differentiable():
    pipe = UnCLIPPipeline(**tiny.components(karlo=False))
    pipe.set_progress_bar_config(disable=True)
    embeds = torch.randn(1, tiny.WIDTH, requires_grad=True)
    picture = pipe.decode(pipe.encode_text("a house").with_image(embeds), num_inference_steps=1, generator=seeded())
    picture.square().sum().backward()
    assert embeds.grad.abs().max() > 0
