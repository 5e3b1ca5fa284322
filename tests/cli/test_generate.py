"""`unclip generate`: bad usage is told in one line before a model is loaded; pictures are whole and reproducible."""

import shutil
import sys
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
QUICK = ["--prior-steps", "1", "--steps", "2", "--upsampler-steps", "1", "--quiet"]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def generate(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["generate", *arguments])


def assert_one_line(result: Result, *, code: int, says: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and says in line


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "CAPTION"),
        (["x", "--steps", "-3"], "--steps"),
        (["x", "--decoder-steps", "0"], "--steps"),
        (["x", "--prior-steps", "0"], "--prior-steps"),
        (["x", "--upsampler-steps", "0"], "--upsampler-steps"),
        (["x", "--num-images", "0"], "--num-images"),
        (["x", "--seed", "-1"], "--seed"),
        (["x", "--guidance", "nan"], "--guidance"),
        (["x", "--prior-guidance", "-1"], "--prior-guidance"),
        (["x", "--dtype", "float8"], "'float32', 'bfloat16', 'float16'"),
        (["x", "--device", "tpu"], "'auto', 'cpu', 'cuda'"),
        (["x", "--output", "a.xyz"], "a.xyz: expected"),
        (["x", "--output", "noextension"], "noextension: expected"),
        (["x", "--output", "a.xbm"], "a.xbm: expected"),  # PIL knows it, but not in colour
        (["x", "--output", "folder.png"], "it is a folder"),
        (["x", "--output", "file.txt/a.png"], "file.txt: Not a directory"),
        (["x", "--output", "/proc/unclip/a.png"], "/proc"),
        (["x", "--nonsense"], "--nonsense"),
    ],
)
def test_bad_usage(arguments, says, tmp_path, monkeypatch):
    if "/proc/unclip/a.png" in arguments and sys.platform != "linux":
        pytest.skip("a folder that nobody can write to is at hand on Linux only")
    tmp_path.joinpath("folder.png").mkdir()
    tmp_path.joinpath("file.txt").touch()
    monkeypatch.setattr("unclip_hub.cli.options.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert_one_line(generate(*arguments), code=2, says=says)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt", "folder.png"]


def test_unknown_command():
    assert_one_line(CliRunner().invoke(main, ["paint"]), code=2, says="paint")


def test_no_command_is_help():
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 2 and "generate" in result.stderr


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "three/part/name"])
def test_no_such_model(model):
    assert_one_line(generate("x", "--model", model), code=1, says=model)


def test_no_bundled_model(monkeypatch, tmp_path):
    monkeypatch.setattr("unclip_hub.cli.options.BUNDLED_MODEL", str(tmp_path / "nothing"))
    assert_one_line(generate("x"), code=1, says="--model")


@pytest.mark.parametrize("error", [OSError("one\n  two"), ValueError("one two"), RuntimeError("one two")])
def test_what_goes_wrong_later_is_one_line_too(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("unclip_hub.cli.options.locate", fail)
    assert_one_line(generate("x"), code=1, says="one two")
    assert generate("x", "--debug").exception is error


@pytest.mark.parametrize("error", [KeyError("name"), AssertionError()])
def test_an_error_of_ours_is_named(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("unclip_hub.cli.options.locate", fail)
    assert_one_line(generate("x"), code=1, says=f"{type(error).__name__}:")


def test_an_empty_folder_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    assert_one_line(generate("x", "--model", "empty"), code=1, says="empty")


def test_a_repository_that_is_not_in_the_cache():
    assert_one_line(generate("x", "--model", "nobody/nothing"), code=1, says="nobody/nothing")


@needs_model
def test_one_picture():
    result = generate("a red circle", "--output", "new/folder/a.png", *QUICK)
    assert (result.exit_code, result.stdout) == (0, "new/folder/a.png\n"), result.output
    assert Image.open("new/folder/a.png").mode == "RGB"
    assert [path.name for path in Path("new/folder").iterdir()] == ["a.png"]  # no partial file is left


@needs_model
def test_grid_and_single_pictures():
    captions = ["a red circle", "a blue star"]
    result = generate(*captions, "--num-images", "2", "--separate", "--seed", "3", "--output", "a.png", *QUICK)
    assert result.stdout.split() == ["a.png", "a-1.png", "a-2.png", "a-3.png", "a-4.png"], result.output
    sheet, pictures = Image.open("a.png"), [Image.open(f"a-{i}.png") for i in (1, 2, 3, 4)]
    width, height = pictures[0].size
    assert sheet.size == (2 * width, 2 * height)
    for i, picture in enumerate(pictures):
        corner = (i % 2 * width, i // 2 * height)
        assert picture.tobytes() == sheet.crop((*corner, corner[0] + width, corner[1] + height)).tobytes()


@needs_model
def test_a_picture_of_a_grid_can_be_made_alone():
    generate(
        "a red circle", "a blue star", "--num-images", "2", "--separate", "--seed", "3", "--output", "a.png", *QUICK
    )
    generate("a blue star", "--seed", "6", "--output", "b.png", *QUICK)
    generate("a blue star", "--seed", "7", "--output", "c.png", *QUICK)
    together, alone, other = (np.asarray(Image.open(name)).astype(int) for name in ("a-4.png", "b.png", "c.png"))
    assert abs(together - alone).max() <= 2  # batches of different sizes round differently
    assert abs(together - other).max() > 2


@needs_model
def test_a_corrupt_checkpoint(tmp_path):
    shutil.copytree(BUNDLED_MODEL, tmp_path / "broken")
    (weights,) = (tmp_path / "broken" / "prior").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_one_line(generate("x", "--model", "broken", "--quiet"), code=1, says="")


@needs_model
@pytest.mark.parametrize(
    "option",
    [
        ["--negative", "a star"],
        ["--guidance", "5"],
        ["--prior-guidance", "5"],
        ["--prior-samples", "3"],
        ["--candidates", "3"],
    ],
)
def test_sampling_options_change_the_picture(option):
    guided = ["--guidance", "2", *QUICK]
    generate("a red circle", "--output", "a.png", *guided)
    result = generate("a red circle", "--output", "b.png", *guided, *option)
    assert result.exit_code == 0, result.output
    assert Image.open("a.png").tobytes() != Image.open("b.png").tobytes()
