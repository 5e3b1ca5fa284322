"""`unclip vary`, `invert`, `interpolate` and `edit`: one line for bad usage, whole files for good."""

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
QUICK = ["--steps", "2", "--upsampler-steps", "1", "--quiet"]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pixels = np.random.default_rng(0).integers(0, 256, (28, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("a.png")
    Image.fromarray(255 - pixels).save("b.png")


def unclip(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def assert_one_line(result: Result, *, code: int, says: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and says in line, line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["vary"], "PICTURE"),
        (["vary", "a.png", "--eta", "1.5"], "--eta"),
        (["vary", "a.png", "--eta", "nan"], "--eta"),
        (["vary", "a.png", "--output", "x.xyz"], "x.xyz: expected"),
        (["invert", "a.png", "--output", "x.png"], "x.png: expected a name in .safetensors"),
        (["invert", "a.png", "--iterations", "0"], "--iterations"),
        (["interpolate", "a.png"], "at least 2"),
        (["interpolate", "a.png", "b.png", "--weight", "1"], "2 times --weight"),
        (["interpolate", "a.png", "b.png", "--noise", "loud"], "'inverted', 'fixed'"),
        (["interpolate", "a.png", "b.png", "--seconds", "0"], "--seconds"),
        (["edit", "a.png"], "expected either --to"),
        (["edit", "a.png", "--to", "x", "--add", "y"], "expected either --to"),
        (["edit", "a.png", "--to", "x", "--theta", "2"], "--theta"),
    ],
)
def test_bad_usage(arguments, says, monkeypatch):
    monkeypatch.setattr("unclip_hub.cli.options.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert_one_line(unclip(*arguments), code=2, says=says)


@pytest.mark.parametrize(
    "arguments",
    [["vary", "no.png"], ["invert", "no.png"], ["interpolate", "a.png", "no.png"], ["edit", "no.png", "--to", "x"],
     ["vary", "no.safetensors"]],
)  # fmt: skip
def test_no_such_picture(arguments, monkeypatch):
    monkeypatch.setattr("unclip_hub.cli.options.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert_one_line(unclip(*arguments), code=1, says="no such file")


@pytest.mark.parametrize("command", [["vary"], ["edit", "--to", "x"]])
def test_a_broken_picture(command, monkeypatch):
    Path("broken.png").write_bytes(Path("a.png").read_bytes()[:500])
    Path("text.png").write_text("this is no picture")
    monkeypatch.setattr("unclip_hub.cli.options.load", lambda *_, **__: pytest.fail("a model was loaded"))
    for name in ("broken.png", "text.png"):
        assert_one_line(unclip(command[0], name, *command[1:]), code=1, says=f"cannot read {name}")


@needs_model
def test_vary_edit_and_the_latent_between_them():
    result = unclip("invert", "a.png", "b.png", "--exact", "--steps", "2", "--quiet", "--output", "new/l.safetensors")
    assert result.exit_code == 0, result.output
    path, *errors = result.stdout.splitlines()
    assert path == "new/l.safetensors" and [line.split(":")[0] for line in errors] == ["a.png", "b.png"]
    assert all(float(line.split(":")[1]) < 1e-9 for line in errors)
    quick = QUICK[2:]
    result = unclip("vary", "new/l.safetensors", "-n", "1", "--output", "again.png", *quick)
    assert result.stdout == "again.png\n", result.output
    assert Image.open("again.png").size == (256, 512)
    result = unclip("edit", "new/l.safetensors", "--to", "a red circle", "--theta", "0.4", "--output", "e.png", *quick)
    assert result.stdout == "e.png\n", result.output
    assert Image.open("e.png").tobytes() != Image.open("again.png").tobytes()


@needs_model
def test_variations_with_and_without_eta():
    for name, options in {"fresh.png": [], "near.png": ["--eta", "0.5"]}.items():
        result = unclip("vary", "a.png", "-n", "2", "--separate", "--output", name, *options, *QUICK)
        assert result.exit_code == 0, result.output
        assert len(result.stdout.split()) == 3
    assert Image.open("fresh.png").tobytes() != Image.open("near.png").tobytes()


@needs_model
def test_a_row_of_edits():
    result = unclip("edit", "a.png", "--add", "a star", "--subtract", "a circle", *QUICK)
    assert result.stdout == "edited.png\n", result.output
    assert Image.open("edited.png").size == (5 * 256, 256)


@needs_model
def test_an_animation_and_a_mean():
    result = unclip("interpolate", "a.png", "b.png", "--frames", "3", "--output", "m.gif", *QUICK)
    assert result.stdout == "m.gif\n", result.output
    with Image.open("m.gif") as file:
        assert file.n_frames == 4 and file.size == (256, 256)
    options = ["--weight", "1", "--weight", "2", "--prior-steps", "1", "--output", "mean.png", *QUICK]
    result = unclip("interpolate", "a.png", "a red circle", *options)
    assert result.stdout == "mean.png\n", result.output
    assert Image.open("mean.png").size == (256, 256)
