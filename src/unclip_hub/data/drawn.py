"""The procedural scenes as a dataset: every sample is drawn when it is asked for."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from unclip_hub.data.captioned import BrokenSample, Sample
from unclip_hub.data.scene_spec import CPU
from unclip_hub.data.scenes import Scene, Scope, caption, render, sample_scene
from unclip_hub.data.sprites import CANVASES, SpriteBank, build_bank


SHAPES_ONLY = Scope(variants=2)  # what can be drawn without the pictures of emoji


@dataclass(frozen=True)
class DrawnScenes:
    """``count`` training scenes with three captions each; sample i of a seed is the same for every count and size."""

    count: int
    size: int  # 64, 256 or 1024
    scope: Scope
    bank: SpriteBank
    seed: int = 0
    problems: tuple[BrokenSample, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"expected an index below {self.count}, got {index}")
        words = np.random.default_rng([self.seed, 1, index])
        scene = self.scene(index)
        picture = Image.fromarray(render(scene, size=self.size, bank=self.bank))
        return Sample(self.key(index), picture, tuple(caption(scene, words) for _ in range(3)))

    def key(self, index: int) -> str:
        """The key of a sample."""
        return f"scene-{self.seed}-{index}"

    def scene(self, index: int) -> Scene:
        """What a sample shows."""
        return sample_scene(np.random.default_rng([self.seed, 0, index]), self.scope)


def open_scenes(count: int = 100_000, *, size: int = 64, seed: int = 0, icons: Path | None = None) -> DrawnScenes:
    """Scenes of shapes; with ``icons``, the pictures of emoji, the scenes that the bundled model is trained on.

    Raises:
        ValueError: for a count below 1, a size other than 64, 256 and 1024, or ``icons`` that are not Noto Emoji's.
    """
    if count < 1 or size not in CANVASES:
        raise ValueError(f"expected a count of at least 1 and a size among {CANVASES}, got {count} and {size}")
    scope = SHAPES_ONLY if icons is None else CPU
    return DrawnScenes(count, size, scope, _bank(scope, size, icons), seed)


@lru_cache
def _bank(scope: Scope, size: int, icons: Path | None) -> SpriteBank:
    return build_bank(scope.nouns, canvases=(size,), icons=icons)
