"""Karlo's original files give a folder whose every network and whole chain equal Karlo's own code."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from adm_unet import decoder_config, unet_shape, upsampler_config
from click.testing import CliRunner
from containers import read_state
from convert_karlo import convert, main, prior_config
from export_diffusers import main as export
from folder import REPORT
from safetensors.torch import load_file
from torch.testing import assert_close

from conversion import karlo_outputs
from unclip_hub import (
    PriorTransformer,
    UnCLIPImageVariationPipeline,
    UnCLIPPipeline,
    UnCLIPScheduler,
    UnCLIPTextProjModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from unclip_hub.hub.inspect import inspect
from unclip_hub.models.examine import examine
from unclip_hub.models.expected import expected as expected_tensors


pytestmark = pytest.mark.golden
GOLDEN = Path(__file__).parents[1] / "golden"
ORIGINAL, DIFFUSERS = GOLDEN / "karlo_original", GOLDEN / "karlo"
FLOOR = json.loads((ORIGINAL / "noise_floor.json").read_text())  # float32 against float64 of the original
SHAPES = json.loads((GOLDEN / "original_shapes.json").read_text())
REAL = json.loads((GOLDEN / "real_size_models.json").read_text())
WEIGHTS = {"text_encoder": "model", "image_encoder": "model"}
NETWORKS = ("prior", "decoder", "text_proj", "super_res_first", "super_res_last", "text_encoder", "image_encoder")


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def weights(folder, name):
    return load_file(folder / name / f"{WEIGHTS.get(name, 'diffusion_pytorch_model')}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("karlo") / "converted"
    result = run(main, ORIGINAL, "--output", made)
    assert result.exit_code == 0, result.output
    return made


@pytest.fixture
def pipe(folder):
    loaded = UnCLIPPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def source(tmp_path):
    """The original's files, to be damaged."""
    made = tmp_path / "source"
    shutil.copytree(ORIGINAL, made)
    return made


@pytest.mark.parametrize("part", ["forwards", "trajectory"])
def test_every_output_of_karlos_own_code(pipe, part):
    given = load_file(DIFFUSERS / "inputs.safetensors")
    wanted = load_file(ORIGINAL / "expected_outputs.safetensors")
    got = getattr(karlo_outputs, part)(pipe, given)
    if part == "trajectory":
        got.pop("sr.sample.pred_x0")  # which was not recorded
    assert set(got) == {name for name in wanted if (".sample." in name or "final" in name) == (part == "trajectory")}
    differences = {name: (got[name].double() - wanted[name].double()).abs().max().item() for name in got}
    assert all(difference <= 10 * FLOOR[name] for name, difference in differences.items()), differences


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_and_configurations_are_those_of_diffusers_own_conversion(folder, name):
    got, wanted = weights(folder, name), weights(DIFFUSERS, name)
    assert set(got) == set(wanted)
    for key, value in wanted.items():
        assert_close(got[key].float(), value.float(), rtol=0, atol=0)
    got, wanted = (json.loads((where / name / "config.json").read_text()) for where in (folder, DIFFUSERS))
    aside = {"patch_size", "coordinates", "residual", "self_conditioning", "logit_scale_init_value", "dtype"}
    aside |= {"transformers_version"}  # of whoever wrote it last
    assert {key: value for key, value in got.items() if key not in aside} == {
        key: value for key, value in wanted.items() if key not in aside
    }


def test_schedulers_are_those_of_karlos_own_code(folder):
    def settings(stage):
        config = UnCLIPScheduler.from_pretrained(folder, subfolder=f"{stage}_scheduler").config
        return config.prediction_type, config.variance_type, config.clip_sample_range

    assert settings("prior") == ("sample", "fixed_small_log", 10.0)
    assert settings("decoder") == ("epsilon", "learned_range", 1.0)
    assert settings("super_res") == ("epsilon", "fixed_small_log", 1.0)


def test_the_report_has_every_key_of_every_file(folder):
    files = json.loads((folder / REPORT).read_text())["files"]
    for name in ("prior.ckpt", "decoder.ckpt", "improved_sr.ckpt", "ViT-L-14.pt"):
        assert set(files[name]["keys"]) == set(read_state(ORIGINAL / name))
    assert files["prior.ckpt"]["computed"] == {
        f"prior/clip_{what}": "from ViT-L-14_stats.th" for what in ("mean", "std")
    }


def test_the_doctor_finds_nothing_but_the_missing_tokenizer(folder):
    checkpoint = inspect(folder)
    examine(checkpoint)
    found = [problem for problem in checkpoint.problems if problem.level in ("error", "warning")]
    assert [problem.where for problem in found] == ["tokenizer"]


def test_the_script_runs_from_anywhere(tmp_path):
    script = GOLDEN.parents[1] / "conversion" / "convert_karlo.py"
    ran = subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and "[FOLDER]" in ran.stdout and "--push-to-hub REPO" in ran.stdout, ran.stderr


