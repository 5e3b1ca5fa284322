import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unclip_hub.data.backgrounds import background
from unclip_hub.data.scenes import FULL, Scene, Thing, dataset, render
from unclip_hub.data.sprites import build_bank
from unclip_hub.evaluation.sprite_matching import ATTRIBUTES, SpriteMatcher, judge, score, wilson


SHAPES_ONLY = replace(FULL, emoji=())


@pytest.fixture(scope="module")
def bank():
    return build_bank()


@pytest.fixture(scope="module")
def matcher(bank):
    return SpriteMatcher(bank)


@pytest.fixture(scope="module")
def held_out(bank):
    return dataset(250, seed=1, scope=SHAPES_ONLY, bank=bank, split="held_out")


def wrong(picture, scene, matcher):
    return {attribute for attribute, right in judge(matcher.see(picture), scene).items() if right is False}


def test_real_pictures_are_right(held_out, matcher):
    for attribute, rate in score(held_out.pictures, held_out.scenes, matcher=matcher).items():
        assert rate.n >= 8 and rate.rate > 0.97, (attribute, rate)


def test_blurred_pictures_are_nearly_right(held_out, matcher):
    pictures = [
        np.asarray(Image.fromarray(picture).resize((32, 32), Image.Resampling.BOX).resize((64, 64)))
        for picture in held_out.pictures
    ]
    assert score(pictures, held_out.scenes, matcher=matcher)["all"].rate > 0.9


def test_pictures_of_something_else_are_at_chance(held_out, matcher):
    rates = score(np.roll(held_out.pictures, 1, axis=0), held_out.scenes, matcher=matcher)
    assert rates["object"].rate < 0.2
    assert rates["object and colour"].rate < 0.1
    assert rates["background"].rate < 0.25
    assert rates["all"].rate < 0.03


def test_noise_and_empty_scenery_show_nothing(held_out, matcher):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, held_out.pictures.shape, dtype=np.uint8)
    empty = [background(scene.background, scene.variant, size=64) for scene in held_out.scenes]
    for pictures in (noise, empty):
        assert score(pictures, held_out.scenes, matcher=matcher)["object"].rate < 0.05
    assert all(matcher.see(picture).things == () for picture in empty)


def test_256_px_and_float_tensors_say_the_same(bank, matcher):
    scene = Scene("sea", (Thing("star", "yellow"), Thing("ring", "red")), relation="above", variant=2)
    small, large = (render(scene, size=size, bank=bank) for size in (64, 256))
    tensor = torch.from_numpy(small.copy()).permute(2, 0, 1) / 127.5 - 1
    expected = matcher.see(small)
    assert [thing.kind for thing in expected.things] == [thing.kind for thing in matcher.see(large).things]
    assert [thing.kind for thing in expected.things] == [thing.kind for thing in matcher.see(tensor).things]
    assert expected.background == matcher.see(large).background == matcher.see(tensor.double()).background == "sea"


def test_one_wrong_attribute_is_told_from_the_others(bank, matcher):
    scene = Scene("forest", (Thing("circle", "red", position="left", size="large"),))
    thing = scene.things[0]
    picture = render(scene, size=64, bank=bank)
    assert wrong(picture, scene, matcher) == set()
    assert wrong(picture, replace(scene, background="sea"), matcher) == {"background", "all"}
    for change, fails in [
        ({"noun": "heart"}, {"object", "object and colour"}),
        ({"colour": "blue"}, {"colour", "object and colour"}),
        ({"position": "top"}, {"position"}),
        ({"size": "small"}, {"size"}),
    ]:
        asked = replace(scene, things=(replace(thing, **change),))
        assert wrong(picture, asked, matcher) == {*fails, "all"}, change


