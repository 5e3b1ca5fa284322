"""Karlo's own numbers: every network, and the chain on recorded noise, from a checkpoint in diffusers' format."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

import unclip_hub.schedulers.unclip
from unclip_hub import Conditioning, UnCLIPPipeline, UnCLIPScheduler
from unclip_hub.models.loading import CLIPVisionModelWithProjection


pytestmark = pytest.mark.golden
KARLO = Path(__file__).parents[1] / "golden" / "karlo"
STAGES = {"prior": "prior", "decoder": "decoder", "super_res": "sr"}
STEPS = {"prior_num_inference_steps": 25, "decoder_num_inference_steps": 25, "super_res_num_inference_steps": 7}
SCALES = {"prior_guidance_scale": 4.0, "decoder_guidance_scale": 8.0}


@pytest.fixture(scope="module")
def pipe():
    loaded = UnCLIPPipeline.from_pretrained(KARLO)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def given():
    return load_file(KARLO / "inputs.safetensors")


@pytest.fixture(scope="module")
def expected():
    return load_file(KARLO / "expected_outputs.safetensors")


@pytest.fixture(scope="module")
def original():
    return load_file(KARLO / "original_trajectory.safetensors")


@pytest.fixture
def recorded(given, monkeypatch):
    """Let the schedulers draw the recorded noise, in its order; the noise that a stage starts from is returned."""

    def replay(*stages):
        starts, queue = {}, []
        for stage in stages:
            name = STAGES[stage]
            starts[f"{stage}_latents"] = given[f"{name}.sample.init_noise"]
            queue += given[f"{name}.sample.step_noise"][:-1]  # the last step draws none
        draws = iter(queue)
        monkeypatch.setattr(unclip_hub.schedulers.unclip, "randn_tensor", lambda shape, **_: next(draws).view(shape))
        return starts

    return replay


def captions(expected, given, rows):
    return Conditioning(expected["clip.text_embeds"][rows], expected["clip.text_hidden"][rows], given["mask"][rows])


@pytest.fixture
def cond(expected, given):
    return captions(expected, given, slice(0, 2))


@pytest.fixture
def null(expected, given):
    return captions(expected, given, slice(2, 4))


def close(got, wanted, tolerance):
    assert_close(got, wanted, atol=tolerance, rtol=0)


@torch.no_grad()
def test_the_encoders(pipe, given, expected):
    text = pipe.text_encoder(given["tokens"].long())
    close(text.text_embeds, expected["clip.text_embeds"], 1e-4)
    close(text.last_hidden_state, expected["clip.text_hidden"], 1e-4)
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(KARLO / "image_encoder")
    close(image_encoder(given["clip.image"]).image_embeds, expected["clip.image_embeds"], 1e-4)


@torch.no_grad()
def test_the_prior(pipe, given, expected):
    for t in (0, 1, 437, 999):
        got = pipe.prior(
            given["prior.x"],
            t,
            proj_embedding=expected["clip.text_embeds"],
            encoder_hidden_states=expected["clip.text_hidden"],
            attention_mask=given["mask"],
        ).predicted_image_embedding
        close(got, expected[f"prior.out.t{t}"], 1e-4)


@torch.no_grad()
def test_the_decoder_with_its_conditioning(pipe, given, expected):
    proj = pipe.text_proj
    nothing = proj.learned_classifier_free_guidance_embeddings.expand_as(given["decoder.image_embeds"])
    states, time = proj(
        image_embeddings=torch.cat([given["decoder.image_embeds"], nothing]),
        prompt_embeds=expected["clip.text_embeds"],
        text_encoder_hidden_states=expected["clip.text_hidden"],
        do_classifier_free_guidance=False,
    )
    mask = torch.nn.functional.pad(given["mask"], (proj.config.clip_extra_context_tokens, 0), value=True)
    for t in (0, 250, 999):
        got = pipe.decoder(given["decoder.x"], t, states, class_labels=time, attention_mask=mask).sample
        close(got, expected[f"decoder.out.t{t}"], 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("which", ["first", "last"])
def test_the_upsamplers(pipe, given, expected, which):
    network = getattr(pipe, f"super_res_{which}")
    for t in (0, 333, 999):
        got = network(torch.cat([given["sr.x"], given["sr.low_res"]], dim=1), t).sample
        close(got, expected[f"sr.{which}.out.t{t}"], 1e-4)


def test_the_pipeline_as_published(pipe, recorded, expected, cond, null):
    starts = recorded("prior", "decoder", "super_res")
    made = pipe(prompt_embeds=cond, negative_prompt_embeds=null, output_type="pt", **starts, **STEPS, **SCALES)
    close(made.image_embeds, expected["pipeline.image_embeds"], 1e-3)
    close(made.images, expected["pipeline.image_0_1"], 1e-3)


def test_the_pipeline_as_karlos_own_code_runs_it(pipe, recorded, original, cond, null):
    parts = dict(pipe.components)
    parts["prior_scheduler"] = UnCLIPScheduler.from_config(pipe.prior_scheduler.config, clip_sample_range=10.0)
    unclipped = UnCLIPPipeline(**parts)
    unclipped.set_progress_bar_config(disable=True)
    starts = recorded("prior", "decoder", "super_res")
    made = unclipped(prompt_embeds=cond, negative_prompt_embeds=null, output_type="pt", **starts, **STEPS, **SCALES)
    close(made.image_embeds, original["prior.image_embeds"], 1e-3)
    close(made.small_images * 2 - 1, original["decoder.image"], 1e-3)
    close(made.images, original["final_image_0_1"], 2e-3)
    for stage in STAGES:
        timesteps = getattr(unclipped, f"{stage}_scheduler").timesteps
        assert timesteps.tolist() == original[f"{stage}.timesteps"].tolist()


@torch.no_grad()
def test_each_stage_of_karlos_own_code_from_the_recorded_one_before(pipe, recorded, original, cond, null):
    start = recorded("decoder")["decoder_latents"]
    images = pipe.decode(
        cond.with_image(original["prior.image_embeds"]),
        null,
        num_inference_steps=25,
        guidance_scale=8.0,
        latents=start,
    )
    close(images, original["decoder.image"], 1e-3)
    start = recorded("super_res")["super_res_latents"]
    images = pipe.upsample(original["decoder.image"], num_inference_steps=7, latents=start)
    close(images, original["super_res.image"].clamp(-1, 1), 1e-3)
