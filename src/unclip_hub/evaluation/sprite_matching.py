"""Is the scene in the picture? A scorer for procedural scenes that learns nothing and is told nothing.

`SpriteMatcher.see` reads a picture blind: the nearest background, then, strongest first, the sprites that explain what
the background does not. `judge` compares what was seen with the scene that was asked for, attribute by attribute, and
`score` counts over many pictures. The scene never influences what is seen, so a wrong picture cannot be talked right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from unclip_hub.data.backgrounds import VARIANTS, background
from unclip_hub.data.scene_spec import POSITIONS, Scene, Thing, slot_centres
from unclip_hub.data.sprites import SIZES, Kind, SpriteBank


ATTRIBUTES = ("background", "object", "colour", "object and colour", "position", "size", "count", "relation", "all")

Picture = NDArray[Any] | torch.Tensor  # see `SpriteMatcher.see`

_WHITE = np.float32(255)
_SHIFT = 2  # pixels of the 64 px canvas by which a sprite may miss its slot
_EXPLAINED = 0.5  # part of its own energy that a sprite must explain, or nothing is there: so much that blobs of
# the right colours fail (object .13 of 400, as by chance) and pictures blurred to a quarter still pass (.95)
_VISIBLE = 2.5  # squared error, summed over RGB in [0, 1], that it must explain; the faintest real thing has 4
_TONE = 0.1  # difference in [0, 1] by which a whole background may be off and still be that background
_TRUNCATE = 0.2  # difference in [0, 1] above which a pixel no longer speaks against a background: a thing covers it


@dataclass(frozen=True)
class Sighting:
    """A thing seen: centre `x`, `y` in pixels of the 256 px canvas, `tint` the colour of the shape most like it."""

    kind: Kind
    tint: str | None
    size: str
    x: int
    y: int
    explained: float  # part of the sprite's energy that is there: 1 for a perfect match


@dataclass(frozen=True)
class Seen:
    """What a picture shows, the thing that explains most first."""

    background: str
    things: tuple[Sighting, ...]


class Rate(NamedTuple):
    rate: float  # NaN when n is 0
    n: int  # pictures whose caption asks for the attribute
    low: float  # Wilson's 95 % interval
    high: float


class SpriteMatcher:
    """The templates: all backgrounds, and the sprites of a bank that holds them for the 64 px canvas.

    Args:
        backgrounds: the names among which to look, by default all there are.
    """

    def __init__(self, bank: SpriteBank, *, backgrounds: Sequence[str] = tuple(VARIANTS)) -> None:
        self.kinds = bank.kinds
        self._names = [(name, variant) for name in backgrounds for variant in range(VARIANTS[name])]
        scenery = np.stack([background(name, variant, size=64) for name, variant in self._names])
        self._scenery = _soften(scenery.astype(np.float32) / _WHITE)  # (v, 64, 64, 3)
        self._templates = [_Templates(bank, size) for size in SIZES]
        hues = sorted({colour for _, colour in self.kinds if colour is not None})
        self._hues = {hue: [index for index, kind in enumerate(self.kinds) if kind[1] == hue] for hue in hues}

    def see(self, picture: Picture) -> Seen:
        """Read one picture: uint8 (h, w, 3), or a float tensor (3, h, w) in [-1, 1]; square, a multiple of 64 px.

        Raises:
            ValueError: for another shape or dtype, or values that are not finite.
        """
        pixels = _soften(_pixels(picture))
        differences = np.minimum(np.abs(self._scenery - pixels), _TRUNCATE).mean(axis=(1, 2, 3))
        nearest = int(differences.argmin())
        tone = np.median(pixels - self._scenery[nearest], axis=(0, 1)).clip(-_TONE, _TONE)
        behind = self._scenery[nearest] + tone
        gains, energies = zip(*(group.match(pixels, behind) for group in self._templates), strict=True)
        things: list[Sighting] = []
        free = [np.ones(len(group.corners), dtype=bool) for group in self._templates]
        while (best := self._strongest(gains, energies, free)) is not None:
            things.append(best)
            for group, mask in zip(self._templates, free, strict=True):
                mask &= ~group.overlaps(best)
        return Seen(self._names[nearest][0], tuple(things))

    def _strongest(
        self,
        gains: Sequence[NDArray[np.float32]],
        energies: Sequence[NDArray[np.float32]],
        free: Sequence[NDArray[np.bool_]],
    ) -> Sighting | None:
        """The sprite that explains most at a free place, or None when nothing explains enough of itself."""
        best: tuple[float, Sighting] | None = None
        for group, gain, energy, mask in zip(self._templates, gains, energies, free, strict=True):
            credible = np.where(mask[:, None] & (gain > np.maximum(_EXPLAINED * energy, _VISIBLE)), gain, -np.inf)
            place, kind = divmod(int(credible.argmax()), credible.shape[1])
            if credible[place, kind] == -np.inf or (best is not None and best[0] >= credible[place, kind]):
                continue
            x, y = (int(4 * c + 2 * group.side) for c in group.corners[place])
            tints = {hue: float(gain[place, kinds].max()) for hue, kinds in self._hues.items()}
            tint = max(tints, key=tints.__getitem__, default=None)
            explained = float(gain[place, kind] / energy[place, kind])
            best = float(gain[place, kind]), Sighting(self.kinds[kind], tint, group.size, x, y, explained)
        return None if best is None else best[1]


class _Templates:
    """All sprites of one size, and all places where one may stand: the slots, shifted by up to two pixels."""

    def __init__(self, bank: SpriteBank, size: str) -> None:
        self.size = size
        self.side = SIZES[size] // 4 + 2  # softening spreads a sprite by a pixel
        steps = range(-_SHIFT, _SHIFT + 1)
        centres = {(x // 4 + dx, y // 4 + dy) for x, y in slot_centres(size) for dx in steps for dy in steps}
        corners = np.asarray(sorted(centres)) - self.side // 2
        inside = ((corners >= 0) & (corners + self.side <= 64)).all(axis=1)
        self.corners = corners[inside]  # (p, 2) as x, y
        sprites = np.stack([bank.sprite(kind, size=size, canvas=64) for kind in bank.kinds]).astype(np.float32)
        sprites = _soften(np.pad(sprites, ((0, 0), (1, 1), (1, 1), (0, 0)))) / _WHITE
        colour, alpha = sprites[..., :3], sprites[..., 3:]
        n = len(sprites)
        self._against_difference = np.concatenate([2 * colour, -2 * alpha], axis=-1).reshape(n, -1).T
        self._against_background = np.concatenate([-2 * alpha * colour, alpha**2], axis=-1).reshape(n, -1).T
        self._own_energy = (colour**2).sum(axis=(1, 2, 3))

    def match(
        self, pixels: NDArray[np.float32], behind: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """For every place and sprite, (p, k): the squared error it removes, and what it would remove if it were there.

        With d = picture - background and s = (sprite over background) - background, the error falls from |d|^2 to
        |d - s|^2, by 2 d.s - |s|^2; both terms are correlations with the sprite's colour and alpha.
        """
        difference = pixels - behind
        weighed = np.concatenate([difference, (difference * behind).sum(axis=-1, keepdims=True)], axis=-1)
        ground = np.concatenate([behind, (behind**2).sum(axis=-1, keepdims=True)], axis=-1)
        energy = self._windows(ground) @ self._against_background + self._own_energy
        return self._windows(weighed) @ self._against_difference - energy, energy

    def overlaps(self, seen: Sighting) -> NDArray[np.bool_]:
        """Which places share more than a margin with a thing already seen, (p,)."""
        side = SIZES[seen.size] // 4 + 2
        corner = np.asarray((seen.x // 4, seen.y // 4)) - side // 2
        shared = np.minimum(self.corners + self.side, corner + side) - np.maximum(self.corners, corner)
        return np.all(shared > _SHIFT + 2, axis=1)

    def _windows(self, plane: NDArray[np.float32]) -> NDArray[np.float32]:
        views = sliding_window_view(plane, (self.side, self.side), axis=(0, 1))
        chosen = views[self.corners[:, 1], self.corners[:, 0]]  # (p, c, side, side)
        return chosen.transpose(0, 2, 3, 1).reshape(len(self.corners), -1)


def judge(seen: Seen, scene: Scene) -> dict[str, bool | None]:
    """Compare what was seen with what was asked: right, wrong, or None where the caption does not ask.

    Of k things asked for, the k that explain most are judged, so a faint extra one makes only "count" and "all" wrong.
    Two or three things are matched with the sightings in whichever way agrees best; of three, the
    relation of the first to both others is judged. Position is asked for when it is not the
    centre, size when it is not medium, count when it is above 1; "all" also needs the number of things to be right.
    """
    first = scene.things[0]
    wanted = [thing for thing in scene.things for _ in range(thing.count)]
    found = seen.things[: len(wanted)]
    pairs, decided = _match(wanted, found)
    complete = len(found) >= len(scene.things)
    verdict: dict[str, bool | None] = dict.fromkeys(ATTRIBUTES)
    verdict["background"] = seen.background == scene.background
    verdict["object"] = complete and all(s.kind[0] == t.noun for t, s in pairs)
    if any(thing.colour is not None for thing in scene.things):
        verdict["colour"] = complete and all(s.tint == t.colour for t, s in pairs if t.colour is not None)
        verdict["object and colour"] = complete and all(s.kind == t.kind for t, s in pairs)
    if first.position not in (None, "centre"):
        verdict["position"] = complete and _position(found[0]) == first.position
    if scene.layout == "one" and first.size != "medium":
        verdict["size"] = complete and found[0].size == first.size
    if scene.layout == "count":
        verdict["count"] = len(seen.things) == first.count
    if scene.relation is not None:
        verdict["relation"] = complete and decided and _related(*(seen for _, seen in pairs)) == scene.relation
    verdict["all"] = len(seen.things) == len(wanted) and all(right for right in verdict.values() if right is not None)
    return verdict


def score(pictures: Iterable[Picture], scenes: Iterable[Scene], *, matcher: SpriteMatcher) -> dict[str, Rate]:
    """How often each attribute is right, over the pictures whose caption asks for it.

    Raises:
        ValueError: if there are not as many pictures as scenes, or where `SpriteMatcher.see` does.
    """
    pictures, scenes = list(pictures), list(scenes)
    if len(pictures) != len(scenes):
        raise ValueError(f"expected a scene for each picture, got {len(pictures)} pictures and {len(scenes)} scenes")
    verdicts = [judge(matcher.see(picture), scene) for picture, scene in zip(pictures, scenes, strict=True)]
    rates: dict[str, Rate] = {}
    for attribute in ATTRIBUTES:
        asked = [verdict[attribute] for verdict in verdicts if verdict[attribute] is not None]
        rates[attribute] = wilson(sum(map(bool, asked)), len(asked))
    return rates


def wilson(right: int, n: int) -> Rate:
    """A rate with Wilson's 95 % score interval (1927), which stays within [0, 1] and is honest near its ends."""
    if not 0 <= right <= n:
        raise ValueError(f"expected right in [0, n], got {right} and {n}")
    if n == 0:
        return Rate(math.nan, 0, 0.0, 1.0)
    z, rate = 1.959964, right / n
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return Rate(rate, n, 0.0 if right == 0 else middle - half, 1.0 if right == n else middle + half)


