"""A network that says what a picture of a procedural scene shows: a second opinion beside `sprite_matching`.

It is trained on real renders alone, apart from every model that it judges; `benchmarks/train_detector.py` does it. Its
features are also a space for distances between distributions that no generator was trained in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unclip_hub.data.scenes import Scene, covered_cells
from unclip_hub.data.sprites import COLOURS, EMOJI, SHAPES


CELLS = 8  # of the grid on which things are named
NOUNS = (*SHAPES, *EMOJI)
HUES = ("own", *COLOURS)  # emoji have their own colours
_ENOUGH = 2  # cells that a kind must cover to be seen; a medium thing covers 4 to 9


@dataclass(frozen=True)
class Labels:
    """What each cell shows, from 1; 0 is background."""

    nouns: Int[Tensor, "b 8 8"]
    hues: Int[Tensor, "b 8 8"]


class SceneDetector(nn.Module):
    """A small convolutional network from pictures of 64 px to a noun and a hue for each of 8 × 8 cells."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _step(3, width // 4), _step(width // 4, width // 2), _step(width // 2, width)
        )  # 64 → 8
        self.body = nn.ModuleList(_Residual(width) for _ in range(3))
        self.nouns = nn.Conv2d(width, 1 + len(NOUNS), 1)
        self.hues = nn.Conv2d(width, 1 + len(HUES), 1)

    def forward(self, pixels: Float[Tensor, "b 3 64 64"]) -> tuple[Float[Tensor, "b n 8 8"], Float[Tensor, "b m 8 8"]]:
        """Logits of the nouns and of the hues; pixels in [-1, 1]."""
        x = self._map(pixels)
        return self.nouns(x), self.hues(x)

    @torch.no_grad()
    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Mean and spread over the picture of what the last layer sees; pictures of any multiple of 64 px."""
        x = self._map(reduce_to_64(pixels)).flatten(2)
        return torch.cat([x.mean(2), x.std(2)], dim=1)

    @torch.no_grad()
    def see(self, pixels: Float[Tensor, "b 3 h w"]) -> list[set[tuple[str, str | None]]]:
        """The kinds of things, (noun, colour), in each picture; pixels in [-1, 1], any multiple of 64 px."""
        nouns, hues = (logits.argmax(1).flatten(1).tolist() for logits in self(reduce_to_64(pixels)))
        return [_kinds(*maps) for maps in zip(nouns, hues, strict=True)]

    def save(self, path: Path) -> None:
        """Write the weights, as float16."""
        save_file({name: value.half().contiguous() for name, value in self.state_dict().items()}, path)

    @classmethod
    def load(cls, path: Path) -> SceneDetector:
        """Read what `save` wrote."""
        state = load_file(path)
        model = cls(width=state["nouns.weight"].shape[1])
        model.load_state_dict({name: value.float() for name, value in state.items()})
        return model.eval().requires_grad_(False)

    def _map(self, pixels: Tensor) -> Tensor:
        x = self.stem(pixels)
        for block in self.body:
            x = block(x)
        return x


def labels(scenes: Sequence[Scene]) -> Labels:
    """What each cell of each scene shows."""
    maps = []
    for scene in scenes:
        kinds = [kind for kind, _, _, _ in scene.slots]
        nouns = np.array([0, *(1 + NOUNS.index(noun) for noun, _ in kinds)])
        hues = np.array([0, *(1 + HUES.index(colour or "own") for _, colour in kinds)])
        covered = covered_cells(scene, cells=CELLS)
        maps.append((nouns[covered], hues[covered]))
    return Labels(*(torch.from_numpy(np.stack(part)) for part in zip(*maps, strict=True)))


def right(seen: set[tuple[str, str | None]], scene: Scene) -> dict[str, bool]:
    """Whether exactly the scene's objects are seen ("object"), and each in its colour ("object and colour")."""
    wanted = {thing.kind for thing in scene.things}
    return {"object": {noun for noun, _ in seen} == {noun for noun, _ in wanted}, "object and colour": seen == wanted}


def reduce_to_64(pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 64 64"]:
    """Pictures as means of their pixels at 64 px.

    Raises:
        ValueError: pictures that are not square or whose side is no multiple of 64.
    """
    height, width = pixels.shape[-2:]
    if height != width or height % 64:
        raise ValueError(f"expected square pictures, a multiple of 64 px, got {height} × {width}")
    return nn.functional.avg_pool2d(pixels, height // 64)


def _kinds(nouns: Sequence[int], hues: Sequence[int]) -> set[tuple[str, str | None]]:
    cells = Counter((noun, hue) for noun, hue in zip(nouns, hues, strict=True) if noun)
    colours = [None, None, *COLOURS]  # of background, of an emoji
    return {(NOUNS[noun - 1], colours[hue]) for (noun, hue), count in cells.items() if count >= _ENOUGH}


def _step(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.GroupNorm(8, out), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.silu(x + self.layers(x))
