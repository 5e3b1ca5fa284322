"""Cards: the committed ones come out again, what was not measured is said, and their code runs."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import ModelCard
from pipelines import tiny

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.cli import main
from unclip_hub.hub.card_check import card_problems, split
from unclip_hub.hub.card_facts import MEASURES


ROOT = Path(__file__).parents[2]
CARDS = ROOT / "model_cards"
REPO = "someone/model"


def card(*arguments):
    return CliRunner().invoke(main, ["card", *map(str, arguments)])


def written(folder, **options):
    """The card of a model, its metadata and its text."""
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    result = card(folder, *flags)
    assert result.exit_code == 0, result.output
    return split((folder / "README.md").read_text())


def facts(folder, text):
    path = folder.parent / "facts.toml"
    path.write_text(text)
    return path


def measured(folder, *results, **more):
    path = folder.parent / "metrics.json"
    path.write_text(json.dumps({"results": list(results)} | more))
    return path


def run_code(text):
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    for block in blocks:
        exec(block, {})
    return len(blocks)


CHANCE = "other captions' real renders"


@pytest.mark.parametrize("name", ["bundled", "karlo", "prior"])
def test_the_committed_cards_come_out_again(name, tmp_path):
    metrics = ["--metrics", CARDS / "bundled.metrics.json"] if name == "bundled" else []
    folder = [BUNDLED_MODEL] if name == "bundled" else []
    result = card(*folder, "--facts", CARDS / f"{name}.toml", *metrics, "--output", tmp_path / "card.md")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "card.md").read_text() == (CARDS / f"{name}.md").read_text()


def test_the_bundled_model_s_numbers_are_the_measured_ones():
    source = json.loads((ROOT / "docs" / "adherence.json").read_text())
    data, text = split((CARDS / "bundled.md").read_text())
    rates = {name: source["rates"][f"two things: {name}"]["object"] for name in ("the model", CHANCE)}
    shown, n = rates["the model"], rates["the model"]["n"]
    cell = f"{shown['rate']:.2f} [{shown['low']:.2f}, {shown['high']:.2f}], n = {n} | {rates[CHANCE]['rate']:.2f}"
    assert n > 200 and cell in next(line for line in text.splitlines() if line.startswith("| object |"))
    assert f"{source['seconds_per_picture']:.2f} (interval not measured)" in text
    assert f"{source['distances']['the model']['frechet']:.2f} (interval not measured)" in text
    results = {
        (result["dataset"]["name"].rpartition(": ")[2], metric["name"]): metric
        for result in data["model-index"][0]["results"]
        for metric in result["metrics"]
    }
    got = results["two things", "object"]
    assert got["value"] == shown["rate"]
    assert [got["args"][key] for key in ("low", "high", "n")] == [shown[key] for key in ("low", "high", "n")]
    measured = sum(len(rates) for name, rates in source["rates"].items() if name.endswith(": the model"))
    assert len(results) == measured + 5  # the time, two distances and their floors
    metrics = runpy.run_path(str(ROOT / "benchmarks" / "adherence_metrics.py"))["metrics"]
    assert metrics(source) == json.loads((CARDS / "bundled.metrics.json").read_text())


@pytest.mark.parametrize("name", ["bundled", "karlo", "prior"])
def test_every_committed_card_is_complete_but_for_its_pictures(name, tmp_path):
    (tmp_path / "README.md").write_text((CARDS / f"{name}.md").read_text())
    shutil.copytree(CARDS / "images", tmp_path / "images")
    assert card_problems(tmp_path) == []


def test_the_bundled_card_s_code_runs():
    assert run_code((CARDS / "bundled.md").read_text()) == 1


def test_the_code_of_karlo_s_card_and_of_a_prior_s(hub, pipe, tmp_path, monkeypatch):
    """With small Karlos in the places of the real ones; a prior is published by itself."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    karlo = UnCLIPPipeline(**tiny.components(karlo=True), sampling_defaults=pipe.config["sampling_defaults"])
    karlo.save_pretrained(tmp_path / "karlo")
    for name, repo in (("karlo", "someone/karlo"), ("prior", "someone/prior")):
        (tmp_path / "karlo" / "README.md").write_text((CARDS / f"{name}.md").read_text())
        result = CliRunner().invoke(main, ["push", str(tmp_path / "karlo"), repo])
        assert result.exit_code == 0, result.output
        if name == "karlo":
            hub.create("kakaobrain/karlo-v1-alpha")
            hub.put("kakaobrain/karlo-v1-alpha", tmp_path / "karlo")
            index = json.loads((tmp_path / "karlo" / "model_index.json").read_text())
            kept = ("_class_name", "_diffusers_version", "prior", "prior_scheduler")
            (tmp_path / "karlo" / "model_index.json").write_text(json.dumps({key: index[key] for key in kept}))
    assert set(hub.repos["someone/prior"].files) == {
        *(".gitattributes", "README.md", "model_index.json", "pipeline.py"),
        *(f"prior/{file}" for file in ("config.json", "diffusion_pytorch_model.safetensors", "unclip_hub.py")),
        *(f"prior_scheduler/{file}" for file in ("scheduler_config.json", "unclip_hub.py")),
    }
    for repo, count in (("someone/karlo", 2), ("someone/prior", 1)):
        assert run_code(hub.repos[repo].files["README.md"].data.decode()) == count


def test_what_nobody_knows_is_said(folder):
    data, text = written(folder, license="apache-2.0")
    assert data["library_name"] == "diffusers" and data["pipeline_tag"] == "text-to-image"
    assert data["license"] == "apache-2.0" and data["tags"] == ["unclip"]
    assert not {"model-index", "widget", "datasets", "base_model"} & set(data)
    for measure in MEASURES.values():
        assert measure in text.partition("**Not measured:**")[2].partition("\n")[0]
    for heading in ("What it is for", "Limits", "Biases", "Data", "Training"):
        assert f"## {heading}\n\nNot written down by its authors, and not measured." in text
    assert "No base model is named" in text