def _pixels(picture: Picture) -> NDArray[np.float32]:
    """The picture as (64, 64, 3) in [0, 1]."""
    if isinstance(picture, torch.Tensor):
        if not picture.is_floating_point() or picture.ndim != 3:
            raise ValueError(f"expected a float tensor (3, h, w), got {tuple(picture.shape)} of {picture.dtype}")
        if not picture.isfinite().all():
            raise ValueError("expected finite values, got some that are not")
        values = picture.detach().to("cpu", torch.float32).clamp(-1, 1).permute(1, 2, 0).numpy() / 2 + 0.5
    else:
        if picture.dtype != np.uint8:
            raise ValueError(f"expected a uint8 array, got {picture.dtype}")
        values = picture.astype(np.float32) / _WHITE
    if values.ndim != 3 or values.shape[2] != 3 or values.shape[0] != values.shape[1] or values.shape[0] % 64:
        raise ValueError(f"expected a square picture of 3 channels, a multiple of 64 px, got {picture.shape}")
    factor = values.shape[0] // 64
    return values.reshape(64, factor, 64, factor, 3).mean(axis=(1, 3))


def _soften(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blur (n, h, w, c) or (h, w, c) by the 3 x 3 binomial filter, so that no detail of a background is a thing."""
    for axis in (-3, -2):
        lines = np.moveaxis(pixels, axis, 0)
        lines = np.concatenate([lines[:1], lines, lines[-1:]])
        pixels = np.moveaxis(lines[:-2] + 2 * lines[1:-1] + lines[2:], 0, axis)
    return pixels / np.float32(16)


def _match(wanted: Sequence[Thing], found: Sequence[Sighting]) -> tuple[list[tuple[Thing, Sighting]], bool]:
    """Pair things with sightings so that most agrees, nouns before colours; and is no other pairing as good?"""
    if len(found) < 2 or wanted[0] == wanted[1]:
        return list(zip(wanted, found, strict=False)), True
    pairings = [list(zip(wanted, order, strict=False)) for order in permutations(found)]
    scores = [sum(2 * (s.kind[0] == t.noun) + (s.tint == t.colour) for t, s in p) for p in pairings]
    return pairings[scores.index(max(scores))], scores.count(max(scores)) == 1


def _position(seen: Sighting) -> str | None:
    """The named position nearest to a sighting, None for the corners, which have no name."""
    x, y = (0 if abs(c - 128) < 26 else int(math.copysign(1, c - 128)) for c in (seen.x, seen.y))
    return next((name for name, place in POSITIONS.items() if place == (x, y)), None)


def _related(first: Sighting, *others: Sighting) -> str | None:
    """How the first stands to all others, None when neither axis clearly prevails or they differ."""
    clear = 2.0 if len(others) == 1 else 1.2  # beside two others it stands half a step off each
    relations = set()
    for other in others:
        dx, dy = first.x - other.x, first.y - other.y
        if abs(dx) >= clear * abs(dy):
            relations.add("left of" if dx < 0 else "right of")
        elif abs(dy) >= clear * abs(dx):
            relations.add("above" if dy < 0 else "below")
        else:
            relations.add(None)
    return relations.pop() if len(relations) == 1 else None
