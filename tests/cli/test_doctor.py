"""`unclip doctor`: a sound checkpoint is healthy, and every kind of damage is one line and exit code 1."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from huggingface_hub import constants
from pipelines import tiny
from safetensors.torch import load_file, save_file

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.cli import main
from unclip_hub.hub.agreement import REQUIRED, UPSAMPLERS
from unclip_hub.pipelines.base import UnCLIPPipelineBase


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> dict[bool, Path]:
    folders = {karlo: tmp_path_factory.mktemp("saved") for karlo in (True, False)}
    for karlo, folder in folders.items():
        UnCLIPPipeline(**tiny.components(karlo=karlo)).save_pretrained(folder)
    return folders


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to break: Karlo's layout."""
    return shutil.copytree(saved[True], tmp_path / "checkpoint")


def doctor(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def problems(folder: Path, *arguments: str, level: str = "error") -> list[dict]:
    result = doctor(folder, "--json", *arguments)
    assert result.exit_code in (0, 1), result.output
    report = json.loads(result.stdout)
    assert report["healthy"] == (result.exit_code == 0) == all(p["level"] != "error" for p in report["problems"])
    assert all(p["remedy"] for p in report["problems"])
    return [problem for problem in report["problems"] if problem["level"] == level]


def the_error(folder: Path, *arguments: str) -> str:
    """The only error, as the line that is printed."""
    (error,) = problems(folder, *arguments)
    result = doctor(folder, *arguments)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("error: ")]
    assert result.exit_code == 1
    assert line.startswith(f"error: {error['where']}: ") and line.endswith(f" -> {error['remedy']}")
    return line


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("karlo", [True, False])
def test_a_healthy_checkpoint(saved, karlo):
    result = doctor(saved[karlo])
    assert result.exit_code == 0, result.output
    assert "Nothing is wrong. Values were not read" in result.stdout
    assert all(name in result.stdout for name in ("prior ", "PriorTransformer", "unclip as unclip_hub", "float32"))
    variations = "16 px -> 32 px" if not karlo else "no: missing or broken: image_encoder, feature_extractor"
    report = json.loads(doctor(saved[karlo], "--json").stdout)
    assert report["healthy"] and report["problems"] == []
    assert report["can_do"]["text to image"] == "16 px -> 32 px"
    assert report["can_do"]["variations"] == variations
    assert ("learned variance" in report["can_do"]["decoder_scheduler"]) == karlo


@pytest.mark.skipif(not Path(BUNDLED_MODEL).is_dir(), reason="the bundled model is not in this checkout")
def test_the_bundled_model():
    assert problems(Path(BUNDLED_MODEL)) == []


def test_what_is_counted(saved):
    prior = tiny.components()["prior"]
    counted = json.loads(doctor(saved[True], "--json").stdout)["components"]["prior"]
    tensors = prior.state_dict().values()
    files = [saved[True] / file for file in counted["files"]]
    assert counted["parameters"] == sum(tensor.numel() for tensor in tensors)
    assert counted["bytes"] == sum(file.stat().st_size for file in files)
    assert {file.name for file in files} == {"config.json", WEIGHTS}
    assert (counted["class"], counted["as_written"]) == ("unclip_hub.PriorTransformer", "diffusers.PriorTransformer")
    assert counted["dtypes"] == ["float32"]


def test_weights_are_not_loaded(folder):
    """A file of 40 GB with nothing in it: its header is enough."""
    path = folder / "decoder" / WEIGHTS
    header = json.dumps({"conv_in.weight": {"dtype": "F32", "shape": [10**10], "data_offsets": [0, 4 * 10**10]}})
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header.encode())
        file.truncate(8 + len(header) + 4 * 10**10)
    assert any("conv_in.weight has shape (10000000000)" in problem["what"] for problem in problems(folder))


def remove_folder(folder):
    shutil.rmtree(folder / "prior")


def remove_weights(folder):
    (folder / "prior" / WEIGHTS).unlink()


