"""What a procedural scene is: its specification, how it is drawn at random, what is held out, what one swap changes.

Things stand in fixed slots with fixed sizes and no jitter, so a small model meets few distinct pictures of a thing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np

from unclip_hub.data.backgrounds import PLACES, PLAIN, VARIANTS
from unclip_hub.data.sprites import COLOURS, EMOJI, SHAPES, SIZES, Kind


Split = Literal["train", "held_out"]
Slot = tuple[Kind, str, int, int]  # kind, size, x and y of the centre in pixels of the 256 px canvas
Weights = tuple[tuple[str, float | int], ...]
T = TypeVar("T")

POSITIONS = {"centre": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
ATTRIBUTES = ("noun", "colour", "background", "position", "size", "count", "relation", "colour exchange")
HELD_OUT = 0.1  # part of the (noun, colour, background) triples, and again of the pairs, that training never sees

_OFFSET = {"small": 72, "medium": 68, "large": 52}  # of a single thing from the middle of the 256 px canvas
_GRID = 60  # of several things from the middle
_COUNT_SLOTS = {
    2: ((-1, 0), (1, 0)),
    3: ((0, -1), (-1, 1), (1, 1)),
    4: ((-1, -1), (1, -1), (-1, 1), (1, 1)),
}
_PAIR_SLOTS = {
    "left of": ((-1, 0), (1, 0)),
    "right of": ((1, 0), (-1, 0)),
    "above": ((0, -1), (0, 1)),
    "below": ((0, 1), (0, -1)),
}
_TRIO_SLOTS = {  # of the second and third the first named stands on the left, or at the top
    "left of": ((-1, 0), (1, -1), (1, 1)),
    "right of": ((1, 0), (-1, -1), (-1, 1)),
    "above": ((0, -1), (-1, 1), (1, 1)),
    "below": ((0, 1), (-1, -1), (1, -1)),
}


@dataclass(frozen=True)
class Thing:
    """One kind of thing, `count` times (1 to 4). An emoji's `colour` is None; `position` is that of a lone thing."""

    noun: str
    colour: str | None = None
    count: int = 1
    size: str = "medium"
    position: str | None = None

    @property
    def kind(self) -> Kind:
        return self.noun, self.colour


