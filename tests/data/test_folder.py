"""Pictures in folders and tables: every sample is found, everything missing is named."""

import pytest
from data import made

from unclip_hub.data.captioned import BrokenSample, all_samples
from unclip_hub.data.folder import open_folder, open_table


def kinds(source) -> dict[str, str]:
    return {problem.key: problem.kind for problem in source.problems}


def captions(source) -> dict[str, tuple[str, ...]]:
    return {source[i].key: source[i].captions for i in range(len(source))}


def test_captions_beside_pictures(tmp_path):
    made.folder(tmp_path / "b", 2)
    made.folder(tmp_path / "a", 1)
    (tmp_path / "a" / "0000.txt").write_text("\ufeffa first caption\n\n a second one \n", encoding="utf-8")
    made.picture(7).save(tmp_path / "with.dots.JPG", format="jpeg")
    (tmp_path / "with.dots.txt").write_text("dots")
    (tmp_path / "a" / "._0000.png").write_bytes(b"hidden, as macOS leaves them")
    (tmp_path / ".thumbnails").mkdir()
    made.picture(8).save(tmp_path / ".thumbnails" / "x.png")
    (tmp_path / "notes.md").touch()
    source = open_folder(tmp_path)
    assert source.problems == ()
    assert captions(source) == {
        "a/0000": ("a first caption", "a second one"),
        "b/0000": ("picture 0",),
        "b/0001": ("picture 1",),
        "with.dots": ("dots",),
    }
    assert [source.key(i) for i in range(4)] == ["a/0000", "b/0000", "b/0001", "with.dots"]
    assert source[3].image == tmp_path / "with.dots.JPG"


def test_what_is_wrong_in_a_folder_is_named(tmp_path):
    made.folder(tmp_path, 3)
    (tmp_path / "0001.txt").unlink()
    (tmp_path / "lonely.txt").write_text("a caption without a picture")
    made.picture(9).save(tmp_path / "0002.jpg")
    source = open_folder(tmp_path)
    assert kinds(source) == {"0001": "no caption", "lonely": "no image", "0002": "duplicate key"}
    assert "0002.jpg, 0002.png" in str(next(p for p in source.problems if p.key == "0002"))
    assert list(captions(source)) == ["0000"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "empty caption"), (b" \n\t\n", "empty caption"), ("ä".encode("latin-1"), "broken caption")],
)
def test_captions_that_cannot_be_used(content, kind, tmp_path):
    made.folder(tmp_path, 2)
    (tmp_path / "0000.txt").write_bytes(content)
    problem, whole = all_samples(open_folder(tmp_path))
    assert isinstance(problem, BrokenSample) and (problem.kind, problem.key) == (kind, "0000")
    assert not isinstance(whole, BrokenSample)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_image_folders_of_hugging_face(form, tmp_path):
    made.folder(tmp_path / "train", 3)
    rows = [{"file_name": f"000{i}.png", "text": f"number {i}, in words"} for i in (1, 0)]
    if form == "jsonl":
        made.table(tmp_path / "train" / "metadata.jsonl", rows)
    else:
        lines = ["file_name,text", *(f'{row["file_name"]},"{row["text"]}"' for row in rows)]
        (tmp_path / "train" / "metadata.csv").write_text("\n".join(lines))
    source = open_folder(tmp_path)
    assert captions(source) == {f"train/000{i}.png": (f"number {i}, in words",) for i in (0, 1)}
    assert kinds(source) == {"train/0002": "no caption"}


def test_tables_name_pictures_relative_to_themselves(tmp_path):
    made.folder(tmp_path / "pictures", 2)
    rows = [
        {"image": "pictures/0000.png", "caption": "first"},
        {"image": "pictures/0001.png", "captions": ["second", "third"]},
        {"image": "pictures/0000.png", "caption": "first again"},
    ]
    source = open_table(made.table(tmp_path / "all.jsonl", rows))
    assert source.problems == ()
    assert captions(source) == {
        "pictures/0000.png": ("first", "first again"),
        "pictures/0001.png": ("second", "third"),
    }
    assert source[0].image == tmp_path / "pictures" / "0000.png"


def test_what_is_wrong_in_a_table_is_named(tmp_path):
    made.folder(tmp_path, 5)
    lines = [
        '{"file_name": "0000.png", "caption": "right"}',
        '{"file_name": "gone.png", "caption": "a"}',
        '{"file_name": "0001.png", "title": "a"}',
        '{"caption": "a"}',
        '{"file_name": "0002.png", "caption": 7}',
        "{not json",
        "[1]",
        "",
        '{"file_name": "0003.png", "caption": "twice"}',
        '{"file_name": "0003.png", "caption": "twice"}',
        '{"file_name": "0004.png", "caption": null}',
    ]
    (tmp_path / "all.jsonl").write_text("\n".join(lines))
    source = open_table(tmp_path / "all.jsonl")
    assert kinds(source) == {
        "gone.png": "no image",
        "all.jsonl:3": "no caption",
        "all.jsonl:4": "no image",
        "0002.png": "broken caption",
        "all.jsonl:6": "broken caption",
        "all.jsonl:7": "broken caption",
        "0003.png": "duplicate key",
    }
    right, without_caption = all_samples(source)
    assert right.key == "0000.png" and isinstance(without_caption, BrokenSample)
    assert (without_caption.kind, without_caption.key) == ("no caption", "0004.png")


def test_a_table_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("file_name,caption\na.png,\xe4\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv cannot be read as UTF-8 CSV"):
        open_table(tmp_path / "a.csv")