def test_what_a_trainer_left_beside_the_weights_is_not_looked_at(tmp_path, source):
    state = read_state(source / "prior.ckpt")
    path = tmp_path / "trained.ckpt"
    torch.save({"state_dict": state, "optimizer": torch.optim.AdamW([torch.ones(2)])}, path)
    result = run(main, source, "--prior", path, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_the_same_folder_makes_variations(folder):
    pipe = UnCLIPImageVariationPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0))
    embeds = pipe.encode_image(picture)
    assert embeds.shape == (1, 64) and embeds.std() > 0.1


def test_published_names_flags_and_dtype(tmp_path, source):
    names = {
        "prior.ckpt": "prior-ckpt-step=01000000-of-01000000.ckpt",
        "decoder.ckpt": "decoder-ckpt-step=01000000-of-01000000.ckpt",
        "improved_sr.ckpt": "improved-sr-ckpt-step=1.2M.ckpt",
        "prior.yaml": "prior_1B_vit_l.yaml",
        "decoder.yaml": "decoder_900M_vit_l.yaml",
        "improved_sr.yaml": "improved_sr_64_256_1.4B.yaml",
    }
    for old, new in names.items():
        (source / old).rename(source / new)
    (source / "ViT-L-14.pt").rename(tmp_path / "clip.pt")
    (source / "meta.json").unlink()
    arguments = ("--clip", tmp_path / "clip.pt", "--dtype", "bfloat16")
    result = run(main, source, "--output", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    for name in NETWORKS:
        kept = {key: value.dtype for key, value in weights(tmp_path / "out", name).items()}
        assert {kept.pop(key, torch.float32) for key in ("clip_mean", "clip_std")} == {torch.float32}
        assert set(kept.values()) == {torch.bfloat16}
    assert UNet2DModel.load_config(tmp_path / "out", subfolder="super_res_first")["sample_size"] == 4 * 16
    result = run(main, source, "--output", tmp_path / "small", "--super-res-size", 48, *arguments)
    assert UNet2DModel.load_config(tmp_path / "small", subfolder="super_res_last")["sample_size"] == 48


# back


def test_to_diffusers_and_back_nothing_changes(tmp_path, folder):
    result = run(export, folder, "--output", tmp_path / "theirs")
    assert result.exit_code == 0, result.output
    assert "has no place for them: feature_extractor, image_encoder" in result.output
    index = json.loads((tmp_path / "theirs" / "model_index.json").read_text())
    assert index | {"tokenizer": [None, None]} == json.loads((DIFFUSERS / "model_index.json").read_text())
    for stage in ("prior", "decoder", "super_res"):
        name = f"{stage}_scheduler/scheduler_config.json"
        got, wanted = (json.loads((where / name).read_text()) for where in (tmp_path / "theirs", DIFFUSERS))
        assert set(got) == set(wanted)
    for name in ("prior", "decoder", "super_res_first"):
        got, wanted = (
            json.loads((where / name / "config.json").read_text()) for where in (tmp_path / "theirs", DIFFUSERS)
        )
        assert got == wanted
    UnCLIPPipeline.from_pretrained(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    for name in NETWORKS[:-1]:
        got, wanted = weights(tmp_path / "theirs", name), weights(folder, name)
        again = weights(tmp_path / "ours", name)
        assert set(got) == set(wanted) == set(again)
        for key, value in wanted.items():
            assert got[key].dtype == value.dtype and torch.equal(got[key], value)
            assert torch.equal(again[key], value.float())


def test_the_variation_pipeline_can_be_exported_too(tmp_path, folder):
    result = run(export, folder, "--output", tmp_path / "out", "--pipeline", "UnCLIPImageVariationPipeline")
    assert result.exit_code == 0, result.output
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "UnCLIPImageVariationPipeline" and "prior" not in index
    assert index["feature_extractor"] == ["transformers", "CLIPImageProcessor"]


@pytest.mark.parametrize(
    ("file", "key", "value", "what"),
    [
        ("decoder/config.json", "patch_size", 2, "decoder has a patch_size, diffusers' UNet2DConditionModel has none"),
        (
            "prior_scheduler/scheduler_config.json",
            "prediction_type",
            "v_prediction",
            "prior_scheduler predicts 'v_pred",
        ),
        ("model_index.json", "prior_scheduler", ["diffusers", "DDIMScheduler"], "diffusers 0.37 does not have"),
        ("model_index.json", "super_res_first", [None, None], "needs super_res_first, which this checkpoint does not"),
    ],
)
def test_what_diffusers_cannot_hold_is_not_exported(tmp_path, folder, file, key, value, what):
    shutil.copytree(folder, tmp_path / "changed")
    path = tmp_path / "changed" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    result = run(export, tmp_path / "changed", "--output", tmp_path / "out")
    assert result.exit_code == 1 and what in result.output
    assert not (tmp_path / "out").exists()


# what is wrong with the files


def spoil_and_convert(source, name, change):
    path = source / name
    change(path)
    result = run(main, source, "--output", source.parent / "out")
    assert result.exit_code == 1
    assert not (source.parent / "out").exists()
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("prior.ckpt", lambda path: path.write_bytes(path.read_bytes()[:-1000]), "prior.ckpt is cut short"),
        ("decoder.ckpt", lambda path: path.write_bytes(b""), "decoder.ckpt is empty"),
        ("improved_sr.ckpt", lambda path: path.write_bytes(b"<html>"), "improved_sr.ckpt is a web page"),
        (
            "improved_sr.ckpt",
            lambda path: path.rename(f"{path}.part"),
            "no file improved-sr-ckpt-step=*.ckpt or improved",
        ),
        ("prior.ckpt", lambda path: shutil.copy(ORIGINAL / "decoder.ckpt", path), "prior.ckpt holds Karlo's decoder"),
        ("decoder.ckpt", lambda path: shutil.copy(ORIGINAL / "ViT-L-14.pt", path), "none of Karlo's checkpoints"),
        ("ViT-L-14.pt", lambda path: shutil.copy(ORIGINAL / "prior.ckpt", path), "not a CLIP with two transformers"),
        (
            "ViT-L-14_stats.th",
            lambda path: torch.save([torch.zeros(3)], path),
            "must hold mean and standard deviation",
        ),
        (
            "ViT-L-14_stats.th",
            lambda path: torch.save([torch.ones(3)] * 2, path),
            "another shape in clip_mean (expected",
        ),
        ("prior.yaml", lambda path: path.write_text("just text"), "prior.yaml is not one of Karlo's YAML files"),
        (
            "prior.yaml",
            lambda path: edit(path, "model", "hparams", xf_heads=7),
            "xf_heads must divide the prior's width",
        ),
        (
            "prior.yaml",
            lambda path: edit(path, "model", "hparams", xf_width=96),
            "xf_width is 96, the weights have 64",
        ),
        ("prior.yaml", lambda path: edit(path, "diffusion", predict_xstart=False), "predict_xstart must be True"),
        ("decoder.yaml", lambda path: edit(path, "model", "hparams", channel_mult="1,3"), "the weights have (32, 64)"),
        ("improved_sr.yaml", lambda path: edit(path, "model", "hparams", depth=2), "depth is 2, the weights have 1"),
    ],
)
def test_wrong_files_are_named(source, name, change, what):
    assert what in spoil_and_convert(source, name, change)


