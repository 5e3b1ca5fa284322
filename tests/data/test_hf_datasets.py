"""Datasets of Hugging Face `datasets`, saved on disk: columns are found, pictures stay encoded."""

import pytest
from data import made

from unclip_hub.data.captioned import BrokenSample
from unclip_hub.data.pictures import open_picture
from unclip_hub.data.sources import in_order, open_data


datasets = pytest.importorskip("datasets")


def dataset(count: int, *, caption: str = "text", **columns):
    rows = {"picture": [made.picture(i) for i in range(count)], caption: [f"number {i}" for i in range(count)]}
    built = datasets.Dataset.from_dict({"id": list(range(count)), **rows, **columns})
    return built.cast_column("picture", datasets.Image())


def test_a_saved_dataset(tmp_path):
    dataset(3).save_to_disk(tmp_path / "saved")
    source = open_data(f"hf:{tmp_path / 'saved'}")
    assert len(source) == 3 and source.problems == ()
    sample = source[2]
    assert (sample.key, sample.captions) == ("2", ("number 2",)) and isinstance(sample.image, bytes)
    assert open_picture(sample).getpixel((0, 0)) == made.picture(2).getpixel((0, 0))


def test_splits_and_several_captions(tmp_path):
    several = [["a", "b"], ["c"]]
    train, test = dataset(2, caption="captions"), dataset(2)
    train = train.remove_columns("captions").add_column("captions", several)
    datasets.DatasetDict({"train": train}).save_to_disk(tmp_path / "one")
    assert [found.captions for found, _ in in_order(open_data(f"hf:{tmp_path / 'one'}"))] == [("a", "b"), ("c",)]
    datasets.DatasetDict({"test": test}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match="no split 'train', only test: choose one with hf:.*:SPLIT"):
        open_data(f"hf:{tmp_path / 'two'}")
    assert len(open_data(f"hf:{tmp_path / 'two'}:test")) == 2


def test_columns_that_are_missing(tmp_path):
    dataset(2, caption="title").save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"caption or text.*picture \(Image\), title \(Value\)"):
        open_data(f"hf:{tmp_path / 'saved'}")


def test_rows_without_picture_or_caption_are_named(tmp_path):
    rows = {"image": [made.picture(0), None, made.picture(2)], "text": ["", "b", None]}
    built = datasets.Dataset.from_dict(
        rows, features=datasets.Features(image=datasets.Image(), text=datasets.Value("string"))
    )
    built.save_to_disk(tmp_path / "saved")
    found = [found for found, _ in in_order(open_data(f"hf:{tmp_path / 'saved'}"))]
    assert all(isinstance(one, BrokenSample) for one in found)
    assert [(one.kind, one.key) for one in found] == [("empty caption", "0"), ("no image", "1"), ("no caption", "2")]


@pytest.mark.parametrize("text", ["hf:", "hf::train", "hf:a/b:"])
def test_names_that_cannot_be(text):
    with pytest.raises(ValueError, match="expected hf:OWNER/NAME"):
        open_data(text)
