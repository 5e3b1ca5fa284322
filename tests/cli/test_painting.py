"""`unclip inpaint`, `outpaint`, `img2img`, `upscale`, `score`: bad usage and files in one line, known pixels kept."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from unclip_hub import BUNDLED_MODEL
from unclip_hub.cli import main


needs_model = pytest.mark.skipif(
    not Path(BUNDLED_MODEL, "model_index.json").exists(), reason="the bundled model is not in this checkout"
)
QUICK = ["--steps", "1", "--upsampler-steps", "1", "--quiet"]
PRIOR = ["--prior-steps", "1"]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def picture() -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    return pixels


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def assert_one_line(result: Result, *, code: int, says: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inpaint", "a.png"], "MASK"),
        (["inpaint", "a.png", "a.png", "x", "--output", "a.xyz"], "a.xyz: expected"),
        (["inpaint", "a.png", "a.png", "x", "--resampling", "0"], "--resampling"),
        (["inpaint", "a.png", "a.png", "x", "--image-weight", "2"], "--image-weight"),
        (["outpaint", "a.png", "x"], "expected room on at least one side"),
        (["outpaint", "a.png", "x", "--left", "-3"], "--left"),
        (["img2img", "a.png", "x", "--strength", "0"], "--strength"),
        (["img2img", "a.png", "x", "--strength", "nan"], "--strength"),
        (["upscale", "a.png", "--stage", "decoder"], "'super_res', 'super_res_1024'"),
        (["score", "a.png"], "CAPTION"),
        (["score", "a.png", "x", "--logit-scale", "0"], "--logit-scale"),
    ],
)
def test_bad_usage(arguments, says, picture, monkeypatch):
    monkeypatch.setattr("unclip_hub.cli.options.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert_one_line(run(*arguments), code=2, says=says)


def broken_files() -> dict[str, str]:
    """Files that are no pictures, and what must be said of them."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save("whole.png")
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:3000])
    Path("text.png").write_text("no picture")
    Path("empty.png").touch()
    Path("folder.png").mkdir()
    return {
        "nowhere.png": "no such file",
        "cut.png": "truncated",
        "text.png": "identify",
        "empty.png": "identify",
        "folder.png": "directory",
    }


@pytest.mark.parametrize("command", ["inpaint", "outpaint", "img2img", "upscale", "score"])
def test_broken_files(command, picture, monkeypatch):
    monkeypatch.setattr("unclip_hub.cli.options.load", lambda *_, **__: pytest.fail("a model was loaded"))
    rest = {"inpaint": ["a.png", "x"], "outpaint": ["x", "--left", "8"], "upscale": []}.get(command, ["x"])
    for name, says in broken_files().items():
        result = run(command, name, *rest)
        assert_one_line(result, code=1, says=f"cannot read {name} as a picture")
        assert says in result.stderr
    assert_one_line(run("inpaint", "a.png", "cut.png", "x"), code=1, says="cannot read cut.png")


@needs_model
def test_inpaint_keeps_what_is_black(picture):
    mask = np.zeros((40, 56), dtype=np.uint8)
    mask[5:30, 9:20] = 255
    Image.fromarray(mask).save("mask.png")
    result = run("inpaint", "a.png", "mask.png", "a (red:1.3) star", "--weighted", "-n", "2", *QUICK, *PRIOR)
    assert (result.exit_code, result.stdout) == (0, "inpainted.png\n"), result.output
    made = np.asarray(Image.open("inpainted.png"))
    assert made.shape == (40, 112, 3)
    for half in (made[:, :56], made[:, 56:]):
        np.testing.assert_array_equal(half[mask == 0], picture[mask == 0])
        assert (half[mask == 255] != picture[mask == 255]).mean() > 0.5
    assert (made[:, :56] != made[:, 56:]).any()


@needs_model
def test_outpaint_keeps_the_picture(picture):
    result = run("outpaint", "a.png", "a beach", "--left", "8", "--bottom", "3", *QUICK, *PRIOR)
    assert (result.exit_code, result.stdout) == (0, "outpainted.png\n"), result.output
    made = np.asarray(Image.open("outpainted.png"))
    assert made.shape == (43, 64, 3)
    np.testing.assert_array_equal(made[:40, 8:], picture)


@needs_model
def test_img2img_starts_from_the_picture(picture):
    Image.fromarray(255 - picture).save("b.png")
    made = {}
    for name in ("a.png", "b.png"):
        result = run("img2img", name, "a star", "--strength", "0.5", "-o", "c.png", *QUICK, *PRIOR, "--steps", "2")
        assert (result.exit_code, result.stdout) == (0, "c.png\n"), result.output
        made[name] = np.asarray(Image.open("c.png")).astype(int)
    assert abs(made["a.png"] - made["b.png"]).max() > 2


@needs_model
def test_upscale_takes_any_size():
    Image.new("RGB", (70, 3), (200, 30, 60)).save("a.png")
    result = run("upscale", "a.png", "--upsampler-steps", "1", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "upscaled.png\n"), result.output
    assert Image.open("upscaled.png").size == (280, 12)


@needs_model
def test_what_is_too_long_is_told_in_one_line():
    Image.new("RGB", (10_000, 8)).save("a.png")
    assert_one_line(run("upscale", "a.png", "--quiet"), code=1, says="more than 64")


@needs_model
def test_a_mask_of_another_size(picture):
    Image.new("L", (40, 56), 255).save("other.png")
    assert_one_line(run("inpaint", "a.png", "other.png", "x", "--quiet"), code=1, says="of the pictures' size")


@needs_model
def test_score_reads_a_palette_with_transparency_and_ranks():
    picture = Image.new("P", (50, 64), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.save("a.png", transparency=1)
    result = run("score", "a.png", "a red circle", "a blue star in a forest", "--quiet")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    shares = [float(line.split("%")[0]) for line in lines]
    assert len(lines) == 2 and shares == sorted(shares, reverse=True) and abs(sum(shares) - 100) < 0.2
