"""Kandinsky's own numbers, from its own file, and the priors that diffusers' pipelines hold."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from convert_kandinsky_prior import convert, main
from pipelines import tiny
from safetensors.torch import load_file
from torch.testing import assert_close

import unclip_hub.schedulers.unclip
from unclip_hub import PriorTransformer, UnCLIPPipeline, UnCLIPScheduler, denoise, guide
from unclip_hub.models.expected import expected as expected_tensors


pytestmark = pytest.mark.golden
KANDINSKY = Path(__file__).parents[1] / "golden" / "kandinsky21_prior"
GIVEN, EXPECTED = (load_file(KANDINSKY / f"{name}.safetensors") for name in ("inputs", "expected_outputs"))
FILES = ("prior_fp16.ckpt", "ViT-L-14_stats.th", "config.yaml")
REAL = json.loads((KANDINSKY / "real_size.json").read_text())


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def converted(source, output):
    result = run(source, "--output", output)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return converted(KANDINSKY, tmp_path_factory.mktemp("kandinsky") / "converted")


@pytest.fixture(scope="module")
def prior(folder):
    return PriorTransformer.from_pretrained(folder, subfolder="prior")


def conditions(rows):
    return {
        "proj_embedding": GIVEN["text_embeds"][rows],
        "encoder_hidden_states": GIVEN["text_hidden"][rows],
        "attention_mask": GIVEN["mask"][rows],
    }


@torch.no_grad()
def test_the_prior(prior):
    for t in (0, 5, 500, 999):
        got = prior(GIVEN["x"], t, **conditions(slice(None))).predicted_image_embedding
        assert_close(got, EXPECTED[f"prior.out.t{t}"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_trajectory(prior, folder, monkeypatch):
    noise = iter(GIVEN["sample.step_noise"])
    monkeypatch.setattr(unclip_hub.schedulers.unclip, "randn_tensor", lambda *_, **__: next(noise))
    scheduler = UnCLIPScheduler.from_pretrained(folder, subfolder="prior_scheduler")
    scheduler.set_timesteps(25)
    assert scheduler.timesteps.tolist() == EXPECTED["sample.timesteps"].tolist()

    def network(x, t, **condition):
        return prior(x, t, **condition).predicted_image_embedding

    predict = guide(network, conditions(slice(0, 2)), null=conditions(slice(2, 4)), scale=4.0)
    seen = []
    x = denoise(predict, GIVEN["sample.init_noise"], scheduler, on_step=lambda i, t, x: seen.append(x))
    assert_close(torch.stack(seen), EXPECTED["sample.x"], rtol=0, atol=1e-3)
    assert_close(prior.post_process_latents(x), EXPECTED["sample.image_embeds"], rtol=0, atol=1e-3)


def test_the_statistics_are_not_rounded_to_the_weights(prior):
    mean, std = torch.load(KANDINSKY / "ViT-L-14_stats.th", weights_only=True)
    assert_close(prior.clip_mean[0], mean, rtol=0, atol=0)
    assert_close(prior.clip_std[0], std, rtol=0, atol=0)


def test_every_key_has_a_fate(folder):
    report = json.loads((folder / "conversion_report.json").read_text())
    state = torch.load(KANDINSKY / "prior_fp16.ckpt", weights_only=True)
    assert report["files"]["prior_fp16.ckpt"]["keys"].keys() == state.keys()
    assert report["files"]["prior_fp16.ckpt"]["computed"].keys() == {"prior/clip_mean", "prior/clip_std"}


@pytest.mark.parametrize("name", list(REAL))
def test_the_published_sizes(name):
    """2.1's original and diffusers' 2.1 and 2.2 have the keys of our class with its defaults, but for the width."""
    shapes = REAL[name]["keys"] if name.startswith("diffusers") else REAL[name]
    got = convert({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})["prior"]
    config = REAL[name]["config"] if name.startswith("diffusers") else {}
    wanted, _ = expected_tensors(PriorTransformer, config)
    if name == "original_21":
        wanted = {key: shape for key, shape in wanted.items() if key not in ("clip_mean", "clip_std")}
    assert {key: tuple(tensor.shape) for key, tensor in got.items()} == wanted


@pytest.fixture
def diffusers_folder(folder, tmp_path):
    """The same prior as diffusers' pipelines hold one."""
    made = tmp_path / "diffusers"
    shutil.copytree(folder / "prior", made / "prior")
    shutil.copytree(folder / "prior_scheduler", made / "scheduler")
    parts = tiny.components(karlo=False)
    for name, part in {
        "text_encoder": "text_encoder",
        "image_encoder": "image_encoder",
        "tokenizer": "tokenizer",
        "image_processor": "feature_extractor",
    }.items():
        parts[part].save_pretrained(made / name)
    weights = made / "image_encoder" / "model.safetensors"  # older repositories hold the other container
    state = load_file(weights) | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    torch.save(state, made / "image_encoder" / "pytorch_model.bin")
    weights.unlink()
    return made