@dataclass(frozen=True)
class Scene:
    """A background (in one of its variants) and one thing, or several with `relation`.

    With two things "first, relation, second"; with three "first, relation, second and third".
    """

    background: str
    things: tuple[Thing, ...]
    relation: str | None = None
    variant: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.things) <= 3 or (len(self.things) > 1) != (self.relation is not None):
            raise ValueError(
                f"expected one thing, or two or three with a relation, got {self.things} and {self.relation!r}"
            )
        if self.relation is not None and self.relation not in OPPOSITE:
            raise ValueError(f"expected a relation among {tuple(OPPOSITE)}, got {self.relation!r}")
        if not 0 <= self.variant < VARIANTS.get(self.background, 0):
            raise ValueError(f"expected a background among {tuple(VARIANTS)}, got {self.background!r} {self.variant}")
        alone = len(self.things) == 1 and self.things[0].count == 1
        for thing in self.things:
            if thing.size not in SIZES or thing.count not in (1, *_COUNT_SLOTS):
                raise ValueError(f"expected a size among {tuple(SIZES)} and a count of 1 to 4, got {thing}")
            if thing.position not in (POSITIONS if alone else (None,)):
                raise ValueError(f"expected a position only for a thing that stands alone, got {thing}")
            if thing.count > 1 and len(self.things) > 1:
                raise ValueError(f"expected a count of 1 for each of several things, got {thing}")
            if not alone and thing.size == "large":
                raise ValueError(f"expected small or medium things where there are several, got {thing}")

    @property
    def layout(self) -> Literal["one", "count", "pair", "trio"]:
        if self.relation is not None:
            return "pair" if len(self.things) == 2 else "trio"
        return "one" if self.things[0].count == 1 else "count"

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Every sprite of the picture, those of the first thing first."""
        first = self.things[0]
        if self.relation is not None:
            slots = _PAIR_SLOTS if len(self.things) == 2 else _TRIO_SLOTS
            places = zip(self.things, slots[self.relation], strict=True)
            return tuple((t.kind, t.size, 128 + _GRID * x, 128 + _GRID * y) for t, (x, y) in places)
        if first.count > 1:
            return tuple(
                (first.kind, first.size, 128 + _GRID * x, 128 + _GRID * y) for x, y in _COUNT_SLOTS[first.count]
            )
        assert first.position is not None
        (x, y), offset = POSITIONS[first.position], _OFFSET[first.size]
        return ((first.kind, first.size, 128 + offset * x, 128 + offset * y),)


@dataclass(frozen=True)
class Scope:
    """What `sample_scene` may draw. Probabilities need not add up to 1.

    `layouts` weighs "one", "count", "pair" and "trio"; `sizes` those of a thing alone; `pair_sizes` those of several
    (where "large" has no room); `shape_share` is the part of the things that are shapes rather than emoji.
    """

    shapes: tuple[str, ...] = SHAPES
    colours: tuple[str, ...] = tuple(COLOURS)
    emoji: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = (*PLAIN, *PLACES)
    layouts: Weights = (("one", 0.25), ("count", 0.15), ("pair", 0.5), ("trio", 0.1))
    positions: Weights = (("centre", 4), ("left", 1), ("right", 1), ("top", 1), ("bottom", 1))
    sizes: Weights = (("medium", 1), ("large", 1))
    pair_sizes: Weights = (("medium", 1),)
    counts: tuple[int, ...] = (2, 3, 4)
    variants: int = 4
    shape_share: float = 0.5

    @property
    def nouns(self) -> tuple[str, ...]:
        return self.shapes + self.emoji


CPU = Scope(emoji=tuple(EMOJI), variants=2)
FULL = Scope(
    emoji=tuple(EMOJI),
    sizes=(("small", 0.6), ("medium", 1), ("large", 1)),
    pair_sizes=(("medium", 3), ("small", 1)),
    shape_share=0.45,
)


def slot_centres(size: str) -> tuple[tuple[int, int], ...]:
    """The centre of every slot in which a thing of this size may stand, in pixels of the 256 px canvas.

    Raises:
        ValueError: for an unknown size.
    """
    if size not in SIZES:
        raise ValueError(f"expected a size among {tuple(SIZES)}, got {size!r}")
    alone = [(128 + _OFFSET[size] * x, 128 + _OFFSET[size] * y) for x, y in POSITIONS.values()]
    groups = (*_COUNT_SLOTS.values(), *_PAIR_SLOTS.values(), *_TRIO_SLOTS.values())
    grid = {place for group in groups for place in group}
    several = [(128 + _GRID * x, 128 + _GRID * y) for x, y in grid] if size != "large" else []
    return tuple(sorted({*alone, *several}))


def sample_scene(rng: np.random.Generator, scope: Scope, *, split: Split = "train") -> Scene:
    """Draw a scene of `scope` at random, from the combinations that `split` owns.

    Raises:
        ValueError: if 10,000 draws contain none, as in a scope too small to hold anything out.
    """
    for _ in range(10_000):
        scene = _draw(rng, scope)
        if is_held_out(scene) == (split == "held_out"):
            return scene
    raise ValueError(f"expected a scope with scenes in split {split!r}, got {scope}")


def is_held_out(scene: Scene) -> bool:
    """Whether training never sees this combination: a held-out (noun, colour, background), or a held-out pair.

    A pair is (thing, thing, axis, which comes first, background), the same whichever of the two is named first; three
    things are (thing, relation, the others in their order, background).
    """
    background = scene.background
    if any(_hashed(f"{t.noun}|{t.colour}|{background}") < HELD_OUT for t in scene.things):
        return True
    if scene.relation is None:
        return False
    if scene.layout == "trio":
        kinds = "|".join(f"{thing.noun}|{thing.colour}" for thing in scene.things)
        return _hashed(f"{scene.relation}|{kinds}|{background}") < HELD_OUT
    first, second = scene.things
    flipped = scene.relation in ("right of", "below")
    relation = OPPOSITE[scene.relation] if flipped else scene.relation
    a, b = (second, first) if flipped else (first, second)
    return _hashed(f"{a.noun}|{a.colour}|{relation}|{b.noun}|{b.colour}|{background}") < HELD_OUT


def looks_same(a: Scene, b: Scene) -> bool:
    """Whether two scenes have the same pixels ("a left of b" and "b right of a" do)."""
    return (a.background, a.variant, set(a.slots)) == (b.background, b.variant, set(b.slots))


def swappable(scene: Scene, *, scope: Scope) -> tuple[str, ...]:
    """The attributes of `ATTRIBUTES` in which `scene` has an alternative within `scope`, whatever its split."""
    return tuple(attribute for attribute in ATTRIBUTES if _alternatives(scene, scope, attribute))


def swap(
    scene: Scene,
    rng: np.random.Generator,
    *,
    scope: Scope,
    split: Split | None = "train",
    attribute: str | None = None,
) -> Scene:
    """Return the scene with exactly one attribute changed: a picture that looks different and a caption made false.

    "relation" puts the things in another direction (its opposite exchanges two) or another of three things first;
    "colour exchange" gives two shapes each other's colour. Attributes are chosen evenly, then alternatives evenly.

    Args:
        split: whose combinations the result must be of; None for any. With "train", captions of the result may
            serve as negatives in training without training ever reading of a held-out combination.
        attribute: one of `swappable(scene, scope=scope)`; by default any.

    Raises:
        ValueError: if `attribute` cannot be changed, or no alternative belongs to `split`.
    """
    if attribute is not None and attribute not in ATTRIBUTES:
        raise ValueError(f"expected an attribute among {ATTRIBUTES}, got {attribute!r}")
    attributes = list(ATTRIBUTES if attribute is None else (attribute,))
    while attributes:
        chosen = attributes.pop(int(rng.integers(len(attributes))))
        others = _alternatives(scene, scope, chosen)
        while others:
            other = others.pop(int(rng.integers(len(others))))
            if split is None or is_held_out(other) == (split == "held_out"):
                return other
    wanted = attribute or "attributes"
    raise ValueError(f"expected a scene whose {wanted} can change within the scope and split {split!r}, got {scene}")


def _draw(rng: np.random.Generator, scope: Scope) -> Scene:
    background = _pick(rng, scope.backgrounds)
    variant = int(rng.integers(min(scope.variants, VARIANTS[background])))
    layout = _weighted(rng, scope.layouts)
    noun, colour = _draw_kind(rng, scope)
    if layout == "one":
        thing = Thing(noun, colour, size=_weighted(rng, scope.sizes), position=_weighted(rng, scope.positions))
        return Scene(background, (thing,), variant=variant)
    size = _weighted(rng, scope.pair_sizes)
    if layout == "count":
        return Scene(background, (Thing(noun, colour, count=_pick(rng, scope.counts), size=size),), variant=variant)
    things = [Thing(noun, colour, size=size)]
    while len(things) < {"pair": 2, "trio": 3}[layout]:
        kind = _draw_kind(rng, scope)
        if kind not in [thing.kind for thing in things]:
            things.append(Thing(*kind, size=_weighted(rng, scope.pair_sizes)))
    return Scene(background, tuple(things), relation=_pick(rng, tuple(OPPOSITE)), variant=variant)


def _draw_kind(rng: np.random.Generator, scope: Scope) -> Kind:
    if not scope.emoji or (scope.shapes and rng.random() < scope.shape_share):
        return _pick(rng, scope.shapes), _pick(rng, scope.colours)
    return _pick(rng, scope.emoji), None


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


def _weighted(rng: np.random.Generator, options: Weights) -> str:
    at = rng.random() * sum(weight for _, weight in options)
    for option, weight in options:
        at -= weight
        if at < 0:
            return option
    return options[-1][0]


@lru_cache(maxsize=1 << 17)
def _hashed(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, on every machine."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "big") / 2**48


def _alternatives(scene: Scene, scope: Scope, attribute: str) -> list[Scene]:
    """Every scene that differs from `scene` in `attribute` alone and looks different."""
    others: list[Scene] = []
    for index, thing in enumerate(scene.things):
        others += [
            replace(scene, things=scene.things[:index] + (new,) + scene.things[index + 1 :])
            for new in _other_things(scene, thing, scope, attribute)
        ]
    if attribute == "background":
        others += [
            replace(scene, background=name, variant=min(scene.variant, VARIANTS[name] - 1))
            for name in scope.backgrounds
            if name != scene.background
        ]
    if attribute == "relation" and scene.relation is not None:
        others += [replace(scene, relation=relation) for relation in OPPOSITE if relation != scene.relation]
        if scene.layout == "trio":
            a, b, c = scene.things
            others += [replace(scene, things=(b, a, c)), replace(scene, things=(c, b, a))]
    if attribute == "colour exchange" and scene.relation is not None:
        others += [replace(scene, things=things) for things in _exchanges(scene.things)]
    return [other for other in others if len({t.kind for t in other.things}) == len(other.things)]


def _exchanges(things: tuple[Thing, ...]) -> list[tuple[Thing, ...]]:
    """The things with the colours of two of them exchanged."""
    exchanged = []
    for i, j in combinations(range(len(things)), 2):
        a, b = things[i], things[j]
        if None not in (a.colour, b.colour) and a.colour != b.colour and a.noun != b.noun:
            swapped = {i: replace(a, colour=b.colour), j: replace(b, colour=a.colour)}
            exchanged.append(tuple(swapped.get(k, thing) for k, thing in enumerate(things)))
    return exchanged


def _other_things(scene: Scene, thing: Thing, scope: Scope, attribute: str) -> list[Thing]:
    if attribute == "noun":
        nouns = scope.emoji if thing.colour is None else scope.shapes
        return [replace(thing, noun=noun) for noun in nouns if noun != thing.noun]
    if attribute == "colour" and thing.colour is not None:
        return [replace(thing, colour=colour) for colour in scope.colours if colour != thing.colour]
    if attribute == "position" and thing.position is not None:
        return [replace(thing, position=name) for name, _ in scope.positions if name != thing.position]
    if attribute == "size":
        sizes = scope.sizes if scene.layout == "one" else scope.pair_sizes
        return [replace(thing, size=size) for size, _ in sizes if size != thing.size]
    if attribute == "count" and scene.relation is None:
        counts = [n for n in (1, *scope.counts) if n != thing.count and (n == 1 or thing.size != "large")]
        return [replace(thing, count=n, position="centre" if n == 1 else None) for n in counts if _recount(thing, n)]
    return []


def _recount(thing: Thing, count: int) -> bool:
    """Counts change only where nothing else does: a thing that is not in the centre would lose its position too."""
    return thing.position in (None, "centre")
