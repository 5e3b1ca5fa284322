"""Pictures that belong together: made from one noise, shown in one file."""

import os
from pathlib import Path

import torch
from PIL import Image

from unclip_hub.images import grid
from unclip_hub.pipelines.stage import Generator


ANIMATED = {".gif": "GIF", ".webp": "WEBP"}


def same_noise(generator: Generator, *, groups: int, each: int) -> list[torch.Generator]:
    """A generator per picture, those of a group in the same state, so that what varies is not the noise.

    Their seeds are drawn from ``generator``; a list, of one per picture, is taken as it is.
    """
    if isinstance(generator, list):
        return generator
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (groups,), generator=generator, device=device).tolist()
    return [torch.Generator(device).manual_seed(seed) for seed in seeds for _ in range(each)]


def save_frames(
    images: list[Image.Image], path: str | Path, *, columns: int | None = None, seconds: float | int = 2.0
) -> None:
    """Pictures of one size as a sheet or, if the name ends in .gif or .webp, as an animation there and back.

    The file is written whole or not at all.

    Args:
        columns: of the sheet, by default all in one row.
        seconds: one way of the animation.

    Raises:
        ValueError: a name in a format that PIL does not write, no pictures, or pictures of several sizes.
    """
    path = Path(path)
    known = Image.registered_extensions()
    if path.suffix.lower() not in known or known[path.suffix.lower()] not in Image.SAVE:
        raise ValueError(f"cannot write {path}: expected a name in .png, .jpg, .gif, .webp or the like")
    if seconds <= 0:
        raise ValueError(f"seconds must be above 0, got {seconds}")
    sheet = grid(images, columns or max(1, len(images)))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("xb") as file:
            if path.suffix.lower() in ANIMATED:
                back = images[-2:0:-1]
                duration = max(20, round(1000 * seconds / len(images)))
                images[0].save(
                    file,
                    format=ANIMATED[path.suffix.lower()],
                    save_all=True,
                    append_images=[*images[1:], *back],
                    duration=duration,
                    loop=0,
                )
            else:
                sheet.save(file, format=known[path.suffix.lower()])
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