def only_a_variant(folder):
    (folder / "prior" / WEIGHTS).rename(folder / "prior" / "diffusion_pytorch_model.fp16.safetensors")


def truncate(folder):
    path = folder / "prior" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])


def truncate_header(folder):
    path = folder / "prior" / WEIGHTS
    path.write_bytes(path.read_bytes()[:100])


def empty_file(folder):
    (folder / "prior" / WEIGHTS).write_bytes(b"")


def lfs_pointer(folder):
    (folder / "prior" / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")


def delete_key(folder):
    edit_weights(folder / "prior" / WEIGHTS, lambda tensors: tensors.pop("proj_in.bias"))


def delete_statistics(folder):
    edit_weights(folder / "prior" / WEIGHTS, lambda tensors: tensors.pop("clip_std"))


def zero_std(folder):
    edit_weights(folder / "prior" / WEIGHTS, lambda tensors: tensors["clip_std"][0, 1:3].zero_())


def rename_key(folder):
    edit_weights(
        folder / "prior" / WEIGHTS, lambda tensors: tensors.update({"proj_inn.bias": tensors.pop("proj_in.bias")})
    )


def extra_key(folder):
    edit_weights(folder / "prior" / WEIGHTS, lambda tensors: tensors.update(extra=torch.zeros(1)))


def wrong_shape(folder):
    edit_weights(folder / "prior" / WEIGHTS, lambda tensors: tensors.update({"proj_in.bias": torch.zeros(7)}))


def missing_shard(folder):
    path = folder / "prior" / WEIGHTS
    names = list(load_file(path))
    shard = "diffusion_pytorch_model-{}-of-00002.safetensors"
    files = {name: shard.format("00001" if i else "00002") for i, name in enumerate(names)}
    path.rename(path.with_name(shard.format("00001")))
    path.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def shard_outside(folder):
    index = folder / "prior" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": f"../decoder/{WEIGHTS}"}}))


def unknown_class(folder):
    edit(folder / "model_index.json", prior=["my_package", "MyPrior"])


def unknown_scheduler(folder):
    edit(folder / "model_index.json", prior_scheduler=["diffusers", "NoSuchScheduler"])


def name_that_leads_out(folder):
    edit(folder / "model_index.json", **{"../prior": ["diffusers", "PriorTransformer"]})


def component_not_in_index(folder):
    edit(folder / "model_index.json", tokenizer=[None, None])


def upsampler_without_scheduler(folder):
    edit(folder / "model_index.json", super_res_scheduler=[None, None])


def broken_json(folder):
    (folder / "prior" / "config.json").write_text('{"num_layers": ')


def no_object(folder):
    (folder / "prior" / "config.json").write_text("[]")


def broken_index(folder):
    (folder / "model_index.json").write_text("{")


def value_outside_the_family(folder):
    edit(folder / "prior" / "config.json", additional_embeddings=3)


def config_of_another_class(folder):
    shutil.copy(folder / "decoder" / "config.json", folder / "prior" / "config.json")


def broken_scheduler(folder):
    edit(folder / "prior_scheduler" / "scheduler_config.json", variance_type="huge")


def learned_variance_of_three_channels(folder):
    edit(folder / "super_res_scheduler" / "scheduler_config.json", variance_type="learned_range")


def no_vocabulary(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()


def short_captions(folder):
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=9)


def other_end_token(folder):
    edit(folder / "text_encoder" / "config.json", eos_token_id=5)


def small_upsampler(folder):
    for name in ("super_res_first", "super_res_last"):
        edit(folder / name / "config.json", sample_size=16)


def sizes_of_upsamplers(folder):
    edit(folder / "super_res_last" / "config.json", sample_size=48)


@pytest.mark.parametrize(
    ("damage", "where", "says"),
    [
        (remove_folder, "prior", "folder is missing"),
        (remove_weights, "prior", f"{WEIGHTS} or model.safetensors is missing"),
        (only_a_variant, "prior", "--variant, found diffusion_pytorch_model.fp16.safetensors"),
        (truncate, "prior", "is cut short: its header declares"),
        (truncate_header, "prior", "is cut short within its header"),
        (empty_file, "prior", "is cut short within its header"),
        (lfs_pointer, "prior", "git lfs pull"),
        (delete_key, "prior", "proj_in.bias is missing"),
        (delete_statistics, "prior", "clip_std is missing -> add the statistics"),
        (zero_std, "prior", "clip_std is 0 in 2 of 32"),
        (rename_key, "prior", "proj_in.bias is missing, and proj_inn.bias is not known"),
        (extra_key, "prior", "extra is not known"),
        (wrong_shape, "prior", "proj_in.bias has shape (7), expected (20)"),
        (missing_shard, "prior", "diffusion_pytorch_model-00002-of-00002.safetensors cannot be read: No such file"),
        (shard_outside, "prior", "outside its folder"),
        (unknown_class, "prior", "unknown class my_package.MyPrior"),
        (unknown_scheduler, "prior_scheduler", "unknown class diffusers.NoSuchScheduler"),
        (name_that_leads_out, "model_index.json", "'../prior' is no name"),
        (component_not_in_index, "tokenizer", "model_index.json has none"),
        (upsampler_without_scheduler, "super_res_scheduler", "super_res_first needs it"),
        (broken_json, "prior", "config.json is not JSON"),
        (no_object, "prior", "must hold an object"),
        (broken_index, "model_index.json", "is not JSON"),
        (value_outside_the_family, "prior", "additional_embeddings must be 4"),
        (config_of_another_class, "prior", "config.json is of UNet2DConditionModel"),
        (broken_scheduler, "prior_scheduler", "variance_type must be one of"),
        (learned_variance_of_three_channels, "super_res_scheduler", "super_res_first has none"),
        (no_vocabulary, "tokenizer", "tokenizer.json, or vocab.json"),
        (short_captions, "tokenizer", "text tokens must agree: 9 in tokenizer.model_max_length; 12 in prior"),
        (other_end_token, "text_encoder", "eos_token_id is 5"),
        (small_upsampler, "super_res_first", "must enlarge the pictures of decoder: they are 16 px"),
        (
            sizes_of_upsamplers,
            "super_res_first",
            "must agree: 32 in super_res_first.sample_size; 48 in super_res_last",
        ),
    ],
)
def test_damage_is_one_line(folder, damage, where, says):
    damage(folder)
    line = the_error(folder)
    assert line.startswith(f"error: {where}: ") and says in line


def test_a_task_that_the_damage_prevents(folder):
    truncate(folder)
    assert "text to image        no: missing or broken: prior" in doctor(folder).stdout


def test_swapped_files(folder):
    one, other = folder / "text_proj" / WEIGHTS, folder / "decoder" / WEIGHTS
    one.rename(folder / "away")
    other.rename(one)
    (folder / "away").rename(other)
    found = {problem["where"]: problem["what"] for problem in problems(folder)}
    assert found.keys() == {"text_proj", "decoder"}
    assert "fits decoder: files were swapped" in found["text_proj"]
    assert "fits text_proj: files were swapped" in found["decoder"]


@pytest.mark.parametrize(
    ("name", "part", "says"),
    [
        ("prior", {"embedding_dim": 40}, "CLIP's width must agree: 40 in prior.embedding_dim; 32 in text_encoder"),
        (
            "decoder",
            {"cross_attention_dim": 28},
            "context must agree: 20 in text_proj.cross_attention_dim; 28 in deco",
        ),
        ("text_proj", {"time_embed_dim": 68}, "time embedding must agree: 68 in text_proj.time_embed_dim; 64 in deco"),
        ("prior", {"num_embeddings": 11}, "text tokens must agree: 12 in text_encoder.max_position_embeddings; 11 in"),
    ],
)
def test_a_component_of_another_checkpoint(folder, name, part, says):
    model = type(tiny.components()[name])
    config = model.load_config(folder / name) | part
    shutil.rmtree(folder / name)
    model.from_config(config).save_pretrained(folder / name)
    assert says in the_error(folder)


def test_many_keys_are_one_line(folder):
    def shorten(tensors):
        for name in [name for name in tensors if name.startswith("transformer_blocks.1.")]:
            del tensors[name]

    edit_weights(folder / "prior" / WEIGHTS, shorten)
    line = the_error(folder)
    assert "transformer_blocks.1." in line and " more are missing" in line and len(line) < 300


def test_a_variant(folder):
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert len(problems(folder)) == 6
    assert problems(folder, "--variant", "fp16") == []


def test_shards(folder):
    prior = tiny.components()["prior"]
    shutil.rmtree(folder / "prior")
    prior.save_pretrained(folder / "prior", max_shard_size="20KB")
    assert len(list((folder / "prior").glob("*-of-*.safetensors"))) > 1
    assert problems(folder) == []


def test_half_precision_is_a_note(folder):
    tiny.components()["decoder"].half().save_pretrained(folder / "decoder")
    (note,) = problems(folder, level="note")
    assert (note["where"], note["what"]) == ("decoder", "stored in float16")


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_is_read_as_tensors_only(folder, legacy):
    safe = folder / "text_encoder" / "model.safetensors"
    state = load_file(safe) | {"text_model.embeddings.position_ids": torch.arange(12)[None]}
    safe.unlink()
    pickled = safe.with_name("pytorch_model.bin")
    torch.save(state, pickled, _use_new_zipfile_serialization=not legacy)
    assert problems(folder) == []
    (warning,) = problems(folder, level="warning")
    assert "is a pickle" in warning["what"]
    pickled.write_bytes(pickled.read_bytes()[:2000])
    assert "cut short" in the_error(folder)


class Payload:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


def test_nothing_is_executed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "prior" / WEIGHTS).unlink()
    torch.save({"a": Payload()}, folder / "prior" / "diffusion_pytorch_model.bin")
    (folder / "prior" / "my_package.py").write_text("import pathlib; pathlib.Path('executed').touch()")
    edit(folder / "model_index.json", _class_name=["my_package", "Pipeline"])
    assert "holds more than tensors and was not opened" in the_error(folder)
    found = {problem["where"]: problem["what"] for problem in problems(folder, level="warning")}
    assert "code in the checkpoint" in found["prior/my_package.py"]
    assert "no pipeline of unclip_hub's" in found["model_index.json"]
    assert not (folder / "executed").exists()


