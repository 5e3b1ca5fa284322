"""DALLE2-pytorch's own numbers, from its own files of three releases, and what its other containers hold."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from containers import read_container
from conversion.dalle2_pytorch_outputs import Cascade, Prior
from convert_dalle2_pytorch import convert, main
from dalle2_pytorch_files import STUBS, read_decoder, read_prior
from dalle2_pytorch_prior import prior_config, prior_scheduler_config
from dalle2_pytorch_release import of_decoder, of_prior, parse
from dalle2_pytorch_unet import projection_config, unet_config
from safetensors.torch import load_file
from torch.testing import assert_close

from unclip_hub.models.dalle2_pytorch_prior import DALLE2PytorchPrior
from unclip_hub.models.dalle2_pytorch_projection import DALLE2PytorchProjection
from unclip_hub.models.dalle2_pytorch_unet import DALLE2PytorchUNet
from unclip_hub.models.expected import expected as expected_tensors


pytestmark = pytest.mark.golden
GOLDEN = Path(__file__).parents[1] / "golden" / "dalle2_pytorch"
STEPS = {"v0_15_4": [12], "v1_0_2": [12], "v1_15_6": [6, 5]}
REAL = json.loads((GOLDEN / "real_size.json").read_text())
releases = pytest.mark.parametrize("release", STEPS)


def given(release):
    return load_file(GOLDEN / release / "inputs.safetensors")


def recorded(release):
    return load_file(GOLDEN / release / "expected_outputs.safetensors")


def save(container, path):
    """The tensors are views of a mapped file, of which torch would save all."""
    torch.save(
        torch.utils._pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, container), path
    )


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for release in STEPS:
        made[release] = tmp_path_factory.mktemp("dalle2") / release
        result = run(GOLDEN / release, "--output", made[release])
        assert result.exit_code == 0, result.output
    return made


@releases
@torch.no_grad()
def test_the_prior(folders, release):
    got, expected = Prior(folders[release], given(release)).outputs(), recorded(release)
    assert set(got) == {name for name in expected if name.startswith("prior.")} - {"prior.ddpm", "prior.ddim"}
    for name in got:
        assert_close(got[name], expected[name], rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("release", "how", "steps"),
    [
        ("v0_15_4", "ddpm", 100),  # it had no other
        pytest.param("v1_0_2", "ddpm", 100, marks=pytest.mark.slow),
        ("v1_0_2", "ddim", 8),
        pytest.param("v1_15_6", "ddpm", 100, marks=pytest.mark.slow),
        ("v1_15_6", "ddim", 8),
    ],
)
@torch.no_grad()
def test_the_prior_samples(folders, release, how, steps):
    prior = Prior(folders[release], given(release))
    scaled = prior.sample(f"prior.{how}", steps=steps, forgets_its_mask=release == "v0_15_4")
    got = (
        prior.network.post_process_latents(scaled) if release == "v1_15_6" else scaled
    )  # older ones returned it scaled
    assert_close(got, recorded(release)[f"prior.{how}"], rtol=0, atol=1e-3)


@releases
@torch.no_grad()
def test_the_unets(folders, release):
    expected = {name: value for name, value in recorded(release).items() if name.startswith("unet")}
    got = Cascade(folders[release], given(release), STEPS[release]).outputs(list(expected))
    for name in expected:
        assert_close(got[name], expected[name], rtol=0, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


@releases
@torch.no_grad()
def test_the_decoder_samples(folders, release):
    cascade, expected = Cascade(folders[release], given(release), STEPS[release]), recorded(release)
    got = cascade.sample("decoder.sample", stages=len(STEPS[release]))
    assert_close(got, expected["decoder.sample.image_0_1"], rtol=0, atol=1e-3)
    if release == "v1_15_6":
        got = cascade.sample("decoder.stage1", stages=1)
        assert_close(got, expected["decoder.sample.stage1_0_1"], rtol=0, atol=1e-3)


@releases
def test_every_key_has_a_fate_and_the_index_names_the_components(folders, release):
    report = json.loads((folders[release] / "conversion_report.json").read_text())
    for file, entry in report["files"].items():
        read = read_prior if "prior" in file else read_decoder
        assert set(entry["keys"]) == set(read(GOLDEN / release / file).state)
    index = json.loads((folders[release] / "model_index.json").read_text())
    assert index["prior"] == ["unclip_hub", "DALLE2PytorchPrior"]
    assert index["text_proj"] == ["unclip_hub", "DALLE2PytorchProjection"]
    assert ("super_res_first" in index) == (release == "v1_15_6")
    steps = index["sampling_defaults"]
    expected = {"v0_15_4": (100, 12), "v1_0_2": (8, 12), "v1_15_6": (8, 6)}[release]
    assert (steps["prior_num_inference_steps"], steps["decoder_num_inference_steps"]) == expected


def test_a_release_that_no_file_names_must_be_given(tmp_path):
    shutil.copy(GOLDEN / "v1_0_2" / "prior_latest.pth", tmp_path)
    refused = run(tmp_path, "--output", tmp_path / "out")
    assert refused.exit_code == 1 and "--version" in refused.output and "fit several releases" in refused.output
    assert not (tmp_path / "out").exists()
    for version, cosine, bias in (("1.0.2", False, 128), ("1.8.0", True, 1)):
        made = run(tmp_path, "--output", tmp_path / version, "--version", version)
        assert made.exit_code == 0, made.output
        config = DALLE2PytorchPrior.from_pretrained(tmp_path / version, subfolder="prior").config
        assert (config["cosine_attention"], config["relative_bias_scale"]) == (cosine, bias)
        assert not (tmp_path / version / "model_index.json").exists()  # without a decoder it is no pipeline's folder
    assert "got 'new'" in run(tmp_path, "--output", tmp_path / "c", "--version", "new").output


def test_a_bare_decoder_needs_its_picture_size(tmp_path):
    shutil.copy(GOLDEN / "v0_15_4" / "decoder_latest.pth", tmp_path)
    refused = run(tmp_path, "--output", tmp_path / "out")
    assert refused.exit_code == 1 and "--image-size 64 gives it" in refused.output
    made = run(tmp_path, "--output", tmp_path / "out", "--image-size", "16")
    assert made.exit_code == 0 and "DALLE2-pytorch's defaults" in made.output, made.output
    assert DALLE2PytorchUNet.from_pretrained(tmp_path / "out", subfolder="decoder").config["sample_size"] == 16


def test_moving_averages_are_preferred(tmp_path):
    found = read_decoder(GOLDEN / "v1_15_6" / "decoder_model.pth")
    unets = {key: value for key, value in found.state.items() if key.startswith("unets.")}
    averages = {f"{key[6]}.ema_model.{key[8:]}": value for key, value in unets.items()}
    averages |= {f"{key[6]}.online_model.{key[8:]}": value + 1 for key, value in unets.items()}
    averages |= {"0.initted": torch.tensor([True]), "0.step": torch.tensor([3])}
    trained = {key: value + (key in unets) for key, value in found.state.items()}
    save({"model": trained, "version": "1.15.6", "ema": averages}, tmp_path / "decoder_checkpoint.pth")
    assert_close(read_decoder(tmp_path / "decoder_checkpoint.pth").state, found.state, rtol=0, atol=0)
    save({"model": trained, "version": "1.15.6"}, tmp_path / "plain.pth")
    assert_close(read_decoder(tmp_path / "plain.pth").state, trained, rtol=0, atol=0)

    both = read_container(GOLDEN / "v0_15_4" / "prior_aes_finetune.pth", stubs=STUBS)
    prior = read_prior(GOLDEN / "v0_15_4" / "prior_aes_finetune.pth")
    assert_close(prior.state, both["ema_model"], rtol=0, atol=0)
    assert any((both["model"][key] != value).any() for key, value in prior.state.items())
    save({"model": both["model"], "ema": both["ema"]}, tmp_path / "ema855M.pth")
    assert_close(read_prior(tmp_path / "ema855M.pth").state, prior.state, rtol=0, atol=0)


def test_a_file_with_both_networks(tmp_path, folders):
    """As the `dream` command takes them, with live modules beside the tensors."""
    parts = {
        f"{kind}.{key}": value
        for kind, found in (
            ("prior", read_prior(GOLDEN / "v1_15_6" / "prior_checkpoint.pth")),
            ("decoder", read_decoder(GOLDEN / "v1_15_6" / "decoder_model.pth")),
        )
        for key, value in found.state.items()
    }
    options = {
        "prior": {"net": torch.nn.Linear(2, 3), "sample_timesteps": 8},
        "decoder": {"unet": (torch.nn.Conv2d(2, 3, 1),), "sample_timesteps": [6, 5], "image_sizes": [16, 32]},
    }
    save({"version": "1.15.6", "init_params": options, "model_params": parts}, tmp_path / "dalle2.pt")
    made = run(tmp_path, "--output", tmp_path / "out")
    assert made.exit_code == 0, made.output
    for component in ("prior", "decoder", "text_proj", "super_res_first"):
        both = [
            load_file(p / component / "diffusion_pytorch_model.safetensors")
            for p in (tmp_path / "out", folders["v1_15_6"])
        ]
        assert_close(*both, rtol=0, atol=0)
        configs = [
            json.loads((p / component / "config.json").read_text()) for p in (tmp_path / "out", folders["v1_15_6"])
        ]
        assert configs[0] == configs[1]
    report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert set(report["files"]["dalle2.pt"]["keys"]) == set(parts)
    assert set(convert(parts)) == {"prior", "decoder", "text_proj", "super_res_first"}


def test_other_networks_files_are_refused(tmp_path):
    shutil.copy(GOLDEN / "v1_15_6" / "decoder_model.pth", tmp_path / "prior.pth")
    refused = run(tmp_path, "--output", tmp_path / "out")
    assert refused.exit_code == 1 and "prior.pth holds another network: it has no net.learned_query" in refused.output
    (tmp_path / "prior.pth").unlink()
    assert "no file prior_checkpoint.pth or" in run(tmp_path, "--output", tmp_path / "out").output
    assert not (tmp_path / "out").exists()


def decoder(**changes):
    found = read_decoder(GOLDEN / "v1_15_6" / "decoder_model.pth")
    return found.state | changes, dict(found.options)


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        ("unets.0.upsample_combiner.fmap_convs.0.project.weight", (8, 8, 3, 3), "combine_upsample_fmaps=True"),
        ("unets.1.to_image_hiddens.0.weight", (32, 32), "cond_dim=8, equal to image_embed_dim"),
    ],
)
def test_an_option_that_the_network_does_not_have(key, shape, message):
    state, options = decoder(**{key: torch.zeros(shape)})
    with pytest.raises(ValueError, match=message):
        unet_config(state, int(key[6]), options, release=(1, 15, 6))


def test_other_unsupported_options():
    state, options = decoder()
    for name in ("mid_attn.fn.fn.null_kv", "to_image_hiddens.0.weight"):
        less = {key: value for key, value in state.items() if key != f"unets.0.{name}"}
        with pytest.raises(ValueError, match="attend_at_middle=False|add_image_embeds_to_time=False"):
            unet_config(less, 0, options, release=(1, 15, 6))
    with pytest.raises(ValueError, match="vae is not supported"):
        convert(state | {"vaes.0.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a decoder of DALLE2-pytorch: it has keys that are not known, lost"):
        convert(state | {"lost": torch.zeros(1)})
    prior = read_prior(GOLDEN / "v1_15_6" / "prior_checkpoint.pth").state
    for name, value in (("init_image_embed_l2norm", True), ("beta_schedule", "jsd")):
        with pytest.raises(ValueError, match=f"the option {name}={value!r}"):
            prior_scheduler_config(prior, {name: value}, release=(1, 15, 6))
    with pytest.raises(ValueError, match="self_cond=True"):
        prior_config(prior, {"net": {"self_cond": True}}, release=(1, 9))
    shifted = read_prior(GOLDEN / "v0_15_4" / "prior_aes_finetune.pth").state
    key = "net.causal_transformer.norm.beta"
    with pytest.raises(ValueError, match=f"{key} must be zeros"):
        convert(shifted | {key: torch.ones_like(shifted[key])})


@pytest.mark.parametrize("name", REAL)
def test_the_real_sizes(name):
    state = {key: torch.empty(shape, device="meta") for key, shape in REAL[name].items()}
    version, kind = (
        name.removeprefix("v").split("_prior")[0].split("_decoder")[0],
        "prior" if "prior" in name else "decoder",
    )
    release = parse(version.replace("_", "."))
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    assert (of_prior(state) if kind == "prior" else of_decoder(shapes)) == (None if version == "1_0_2" else release)
    made = convert(state)
    networks = {"prior": (DALLE2PytorchPrior, prior_config)} if kind == "prior" else {}
    if kind == "decoder":
        networks["decoder"] = (
            DALLE2PytorchUNet,
            lambda state, options, release: unet_config(state, 0, options, release=release),
        )
        networks["text_proj"] = DALLE2PytorchProjection, lambda state, options, release: projection_config(state, 0)
    assert set(made) == set(networks)
    for component, (cls, config) in networks.items():
        shapes, _ = expected_tensors(cls, config(state, {}, release=release))
        assert {key: tuple(tensor.shape) for key, tensor in made[component].items()} == shapes
