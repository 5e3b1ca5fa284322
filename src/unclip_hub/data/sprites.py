"""The things a procedural scene is made of, as premultiplied RGBA sprites in three fixed sizes.

Shapes are drawn here and come in eight colours. Emoji come in their natural colours from an `icons.json` of Noto
Emoji (npm `@iconify-json/noto`, Apache-2.0, Google); they are needed to make training pictures, never to run a trained
model. Every sprite is made once for the 1024 px canvas and box-reduced by 4 and by 16, so the same scene at 64, 256
and 1024 px shows the same thing in the same place.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw


CANVASES = (64, 256, 1024)
SIZES = {"small": 64, "medium": 96, "large": 136}  # side of the sprite's box in pixels of the 256 px canvas
COLOURS = {
    "red": (226, 36, 36),
    "orange": (252, 136, 12),
    "yellow": (254, 216, 20),
    "green": (30, 158, 60),
    "blue": (35, 85, 228),
    "purple": (132, 48, 192),
    "pink": (252, 108, 180),
    "brown": (124, 70, 32),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "ring", "cross")
EMOJI = {  # noun: name of its icon in Noto Emoji
    "koala": "koala",
    "frog": "frog",
    "pumpkin": "jack-o-lantern",
    "mushroom": "mushroom",
    "house": "house",
    "rocket": "rocket",
    "car": "automobile",
    "butterfly": "butterfly",
    "penguin": "penguin",
    "pizza": "pizza",
    "umbrella": "umbrella",
    "tree": "evergreen-tree",
    "cat": "cat-face",
    "elephant": "elephant",
    "whale": "whale",
    "octopus": "octopus",
    "pineapple": "pineapple",
    "sailboat": "sailboat",
    "apple": "red-apple",
    "robot": "robot",
    "crab": "crab",
    "sunflower": "sunflower",
    "guitar": "guitar",
    "balloon": "balloon",
}

Kind = tuple[str, str | None]  # (noun, colour); an emoji's colour is None
Point = tuple[float | int, float | int]
Sprite = NDArray[np.uint8]  # (side, side, 4), premultiplied by alpha

_MASTER = 4 * max(SIZES.values())
_RIM = 0.055  # width of a shape's darker rim, in half sides of the box
_FILL = 0.95  # part of its box that a thing fills


@dataclass(frozen=True)
class SpriteBank:
    """Ready-made sprites: `sprites[(noun, colour), size, canvas]`, read-only arrays. Made by `build_bank`."""

    sprites: Mapping[tuple[Kind, str, int], Sprite]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Every (noun, colour) the bank holds, in the order they were built."""
        return tuple(dict.fromkeys(kind for kind, _, _ in self.sprites))

    def sprite(self, kind: Kind, *, size: str, canvas: int) -> Sprite:
        """The sprite of `kind`, its side being `SIZES[size] * canvas // 256`.

        Raises:
            ValueError: if the bank was built without it.
        """
        try:
            return self.sprites[kind, size, canvas]
        except KeyError:
            canvases = sorted({c for _, _, c in self.sprites})
            raise ValueError(
                f"expected one of the bank's {len(self.kinds)} kinds, sizes {tuple(SIZES)} and canvases {canvases},"
                f" got {kind}, {size!r}, {canvas}"
            ) from None


def build_bank(
    nouns: Sequence[str] = SHAPES,
    *,
    colours: Sequence[str] = tuple(COLOURS),
    canvases: Sequence[int] = (64, 256),
    icons: Path | None = None,
    cache: Path | None = None,
) -> SpriteBank:
    """Make the sprites of `nouns`: shapes in every colour, emoji in their own.

    Args:
        canvases: any of 64, 256 and 1024; sprites for the last take 16 times the memory of those for 256.
        icons: `icons.json` of Noto Emoji; needed for emoji that `cache` does not hold.
        cache: an `.npz` of rendered emoji, read if it exists and written (or extended) if it does not hold them all.

    Raises:
        ValueError: for an unknown noun, colour or canvas, and for emoji found in neither `cache` nor `icons`.
    """
    _require(nouns, known=(*SHAPES, *EMOJI), what="noun")
    _require(colours, known=COLOURS, what="colour")
    _require(canvases, known=CANVASES, what="canvas")
    masters = emoji_masters([noun for noun in nouns if noun in EMOJI], icons=icons, cache=cache)
    sprites: dict[tuple[Kind, str, int], Sprite] = {}
    for noun in nouns:
        for size, side in SIZES.items():
            if noun in EMOJI:
                _add(sprites, (noun, None), size, _resize(masters[noun], 4 * side), canvases)
                continue
            fill, rim = shape_masks(noun, side=4 * side)
            for colour in colours:
                _add(sprites, (noun, colour), size, _paint(fill, rim, COLOURS[colour]), canvases)
    return SpriteBank(sprites)


