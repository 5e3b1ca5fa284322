"""`unclip embed`: what the encoders give is what is read back, and a killed run ends as an undisturbed one does."""

import hashlib
import json
import multiprocessing
import shutil
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from data import made
from PIL import Image

from unclip_hub import BUNDLED_MODEL
from unclip_hub.cli import main
from unclip_hub.data.embeddings import MANIFEST, Embeddings, read_manifest
from unclip_hub.data.sources import open_data
from unclip_hub.pipelines.encoders import CLIPEncoders


pytestmark = pytest.mark.skipif(
    not Path(BUNDLED_MODEL, "model_index.json").exists(), reason="the bundled model is not in this checkout"
)


def embed(*arguments) -> Result:
    return CliRunner().invoke(main, ["embed", *map(str, arguments), "--threads", "1", "--device", "cpu"])


def succeed(*arguments) -> None:
    result = embed(*arguments)
    assert result.exit_code == 0, result.output


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def encoders():
    return CLIPEncoders.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = made.folder(tmp_path_factory.mktemp("photos"), 7)
    (folder / "0003.txt").write_text("a red heart\na heart\na red heart\n")
    return folder


def test_rows_are_what_the_encoders_give(photos, encoders, tmp_path):
    succeed(photos, "--output", tmp_path, "--shard-size", 3, "--batch", 2)
    embeddings, source = Embeddings(tmp_path), open_data(str(photos))
    assert [shard["rows"] for shard in embeddings.manifest.shards] == [3, 4, 1]
    found = embeddings.batch(range(8))
    assert found.keys == ["0000", "0001", "0002", "0003", "0003", "0004", "0005", "0006"]
    assert found.captions[3:5] == ["a red heart", "a heart"]
    with torch.no_grad():
        image_embed = encoders.encode_image([Image.open(source[int(key)].image) for key in found.keys])
        text = encoders.encode_text(found.captions)
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(found.image_embed, image_embed, **close)
    for name in ("text_embed", "text_states", "text_mask"):
        torch.testing.assert_close(getattr(found.text, name), getattr(text, name), **close)


