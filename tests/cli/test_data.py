"""`unclip data check` names everything that is wrong, once, and its list leaves exactly that out."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from data import made
from data.test_embeddings import batch, write

from unclip_hub.cli import main


def check(*arguments) -> Result:
    return CliRunner().invoke(main, ["data", "check", *map(str, arguments)])


def broken_folder(root: Path) -> Path:
    made.folder(root, 8)
    (root / "0000.png").write_bytes(made.truncated())
    (root / "0001.txt").unlink()
    (root / "0002.txt").write_text("\n")
    made.picture(3, width=90, height=20).save(root / "0003.png")
    made.picture(4).save(root / "0004.webp")
    (root / "lonely.txt").write_text("no picture")
    return root


def test_everything_wrong_is_named_with_counts(tmp_path):
    result = check(broken_folder(tmp_path / "photos"), "--size", 32, "--threads", 1)
    assert result.exit_code == 1
    found = dict(line.split(": ")[:2][::-1] for line in result.stdout.splitlines() if line.count(": ") >= 2)
    assert found == {
        "0000": "broken image",
        "0001": "no caption",
        "0002": "empty caption",
        "0003": "too small",
        "0004": "duplicate key",
        "lonely": "no image",
    }
    assert f"{tmp_path / 'photos'}: 3 right, 6 wrong" in result.stdout
    assert "        1  too small" in result.stdout
    assert "0003: is 90x20, expected edges of at least 32 px" in result.stdout


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_what_the_fix_list_names_is_left_out(kind, tmp_path):
    if kind == "folder":
        data, right = broken_folder(tmp_path / "data"), 3
    else:
        made.shards(tmp_path / "data", [3, 3])
        broken = tmp_path / "data" / "part-01.tar"
        broken.write_bytes(broken.read_bytes()[:-5000])
        made.shard(tmp_path / "data" / "x.tar", [*made.files_of(1), ("a.png", made.truncated()), ("a.txt", b"a")])
        data, right = tmp_path / "data", 4
    fixed = tmp_path / "fix.txt"
    first = check(data, "--size", 32, "--fix-list", fixed)
    assert first.exit_code == 1
    assert len(fixed.read_text().splitlines()) == sum(line.count(": ") >= 2 for line in first.stdout.splitlines())
    second = check(data, "--size", 32, "--exclude", fixed)
    assert second.exit_code == 0, second.output
    assert second.stdout == f"{data}: {right} right, 0 wrong\n"
    assert not list(tmp_path.glob(".*"))


def test_misaligned_and_broken_shards(tmp_path):
    image = made.encoded(made.picture(1))
    files = [("a.png", image), ("b.png", image), ("a.txt", b"a"), ("b.txt", b"b"), *made.files_of(5)]
    made.shard(tmp_path / "x.tar", files)
    cut = made.shard(tmp_path / "y.tar", [*made.files_of(6), *made.files_of(7)])
    cut.write_bytes(cut.read_bytes()[:2000])
    result = check(tmp_path, "--size", 16)
    assert result.exit_code == 1
    for line in (
        "no caption: x/a: expected .txt or .json beside .png",
        "no caption: x/b: expected .txt or .json beside .png",
        "duplicate key: x/a: its files do not stand together in the shard",
        "duplicate key: x/b: its files do not stand together in the shard",
        f"broken shard: y: {cut} breaks off at sample 0: unexpected end of data",
        f"{tmp_path}: 1 right, 5 wrong",
    ):
        assert line in result.stdout.splitlines()


def test_whole_data_is_right(tmp_path):
    result = check(made.folder(tmp_path, 5), "--size", 32)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path}: 5 right, 0 wrong\n")


def test_embeddings(tmp_path):
    folder = write(tmp_path / "e", batch(0, 4), batch(4, 3), batch(7, 2))
    assert check(folder).stdout == f"{folder}: 9 right, 0 wrong\n"
    content = bytearray((folder / "00001.safetensors").read_bytes())
    content[-5] ^= 1
    (folder / "00001.safetensors").write_bytes(content)
    (folder / "00002.safetensors").unlink()
    result = check(folder)
    assert result.exit_code == 1
    assert "00001.safetensors: the shard's content is not what was written" in result.stdout
    assert "00002.safetensors: the shard is missing" in result.stdout
    assert f"{folder}: 4 right, 2 wrong" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["x", "--size", "0"], ["x", "--exclude", "gone.txt"]])
def test_bad_usage(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check(*arguments).exit_code == 2


def test_no_data_is_one_line_with_the_forms(tmp_path):
    result = check(tmp_path / "nowhere")
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 1 and line.startswith("Error: no data in") and "hf:OWNER/NAME" in line