def test_a_folder_of_diffusers(diffusers_folder, folder, tmp_path):
    made = converted(diffusers_folder, tmp_path / "out")
    index = json.loads((made / "model_index.json").read_text())
    assert index["_class_name"] == "UnCLIPPipeline"
    components = {"prior", "prior_scheduler", "text_encoder", "image_encoder", "tokenizer", "feature_extractor"}
    assert {name for name, value in index.items() if isinstance(value, list)} == components
    weights = "prior/diffusion_pytorch_model.safetensors"
    assert_close(load_file(made / weights), load_file(folder / weights), rtol=0, atol=0)
    text_encoder = load_file(diffusers_folder / "text_encoder" / "model.safetensors")
    assert_close(load_file(made / "text_encoder" / "model.safetensors"), text_encoder, rtol=0, atol=0)
    image_encoder = torch.load(diffusers_folder / "image_encoder" / "pytorch_model.bin", weights_only=True)
    image_encoder.pop("vision_model.embeddings.position_ids")
    assert_close(load_file(made / "image_encoder" / "model.safetensors"), image_encoder, rtol=0, atol=0)
    assert json.loads((made / "prior_scheduler" / "scheduler_config.json").read_text())["clip_sample_range"] == 10.0


def test_the_prior_takes_the_place_of_another_models(tmp_path):
    """Either way round: into another's pipeline, or another's decoder beside it."""
    source, own = tmp_path / "source", tmp_path / "own"
    source.mkdir()
    for name in FILES:
        shutil.copy(KANDINSKY / name, source)
    state = torch.load(source / "prior_fp16.ckpt", weights_only=True)
    positions = state["model.positional_embedding"]  # for as many tokens as the tiny pipeline's
    state["model.positional_embedding"] = torch.cat([positions[:, : tiny.CONTEXT], positions[:, -4:]], dim=1)
    torch.save(state, source / "prior_fp16.ckpt")
    out = converted(source, tmp_path / "out")
    pipe = UnCLIPPipeline(**tiny.components())
    pipe.save_pretrained(own)

    prior = PriorTransformer.from_pretrained(out, subfolder="prior")
    scheduler = UnCLIPScheduler.from_pretrained(out, subfolder="prior_scheduler")
    into = UnCLIPPipeline.from_pretrained(own, prior=prior, prior_scheduler=scheduler)
    others = {name: part for name, part in pipe.components.items() if not name.startswith("prior")}
    beside = UnCLIPPipeline.from_pretrained(out, **others)
    embeds = [
        tiny.in_float64(each)(
            "a house",
            generator=torch.Generator().manual_seed(0),
            prior_num_inference_steps=2,
            decoder_num_inference_steps=1,
            super_res_num_inference_steps=1,
            output_type="pt",
        ).image_embeds
        for each in (into, beside, pipe)
    ]
    assert_close(embeds[0], embeds[1])
    assert (embeds[0] - embeds[2]).abs().max() > 0.1


def test_what_cannot_be_converted_is_refused(diffusers_folder, tmp_path):
    out, source = tmp_path / "out", tmp_path / "source"
    source.mkdir()
    arguments = [source, "--output", out]
    assert "no file prior_fp16.ckpt" in run(*arguments).output
    shutil.copy(KANDINSKY / "prior_fp16.ckpt", source)
    result = run(*arguments, "--statistics", KANDINSKY / "ViT-L-14_stats.th")
    assert "a prior 64 wide (published: 2048) do not tell its heads: give its YAML with --config" in result.output
    shutil.copy(KANDINSKY / "config.yaml", source)
    assert "no file ViT-L-14_stats.th" in run(*arguments).output
    shutil.copy(KANDINSKY / "ViT-L-14_stats.th", source)
    text = (source / "config.yaml").read_text()
    (source / "config.yaml").write_text(text.replace("predict_xstart: true", "predict_xstart: false"))
    assert "diffusion.predict_xstart must be True" in run(*arguments).output
    (source / "config.yaml").write_text(text.replace("xf_heads: 4", "xf_heads: 5"))
    assert "xf_heads must divide the prior's width 64, got 5" in run(*arguments).output
    (source / "config.yaml").write_text("model: 3")
    assert "config.yaml gives no model.hparams.xf_heads" in run(*arguments).output
    (source / "config.yaml").write_text(text)
    state = torch.load(source / "prior_fp16.ckpt", weights_only=True)
    torch.save(state | {"model.padding_embedding": torch.zeros(18, 64)}, source / "prior_fp16.ckpt")
    assert "xf_padding) cannot be converted" in run(*arguments).output
    torch.save(state | {"model.text_enc_proj.weight": torch.zeros(64, 48)}, source / "prior_fp16.ckpt")
    assert "encoder_hidden_states_proj.weight (expected (64, 32), got (64, 48))" in run(*arguments).output
    assert "--config cannot be given" in run(diffusers_folder, "--output", out, "--config", "x.yaml").output
    assert not out.exists()
