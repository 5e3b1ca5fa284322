from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unclip_hub.data.captioned import Sample
from unclip_hub.data.scenes import Scene, Scope, Thing, dataset, render
from unclip_hub.data.sprites import build_bank
from unclip_hub.evaluation.caption_cases import embed, photo_cases, scene_cases


SCOPE = Scope(shapes=("star", "ring"), colours=("red", "blue", "green"), variants=2)


@pytest.fixture(scope="module")
def bank():
    return build_bank(SCOPE.nouns, colours=SCOPE.colours, canvases=(64,))


def cases_of(bank, scenes, samples=3):
    captions = [f"caption {i}" for i in range(len(scenes))]
    return scene_cases(scenes, captions, scope=SCOPE, bank=bank, size=64, samples=samples)


def pixels(images):
    """An encoder that forgets nothing."""
    return torch.stack([torch.from_numpy(np.asarray(image).copy()).flatten() for image in images])


def test_pictures_of_a_caption_differ_in_the_background_alone(bank):
    forest = Scene("forest", (Thing("star", "red", position="centre"),))
    white = Scene("white", (Thing("star", "red", position="left"),))
    cases = cases_of(bank, [forest, white], samples=8)
    truth = embed(cases, pixels, batch=3)
    assert truth.pictures.shape == (2, 8, 64 * 64 * 3) and truth.others.shape == truth.pictures.shape
    variants = [render(replace(forest, variant=v), size=64, bank=bank) for v in range(2)]
    expected = pixels(variants).float()
    torch.testing.assert_close(truth.pictures[0, 0], expected[0])  # that of the caption comes first
    seen = Counter(
        int((row == expected).all(1).int().argmax()) for row in torch.cat([truth.pictures[0], truth.others[0]])
    )
    assert set(seen) == {0, 1} and min(seen.values()) >= 3
    assert (truth.pictures[1] == pixels([render(white, size=64, bank=bank)]).float()).all()


def test_captions_of_one_picture_are_of_a_group(bank):
    red, blue = Thing("star", "red"), Thing("ring", "blue")
    left = Scene("sea", (red, blue), relation="left of")
    right = Scene("sea", (blue, red), relation="right of", variant=1)
    cases = cases_of(bank, [left, right, replace(left, relation="above"), left])
    assert cases.groups == [0, 0, 1, 0]
    assert embed(cases, pixels, batch=5).groups.tolist() == [0, 0, 1, 0]


def test_swaps_change_one_attribute_of_the_first_picture(bank):
    scene = Scene("sea", (Thing("star", "red"), Thing("ring", "blue")), relation="left of", variant=1)
    truth = embed(cases_of(bank, [scene, scene]), pixels, batch=4)
    assert set(truth.swapped) == {"noun", "colour", "background", "relation", "colour exchange"}
    rows, own, other = truth.swapped["colour exchange"]
    exchanged = replace(scene, things=(Thing("star", "blue"), Thing("ring", "red")))
    assert rows.tolist() == [0, 1]
    torch.testing.assert_close(own[0], truth.pictures[0, 0])
    torch.testing.assert_close(other[0], pixels([render(exchanged, size=64, bank=bank)])[0].float())
    rows, own, other = truth.swapped["background"]
    assert (own != other).any(1).all()


def test_the_same_seed_is_the_same_cases(bank):
    scenes = dataset(6, seed=1, scope=SCOPE, bank=bank).scenes
    first, again = cases_of(bank, scenes), cases_of(bank, scenes)
    assert (first.pictures, first.others, first.swapped) == (again.pictures, again.others, again.swapped)


def test_captioned_pictures_have_one_picture_each():
    images = [Image.new("RGB", (4, 4), (50 * i, 0, 0)) for i in range(3)]
    samples = [Sample(str(i), image, (f"red {i % 2}", "another")) for i, image in enumerate(images)]
    cases = photo_cases(samples)
    truth = embed(cases, pixels, batch=2)
    assert cases.captions == ["red 0", "red 1", "red 0"]
    assert truth.pictures.shape == (3, 1, 48) and truth.others is None and truth.swapped == {}
    assert truth.groups.tolist() == [0, 1, 0]
    torch.testing.assert_close(truth.pictures[2, 0], pixels(images)[2].float())