def edit(path, *where, **values):
    config = yaml.safe_load(path.read_text())
    part = config
    for key in where:
        part = part[key]
    part.update(values)
    path.write_text(yaml.safe_dump(config))


def test_keys_that_are_too_many_or_too_few():
    for name in ("prior", "decoder", "improved_sr"):
        state = read_state(ORIGINAL / f"{name}.ckpt")
        hparams = yaml.safe_load((ORIGINAL / f"{name}.yaml").read_text())["model"]["hparams"]
        with pytest.raises(ValueError, match="it has keys that are not known, model.extra"):
            convert(state | {"model.extra": torch.zeros(1)}, hparams)
        last = list(state)[-1]
        with pytest.raises(ValueError, match=f"it has no {last}"):
            convert({key: value for key, value in state.items() if key != last}, hparams)


# the published sizes, without their weights


@pytest.mark.parametrize("name", ["karlo_prior", "karlo_decoder", "karlo_improved_sr"])
def test_the_published_sizes(name):
    state = {key: torch.empty(shape, device="meta") for key, shape in SHAPES[name].items()}
    made = convert(state)  # with the published hyper-parameters
    targets = {
        "karlo_prior": {"prior": "karlo_prior"},
        "karlo_decoder": {"decoder": "karlo_decoder", "text_proj": "karlo_text_proj"},
        "karlo_improved_sr": {part: f"karlo_{part}" for part in ("super_res_first", "super_res_last")},
    }[name]
    assert set(made) == set(targets)
    for component, target in targets.items():
        shapes = {key: tuple(tensor.shape) for key, tensor in made[component].items()}
        if component == "prior":
            shapes |= dict.fromkeys(("clip_mean", "clip_std"), (1, 768))
        classes = (PriorTransformer, UNet2DConditionModel, UNet2DModel, UnCLIPTextProjModel)
        cls = {one.__name__: one for one in classes}[REAL[target]["class_name"]]
        assert shapes == expected_tensors(cls, REAL[target]["config"])[0]


def test_the_published_configurations():
    states = {
        name: {key: torch.empty(shape, device="meta") for key, shape in SHAPES[f"karlo_{name}"].items()}
        for name in ("prior", "decoder", "improved_sr")
    }
    decoder = unet_shape(states["decoder"], prefix="model.", what="Karlo's decoder")
    upsampler = unet_shape(states["improved_sr"], prefix="model_last_step.", what="Karlo's upsampler")
    for name, got in {
        "karlo_prior": prior_config(states["prior"], heads=32),
        "karlo_decoder": decoder_config(decoder, sample_size=64, head_dim=64),
        "karlo_super_res_last": upsampler_config(upsampler, sample_size=256),
    }.items():
        published = REAL[name]["config"]
        assert got == {key: published[key] for key in got}
