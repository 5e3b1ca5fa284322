"""Captions of procedural scenes: many wordings for training, and wordings that only held-out captions use.

A caption says everything the picture shows, with two defaults: a thing of which no size is said is medium, and one of
which no position is said stands in the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from unclip_hub.data.backgrounds import PLAIN
from unclip_hub.data.scene_spec import OPPOSITE, Scene, Scope, Split, Thing


T = TypeVar("T")

# {thing} "a red circle", {tag} "red circle", {place} "on the left", {bg} "in a forest", {bare} "forest",
# {a_bg} "a forest", {there} "there is" or "there are"; {other} may be two, "a blue square and a car"
WORDINGS: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "thing": (
            "{thing} {bg}",
            "{thing}, {bg}",
            "{bg} {there} {thing}",
            "{bg}, {thing}",
            "{there} {thing} {bg}",
            "a picture with {thing} {bg}",
            "{tag}, {bare}",
        ),
        "thing at": (
            "{thing} {place} {bg}",
            "{thing} {place}, {bg}",
            "{bg} {there} {thing} {place}",
            "{bg}, {thing} {place}",
            "{there} {thing} {place} {bg}",
            "{thing} {bg}, {place}",
            "{place}, {thing}, {bg}",
            "{bg}, {place}, {thing}",
            "a picture with {thing} {place} {bg}",
            "{tag}, {bare_place}, {bare}",
        ),
        "pair": (
            "{thing} {relation} {other} {bg}",
            "{thing} {relation} {other}, {bg}",
            "{bg} {there} {thing} {relation} {other}",
            "{bg}, {thing} {relation} {other}",
            "{there} {thing} {relation} {other} {bg}",
            "a picture with {thing} {relation} {other} {bg}",
            "{tag} {relation} {other_tag}, {bare}",
        ),
    },
    "held_out": {
        "thing": ("{a_bg} with {thing}", "{bare}, {tag}", "{thing}, {bare}, a picture"),
        "thing at": (
            "{a_bg} with {thing} {place}",
            "{bare}, {bare_place}, {tag}",
            "{place} {there} {thing} {bg}",
        ),
        "pair": (
            "{a_bg} with {thing} {relation} {other}",
            "{bare}, {tag} {relation} {other_tag}",
            "{thing} {relation} {other}, {bare}, a picture",
        ),
    },
}

_NAMES = {  # noun: (singular, plural) pairs; a noun missing here is its own name and takes an s
    "circle": (("circle", "circles"), ("disc", "discs")),
    "cross": (("cross", "crosses"), ("plus", "pluses")),
    "ring": (("ring", "rings"), ("hoop", "hoops")),
    "koala": (("koala", "koalas"), ("koala bear", "koala bears")),
    "pumpkin": (("pumpkin", "pumpkins"), ("halloween pumpkin", "halloween pumpkins")),
    "mushroom": (("mushroom", "mushrooms"), ("toadstool", "toadstools")),
    "butterfly": (("butterfly", "butterflies"),),
    "rocket": (("rocket", "rockets"), ("space rocket", "space rockets")),
    "car": (("car", "cars"), ("automobile", "automobiles")),
    "pizza": (("pizza", "pizzas"), ("slice of pizza", "slices of pizza")),
    "tree": (("tree", "trees"), ("fir tree", "fir trees")),
    "cat": (("cat", "cats"), ("kitten", "kittens")),
    "octopus": (("octopus", "octopuses"),),
    "sailboat": (("sailboat", "sailboats"), ("sailing boat", "sailing boats")),
}
_SIGNS = {  # the character of an emoji is one more name of it
    "koala": "🐨",
    "elephant": "🐘",
    "frog": "🐸",
    "pumpkin": "🎃",
    "mushroom": "🍄",
    "house": "🏠",
    "rocket": "🚀",
    "car": "🚗",
    "butterfly": "🦋",
    "penguin": "🐧",
    "pizza": "🍕",
    "umbrella": "☂",
    "tree": "🌲",
    "cat": "🐱",
    "whale": "🐳",
    "octopus": "🐙",
    "pineapple": "🍍",
    "sailboat": "⛵",
    "apple": "🍎",
    "robot": "🤖",
    "crab": "🦀",
    "sunflower": "🌻",
    "guitar": "🎸",
    "balloon": "🎈",
}
_SIZES = {
    "small": ("small", "little"),
    "medium": ("", "", "", "", "", "", "", "", "medium", "medium sized"),
    "large": ("large", "big"),
}
_PLACES = {
    "centre": ("", "", "", "", "", "in the middle", "in the centre", "in the center"),
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
}
_RELATIONS = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
_COUNTS = {1: ("one",), 2: ("two", "two", "2"), 3: ("three", "three", "3"), 4: ("four", "four", "4")}
_SCENERY = {  # place: (phrases after a thing, bare names, with an article)
    "forest": (("in a forest", "in the forest", "in the woods"), ("forest", "woods"), ("a forest",)),
    "night sky": (("in the night sky", "at night", "under the stars"), ("night sky", "night"), ("a night sky",)),
    "sea": (("in the sea", "at sea", "on the ocean"), ("sea", "ocean"), ("the sea", "the ocean")),
    "desert": (("in a desert", "in the desert"), ("desert",), ("a desert",)),
    "snow": (("in the snow", "in snow", "in winter"), ("snow", "winter"), ("snow",)),
    "sunset": (("at sunset", "in front of a sunset"), ("sunset",), ("a sunset",)),
    "meadow": (("in a meadow", "on a meadow", "in a field"), ("meadow", "field"), ("a meadow", "a field")),
    "city": (("in a city", "in the city", "in a town"), ("city", "town"), ("a city", "a town")),
}
_SHADES = {"gray": ("gray", "grey"), "light blue": ("light blue", "pale blue")}


def caption(scene: Scene, rng: np.random.Generator, *, wording: Split = "train") -> str:
    """Describe `scene` in one of many ways, in lower case; two things are named in either order.

    Args:
        wording: "train" and "held_out" use templates that share none, and the same words.
    """
    first, *rest = scene.things
    relation = scene.relation
    if len(rest) == 1 and rng.random() < 0.3:
        assert relation is not None
        first, rest, relation = rest[0], [first], OPPOSITE[relation]
    tag = _tag(first, rng)
    parts = {"tag": tag, "thing": _article(first, tag, rng), "there": "there are" if first.count > 1 else "there is"}
    phrases, bare, a_bg = scenery(scene.background)
    parts |= {"bg": _pick(rng, phrases), "bare": _pick(rng, bare), "a_bg": _pick(rng, a_bg)}
    kind = "thing"
    if relation is not None:
        kind = "pair"
        others = [_tag(thing, rng) for thing in rest]
        parts |= {"relation": _pick(rng, _RELATIONS[relation]), "other_tag": " and ".join(others)}
        parts |= {"other": " and ".join(_article(thing, tag, rng) for thing, tag in zip(rest, others, strict=True))}
    elif first.position is not None:
        place = _pick(rng, _PLACES[first.position])
        if place:
            kind = "thing at"
            bare_place = {"centre": place.split()[-1]}.get(first.position, first.position)
            parts |= {"place": place, "bare_place": bare_place}
    return _pick(rng, WORDINGS[wording][kind]).format(**parts)


def scenery(background: str) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """How a background is said: phrases after a thing ("in a forest"), bare names, names with an article."""
    if background not in PLAIN:
        return _SCENERY[background]
    shades = _SHADES.get(background, (background,))
    phrases = tuple(phrase for shade in shades for phrase in (f"on a {shade} background", f"on {shade}"))
    bare = tuple(f"{shade} background" for shade in shades)
    return phrases, bare, tuple(f"a {name}" for name in bare)


def words(scope: Scope) -> tuple[str, ...]:
    """Every word a caption of a scene of `scope` may hold, sorted; commas are no words."""
    phrases: list[str] = ["a", "an", "and", "there is", "there are"]
    for templates in WORDINGS.values():
        phrases += [part for lines in templates.values() for line in lines for part in _literals(line)]
    phrases += [name for noun in scope.nouns for pair in names(noun) for name in pair]
    phrases += scope.colours if scope.shapes else ()
    sizes = {size for size, _ in (*scope.sizes, *scope.pair_sizes)}
    phrases += [phrase for size in sizes for phrase in _SIZES[size]]
    phrases += [phrase for name, _ in scope.positions for phrase in (*_PLACES[name], name)]
    phrases += [phrase for options in _RELATIONS.values() for phrase in options]
    phrases += [phrase for n in (1, *scope.counts) for phrase in _COUNTS[n]]
    phrases += [phrase for name in scope.backgrounds for options in scenery(name) for phrase in options]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


def names(noun: str) -> tuple[tuple[str, str], ...]:
    """The (singular, plural) names of a noun, the usual one first."""
    sign = _SIGNS.get(noun)
    return _NAMES.get(noun, ((noun, f"{noun}s"),)) + (((sign, sign),) if sign else ())


def _literals(template: str) -> list[str]:
    return [word.strip(",") for word in template.split() if "{" not in word]


def _tag(thing: Thing, rng: np.random.Generator) -> str:
    name = _pick(rng, names(thing.noun) if rng.random() < 0.3 else names(thing.noun)[:1])[thing.count > 1]
    adjectives = [_pick(rng, _SIZES[thing.size]), thing.colour or ""]
    count = _pick(rng, _COUNTS[thing.count]) if thing.count > 1 else ""
    return " ".join(word for word in (count, *adjectives, name) if word)


def _article(thing: Thing, tag: str, rng: np.random.Generator) -> str:
    if thing.count > 1:
        return tag
    if rng.random() < 0.1:
        return f"one {tag}"
    return f"an {tag}" if tag[0] in "aeiou" else f"a {tag}"


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]
