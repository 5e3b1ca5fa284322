"""Captioned pictures in a dataset of Hugging Face ``datasets``: of the Hub, or a folder ``save_to_disk`` wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unclip_hub.data.captioned import BrokenSample, Sample, as_captions, caption_name, checked_captions


@dataclass(frozen=True)
class HuggingFaceDataset:
    """A split of a dataset; pictures stay encoded until a sample is decoded. The key is the number of the row."""

    rows: Any  # datasets.Dataset
    image: str
    caption: str
    problems: tuple[BrokenSample, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        key, row = self.key(index), self.rows[index]
        captions = checked_captions(as_captions(row[self.caption], key), key)
        stored = row[self.image] or {}
        image = stored.get("bytes") or stored.get("path")
        if image is None:
            raise BrokenSample("no image", key, f"column {self.image!r} is empty")
        return Sample(key, image if isinstance(image, bytes) else Path(image), captions)

    def key(self, index: int) -> str:
        """The key of a sample."""
        return str(index)


def open_hf(name: str, *, split: str = "train") -> HuggingFaceDataset:
    """A dataset of the Hub by its name, or a folder that ``save_to_disk`` wrote by its path.

    Raises:
        ImportError: ``datasets`` is not installed.
        ValueError: there is no such dataset or split, or it has no column of pictures or none of captions.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"hf:{name} needs the package datasets: pip install 'unclip_hub[train]'") from error
    if (Path(name) / "state.json").is_file() or (Path(name) / "dataset_dict.json").is_file():
        loaded = datasets.load_from_disk(name)
    else:
        loaded = datasets.load_dataset(name)
    if isinstance(loaded, dict):
        if split not in loaded:
            raise ValueError(
                f"{name} has no split {split!r}, only {', '.join(map(str, loaded))}: choose one with hf:{name}:SPLIT"
            )
        loaded = loaded[split]
    images = [column for column, kind in loaded.features.items() if isinstance(kind, datasets.Image)]
    caption = caption_name(list(loaded.features))
    if not images or caption is None:
        raise ValueError(
            f"expected a column of pictures, and one called caption or text, in {name}, got "
            + ", ".join(f"{column} ({type(kind).__name__})" for column, kind in loaded.features.items())
        )
    image = "image" if "image" in images else images[0]
    rows = loaded.select_columns([image, caption]).cast_column(image, datasets.Image(decode=False))
    return HuggingFaceDataset(rows, image, caption)
