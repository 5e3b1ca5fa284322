"""From a stored picture to what a network trains on: (3, s, s) in [-1, 1], or an error that names the picture."""

import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image, ImageOps
from torch import Tensor

from unclip_hub.data.captioned import BrokenSample, Sample
from unclip_hub.images import to_tensor


Crop = Literal["centre", "random"]


@dataclass
class CaptionedBatch:
    """Pictures in [-1, 1], one caption of each, and their keys."""

    pixels: Float32[Tensor, "b 3 s s"]
    captions: list[str]
    keys: list[str]


@dataclass(frozen=True)
class Preparation:
    """From a sample to pixels and one of its captions, drawn by the seed, the epoch and the sample's key alone."""

    size: int
    crop: Crop = "centre"
    seed: int = 0

    def batch(self, samples: Iterable[tuple[int, Sample | BrokenSample]]) -> CaptionedBatch:
        """A batch of samples, each with its epoch.

        Raises:
            BrokenSample: one of them is not whole.
        """
        pixels, captions, keys = [], [], []
        for epoch, sample in samples:
            if isinstance(sample, BrokenSample):
                raise sample
            rng = np.random.default_rng([self.seed, epoch, zlib.crc32(sample.key.encode())])
            captions.append(sample.captions[rng.integers(len(sample.captions))])
            pixels.append(fitted(sample, size=self.size, crop=self.crop, rng=rng))
            keys.append(sample.key)
        return CaptionedBatch(torch.stack(pixels), captions, keys)


def open_picture(sample: Sample) -> Image.Image:
    """The decoded picture, upright as its EXIF says; of an animation the first frame.

    Raises:
        BrokenSample: the file is missing, cut short, of a format that PIL does not read, of pixels without a fixed
            range (modes I and F), or so large that PIL suspects a decompression bomb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of metadata that PIL cannot read; pixels are not affected
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(sample.image, Image.Image):
                return sample.image
            with Image.open(BytesIO(sample.image) if isinstance(sample.image, bytes) else sample.image) as image:
                image.load()
                if image.mode in ("I", "F"):
                    raise ValueError(f"pixels of mode {image.mode!r} have no fixed range")
                return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise BrokenSample("no image", sample.key, f"there is no file {sample.image}") from None
    except Exception as error:  # PIL's plugins raise whatever they meet in a broken file
        reason = "no format that can be read" if isinstance(error, Image.UnidentifiedImageError) else error
        raise BrokenSample("broken image", sample.key, f"the picture is broken: {reason}") from None


def check_size(image: Image.Image, key: str, *, size: int) -> None:
    """Refuse a picture whose shorter edge is less than ``size``: enlarged, it would teach a network to blur.

    Raises:
        BrokenSample: it is smaller.
    """
    if min(image.size) < size:
        width, height = image.size
        raise BrokenSample("too small", key, f"is {width}x{height}, expected edges of at least {size} px")


def fitted(
    sample: Sample, *, size: int, crop: Crop = "centre", rng: np.random.Generator | None = None
) -> Float32[Tensor, "3 s s"]:
    """The picture with its shorter edge resized to ``size`` and a square cut out, laid over white, in [-1, 1].

    Args:
        rng: where to cut; needed for ``crop="random"``.

    Raises:
        BrokenSample: it cannot be decoded, or is smaller than ``size``.
    """
    image = open_picture(sample)
    check_size(image, sample.key, size=size)
    width, height = image.size
    side = min(image.size)
    left, top = (width - side) / 2, (height - side) / 2
    if crop == "random":
        if rng is None:
            raise ValueError("a random crop needs rng=")
        left, top = rng.random() * (width - side), rng.random() * (height - side)
    # cut and reduced in one step, antialiased; reducing_gap makes large photographs several times as fast
    square = _continuous(image).resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side), reducing_gap=3.0
    )
    return to_tensor(square)[0]


def _continuous(image: Image.Image) -> Image.Image:
    """In a mode in which neighbouring pixels may be averaged: palettes, and colours that mean transparent, may not."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
