"""GLIDE's own numbers, from its own files."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from convert_glide import CHANNELS, convert, main, text_config
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file
from torch.testing import assert_close

from unclip_hub.diffusion import as_prediction, cosine_alphas_cumprod, learned_range_std, posterior, predicted_x0
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.expected import expected as expected_tensors
from unclip_hub.models.glide_text import GlideTextEncoder
from unclip_hub.schedulers.unclip import UnCLIPScheduler


pytestmark = pytest.mark.golden
GLIDE = Path(__file__).parents[1] / "golden" / "glide"
GIVEN, EXPECTED = (load_file(GLIDE / f"{name}.safetensors") for name in ("inputs", "expected_outputs"))
SCALE = {"base": 3.0, "base_inpaint": 3.0}
COSINE, LINEAR = cosine_alphas_cumprod(), torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
every_network = pytest.mark.parametrize("name", list(CHANNELS))


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("glide") / "converted"
    result = run(GLIDE, "--output", made)
    assert result.exit_code == 0, result.output
    return made


@pytest.fixture(scope="module")
def load(folder):
    """A network as a function of the noisy image and the timestep, its conditions bound as OpenAI's code does."""

    def bound(name):
        network = UNet2DConditionModel.from_pretrained(folder, subfolder=name)
        text_encoder = GlideTextEncoder.from_pretrained(folder, subfolder=f"{name}_text_encoder")
        rows = 2 if name in SCALE else 1
        states, time = text_encoder(GIVEN["tokens"][:rows], GIVEN["mask"][:rows])

        def predict(x, t):
            extra = [channels.expand(len(x), -1, -1, -1) for channels in beside(name, x.shape[-2:])]
            return network(torch.cat([x, *extra], dim=1), t, states, class_labels=time).sample

        return predict, text_encoder

    return bound


def beside(name, size):
    """What the network sees beside the noisy image."""
    parts = []
    if "inpaint" in name:
        mask = GIVEN[f"{name}.inpaint_mask"]
        parts += [GIVEN[f"{name}.inpaint_image"] * mask, mask]
    if "upsample" in name:
        parts.append(F.interpolate(GIVEN[f"{name}.low_res"], tuple(size), mode="bilinear"))
    return parts


@torch.no_grad()
@every_network
def test_the_text_encoders(load, name):
    states, time = load(name)[1](GIVEN["tokens"], GIVEN["mask"])
    assert_close(states.transpose(1, 2), EXPECTED[f"{name}.text.xf_out"], rtol=0, atol=1e-5)
    assert_close(time, EXPECTED[f"{name}.text.xf_proj"], rtol=0, atol=1e-5)


@torch.no_grad()
@every_network
def test_the_networks(load, name):
    predict, _ = load(name)
    for t in (0, 400, 999):
        assert_close(predict(GIVEN[f"{name}.x"], t), EXPECTED[f"{name}.out.t{t}"], rtol=0, atol=1e-5)


@torch.no_grad()
@every_network
def test_the_trajectories(load, name):
    """OpenAI's samplers step by step, in float64 but for the networks; inpainting keeps the known pixels in x_0."""
    predict, _ = load(name)
    abar = LINEAR if "upsample" in name else COSINE
    x, timesteps = GIVEN[f"{name}.sample.init_noise"].double(), EXPECTED[f"{name}.sample.timesteps"].tolist()
    for i, t in enumerate(timesteps):
        abar_t, abar_s = abar[t].item(), abar[timesteps[i + 1]].item() if i + 1 < len(timesteps) else 1.0
        rows = 2 if name in SCALE else 1
        output = predict(x.float().expand(rows, -1, -1, -1), t).double()
        eps, variance = output[:1, :3], output[:1, 3:]
        if name in SCALE:
            eps = output[1:, :3] + SCALE[name] * (eps - output[1:, :3])
        x0 = predicted_x0(eps, x, abar=abar_t, kind="epsilon")
        if "inpaint" in name:
            x0 = torch.where(GIVEN[f"{name}.inpaint_mask"] > 0, GIVEN[f"{name}.inpaint_image"], x0)
        x0 = x0.clamp(-1, 1)
        if name == "upsample":
            eps = as_prediction(x0, x, abar=abar_t, kind="epsilon")
            x = abar_s**0.5 * x0 + (1 - abar_s) ** 0.5 * eps
        else:
            step = posterior(abar_t, abar_s)
            x = step.x0_coefficient * x0 + step.sample_coefficient * x
            if i + 1 < len(timesteps):
                x = x + learned_range_std(variance, step) * GIVEN[f"{name}.sample.step_noise"][i]
        assert_close(x, EXPECTED[f"{name}.sample.x"][i].double(), rtol=0, atol=1e-4)
    assert_close(x.float(), EXPECTED[f"{name}.sample.image"], rtol=0, atol=1e-4)


