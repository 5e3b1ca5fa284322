"""ECLIPSE's own numbers, from its own folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from convert_eclipse import convert, main
from safetensors.torch import load_file
from torch.testing import assert_close

from unclip_hub.models.expected import expected as expected_tensors
from unclip_hub.models.one_step_prior import OneStepPrior
from unclip_hub.models.prior_transformer import PriorTransformer


pytestmark = pytest.mark.golden
ECLIPSE = Path(__file__).parents[1] / "golden" / "eclipse"
WEIGHTS = "diffusion_pytorch_model.safetensors"
REAL = json.loads((ECLIPSE / "real_size.json").read_text())


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("eclipse") / "converted"
    result = run(ECLIPSE, "--output", made)
    assert result.exit_code == 0, result.output
    return made


@torch.no_grad()
@pytest.mark.parametrize("converted", [True, False], ids=["converted", "as it is"])
@pytest.mark.parametrize(
    "name, noise, masked",
    [("out", "noise", True), ("out_other_noise", "noise2", True), ("out_no_mask", "noise", False)],
)
def test_the_prior(folder, converted, name, noise, masked):
    given = load_file(ECLIPSE / "inputs.safetensors")
    prior = OneStepPrior.from_pretrained(folder if converted else ECLIPSE, subfolder="prior")
    got = prior(
        given[noise],
        given["text_embeds"],
        given["text_hidden"],
        attention_mask=given["mask"] if masked else None,
    ).predicted_image_embedding
    assert_close(got, load_file(ECLIPSE / "expected_outputs.safetensors")[name], rtol=0, atol=1e-4)


def test_every_key_has_a_fate(folder):
    fates = json.loads((folder / "conversion_report.json").read_text())["files"][WEIGHTS]["keys"]
    assert fates.keys() == load_file(ECLIPSE / "prior" / WEIGHTS).keys()
    assert {key for key, fate in fates.items() if fate.startswith("dropped")} == {"clip_mean", "clip_std"}


@pytest.mark.parametrize("name", list(REAL))
def test_the_published_sizes(name):
    config, shapes = REAL[name]["config"], REAL[name]["keys"]
    got = convert({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})["prior"]
    wanted, full = expected_tensors(OneStepPrior, {"embedding_dim": config["embedding_dim"]})
    assert {key: tuple(tensor.shape) for key, tensor in got.items()} == wanted
    assert {key: full[key] for key in config} == config


def test_the_folder_of_the_prior_itself_and_single_files(folder, tmp_path):
    prior = ECLIPSE / "prior"
    alone = [prior, "--output", tmp_path / "alone"]
    named = ["--prior", prior / WEIGHTS, "--config", prior / "config.json", "--output", tmp_path / "named"]
    for arguments in (alone, named):
        assert run(*arguments).exit_code == 0
        for name in ("config.json", WEIGHTS):
            assert (arguments[-1] / "prior" / name).read_bytes() == (folder / "prior" / name).read_bytes()


def test_a_prior_with_a_timestep_is_refused(tmp_path):
    made, out = tmp_path / "diffusion", tmp_path / "out"
    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "embedding_dim": 12}
    PriorTransformer(**sizes).save_pretrained(made)
    result = run(made, "--output", out)
    assert "it has a timestep; convert_kandinsky_prior.py converts it" in result.output and not out.exists()
    mixed = tmp_path / "mixed"
    shutil.copytree(ECLIPSE / "prior", mixed)
    shutil.copy(made / "config.json", mixed)
    result = run(mixed, "--output", out)
    assert "config.json is not an ECLIPSE prior's: it has " in result.output and "time_embed_act_fn" in result.output
    assert not out.exists()


def test_a_configuration_that_does_not_fit_is_refused(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ECLIPSE / "prior", source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"num_layers": 3}))
    result = run(source, "--output", tmp_path / "out")
    assert "it lacks transformer_blocks.2." in result.output and not (tmp_path / "out").exists()
