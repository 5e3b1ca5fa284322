"""A report shows the curves there are numbers for, and says what did not come out as it should."""

import json

import numpy as np
import pytest
from PIL import Image

from unclip_hub.training.report import write_report


BANDS = {"v0": 0.3, "v1": 0.2}


@pytest.fixture
def run(tmp_path):
    rows = [{"step": float(n), "loss": 4 / n, "grad_norm": 1.0, "v0": 2 / n, "v1": 3 / n} for n in range(1, 11)]
    (tmp_path / "stats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_curves_numbers_and_facts(run):
    text = write_report(run, title="Of a|test", facts={"data": "a|b"}, samples="samples.png").read_text()
    assert text.startswith("# Of a|test\n") and "| data | a\\|b |" in text and "| steps | 10 |" in text
    shown = {line.partition("(")[2][:-1] for line in text.splitlines() if line.startswith("![")}
    assert shown == {"samples.png", "loss.png", "by_noise.png", "gradient.png"}
    assert "filter" not in text


def test_levels_that_are_no_better_than_a_filter_are_named_and_drawn(run):
    write_report(run, title="t", facts={})
    plain = np.asarray(Image.open(run / "by_noise.png"))
    text = write_report(run, title="t", facts={}, bands=BANDS).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("**At the end**")]
    assert "v1 0.3 (filter 0.2)" in line and "v0 " not in line
    assert not np.array_equal(np.asarray(Image.open(run / "by_noise.png")), plain)


def test_levels_that_are_all_better_are_said_to_be(run):
    text = write_report(run, title="t", facts={}, bands={"v0": 0.3, "v1": 0.4}).read_text()
    assert "**At the end** at every noise level the loss is below that of the best linear filter" in text


def test_a_run_without_numbers_has_a_report(tmp_path):
    text = write_report(tmp_path, title="t", facts={"a": 1}, bands=BANDS).read_text()
    assert "| a | 1 |" in text and "![" not in text and "filter" not in text