def load_emoji_svgs(path: Path) -> dict[str, str]:
    """Read an Iconify `icons.json` and return a complete SVG for every noun of `EMOJI`.

    Raises:
        ValueError: if the file is missing or lacks one of the icons.
    """
    if not path.is_file():
        raise ValueError(f"expected icons.json of the npm package @iconify-json/noto, got {path}, which is no file")
    document = json.loads(path.read_text(encoding="utf-8"))
    svgs: dict[str, str] = {}
    for noun, name in EMOJI.items():
        icon = document["icons"].get(name)
        if icon is None:
            raise ValueError(f"expected an icon named {name!r} in {path}, got {len(document['icons'])} others")
        width, height = (icon.get(side, document.get(side, 128)) for side in ("width", "height"))
        svgs[noun] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="0 0 {width} {height}" width="{_MASTER}" height="{_MASTER}">{icon["body"]}</svg>'
        )
    return svgs


def render_svg(svg: str) -> Sprite:
    """Render an SVG, crop it to what is visible and centre that in a square of the largest sprite's side at 1024 px.

    Raises:
        ImportError: if resvg-py, of the extra `train`, is not installed.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise ImportError('rendering emoji needs resvg-py: pip install "unclip_hub[train]"') from error
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, zoom=2.0))))
    image = image.convert("RGBA")
    box = image.getchannel("A").point([255 * (alpha > 8) for alpha in range(256)]).getbbox()
    assert box is not None, "an emoji is not blank"
    image = image.crop(box).convert("RGBa")
    scale = _FILL * _MASTER / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    square = Image.new("RGBa", (_MASTER, _MASTER))
    square.paste(image, ((_MASTER - image.width) // 2, (_MASTER - image.height) // 2))
    return np.asarray(square)


def emoji_masters(nouns: Sequence[str], *, icons: Path | None, cache: Path | None) -> dict[str, Sprite]:
    """Large renders of the emoji `nouns`, from `cache` where it holds them, otherwise rendered from `icons`.

    Raises:
        ValueError: if some are in neither.
    """
    masters: dict[str, Sprite] = {}
    if cache is not None and cache.is_file():
        with np.load(cache, allow_pickle=False) as held:
            masters = {noun: held[noun] for noun in held.files}
    missing = [noun for noun in nouns if noun not in masters]
    if not missing:
        return masters
    if icons is None:
        raise ValueError(f"expected icons (icons.json of @iconify-json/noto) or a cache holding {missing}, got none")
    svgs = load_emoji_svgs(icons)
    masters |= {noun: render_svg(svgs[noun]) for noun in missing}
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(cache, allow_pickle=False, **masters)
    return masters


def shape_masks(shape: str, *, side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Coverage in [0, 1] of a shape and of its rim, each (side, side), anti-aliased by 2 x 2 supersampling."""
    big = 2 * side
    fill, rim = Image.new("L", (big, big)), Image.new("L", (big, big))
    for points, level in _outlines(shape):
        path = [(big / 2 * (1 + _FILL * x), big / 2 * (1 + _FILL * y)) for x, y in points]
        ImageDraw.Draw(fill).polygon(path, fill=level)
        ImageDraw.Draw(rim).line([*path, path[0], path[1]], fill=255, width=round(_RIM * big), joint="curve")
    rim = ImageChops.multiply(rim, fill)
    covered, edge = (np.asarray(mask.reduce(2)).astype(np.float32) / np.float32(255) for mask in (fill, rim))
    return covered, edge


