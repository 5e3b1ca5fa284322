"""A converted folder is whole, strict and accounted for, or not there."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from command import FILE, Source, Target, conversion
from folder import REPORT, output_folder
from hub.client import connect
from hub.server import serving
from ledger import Converted
from safetensors.torch import load_file
from torch.testing import assert_close

from unclip_hub import PriorTransformer, UnCLIPScheduler, UnCLIPTextProjModel


CONFIG = {"clip_extra_context_tokens": 3, "clip_embeddings_dim": 8, "time_embed_dim": 12, "cross_attention_dim": 10}
PRIOR = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "embedding_dim": 6, "num_embeddings": 5}


def random_state(cls: Any, config: dict[str, Any], *, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {key: torch.randn(value.shape).to(dtype) for key, value in cls(**config).state_dict().items()}


@pytest.fixture
def state():
    return random_state(UnCLIPTextProjModel, CONFIG)


def written(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_what_is_written_loads_and_is_listed(tmp_path, state):
    with output_folder(tmp_path / "out", source_format="test") as folder:
        assert not (tmp_path / "out").exists()
        folder.add_model("text_proj", UnCLIPTextProjModel, CONFIG, state)
        folder.add_scheduler("decoder_scheduler", UnCLIPScheduler(variance_type="learned_range"))
        folder.note("something to know")
        folder.write_index("UnCLIPPipeline", config={"sampling_defaults": None})
    out = tmp_path / "out"
    assert written(out) == {
        "model_index.json",
        REPORT,
        "text_proj/config.json",
        "text_proj/diffusion_pytorch_model.safetensors",
        "decoder_scheduler/scheduler_config.json",
    }
    assert list(tmp_path.iterdir()) == [out]
    index = json.loads((out / "model_index.json").read_text())
    assert index["text_proj"] == ["unclip", "UnCLIPTextProjModel"]
    assert index["decoder_scheduler"] == ["diffusers", "UnCLIPScheduler"]
    model = UnCLIPTextProjModel.from_pretrained(out, subfolder="text_proj")
    for key, value in model.state_dict().items():
        assert_close(value, state[key], rtol=0, atol=0)
    assert UnCLIPScheduler.from_pretrained(out, subfolder="decoder_scheduler").config.variance_type == "learned_range"
    assert json.loads((out / REPORT).read_text())["notes"] == ["something to know"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda s: s.pop("embedding_proj.bias"), "it lacks embedding_proj.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "it must not have extra"),
        (lambda s: s.update({"embedding_proj.bias": torch.zeros(5)}), r"embedding_proj.bias \(expected \(12,\), got"),
    ],
)
def test_a_state_that_does_not_fit_leaves_nothing(tmp_path, state, change, what):
    change(state)
    with (
        pytest.raises(ValueError, match=f"does not fit its configuration: text_proj .*{what}"),
        output_folder(tmp_path / "out", source_format="test") as folder,
    ):
        folder.add_model("text_proj", UnCLIPTextProjModel, CONFIG, state)
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken(tmp_path, state):
    def write(out, note, **options):
        with output_folder(out, source_format="test", **options) as folder:
            folder.note(note)
            if note == "fails":
                folder.add_model("text_proj", UnCLIPTextProjModel, CONFIG, {})

    def note(out):
        return json.loads((out / REPORT).read_text())["notes"][0]

    out, foreign, empty = tmp_path / "out", tmp_path / "foreign", tmp_path / "empty"
    for made in (foreign, empty):
        made.mkdir()
    (foreign / "thesis.txt").write_text("no backup")
    write(empty, "into an empty folder")
    assert note(empty) == "into an empty folder"
    for options in ({}, {"overwrite": True}):
        with pytest.raises(ValueError, match="is there already, and no conversion wrote it"):
            write(foreign, "never", **options)
    assert written(foreign) == {"thesis.txt"}
    write(out, "first")
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        write(out, "second")
    with pytest.raises(ValueError, match="lacks"):
        write(out, "fails", overwrite=True)
    assert note(out) == "first"
    write(out, "third", overwrite=True)
    assert note(out) == "third"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "foreign", "empty"}


@pytest.mark.parametrize(
    ("stored", "asked", "wanted"),
    [
        ({torch.float16}, None, torch.float16),
        ({torch.float16, torch.float32}, None, torch.float32),
        ({torch.float16, torch.bfloat16}, None, torch.float32),
        ({torch.float32}, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_component_has_one_dtype_and_statistics_keep_theirs(tmp_path, stored, asked, wanted):
    state = random_state(PriorTransformer, PRIOR)
    for i, key in enumerate(state):
        if not key.startswith("clip_"):
            state[key] = state[key].to(sorted(stored, key=str)[i % len(stored)])
    with output_folder(tmp_path / "out", source_format="test", dtype=asked) as folder:
        folder.add_model("prior", PriorTransformer, PRIOR, state)
    got = load_file(tmp_path / "out" / "prior" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for key, value in got.items() if not key.startswith("clip_")} == {wanted}
    assert_close(got["clip_mean"], state["clip_mean"], rtol=0, atol=0)
    loaded = PriorTransformer.from_pretrained(tmp_path / "out", subfolder="prior")
    assert loaded.dtype == torch.float32
    assert_close(loaded.clip_std, state["clip_std"], rtol=0, atol=0)


def test_the_report_gives_every_key_its_fate(tmp_path):
    def transposed(tensor):
        return tensor.T

    source = {"w": torch.ones(2, 3), "qkv": torch.arange(6.0), "step": torch.tensor(1), "same": torch.zeros(1)}
    converted = Converted(source, what="a test")
    converted.move("w", "net", "weight", change=transposed)
    converted.split("qkv", "net", ["q", "k"], change=lambda tensor: tensor.chunk(2))
    converted.drop("step", "only training needs it")
    converted.compute("net", "mean", torch.zeros(1), how="from statistics.th")
    assert converted.has("same") and list(converted.left("s")) == ["same"]
    with pytest.raises(ValueError, match="this is not a test: it has keys that are not known, same"):
        converted.finish()
    converted.move("same", "other", "same")
    assert converted.finish() is converted
    assert {name: sorted(tensors) for name, tensors in converted.items()} == {
        "net": ["k", "mean", "q", "weight"],
        "other": ["same"],
    }
    with pytest.raises(ValueError, match="this is not a test: it has no absent"):
        converted.move("absent", "net", "absent")
    (tmp_path / "model.pt").write_bytes(b"12345")
    with output_folder(tmp_path / "out", source_format="test") as folder:
        folder.account(tmp_path / "model.pt", converted)
    report = json.loads((tmp_path / "out" / REPORT).read_text())["files"]["model.pt"]
    assert report == {
        "what": "a test",
        "bytes": 5,
        "keys": {
            "qkv": "split into net/q, net/k",
            "same": "other/same",
            "step": "dropped: only training needs it",
            "w": "net/weight (transposed)",
        },
        "computed": {"net/mean": "from statistics.th"},
    }


# the command line that all scripts share


@conversion
@click.option("--weights", type=FILE)
def command(source: Source, target: Target, *, weights: Path | None) -> None:
    """Write the name of what was found."""
    path = source.find("model-*.pt", "*.pt", flag="--weights", given=weights)
    with target.open("test") as folder:
        folder.note(f"{path.name} {target.dtype}")


def run(*arguments: Any):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def test_files_are_found_by_their_names_or_named(tmp_path):
    here, out = tmp_path / "in", tmp_path / "deep" / "out"
    here.mkdir()
    failed = run(here, "--output", out)
    assert failed.exit_code == 1
    assert (
        "Error: no file model-*.pt or *.pt: " in failed.output and "holds nothing; --weights names it" in failed.output
    )
    (here / "other.pt").touch()
    assert "other.pt None" in run(here, "--output", out).output
    (here / "model-1.pt").touch()
    assert "model-1.pt None" in run(here, "--output", out, "--overwrite").output
    (here / "model-2.pt").touch()
    assert (
        "holds model-1.pt, model-2.pt: choose one with --weights" in run(here, "--output", out, "--overwrite").output
    )
    named = run("--weights", here / "model-2.pt", "--output", out, "--overwrite", "--dtype", "float16")
    assert named.exit_code == 0 and "model-2.pt torch.float16" in named.output
    assert "no FOLDER was given" in run("--output", tmp_path / "other").output
    assert "is no folder; single files are named by flags" in run(here / "other.pt", "--output", tmp_path / "x").output


@pytest.mark.hub
def test_pushing_is_one_commit_of_the_finished_folder(tmp_path, monkeypatch):
    (tmp_path / "model.pt").touch()
    arguments = (tmp_path, "--output", tmp_path / "out", "--push-to-hub", "someone/model")
    refused = run(*arguments)
    assert refused.exit_code == 2 and "--push-to-hub needs --license" in refused.output
    assert not (tmp_path / "out").exists()
    with serving(tmp_path / "hub") as hub:
        connect(hub.url, monkeypatch=monkeypatch, folder=tmp_path)
        ran = run(*arguments, "--license", "mit")
        assert ran.exit_code == 0, ran.output
        repo = hub.repos["someone/model"]
    head = repo.commits[repo.refs["main"]]
    assert len(repo.commits) == 2 and head.title.startswith("Convert from test with ")
    assert {REPORT, "README.md"} <= set(head.files)
    assert "license: mit" in (tmp_path / "out" / "README.md").read_text()