def test_what_is_measured_stands_in_both_places_and_nothing_else(folder):
    one = {"measure": "fid", "metric": "FID", "dataset": "scenes", "split": "test", "value": 12.5, "n": 500}
    two = {"measure": "clip_score", "metric": "score", "value": 0.25, "low": 0.2, "high": 0.3, "chance": 0.1}
    path = measured(folder, one, two, interval="95 %", chance="another caption's.")
    data, text = written(folder, license="mit", metrics=path)
    assert "| FID | 12.50 (interval not measured), n = 500 |" in text
    assert "| score | 0.25 [0.20, 0.30] | 0.10 |" in text and "In brackets: 95 %." in text
    absent = text.partition("**Not measured:**")[2].partition("\n")[0]
    assert "FID" not in absent and "CLIP score" not in absent and MEASURES["bias"] in absent
    results = data["model-index"][0]["results"]
    assert [(r["dataset"]["name"], r["metrics"][0]["value"]) for r in results] == [("scenes", 12.5), ("none", 0.25)]
    assert results[1]["metrics"][0]["args"] == {"low": 0.2, "high": 0.3, "interval": "95 %"}
    loaded = ModelCard.load(folder / "README.md")  # the Hub's own reading
    assert [result.metric_value for result in loaded.data.eval_results] == [12.5, 0.25]


def test_facts_examples_training_and_the_files(folder, pipe):
    (folder.parent / "log.jsonl").write_text('{"step": 10.0, "loss": 2.0}\n{"step": 1250.0, "loss": 0.0321}\n')
    (folder.parent / "cat.png").write_bytes(b"a picture")
    text = """
name = "Cats | and dogs"
license = "cc-by-4.0"
base_model = "someone/base"
datasets = ["someone/cats"]
limits = "Only cats."
training = [{network = "prior", trained_on = "cats", log = "log.jsonl"}]
reported = [{metric = "FID", value = "7", dataset = "cats", source = "a paper"}]
examples = [{caption = "a cat", picture = "cat.png", seed = 4}]
"""
    data, text = written(folder, facts=facts(folder, text))
    assert data["base_model"] == "someone/base" and data["datasets"] == ["someone/cats"]
    assert data["widget"] == [{"text": "a cat", "output": {"url": "images/cat.png"}}]
    assert (folder / "images" / "cat.png").read_bytes() == b"a picture" and card_problems(folder) == []
    assert "| prior | not counted | cats | 1,250 | 0.0321 | unknown |" in text
    assert "## Limits\n\nOnly cats." in text and "| a cat (seed 4) |" in text
    assert "Reported by others, not measured here" in text and "| FID | 7 | cats | a paper |" in text
    count = sum(parameter.numel() for parameter in pipe.prior.parameters()) + 2 * tiny.WIDTH  # the statistics
    assert f"| prior | PriorTransformer | {count:,} | float32 |" in text
    assert "`decoder_guidance_scale=3.0`" in text


def test_a_training_s_own_folder(folder, tmp_path):
    run = tmp_path / "prior"
    run.mkdir()
    settings = {"batch": 8, "start": "base", "data": "/secret/place", "train": {"lr": 0.0005, "steps": 50}}
    (run / "run.json").write_text(json.dumps(settings))
    (run / "stats.jsonl").write_text('{"step": 50.0, "loss": 0.5}\n')
    _, text = written(folder, license="mit", run=run)
    said = "8 examples a step and process, learning rate 0.0005, from its base model's weights"
    assert f"| prior | not counted | {said} | 50 | 0.5 | unknown |" in text and "secret" not in text
    (run / "run.json").unlink()
    assert "must be the folder of a training" in card(folder, "--license", "mit", "--run", run).stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("license = ", "Invalid value"),
        ('name = "x"', "license must be given"),
        ('license = "x"\nlicence = "y"', "unknown licence; known are"),
        ('license = "x"\nexamples = [{caption = "a"}]', "picture must be given"),
        ('license = "x"\ntraining = [{network = "a", trained_on = "b", log = "no.jsonl"}]', "no.jsonl must hold"),
    ],
)
def test_facts_that_cannot_be_read(folder, text, said):
    before = (folder / "README.md").read_text()
    result = card(folder, "--facts", facts(folder, text))
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert (folder / "README.md").read_text() == before


GOOD = {"measure": "fid", "metric": "FID", "value": 1.0}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (GOOD | {"measure": "beauty"}, "measure must be one of adherence, fid"),
        (GOOD | {"low": 2.0, "high": 3.0}, "1.0 is not within [2.0, 3.0]"),
        (GOOD | {"low": 0.5}, "an interval has low and high"),
        (GOOD | {"confidence": 1}, "unknown confidence"),
        ({"measure": "fid", "metric": "FID"}, "value must be given"),
    ],
)
def test_numbers_that_cannot_be(folder, entry, said):
    result = card(folder, "--license", "mit", "--metrics", measured(folder, entry))
    assert result.exit_code == 1 and said in result.stderr


def test_what_is_asked_of_the_command(folder):
    assert "give a FOLDER, or --output" in card("--license", "mit").stderr
    assert "either --facts" in card(folder).stderr


def test_metadata_is_plain_yaml():
    for path in CARDS.glob("*.md"):
        data, text = split(path.read_text())
        assert yaml.safe_load(yaml.safe_dump(data)) == data and text.startswith("\n# ")