def test_half_precision_and_images_only(photos, tmp_path):
    succeed(photos, "--output", tmp_path / "whole")
    succeed(photos, "--output", tmp_path / "half", "--dtype", "float16")
    succeed(photos, "--output", tmp_path / "images", "--images-only")
    whole, half, images = (Embeddings(tmp_path / name) for name in ("whole", "half", "images"))
    rows = [0, 4, 7]
    torch.testing.assert_close(half.batch(rows).image_embed, whole.batch(rows).image_embed, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(images.batch(rows).image_embed, whole.batch(rows).image_embed)
    assert images.batch(rows).text is None and images.batch(rows).captions == whole.batch(rows).captions
    sizes = [one.manifest.shards[0]["bytes"] for one in (whole, half, images)]
    assert sizes[2] < sizes[1] < 0.6 * sizes[0]


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_an_interrupted_run_continues(kind, tmp_path):
    data = made.folder(tmp_path / "data", 8)
    if kind == "shards":
        data = tmp_path / "tars"
        made.shards(data, [3, 5])
    command = [data, "--shard-size", 2, "--batch", 2, "--images-only", "--output"]
    succeed(*command, tmp_path / "whole")
    succeed(*command, tmp_path / "cut")
    interrupt(tmp_path / "cut", after=1)
    (tmp_path / "cut" / ".00002.safetensors.1.partial").write_bytes(b"of a run that was killed")
    succeed(*command, tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_run_changes_nothing(photos, tmp_path):
    command = (photos, "--output", tmp_path, "--images-only")
    succeed(*command)
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    succeed(*command)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_another_run_in_the_same_folder_is_refused(photos, tmp_path):
    command = (photos, "--output", tmp_path / "e", "--images-only")
    succeed(*command)
    interrupt(tmp_path / "e", after=1)
    assert_refused(embed(*command, "--dtype", "float16"), "begun with dtype 'float32', not 'float16'")
    assert_refused(embed("scenes:64:3", *command[1:]), "begun with data ")
    (tmp_path / "e" / "00000.safetensors").unlink()
    assert_refused(embed(*command), "00000.safetensors: the shard is missing")


def test_data_that_has_changed_is_refused(tmp_path):
    data = made.folder(tmp_path / "data", 6)
    command = (data, "--output", tmp_path / "e", "--shard-size", 2, "--images-only")
    succeed(*command)
    interrupt(tmp_path / "e", after=2)
    made.picture(9).save(data / "0001b.png")
    (data / "0001b.txt").write_text("comes in between")
    assert_refused(embed(*command), "the data has changed")


def test_what_is_broken_is_named_and_can_be_left_out(tmp_path):
    data = made.folder(tmp_path / "data", 4)
    (data / "0002.png").write_bytes(made.truncated())
    command = (data, "--output", tmp_path / "e", "--images-only")
    assert_refused(embed(*command), "0002: the picture is broken")
    assert_refused(embed(*command), "--exclude LIST")
    (tmp_path / "list.txt").write_text("0002\n")
    succeed(data, "--output", tmp_path / "f", "--images-only", "--exclude", tmp_path / "list.txt")
    assert Embeddings(tmp_path / "f").batch([0, 1, 2]).keys == ["0000", "0001", "0003"]


def test_a_disk_too_small_is_told_after_the_first_shard(photos, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free)
    result = embed(photos, "--output", tmp_path, "--shard-size", 2, "--quiet")
    assert_refused(result, "GB more")
    assert len(read_manifest(tmp_path).shards) == 1


def test_folders_and_models_that_cannot_be(photos, tmp_path):
    assert_refused(embed(photos, "--output", photos), "holds other files")
    succeed("scenes:64:2", "--output", tmp_path / "e", "--images-only")
    assert_refused(embed(tmp_path / "e", "--output", tmp_path / "f"), "holds embeddings already")
    (tmp_path / "model").mkdir()
    assert_refused(embed(photos, "--output", tmp_path / "g", "--model", tmp_path / "model"), "has no text_encoder")
    (tmp_path / "file").touch()
    assert embed(photos, "--output", tmp_path / "file").exit_code == 2
    assert embed(photos).exit_code == 2


def test_killed_again_and_again_it_ends_as_an_undisturbed_run(tmp_path):
    command = ["scenes:64:36", "--shard-size", "3", "--batch", "2", "--output"]
    succeed(*command, tmp_path / "whole")
    for shards in (1, 1, 4, 6):  # kill -9 once so many are named
        running = start(*command, tmp_path / "killed")
        deadline = time.monotonic() + 60
        while running.is_alive() and time.monotonic() < deadline and named(tmp_path / "killed") < shards:
            time.sleep(0.001)
        running.kill()
        running.join()
        assert running.exitcode == -signal.SIGKILL
    assert not read_manifest(tmp_path / "killed").complete
    succeed(*command, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def start(*arguments) -> BaseProcess:
    """The command in a process of its own, which need not import torch again."""
    arguments = ["embed", *map(str, arguments), "--threads", "1", "--device", "cpu", "--quiet"]
    process = multiprocessing.get_context("fork").Process(target=main, args=(arguments,))
    process.start()
    return process


def named(folder: Path) -> int:
    return len(read_manifest(folder).shards) if (folder / MANIFEST).is_file() else 0


def interrupt(folder: Path, *, after: int) -> None:
    """Leave what an interruption would have left, when so many shards were named."""
    state = json.loads((folder / MANIFEST).read_text())
    state["shards"], state["complete"] = state["shards"][:after], False
    state["rows"] = sum(shard["rows"] for shard in state["shards"])
    (folder / MANIFEST).write_text(json.dumps(state))


def assert_refused(result: Result, says: str) -> None:
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and says in line
