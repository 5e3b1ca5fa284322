"""Procedural captioned scenes: things on backgrounds, in unlimited number, all from a seed.

    bank = build_bank(CPU.nouns, cache=Path("emoji.npz"), icons=Path("icons.json"))
    pictures, captions, scenes = dataset(10_000, seed=0, scope=CPU, size=64, bank=bank)

Everything public about scenes is found here; `scene_spec` says what a scene is, `captions` how it is put into words.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unclip_hub.data.backgrounds import background
from unclip_hub.data.captions import caption, words
from unclip_hub.data.scene_spec import (
    CPU,
    FULL,
    Scene,
    Scope,
    Slot,
    Split,
    Thing,
    is_held_out,
    looks_same,
    sample_scene,
    swap,
    swappable,
)
from unclip_hub.data.sprites import SIZES, SpriteBank


__all__ = [
    "CPU",
    "FULL",
    "CaptionedScenes",
    "Scene",
    "Scope",
    "Slot",
    "Split",
    "Thing",
    "caption",
    "covered_cells",
    "dataset",
    "is_held_out",
    "looks_same",
    "render",
    "sample_scene",
    "swap",
    "swappable",
    "words",
]


class CaptionedScenes(NamedTuple):
    pictures: NDArray[np.uint8]  # (n, size, size, 3)
    captions: list[tuple[str, ...]]
    scenes: list[Scene]


def render(scene: Scene, *, size: int, bank: SpriteBank) -> NDArray[np.uint8]:
    """Draw `scene` as (size, size, 3); size is 64, 256 or 1024, and the pictures of all three agree.

    Raises:
        ValueError: for another size, or a thing that `bank` does not hold at this size.
    """
    picture = background(scene.background, scene.variant, size=size).copy()
    for kind, name, x, y in scene.slots:
        sprite = bank.sprite(kind, size=name, canvas=size)
        side = sprite.shape[0]
        top, left = y * size // 256 - side // 2, x * size // 256 - side // 2
        window = picture[top : top + side, left : left + side]
        behind = window.astype(np.uint16) * (255 - sprite[..., 3:].astype(np.uint16))
        window[:] = sprite[..., :3] + ((behind + 127) // 255).astype(np.uint8)
    return picture


def dataset(
    n: int,
    *,
    seed: int,
    scope: Scope,
    bank: SpriteBank,
    size: int = 64,
    split: Split = "train",
    wording: Split | None = None,
    captions: int = 3,
) -> CaptionedScenes:
    """Make `n` captioned pictures; picture i of a seed is the same for every n, size and number of captions.

    Args:
        split: whose combinations to draw; see `is_held_out`.
        wording: whose wordings to caption them in, by default those of `split`.
        captions: how many each picture gets, at least 1.

    Raises:
        ValueError: if n or captions is below 1, and where `sample_scene` and `render` do.
    """
    if n < 1 or captions < 1:
        raise ValueError(f"expected n and captions of at least 1, got {n} and {captions}")
    pictures = np.empty((n, size, size, 3), dtype=np.uint8)
    texts: list[tuple[str, ...]] = []
    scenes: list[Scene] = []
    rng, words_rng = (np.random.default_rng([seed, stream, split == "held_out"]) for stream in (0, 1))
    for index in range(n):
        scene = sample_scene(rng, scope, split=split)
        pictures[index] = render(scene, size=size, bank=bank)
        spoken = words_rng.spawn(1)[0]
        texts.append(tuple(caption(scene, spoken, wording=wording or split) for _ in range(captions)))
        scenes.append(scene)
    return CaptionedScenes(pictures, texts, scenes)


def covered_cells(scene: Scene, *, cells: int) -> NDArray[np.int64]:
    """Which of the scene's slots the centre of each cell of a (cells, cells) grid lies on, from 1; 0: background."""
    centre = (np.arange(cells) + 0.5) * 256 / cells
    covered = np.zeros((cells, cells), dtype=np.int64)
    for number, (_, size, x, y) in enumerate(scene.slots, start=1):
        reach = 0.4 * SIZES[size]
        covered[(abs(centre[:, None] - y) < reach) & (abs(centre[None] - x) < reach)] = number
    return covered
