"""`--data` opens what it names, and says what it takes where it names nothing."""

import pytest
from data import made

from unclip_hub.data.captioned import BrokenSample
from unclip_hub.data.shards import Shards
from unclip_hub.data.sources import in_order, open_data


def keys(source, **options) -> list[str]:
    return [found.key for found, _ in in_order(source, **options)]


@pytest.fixture
def folder(tmp_path):
    return made.folder(tmp_path / "photos", 4)


def test_a_folder_and_a_table(folder):
    assert keys(open_data(str(folder))) == ["0000", "0001", "0002", "0003"]
    made.table(folder / "some.jsonl", [{"file_name": "0002.png", "caption": "x"}])
    assert keys(open_data(str(folder / "some.jsonl"))) == ["0002.png"]


def test_shards_by_folder_pattern_and_name(tmp_path):
    paths = made.shards(tmp_path, [2, 1])
    for text in (str(tmp_path), f"{tmp_path}/part-{{00..01}}.tar", f"{tmp_path}/part-*.tar"):
        assert keys(open_data(text)) == ["part-00/0000", "part-00/0001", "part-01/0002"]
    assert keys(open_data(str(paths[1]))) == ["part-01/0002"]
    source = open_data("https://host.invalid/{0..9}.tar")
    assert isinstance(source, Shards) and len(source.addresses) == 10
    assert open_data("hf://datasets/a/b/{0..9}.tar").addresses[9] == "hf://datasets/a/b/9.tar"


@pytest.mark.parametrize(("text", "size", "count"), [("scenes", 64, 100_000), ("scenes:64:7", 64, 7)])
def test_scenes(text, size, count):
    source = open_data(text)
    assert len(source) == count and source[0].image.size == (size, size)


@pytest.mark.parametrize("text", ["scenes:", "scenes:x", "scenes:64:3:4", "scenes:63", "scenes:64:0"])
def test_scenes_that_cannot_be(text):
    with pytest.raises(ValueError, match="expected"):
        open_data(text)


@pytest.mark.parametrize("text", ["nowhere", "nowhere.jsonl", "", "http//typo", "file.zip"])
def test_what_is_no_data_is_answered_with_the_forms(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.zip").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError) as caught:
        open_data(text or str(tmp_path / "empty"))
    if text:
        for form in ("photos/", "photos.jsonl", "shards/{000..099}.tar", "hf:OWNER/NAME", "scenes"):
            assert form in str(caught.value)
    else:
        assert "holds no captioned pictures; the folder is empty" in str(caught.value)


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").touch()
    with pytest.raises(ValueError, match=r"no captioned pictures; its files end in \.heic"):
        open_data(str(tmp_path))


def test_something_wrong_is_refused_unless_excluded(folder, tmp_path):
    (folder / "0001.txt").unlink()
    (folder / "0003.txt").unlink()
    with pytest.raises(ValueError, match=r"0001: expected captions in 0001\.txt beside 0001\.png, and 1 more"):
        open_data(str(folder))
    assert keys(open_data(str(folder), strict=False)) == ["0000", "0002"]
    (tmp_path / "list.txt").write_text("0001\n0003\n0000\n")
    source = open_data(str(folder), exclude=tmp_path / "list.txt")
    assert keys(source) == ["0002"] and source.key(0) == "0002"


def test_shards_and_samples_of_shards_are_excluded(tmp_path):
    made.shards(tmp_path, [2, 2, 2])
    (tmp_path / "list.txt").write_text("part-01\npart-02/0005\n")
    assert keys(open_data(str(tmp_path), exclude=tmp_path / "list.txt")) == [
        "part-00/0000",
        "part-00/0001",
        "part-02/0004",
    ]
    (tmp_path / "list.txt").write_text("part-00\npart-01\npart-02\n")
    with pytest.raises(ValueError, match="all 3 shards are left out"):
        open_data(str(tmp_path), exclude=tmp_path / "list.txt")


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_reading_continues_at_any_position(kind, folder, tmp_path):
    if kind == "shards":
        made.shards(tmp_path, [2, 3])
    source = open_data(str(folder if kind == "folder" else tmp_path))
    whole = list(in_order(source))
    for done, (_, position) in enumerate(whole, start=1):
        assert keys(source, start=position) == [found.key for found, _ in whole[done:]]


def test_what_is_broken_takes_its_place_in_the_order(folder):
    (folder / "0001.txt").write_text("")
    found = [found for found, _ in in_order(open_data(str(folder)))]
    assert [isinstance(one, BrokenSample) for one in found] == [False, True, False, False]
