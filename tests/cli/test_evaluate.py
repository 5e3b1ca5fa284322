"""`unclip evaluate prior`, on a tiny model with random weights."""

import json

import pytest
from click.testing import CliRunner, Result
from data import made
from pipelines import tiny

from unclip_hub import UnCLIPPipeline
from unclip_hub.cli import main
from unclip_hub.evaluation.priors import BEST


MEASURED_ON_PHOTOS = {"cosine", "retrieval", "marginal MMD", "spread", "norm", "ms per embedding"}


def evaluate(*arguments) -> Result:
    steps = ["--prior-steps", 2, "--prior-guidance", 1.5, "--device", "cpu"]
    return CliRunner().invoke(main, ["evaluate", "prior", *map(str, [*arguments, *steps])])


def succeed(*arguments) -> str:
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def assert_refused(result: Result, says: str) -> None:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and says in line


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    UnCLIPPipeline(**tiny.components(karlo=False)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def other_prior(model, tmp_path_factory):
    """The same CLIP, another prior."""
    pipe = UnCLIPPipeline.from_pretrained(model)
    for parameter in pipe.prior.parameters():
        parameter.data.mul_(1.5)
    folder = tmp_path_factory.mktemp("models") / "louder"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return made.folder(tmp_path_factory.mktemp("photos"), 6)


def test_one_table_for_priors_of_one_clip(model, other_prior, tmp_path):
    path = tmp_path / "new" / "prior.json"
    printed = succeed(
        model, other_prior, "--data", "scenes:64", "-n", 7, "--samples", 3, "--batch", 3, "--ladder", "-o", path
    )
    found = json.loads(path.read_text())
    assert (found["captions"], found["samples"], found["data"]) == (7, 3, "scenes:64")
    (table,) = found["tables"]
    assert list(table["rows"]) == ["real pictures", "text embedding", str(model), str(other_prior)]
    for name, card in table["rows"].items():
        timed = {"ms per embedding"} if name in (str(model), str(other_prior)) else set()
        assert set(BEST) | timed <= set(card)
        for metric, one in card.items():
            assert one["low"] - 1e-9 <= one["value"] <= one["high"] + 1e-9, (name, metric)
    rows = table["rows"]
    assert rows[str(model)]["cosine"]["n"] == 7 and rows[str(model)]["ms per embedding"]["n"] == 3  # batches
    assert rows["real pictures"]["binding"]["value"] == 1 and rows["text embedding"]["diversity"]["value"] == 0
    assert rows[str(model)]["cosine"] != rows[str(other_prior)]["cosine"]
    assert set(table["ladder"]) == set(table["verdicts"]) == {"shrunk", "noise", "shuffled", "swapped", "shortened"}
    lines = printed.splitlines()
    assert [line.split("  ")[0] for line in lines[1 : 1 + len(BEST)]] == [*BEST]
    assert sum(line.startswith("ladder, ") for line in lines) == 5


def test_photos_say_what_is_not_measured(model, photos, tmp_path):
    printed = succeed(model, "--data", photos, "-n", 4, "--samples", 2, "--output", tmp_path / "prior.json")
    (table,) = json.loads((tmp_path / "prior.json").read_text())["tables"]
    assert list(table["rows"]) == ["text embedding", str(model)]
    card = table["rows"][str(model)]
    assert {metric for metric, one in card.items() if one is not None} == MEASURED_ON_PHOTOS
    assert card["binding"] is None and card["cosine"]["n"] == 4
    (line,) = [line for line in printed.splitlines() if line.startswith("diversity")]
    assert line.split("  ")[-1].strip() == "not measured"


def test_results_do_not_depend_on_the_batch(model, photos, tmp_path):
    for batch in (1, 3):
        succeed(model, "--data", photos, "--samples", 2, "--batch", batch, "--output", tmp_path / f"{batch}.json")
    cards = [json.loads((tmp_path / f"{b}.json").read_text())["tables"][0]["rows"][str(model)] for b in (1, 3)]
    for metric in MEASURED_ON_PHOTOS - {"ms per embedding"}:
        assert cards[0][metric]["value"] == pytest.approx(cards[1][metric]["value"], rel=1e-3, abs=1e-3), metric
    assert cards[0]["ms per embedding"]["n"] == 6 and cards[1]["ms per embedding"]["n"] == 2


def test_priors_of_two_clips_are_not_compared(model, photos, tmp_path):
    pipe = UnCLIPPipeline.from_pretrained(model)
    pipe.text_encoder.text_projection.weight.data.mul_(2)
    pipe.save_pretrained(tmp_path / "other")
    succeed(model, tmp_path / "other", "--data", photos, "--samples", 1, "--output", tmp_path / "prior.json")
    tables = json.loads((tmp_path / "prior.json").read_text())["tables"]
    assert [list(table["rows"]) for table in tables] == [
        ["text embedding", str(model)],
        ["text embedding", str(tmp_path / "other")],
    ]


def test_what_cannot_be_evaluated(model, tmp_path):
    assert_refused(evaluate(model, "--data", tmp_path / "nothing"), "no data in")
    assert_refused(evaluate("no/such/model"), "no model 'no/such/model'")
    made.folder(tmp_path / "single", 1)
    assert_refused(evaluate(model, "--data", tmp_path / "single"), "at least 2 captioned pictures")
    (made.folder(tmp_path / "broken", 5) / "0003.txt").write_text("\n")
    assert_refused(evaluate(model, "--data", tmp_path / "broken"), "0003")
    assert evaluate(model, "-n", 1).exit_code == 2
    assert evaluate(model, "--data", tmp_path / "broken", "--output", tmp_path).exit_code == 2