def test_what_does_not_belong(folder):
    shutil.copytree(folder / "prior", folder / "prior_old")
    (folder / "decoder" / "diffusion_pytorch_model.bin").touch()
    found = {problem["where"]: problem["what"] for problem in problems(folder, level="warning")}
    assert found == {
        "prior_old": "a component that model_index.json does not name",
        "decoder/diffusion_pytorch_model.bin": "a pickle that is not used",
    }


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub's cache, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_a_repository_in_the_cache(saved, hub):
    snapshot = hub / "models--someone--karlo" / "snapshots" / ("0" * 40)
    shutil.copytree(saved[True], snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    result = doctor("someone/karlo")
    assert result.exit_code == 0 and result.stdout.startswith("someone/karlo: UnCLIPPipeline")


@pytest.mark.parametrize("source", ["someone/nothing", "./nowhere", "/nowhere/at/all", "pyproject.toml"])
def test_no_such_checkpoint(source, hub):
    result = doctor(source)
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: no model ") and source in line


def test_a_folder_that_is_no_checkpoint(folder):
    assert "give the folder above it" in the_error(folder / "prior")


def test_it_knows_the_pipelines_components():
    import inspect

    parameters = set(inspect.signature(UnCLIPPipelineBase.__init__).parameters)
    assert {name for names in REQUIRED.values() for name in names} <= parameters
    assert {name for pair in UPSAMPLERS.items() for name in pair} <= parameters
