import importlib.util
from pathlib import Path

import pytest
import torch

from unclip_hub.data.scenes import CPU, Scene, Thing, dataset
from unclip_hub.data.sprites import SHAPES, build_bank
from unclip_hub.evaluation.scene_detector import HUES, NOUNS, SceneDetector, labels, right


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAIR = Scene("white", (Thing("heart", "red"), Thing("koala")), relation="left of")


@pytest.fixture(scope="module")
def detector():
    return SceneDetector.load(BENCHMARKS / "scene_detector.safetensors")


@pytest.fixture(scope="module")
def shapes():
    from dataclasses import replace

    scope = replace(CPU, emoji=())
    return dataset(100, seed=77, scope=scope, bank=build_bank(SHAPES, canvases=(64,)), split="held_out", captions=1)


def pixels_of(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_labels_name_what_stands_on_each_cell():
    wanted = labels([PAIR])
    assert wanted.nouns.shape == wanted.hues.shape == (1, 8, 8)
    left, right_half = wanted.nouns[0, :, :4], wanted.nouns[0, :, 4:]
    assert set(left.flatten().tolist()) == {0, 1 + NOUNS.index("heart")}
    assert set(right_half.flatten().tolist()) == {0, 1 + NOUNS.index("koala")}
    assert set(wanted.hues.flatten().tolist()) == {0, 1 + HUES.index("red"), 1 + HUES.index("own")}


def test_the_shipped_detector_sees_what_real_renders_show(detector, shapes):
    seen = detector.see(pixels_of(shapes.pictures))
    verdicts = [right(kinds, scene)["object and colour"] for kinds, scene in zip(seen, shapes.scenes, strict=True)]
    assert sum(verdicts) >= 95
    shifted = [right(kinds, scene)["object"] for kinds, scene in zip(seen[1:], shapes.scenes, strict=False)]
    assert sum(shifted) <= 20


def test_pictures_may_be_larger(detector, shapes):
    small = pixels_of(shapes.pictures[:4])
    large = small.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    assert detector.see(large) == detector.see(small)
    torch.testing.assert_close(detector.features(large), detector.features(small), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="a multiple of 64 px, got 96 × 96"):
        detector.see(torch.zeros(1, 3, 96, 96))


def test_right_needs_exactly_the_kinds_that_were_asked_for():
    assert right({("heart", "red"), ("koala", None)}, PAIR) == {"object": True, "object and colour": True}
    assert right({("heart", "blue"), ("koala", None)}, PAIR) == {"object": True, "object and colour": False}
    assert not right({("heart", "red")}, PAIR)["object"]
    assert not right({("heart", "red"), ("koala", None), ("star", "red")}, PAIR)["object"]


def test_weights_survive_the_file(tmp_path):
    torch.manual_seed(0)
    model = SceneDetector(width=32).eval()
    model.save(tmp_path / "weights.safetensors")
    again = SceneDetector.load(tmp_path / "weights.safetensors")
    pixels = torch.randn(2, 3, 64, 64)
    for a, b in zip(model(pixels), again(pixels), strict=True):
        torch.testing.assert_close(a, b, atol=0.01, rtol=0.01)


def test_the_training_command_runs(tmp_path):
    from click.testing import CliRunner

    spec = importlib.util.spec_from_file_location("train_detector", BENCHMARKS / "train_detector.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CPU = module.CPU.__class__(shapes=SHAPES[:3])
    output = tmp_path / "detector.safetensors"
    options = ["--steps", "2", "--batch", "2", "--checked", "4", "--output", str(output)]
    result = CliRunner().invoke(module.main, options, catch_exceptions=False)
    assert "object and colour, as they are" in result.output and output.exists()