def _outlines(shape: str) -> list[tuple[list[Point], int]]:
    """The closed paths of a shape in [-1, 1] x [-1, 1], y down, each with 255 to fill or 0 to cut out."""
    turn = [2 * math.pi * k / 180 for k in range(180)]
    if shape == "circle":
        return [([(math.cos(a), math.sin(a)) for a in turn], 255)]
    if shape == "ring":
        circle = [(math.cos(a), math.sin(a)) for a in turn]
        return [(circle, 255), ([(0.52 * x, 0.52 * y) for x, y in circle], 0)]
    if shape == "square":
        return [([(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)], 255)]
    if shape == "triangle":
        return [([(0, -0.92), (1, 0.84), (-1, 0.84)], 255)]
    if shape == "diamond":
        return [([(0, -1), (0.7, 0), (0, 1), (-0.7, 0)], 255)]
    if shape == "star":
        arms = [(1.04 if k % 2 == 0 else 0.44, math.pi * k / 5 - math.pi / 2) for k in range(10)]
        return [([(r * math.cos(a), r * math.sin(a) + 0.08) for r, a in arms], 255)]
    if shape == "heart":
        curve = [(16 * math.sin(a) ** 3, _heart_height(a)) for a in turn]
        return [([(x / 16.5, -(y + 2.3) / 16.0) for x, y in curve], 255)]
    assert shape == "cross", shape
    w = 0.36
    quarter = [(-w, -w), (-w, -1), (w, -1)]
    corners = [[(x, y), (-y, x), (-x, -y), (y, -x)][turns] for turns in range(4) for x, y in quarter]
    return [(corners, 255)]


def _heart_height(a: float) -> float:
    return 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)


def _paint(fill: NDArray[np.float32], rim: NDArray[np.float32], rgb: tuple[int, int, int]) -> Sprite:
    """Colour a shape: lighter above, darker below, with a rim that keeps it apart from a background of like colour."""
    side = fill.shape[0]
    light = np.linspace(1.06, 0.94, side, dtype=np.float32)[:, None]
    level = light * (1 - 0.4 * rim) * fill
    sprite = np.empty((side, side, 4), dtype=np.float32)
    sprite[..., :3] = np.minimum(level[..., None] * np.asarray(rgb, dtype=np.float32), 255 * fill[..., None])
    sprite[..., 3] = 255 * fill
    return (sprite + 0.5).astype(np.uint8)


def _resize(master: Sprite, side: int) -> Sprite:
    """Resize a premultiplied sprite; clipped because Lanczos may overshoot alpha."""
    planes = [
        Image.fromarray(master[..., c]).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=None)
        for c in range(4)
    ]
    resized = np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return np.minimum(resized, resized[..., 3:])


def _add(
    sprites: dict[tuple[Kind, str, int], Sprite], kind: Kind, size: str, sprite: Sprite, canvases: Sequence[int]
) -> None:
    for canvas in sorted(canvases, reverse=True):
        reduced = box_reduce(sprite, 1024 // canvas)
        reduced.setflags(write=False)
        sprites[kind, size, canvas] = reduced


def box_reduce(pixels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Average uint8 (h, w, c) over blocks of `factor` x `factor`; both sides must be multiples of it."""
    h, w, c = pixels.shape
    if h % factor or w % factor:
        raise ValueError(f"expected sides that are multiples of {factor}, got {(h, w)}")
    blocks = pixels.reshape(h // factor, factor, w // factor, factor, c)
    total = blocks.sum(axis=3, dtype=np.uint32).sum(axis=1, dtype=np.uint32)
    return ((total + factor * factor // 2) // (factor * factor)).astype(np.uint8)


def _require(given: Sequence[str] | Sequence[int], *, known: object, what: str) -> None:
    allowed = list(known)  # pyright: ignore[reportArgumentType, reportCallIssue]
    for item in given:
        if item not in allowed:
            raise ValueError(f"expected {what} to be one of {allowed}, got {item!r}")
