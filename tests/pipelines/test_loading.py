"""Checkpoints open whole or not at all: damaged files, old layouts, every spelling of the index, the Hub's cache."""

import copy
import json
import shutil
import subprocess
import sys

import diffusers
import huggingface_hub
import pytest
import torch
from hub.client import connect
from hub.server import serving
from pipelines import tiny
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import unclip_hub
from unclip_hub import UnCLIPImageVariationPipeline, UnCLIPPipeline, UnCLIPScheduler


NETWORKS = ["prior", "decoder", "text_proj", "super_res_first", "text_encoder", "image_encoder"]
WEIGHTS = {"text_encoder": "model.safetensors", "image_encoder": "model.safetensors"}
STEPS = {"prior_num_inference_steps": 2, "decoder_num_inference_steps": 2, "super_res_num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    encoders = {name: tiny.components(karlo=False)[name] for name in ("image_encoder", "feature_extractor")}
    made = UnCLIPPipeline(**(tiny.components(karlo=True) | encoders))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def saved(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("karlo")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to damage."""
    shutil.copytree(saved, tmp_path / "karlo")
    return tmp_path / "karlo"


def weights(folder, name):
    return folder / name / WEIGHTS.get(name, "diffusion_pytorch_model.safetensors")


def load_only(folder, name, pipe, **options):
    """Open the pipeline with every component but one handed over, which is quicker."""
    others = {other: part for other, part in pipe.components.items() if other != name}
    return UnCLIPPipeline.from_pretrained(folder, **others, **options)


def picture(pipe):
    """In float64: where a file's bytes lie in memory changes float32's last bit, and random networks magnify it."""
    exact = tiny.in_float64(pipe)
    return exact("a house", generator=torch.Generator().manual_seed(0), output_type="pt", **STEPS).images


def missing_key(state, key):
    return {k: v for k, v in state.items() if k != key}


def unexpected_key(state, key):
    return state | {key + ".extra": torch.zeros(2)}


def wrong_shape(state, key):
    return state | {key: torch.cat([state[key], state[key]])}


@pytest.mark.parametrize("low_memory", [True, False], ids=["low-memory", "in-place"])
@pytest.mark.parametrize("damage", [missing_key, unexpected_key, wrong_shape])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_key_too_few_too_many_or_of_another_shape_is_named(folder, pipe, name, damage, low_memory):
    file = weights(folder, name)
    state = load_file(file)
    key = sorted(k for k in state if state[k].ndim == 2)[-1]
    save_file(damage(state, key), file, metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load_only(folder, name, pipe, low_cpu_mem_usage=low_memory)
    assert f"/{name}:" in str(caught.value) and key in str(caught.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_truncated_file_is_named(folder, pipe, name):
    file = weights(folder, name)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises((ValueError, OSError), match=f"/{name}"):
        load_only(folder, name, pipe)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_missing_file_is_named(folder, pipe, name):
    weights(folder, name).unlink()
    with pytest.raises((ValueError, OSError), match=f"/{name}"):
        load_only(folder, name, pipe)


@pytest.mark.parametrize("name", NETWORKS)
def test_another_components_weights_are_refused(folder, pipe, name):
    other = NETWORKS[NETWORKS.index(name) - 1]
    shutil.copy(weights(folder, other), weights(folder, name))
    with pytest.raises(ValueError, match=f"/{name}: .*(missing keys|expected shape|wrong shape|size mismatch)"):
        load_only(folder, name, pipe)


@pytest.mark.parametrize(
    "file",
    [
        "prior/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "decoder_scheduler/scheduler_config.json",
        "feature_extractor/preprocessor_config.json",
    ],
)
def test_a_truncated_configuration_is_named(folder, pipe, file):
    path = folder / file
    path.write_text(path.read_text()[:-20])
    with pytest.raises((ValueError, OSError), match=f"/{path.parent.name}"):
        load_only(folder, path.parent.name, pipe)


@pytest.mark.parametrize("low_memory", [True, False], ids=["low-memory", "in-place"])
def test_a_shard_without_the_tensor_that_its_index_promises(folder, pipe, low_memory):
    weights(folder, "prior").unlink()
    pipe.prior.save_pretrained(folder / "prior", max_shard_size="5KB")
    assert_close(load_only(folder, "prior", pipe).prior.state_dict(), pipe.prior.state_dict())
    index = json.loads((folder / "prior" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    shard = folder / "prior" / index["weight_map"]["prd_embedding"]
    save_file(missing_key(load_file(shard), "prd_embedding") | {"x": torch.zeros(1)}, shard)
    with pytest.raises(ValueError, match="/prior: .*prd_embedding"):
        load_only(folder, "prior", pipe, low_cpu_mem_usage=low_memory)


def test_networks_are_strict_by_themselves_too(folder):
    file = weights(folder, "text_proj")
    save_file(missing_key(load_file(file), "embedding_proj.bias"), file)
    with pytest.raises(ValueError, match="karlo/text_proj: 1 missing keys: embedding_proj.bias"):
        unclip_hub.UnCLIPTextProjModel.from_pretrained(folder, subfolder="text_proj")


# every spelling of the index


@pytest.mark.parametrize(
    "library",
    [
        "unclip",
        "diffusers",
        "diffusers.pipelines.deprecated.unclip.text_proj",
        "unclip_hub",
        "unclip_hub.models.text_proj",
    ],
)
def test_every_spelling_of_text_proj(folder, pipe, library):
    edit_index(folder, text_proj=[library, "UnCLIPTextProjModel"])
    assert type(load_only(folder, "text_proj", pipe).text_proj) is unclip_hub.UnCLIPTextProjModel


def test_an_index_of_full_module_paths_as_diffusers_saves_foreign_pipelines(folder, pipe):
    naive = {name: [type(part).__module__, type(part).__name__] for name, part in pipe.components.items() if part}
    assert naive["prior"] == ["unclip_hub.models.prior_transformer", "PriorTransformer"]
    edit_index(folder, **{name: value for name, value in naive.items() if value[0].startswith("unclip_hub")})
    assert_close(picture(UnCLIPPipeline.from_pretrained(folder)), picture(pipe), atol=1e-8, rtol=0)


def edit_index(folder, **entries):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | entries))


def test_a_repository_of_2022(folder, pipe):
    """Pickled encoders with position_ids, a configuration of transformers 4, tokenizer in two files, short configs."""
    for name in ("text_encoder", "image_encoder"):
        tower = "text_model" if name == "text_encoder" else "vision_model"
        state = load_file(weights(folder, name))
        positions = state[f"{tower}.embeddings.position_embedding.weight"].shape[0]
        state[f"{tower}.embeddings.position_ids"] = torch.arange(positions)[None]
        torch.save(state, folder / name / "pytorch_model.bin")
        weights(folder, name).unlink()
        config = json.loads((folder / name / "config.json").read_text())
        config |= {
            "torch_dtype": "float32",
            "transformers_version": "4.25.1",
            "_name_or_path": "karlo",
            "dropout": 0.0,
        }
        del config["dtype"]
        (folder / name / "config.json").write_text(json.dumps(config))
    prior = json.loads((folder / "prior" / "config.json").read_text())
    kept = (
        "_class_name",
        "num_attention_heads",
        "attention_head_dim",
        "num_layers",
        "embedding_dim",
        "num_embeddings",
    )
    (folder / "prior" / "config.json").write_text(json.dumps({name: prior[name] for name in kept}))
    for stage in ("prior", "decoder", "super_res"):
        file = folder / f"{stage}_scheduler" / "scheduler_config.json"
        scheduler = json.loads(file.read_text())
        del scheduler["beta_schedule"]
        file.write_text(json.dumps(scheduler))
    written = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(written["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in written["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    edit_index(folder, feature_extractor=["transformers", "CLIPFeatureExtractor"], _diffusers_version="0.12.0.dev0")
    opened = UnCLIPPipeline.from_pretrained(folder)
    assert_close(picture(opened), picture(pipe), atol=1e-8, rtol=0)
    assert_close(opened.image_encoder.state_dict(), pipe.image_encoder.state_dict())


# from_pretrained's arguments


def test_types_by_component_and_float32_by_default(folder, pipe):
    copy.deepcopy(pipe.text_encoder).to(torch.float16).save_pretrained(folder / "text_encoder")
    opened = UnCLIPPipeline.from_pretrained(folder)
    assert opened.text_encoder.dtype == opened.prior.dtype == torch.float32
    chosen = {"prior": torch.bfloat16, "text_encoder": torch.float16, "default": torch.float64}
    opened = UnCLIPPipeline.from_pretrained(folder, dtype=chosen)
    assert (opened.prior.dtype, opened.text_encoder.dtype) == (torch.bfloat16, torch.float16)
    assert opened.decoder.dtype == torch.float64


def test_a_device_map_and_a_single_component(saved, pipe):
    opened = UnCLIPPipeline.from_pretrained(saved, device_map="cpu")
    assert_close(picture(opened), picture(pipe), atol=1e-8, rtol=0)
    prior = unclip_hub.PriorTransformer.from_pretrained(saved, subfolder="prior", device_map="auto")
    assert_close(prior.state_dict(), pipe.prior.state_dict())


def test_components_left_out_on_purpose(saved):
    opened = UnCLIPPipeline.from_pretrained(saved, text_encoder=None, tokenizer=None, prior=None, super_res_first=None)
    with pytest.raises(ValueError, match="a prompt needs text_encoder and tokenizer, .* or give prompt_embeds"):
        opened("a house")


def test_torchao_quantises_our_classes_on_load(saved, pipe):
    torchao = pytest.importorskip("torchao.quantization")
    config = diffusers.PipelineQuantizationConfig(
        quant_mapping={"prior": diffusers.TorchAoConfig(torchao.Int8WeightOnlyConfig())}
    )
    opened = load_only(saved, "prior", pipe, quantization_config=config, dtype=torch.float32)
    assert "int8" in repr(opened.prior.transformer_blocks[0].ff.net[0].proj.weight).lower()


# plain diffusers


def test_plain_diffusion_pipeline_opens_what_we_save(saved, pipe):
    opened = diffusers.DiffusionPipeline.from_pretrained(saved)
    assert type(opened) is diffusers.UnCLIPPipeline and type(opened.prior) is diffusers.PriorTransformer
    for stage in ("prior", "decoder", "super_res"):  # its own have float32 tables
        setattr(opened, f"{stage}_scheduler", getattr(pipe, f"{stage}_scheduler"))
    options = {"generator": torch.Generator().manual_seed(0), "output_type": "np"} | STEPS
    got = torch.from_numpy(tiny.in_float64(opened)("a house", **options).images).permute(0, 3, 1, 2)
    assert_close(got.double(), picture(pipe), atol=1e-6, rtol=0)  # it works out time in float32


def test_plain_diffusers_knows_our_checkpoints_once_the_package_is_imported(saved):
    code = "import diffusers as d, sys, unclip_hub; print(d.DiffusionPipeline.from_pretrained(sys.argv[1]).text_proj)"
    ran = subprocess.run([sys.executable, "-c", code, str(saved)], capture_output=True, text=True)
    assert "UnCLIPTextProjModel" in ran.stdout, ran.stderr


# the Hub


def in_cache(cache, repo, folders):
    """The Hub client's cache of a repository, one commit per revision."""
    root = cache / f"models--{repo.replace('/', '--')}"
    for i, (revision, folder) in enumerate(folders.items()):
        commit = f"{i + 1:040x}"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
        shutil.copytree(folder, root / "snapshots" / commit)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def test_the_hubs_cache_offline_with_revisions(folder, pipe, tmp_path, offline):
    older = tmp_path / "older"
    shutil.copytree(folder, older)
    UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0).save_pretrained(older / "prior_scheduler")
    in_cache(tmp_path / "cache", "someone/karlo", {"main": folder, "older": older})
    opened = UnCLIPPipeline.from_pretrained("someone/karlo", cache_dir=tmp_path / "cache")
    assert type(opened.prior) is unclip_hub.PriorTransformer
    assert_close(picture(opened), picture(pipe), atol=1e-8, rtol=0)
    assert opened.prior_scheduler.config["clip_sample_range"] == 5.0
    opened = UnCLIPPipeline.from_pretrained(
        "someone/karlo", cache_dir=tmp_path / "cache", revision="older", local_files_only=True
    )
    assert opened.prior_scheduler.config["clip_sample_range"] == 10.0
    variations = UnCLIPImageVariationPipeline.from_pretrained("someone/karlo", cache_dir=tmp_path / "cache")
    assert variations.image_encoder is not None
    prior = unclip_hub.PriorTransformer.from_pretrained(
        "someone/karlo", subfolder="prior", cache_dir=tmp_path / "cache", revision="older"
    )
    assert_close(prior.state_dict(), pipe.prior.state_dict())


def test_a_variant_from_disk_and_from_the_hubs_cache(pipe, tmp_path, offline):
    folder = tmp_path / "fp16"
    pipe.save_pretrained(folder, variant="fp16")
    in_cache(tmp_path / "cache", "someone/half", {"main": folder})
    for source, options in ((folder, {}), ("someone/half", {"cache_dir": tmp_path / "cache"})):
        opened = UnCLIPPipeline.from_pretrained(source, variant="fp16", **options)
        assert_close(opened.prior.state_dict(), pipe.prior.state_dict())
    with pytest.raises(OSError, match="fp16/prior"):
        load_only(folder, "prior", pipe)


def test_what_is_pushed_reloads_from_the_hub(pipe, tmp_path, monkeypatch):
    with serving(tmp_path / "hub") as hub:
        connect(hub.url, monkeypatch=monkeypatch, folder=tmp_path)
        pipe.push_to_hub("someone/pushed", license="apache-2.0")
        opened = UnCLIPPipeline.from_pretrained("someone/pushed")
        assert opened.image_encoder is not None
        assert_close(picture(opened), picture(pipe), atol=1e-8, rtol=0)