def test_the_schedulers(folder):
    for name in CHANNELS:
        schedulers = {"upsample": DDIMScheduler, "upsample_inpaint": DDPMScheduler}
        made = schedulers.get(name, UnCLIPScheduler).from_pretrained(folder, subfolder=f"{name}_scheduler")
        abar = LINEAR if "upsample" in name else COSINE
        assert_close(made.alphas_cumprod.double(), abar, rtol=1e-5, atol=1e-8)
        assert made.config["prediction_type"] == "epsilon" and made.config["clip_sample"]
        assert made.config.get("variance_type") == (None if name == "upsample" else "learned_range")
        if "upsample" not in name:
            made.set_timesteps(10)
            assert made.timesteps.tolist() == EXPECTED[f"{name}.sample.timesteps"].tolist()


@every_network
def test_the_published_sizes(name):
    shapes = json.loads((GLIDE / "real_size.json").read_text())[name]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    converted = convert(state, name=name)
    text = converted[f"{name}_text_encoder"]
    wanted, config = expected_tensors(GlideTextEncoder, text_config(text, heads=8))
    assert {key: tuple(tensor.shape) for key, tensor in text.items()} == wanted
    published = {"attention_head_dim": 64, "num_layers": 16, "vocab_size": 50257, "num_embeddings": 128}
    assert {key: config[key] for key in published} == published
    blocks = ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")
    down = [blocks[i] for i in ((0, 0, 0, 1, 1, 1) if "upsample" in name else (0, 1, 1, 1))]
    wanted, _ = expected_tensors(
        UNet2DConditionModel,
        {
            "in_channels": CHANNELS[name],
            "out_channels": 6,
            "block_out_channels": [192 * i for i in ((1, 1, 2, 2, 4, 4) if "upsample" in name else (1, 2, 3, 4))],
            "layers_per_block": 2 if "upsample" in name else 3,
            "down_block_types": down,
            "up_block_types": [kind.replace("Downsample", "Upsample").replace("Down", "Up") for kind in down[::-1]],
            "attention_head_dim": 64,
            "cross_attention_dim": 512,
            "class_embed_type": "identity",
            "resnet_time_scale_shift": "scale_shift",
        },
    )
    assert {key: tuple(tensor.shape) for key, tensor in converted[name].items()} == wanted


def test_every_key_of_every_file_has_a_fate(folder):
    report = json.loads((folder / "conversion_report.json").read_text())
    for name in CHANNELS:
        state = torch.load(GLIDE / f"{name}.pt", weights_only=True)
        assert report["files"][f"{name}.pt"]["keys"].keys() == state.keys()


def test_one_file_alone_by_its_flag(folder, tmp_path):
    arguments = ["--base", GLIDE / "base.pt", "--options", GLIDE / "options.json", "--output", tmp_path / "one"]
    assert run(*arguments).exit_code == 0
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one" / "base").iterdir())
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (folder / file).read_bytes()
    assert {path.name for path in (tmp_path / "one").iterdir() if path.is_dir()} == {
        "base",
        "base_scheduler",
        "base_text_encoder",
    }


def test_what_is_not_glide_is_refused(tmp_path):
    out, state = tmp_path / "out", torch.load(GLIDE / "base.pt", weights_only=True)
    refused = partial(run, "--output", out)
    options = ["--options", GLIDE / "options.json"]
    result = refused("--upsample", GLIDE / "base.pt", *options)
    assert "this is not GLIDE's upsample: it must take 6 channels, it takes 3" in result.output
    result = refused("--base", GLIDE / "base.pt")
    assert "base.pt has another size than the published networks" in result.output
    assert "no file base.pt or upsample.pt" in refused(tmp_path).output
    torch.save({key: state[key] for key in state if key != "padding_embedding"}, tmp_path / "base.pt")
    assert "it has no padding_embedding" in refused(tmp_path, *options).output
    torch.save(state | {"more": torch.zeros(2)}, tmp_path / "base.pt")
    assert "keys that are not known, more" in refused(tmp_path, *options).output
    (tmp_path / "options.json").write_text(json.dumps({"base": {"num_head_channels": -1, "xf_heads": 2}}))
    assert "must have num_head_channels, a positive number, got -1" in refused(tmp_path).output
    assert not out.exists()