def test_count_and_relation(bank, matcher):
    three = Scene("mint", (Thing("cross", "purple", count=3),))
    picture = render(three, size=64, bank=bank)
    assert wrong(picture, replace(three, things=(Thing("cross", "purple", count=2),)), matcher) == {"count", "all"}
    pair = Scene("city", (Thing("star", "pink"), Thing("ring", "blue")), relation="left of")
    picture = render(pair, size=64, bank=bank)
    assert wrong(picture, pair, matcher) == set()
    assert wrong(picture, replace(pair, relation="right of"), matcher) == {"relation", "all"}
    assert wrong(picture, replace(pair, relation="above"), matcher) == {"relation", "all"}
    exchanged = replace(pair, things=(Thing("star", "blue"), Thing("ring", "pink")))
    assert wrong(picture, exchanged, matcher) == {"colour", "object and colour", "all"}


def test_the_first_of_three_things_is_judged_against_both_others(bank, matcher):
    things = Thing("star", "pink"), Thing("ring", "blue"), Thing("heart", "red")
    trio = Scene("city", things, relation="above")
    picture = render(trio, size=64, bank=bank)
    assert wrong(picture, trio, matcher) == set()
    assert wrong(picture, replace(trio, relation="left of"), matcher) == {"relation", "all"}
    assert wrong(picture, replace(trio, things=things[::-1]), matcher) == {"relation", "all"}
    pair = render(Scene("city", things[:2], relation="above"), size=64, bank=bank)
    assert wrong(pair, trio, matcher) == {"object", "colour", "object and colour", "relation", "all"}


def test_an_extra_thing_spoils_only_the_whole(bank, matcher):
    asked = Scene("beige", (Thing("square", "green", position="centre"),))
    pair = Scene("beige", (Thing("square", "green"), Thing("diamond", "yellow", size="small")), relation="above")
    assert wrong(render(pair, size=64, bank=bank), asked, matcher) == {"all"}


def test_what_is_not_asked_is_none(bank, matcher):
    scene = Scene("black", (Thing("square", "green", position="centre"),))
    verdict = judge(matcher.see(render(scene, size=64, bank=bank)), scene)
    assert list(verdict) == list(ATTRIBUTES)
    assert {name for name, right in verdict.items() if right is None} == {"position", "size", "count", "relation"}
    koala = Scene("black", (Thing("koala", position="centre"),))
    assert judge(matcher.see(render(scene, size=64, bank=bank)), koala)["colour"] is None


def test_colour_counts_even_when_the_shape_is_wrong(bank, matcher):
    picture = render(Scene("white", (Thing("heart", "blue", position="centre"),)), size=64, bank=bank)
    asked = Scene("white", (Thing("square", "blue", position="centre"),))
    assert wrong(picture, asked, matcher) == {"object", "object and colour", "all"}


def test_wilson():
    rate = wilson(8, 10)
    torch.testing.assert_close(torch.tensor(rate[2:]), torch.tensor([0.4902, 0.9433]), atol=1e-4, rtol=0)
    assert wilson(0, 5).low == 0 and wilson(5, 5).high == 1
    assert math.isnan(wilson(0, 0).rate)
    with pytest.raises(ValueError, match="got 6 and 5"):
        wilson(6, 5)


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((64, 48, 3), np.uint8), r"square picture of 3 channels.*\(64, 48, 3\)"),
        (np.zeros((96, 96, 3), np.uint8), "multiple of 64 px"),
        (np.zeros((64, 64, 3), np.float64), "uint8"),
        (torch.zeros(3, 64, 64, dtype=torch.uint8), "float tensor"),
        (torch.full((3, 64, 64), math.nan), "finite"),
    ],
    ids=["oblong", "96 px", "float array", "integer tensor", "nan"],
)
def test_pictures_it_cannot_read(picture, message, matcher):
    with pytest.raises(ValueError, match=message):
        matcher.see(picture)


def test_as_many_scenes_as_pictures(held_out, matcher):
    with pytest.raises(ValueError, match="got 2 pictures and 3 scenes"):
        score(held_out.pictures[:2], held_out.scenes[:3], matcher=matcher)
