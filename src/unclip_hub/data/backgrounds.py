"""The backgrounds of a procedural scene: plain colours, and places drawn in a few fixed variants at any size.

The middle of every place is pale or dark and low in contrast, so that whatever stands on it can be told from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from unclip_hub.data.sprites import box_reduce


PLAIN = {
    "white": (255, 255, 255),
    "black": (14, 14, 16),
    "gray": (112, 114, 120),
    "light blue": (178, 218, 246),
    "beige": (240, 222, 186),
    "mint": (184, 238, 206),
}

RGB = tuple[int, int, int]
Number = float | int


class _Brush:
    """Draws in unit coordinates (x right, y down) on a supersampled square."""

    def __init__(self, side: int, stops: list[tuple[Number, RGB]]) -> None:
        rows = np.linspace(0, 1, side)
        ys = [y for y, _ in stops]
        column = np.stack([np.interp(rows, ys, [rgb[c] for _, rgb in stops]) for c in range(3)], axis=-1)
        pixels = np.broadcast_to(column[:, None], (side, side, 3))
        self.side = side
        self.image = Image.fromarray((pixels + 0.5).astype(np.uint8))
        self.draw = ImageDraw.Draw(self.image)

    def polygon(self, points: list[tuple[Number, Number]], rgb: RGB) -> None:
        self.draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=rgb)

    def ellipse(self, x: Number, y: Number, rx: Number, ry: Number, rgb: RGB) -> None:
        s = self.side
        self.draw.ellipse([(x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s], fill=rgb)

    def ground(self, height: Callable[[Number], Number], rgb: RGB) -> None:
        """Fill everything below the curve y = height(x)."""
        xs = [k / 96 for k in range(97)]
        self.polygon([(x, height(x)) for x in xs] + [(1, 1), (0, 1)], rgb)


@lru_cache(maxsize=512)
def background(name: str, variant: int, *, size: int) -> NDArray[np.uint8]:
    """The background as a read-only (size, size, 3) array; 64 px is the box-reduced 256 px picture.

    Raises:
        ValueError: for an unknown name, a variant it lacks, or a size other than 64, 256 or 1024.
    """
    if name not in VARIANTS:
        raise ValueError(f"expected a background among {tuple(VARIANTS)}, got {name!r}")
    if not 0 <= variant < VARIANTS[name]:
        raise ValueError(f"expected a variant of {name!r} in [0, {VARIANTS[name]}), got {variant}")
    if size not in (64, 256, 1024):
        raise ValueError(f"expected size 64, 256 or 1024, got {size}")
    if name in PLAIN:
        pixels = np.full((size, size, 3), PLAIN[name], dtype=np.uint8)
    elif size == 64:
        pixels = box_reduce(background(name, variant, size=256), 4)
    else:
        factor = 4 if size == 256 else 2
        image = _PLACES[name](size * factor, variant)
        pixels = np.array(image.reduce(factor))
    pixels.setflags(write=False)
    return pixels


def _waves(rng: np.random.Generator, base: float, depth: float) -> Callable[[Number], Number]:
    """A smooth random curve around `base`: two sines."""
    a, b = rng.uniform(0, 2 * math.pi, 2)
    k = rng.uniform(0.7, 1.3)
    return lambda x: base + depth * (math.sin(2 * math.pi * k * x + a) + 0.4 * math.sin(5 * math.pi * k * x + b))


def _fir(brush: _Brush, x: float, foot: float, height: float, rgb: RGB) -> None:
    for level in range(3):
        top = foot - height * (1 - 0.24 * level)
        bottom = foot - height * (0.5 - 0.24 * level)
        half = height * (0.17 + 0.07 * level)
        brush.polygon([(x, top), (x + half, bottom), (x - half, bottom)], rgb)
    left, right = x - 0.012, x + 0.012
    brush.polygon([(left, foot - 0.02), (right, foot - 0.02), (right, foot + 0.03), (left, foot + 0.03)], rgb)


def _forest(side: int, variant: int) -> Image.Image:
    rng = np.random.default_rng([1, variant])
    brush = _Brush(side, [(0, (226, 238, 222)), (0.75, (176, 206, 176)), (1, (150, 186, 150))])
    for depth, (count, rgb) in enumerate([(11, (176, 205, 178)), (9, (138, 178, 146))]):
        for k in range(count):
            x = (k + rng.uniform(0.1, 0.9)) / count
            _fir(brush, x, 0.72 + 0.09 * depth, rng.uniform(0.3, 0.42) + 0.06 * depth, rgb)
    brush.ground(_waves(rng, 0.86, 0.012), (112, 156, 112))
    for x in (0.02, 0.12, 0.9, 0.985):
        _fir(brush, x + rng.uniform(-0.02, 0.02), 0.97, rng.uniform(0.7, 0.88), (44, 92, 70))
    for x in (0.25, 0.4, 0.55, 0.7, 0.8):
        _fir(brush, x + rng.uniform(-0.03, 0.03), 1.05, rng.uniform(0.16, 0.24), (60, 112, 82))
    return brush.image


def _night(side: int, variant: int) -> Image.Image:
    rng = np.random.default_rng([2, variant])
    brush = _Brush(side, [(0, (16, 18, 52)), (0.7, (44, 42, 104)), (1, (74, 62, 132))])
    for _ in range(70):
        x, y, r = rng.uniform(0, 1), rng.uniform(0, 0.85), rng.uniform(0.002, 0.0055)
        brush.ellipse(x, y, r, r, (236, 236, 255))
    x = (0.1, 0.9, 0.88, 0.12)[variant]
    brush.ellipse(x, 0.1, 0.062, 0.062, (252, 244, 206))
    brush.ellipse(x + (0.03 if variant % 2 else -0.03), 0.085, 0.054, 0.054, (19, 21, 57))
    brush.ground(_waves(rng, 0.9, 0.02), (24, 26, 62))
    brush.ground(_waves(rng, 0.95, 0.014), (12, 14, 38))
    return brush.image


def _sea(side: int, variant: int) -> Image.Image:
    rng = np.random.default_rng([3, variant])
    brush = _Brush(side, [(0, (206, 232, 244)), (0.34, (240, 248, 246)), (0.36, (150, 218, 222)), (1, (44, 150, 172))])
    brush.ground(lambda x: 0.36, (150, 218, 222))
    for k in range(9):
        y = 0.4 + 0.068 * k
        shade = np.asarray((150, 218, 222)) + (np.asarray((34, 136, 162)) - (150, 218, 222)) * ((k + 1) / 9)
        phase, count = rng.uniform(0, 1), 4 + (8 - k) // 2
        rgb = (int(shade[0]), int(shade[1]), int(shade[2]))
        brush.ground(lambda x, y=y, p=phase, n=count: y + 0.016 * (1 - abs(math.sin(math.pi * (n * x + p)))), rgb)
        for _ in range(2):
            x = rng.uniform(0.05, 0.9)
            brush.ellipse(x, y + 0.034, rng.uniform(0.02, 0.045), 0.004, (226, 246, 246))
    return brush.image


def _desert(side: int, variant: int) -> Image.Image:
    rng = np.random.default_rng([4, variant])
    brush = _Brush(side, [(0, (168, 214, 228)), (0.42, (246, 240, 220)), (1, (246, 240, 220))])
    dunes = [(0.44, (240, 214, 168)), (0.58, (230, 194, 140)), (0.74, (216, 172, 116)), (0.9, (196, 148, 96))]
    for base, rgb in dunes:
        brush.ground(_waves(rng, base, 0.035), rgb)
    return brush.image


def _snow(side: int, variant: int) -> Image.Image:
    rng = np.random.default_rng([5, variant])
    brush = _Brush(side, [(0, (138, 160, 200)), (0.6, (196, 210, 232)), (1, (220, 230, 244))])
    for k in range(7):
        x, height = (k + rng.uniform(0.2, 0.8)) / 7, rng.uniform(0.16, 0.26)
        _fir(brush, x, 0.62, height, (150, 172, 200))
        _fir(brush, x, 0.61, height * 0.86, (214, 226, 240))
    for base, rgb in [(0.6, (226, 235, 246)), (0.74, (240, 245, 251)), (0.88, (252, 253, 255))]:
        brush.ground(_waves(rng, base, 0.022), rgb)
    for _ in range(46):
        r = rng.uniform(0.005, 0.011)
        brush.ellipse(rng.uniform(0, 1), rng.uniform(0, 0.62), r, r, (252, 253, 255))
    return brush.image


def _sunset(side: int, variant: int) -> Image.Image:
    rng = np.random.default_rng([6, variant])
    sky = [(0, (88, 62, 128)), (0.3, (176, 92, 142)), (0.55, (240, 140, 124)), (0.8, (255, 206, 138))]
    brush = _Brush(side, [*sky, (1, (255, 220, 150))])
    x = (0.16, 0.84, 0.8, 0.2)[variant]
    brush.ellipse(x, 0.82, 0.11, 0.11, (255, 244, 190))
    for _ in range(5):
        y, at = rng.uniform(0.06, 0.5), rng.uniform(0, 1)
        glow = (238, 158, 158) if y > 0.28 else (150, 92, 148)
        brush.ellipse(at, y, rng.uniform(0.1, 0.2), 0.011, glow)
        brush.ellipse(at + 0.06, y + 0.018, 0.09, 0.009, glow)
    brush.ground(_waves(rng, 0.85, 0.02), (126, 66, 112))
    brush.ground(_waves(rng, 0.93, 0.014), (70, 40, 84))
    return brush.image


def _meadow(side: int, variant: int) -> Image.Image:
    rng = np.random.default_rng([7, variant])
    brush = _Brush(side, [(0, (150, 206, 246)), (0.5, (226, 242, 250)), (1, (226, 242, 250))])
    for x, y in ((0.16, 0.12), (0.82, 0.17)):
        x, y = x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.03, 0.03)
        for dx, r in ((-0.07, 0.035), (0, 0.052), (0.07, 0.038)):
            brush.ellipse(x + dx, y, r * 1.25, r, (255, 255, 255))
    for base, rgb in [(0.52, (196, 226, 150)), (0.64, (178, 216, 126)), (0.82, (154, 200, 104))]:
        brush.ground(_waves(rng, base, 0.025), rgb)
    for _ in range(34):
        x, y = rng.uniform(0, 1), rng.uniform(0.62, 0.99)
        r = 0.007 + 0.012 * (y - 0.6)
        petals = ((255, 255, 255), (255, 238, 120), (255, 176, 208))[int(rng.integers(3))]
        brush.ellipse(x, y, r, r, petals)
    return brush.image


def _city(side: int, variant: int) -> Image.Image:
    rng = np.random.default_rng([8, variant])
    brush = _Brush(side, [(0, (206, 210, 226)), (0.6, (240, 232, 226)), (1, (240, 232, 226))])
    for low, high, wall, pane, count in [
        (0.28, 0.5, (204, 206, 218), (222, 222, 228), 8),
        (0.14, 0.62, (150, 158, 182), (238, 230, 190), 7),
    ]:
        for k in range(count):
            left, right = k / count, (k + 0.86) / count
            edge = abs((left + right) / 2 - 0.5) * 2  # towers at both sides, a low middle
            top = high - (high - low) * (edge * rng.uniform(0.7, 1.0) + 0.1 * rng.uniform())
            brush.polygon([(left, top), (right, top), (right, 1), (left, 1)], wall)
            rows = int((0.84 - top) / 0.06)
            for row in range(rows):
                for column in range(3):
                    x, y = left + (0.14 + 0.27 * column) / count, top + 0.025 + 0.06 * row
                    brush.polygon([(x, y), (x + 0.16 / count, y), (x + 0.16 / count, y + 0.03), (x, y + 0.03)], pane)
    brush.ground(lambda x: 0.86, (196, 196, 200))
    brush.ground(lambda x: 0.89, (104, 108, 120))
    for k in range(6):
        x = k / 6 + 0.03
        brush.polygon([(x, 0.936), (x + 0.09, 0.936), (x + 0.09, 0.95), (x, 0.95)], (232, 232, 226))
    return brush.image


_PLACES: dict[str, Callable[[int, int], Image.Image]] = {
    "forest": _forest,
    "night sky": _night,
    "sea": _sea,
    "desert": _desert,
    "snow": _snow,
    "sunset": _sunset,
    "meadow": _meadow,
    "city": _city,
}
PLACES = tuple(_PLACES)
VARIANTS = {name: 1 for name in PLAIN} | {name: 4 for name in PLACES}
