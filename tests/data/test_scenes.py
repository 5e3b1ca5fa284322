from dataclasses import replace

import numpy as np
import pytest

from unclip_hub.data.backgrounds import PLAIN, VARIANTS, background
from unclip_hub.data.captions import WORDINGS
from unclip_hub.data.scene_spec import ATTRIBUTES, OPPOSITE, slot_centres
from unclip_hub.data.scenes import (
    CPU,
    FULL,
    Scene,
    Thing,
    caption,
    covered_cells,
    dataset,
    is_held_out,
    looks_same,
    render,
    sample_scene,
    swap,
    swappable,
    words,
)
from unclip_hub.data.sprites import EMOJI, SIZES, build_bank


SHAPES_ONLY = replace(FULL, emoji=())


@pytest.fixture(scope="module")
def bank():
    return build_bank()


def draw(n, scope=FULL, split="train", seed=5):
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, scope, split=split) for _ in range(n)]


def test_same_seed_same_scenes_captions_and_pixels(bank):
    first, again = (dataset(7, seed=3, scope=SHAPES_ONLY, bank=bank) for _ in range(2))
    np.testing.assert_array_equal(first.pictures, again.pictures)
    assert (first.captions, first.scenes) == (again.captions, again.scenes)
    other = dataset(7, seed=4, scope=SHAPES_ONLY, bank=bank)
    assert first.scenes != other.scenes
    assert first.pictures.shape == (7, 64, 64, 3)
    assert [len(texts) for texts in first.captions] == [3] * 7


def test_a_picture_depends_on_neither_the_number_nor_the_size_nor_the_captions(bank):
    small = dataset(5, seed=3, scope=SHAPES_ONLY, bank=bank, captions=1)
    large = dataset(9, seed=3, scope=SHAPES_ONLY, bank=bank, size=256, captions=4)
    assert small.scenes == large.scenes[:5]
    assert [texts[0] for texts in small.captions] == [texts[0] for texts in large.captions[:5]]


def test_64_px_is_the_reduced_256_px(bank):
    for scene in draw(40, SHAPES_ONLY):
        large = render(scene, size=256, bank=bank).astype(float)
        apart = np.abs(large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)) - render(scene, size=64, bank=bank))
        assert apart.mean() < 0.3
        assert apart.max() <= 48, "they may differ a little where an edge crosses detailed scenery"


def test_1024_px_agrees_too():
    bank = build_bank(("heart",), colours=("pink",), canvases=(256, 1024))
    scene = Scene("desert", (Thing("heart", "pink", position="left"),), variant=1)
    large = render(scene, size=1024, bank=bank).astype(float)
    reduced = large.reshape(256, 4, 256, 4, 3).mean(axis=(1, 3))
    assert np.abs(reduced - render(scene, size=256, bank=bank)).mean() < 0.5


def test_slots_lie_on_the_coarse_grid_and_inside():
    for size, side in SIZES.items():
        for x, y in slot_centres(size):
            for centre in (x, y):
                assert centre % 4 == 0
                assert side // 2 <= centre <= 256 - side // 2
    for scene in draw(300):
        for _, size, x, y in scene.slots:
            assert (x, y) in slot_centres(size)


def test_things_never_overlap():
    for scene in draw(500):
        slots = scene.slots
        for i, (_, size, x, y) in enumerate(slots):
            for _, other, u, v in slots[:i]:
                assert max(abs(x - u), abs(y - v)) >= (SIZES[size] + SIZES[other]) / 2


def test_held_out_combinations_never_occur_in_training():
    def triples(scenes):
        return {(t.kind, s.background) for s in scenes for t in s.things}

    train, held_out = draw(4000), draw(1000, split="held_out")
    assert not any(map(is_held_out, train))
    assert all(map(is_held_out, held_out))
    alone = [scene for scene in held_out if scene.relation is None]
    assert len(alone) > 100
    assert not triples(train) & triples(alone)
    pairs = [{(frozenset(s.slots), s.background) for s in scenes if s.relation} for scenes in (train, held_out)]
    assert not pairs[0] & pairs[1]


def test_about_a_tenth_of_the_triples_is_held_out():
    kinds = [(n, c) for n in FULL.shapes for c in FULL.colours] + [(n, None) for n in FULL.emoji]
    held = [
        is_held_out(Scene(name, (Thing(noun, colour, position="centre"),)))
        for name in FULL.backgrounds
        for noun, colour in kinds
    ]
    assert 0.07 < np.mean(held) < 0.13


def test_a_pair_named_the_other_way_round_is_held_out_alike():
    for scene in draw(300, split="held_out"):
        if scene.layout == "pair":
            a, b = scene.things
            other = replace(scene, things=(b, a), relation=OPPOSITE[scene.relation])
            assert is_held_out(other)
            assert looks_same(scene, other)


@pytest.mark.parametrize("scope", [CPU, FULL], ids=["CPU", "FULL"])
def test_every_attribute_value_occurs_in_training(scope):
    scenes = draw(3000, scope)
    things = [thing for scene in scenes for thing in scene.things]
    assert {t.noun for t in things} == set(scope.nouns)
    assert {t.colour for t in things} == {*scope.colours, None}
    assert {s.background for s in scenes} == set(scope.backgrounds)
    assert {t.count for t in things} == {1, *scope.counts}
    assert {t.position for t in things} == {name for name, _ in scope.positions} | {None}
    assert {t.size for t in things} == {name for name, _ in (*scope.sizes, *scope.pair_sizes)}
    assert {s.relation for s in scenes} == {None, *OPPOSITE}
    assert {s.layout for s in scenes} == {"one", "count", "pair", "trio"}


def test_wordings_of_the_splits_are_disjoint():
    for kind, templates in WORDINGS["train"].items():
        assert not set(templates) & set(WORDINGS["held_out"][kind])
    rng = np.random.default_rng(0)
    said = {
        wording: {caption(scene, rng, wording=wording) for scene in draw(400) for _ in range(20)}
        for wording in ("train", "held_out")
    }
    assert not said["train"] & said["held_out"]


@pytest.mark.parametrize("scope", [CPU, FULL, SHAPES_ONLY], ids=["CPU", "FULL", "shapes"])
def test_captions_keep_to_the_vocabulary_and_use_all_of_it(scope):
    rng = np.random.default_rng(1)
    used = set()
    for wording, number in (("train", 4000), ("held_out", 1000)):
        texts = [caption(scene, rng, wording=wording) for scene in draw(number, scope) for _ in range(3)]
        assert all(text == " ".join(text.split()) and text == text.lower() for text in texts)
        spoken = {word for text in texts for word in text.replace(",", "").split()}
        assert wording == "train" or spoken <= used, "a held-out wording uses no word that training never sees"
        used |= spoken
    assert used == set(words(scope))


def test_a_caption_says_what_is_asked():
    rng = np.random.default_rng(2)
    scene = Scene("forest", (Thing("circle", "red", size="small", position="left"),))
    for wording in ("train", "held_out"):
        for text in (caption(scene, rng, wording=wording) for _ in range(30)):
            assert "left" in text and "red" in text
            assert "circle" in text or "disc" in text
            assert "small" in text or "little" in text
            assert "forest" in text or "woods" in text
    counted = Scene("white", (Thing("umbrella", None, count=3, size="medium"),))
    texts = [caption(counted, rng) for _ in range(200)]
    assert all("three" in text or "3" in text for text in texts)
    assert not any("there is" in text or "an umbrella" in text for text in texts)
    single = replace(counted, things=(Thing("umbrella", position="centre"),))
    assert any("an umbrella" in caption(single, rng) for _ in range(30))


@pytest.mark.parametrize("scope", [CPU, FULL], ids=["CPU", "FULL"])
def test_swap_changes_exactly_one_thing(scope):
    rng = np.random.default_rng(6)
    seen = set()
    for scene in draw(250, scope):
        for attribute in swappable(scene, scope=scope):
            other = swap(scene, rng, scope=scope, split=None, attribute=attribute)
            seen.add(attribute)
            assert not looks_same(scene, other)
            assert differing(scene, other) == {attribute}
    assert seen >= {"noun", "colour", "background", "position", "size", "count", "relation", "colour exchange"}


def differing(a, b):
    """Which attributes tell two scenes apart."""
    found = set()
    if a.background != b.background:
        found.add("background")
    if a.relation != b.relation:
        found.add("relation")
    one, two = ([(t.noun, t.colour) for t in scene.things] for scene in (a, b))
    if one != two and sorted(map(str, one)) == sorted(map(str, two)):
        return found | {"relation"}  # another of three things stands apart
    if one != two and [n for n, _ in one] == [n for n, _ in two] and sorted(map(str, one)) != sorted(map(str, two)):
        exchanged = sorted(str(c) for _, c in one) == sorted(str(c) for _, c in two)
        return found | {"colour exchange" if exchanged else "colour"}
    for t, u in zip(a.things, b.things, strict=True):
        found |= {name for name in ("noun", "colour", "size", "count") if getattr(t, name) != getattr(u, name)}
        if t.position != u.position and t.count == u.count:
            found.add("position")
    return found


def test_three_things_stand_as_their_caption_says(bank):
    things = Thing("heart", "red"), Thing("ring", "blue"), Thing("star", "pink")
    scene = Scene("white", things, relation="above")
    heart, ring, star = scene.slots
    assert heart[3] < ring[3] == star[3] and ring[2] < heart[2] < star[2]
    rng = np.random.default_rng(3)
    for wording in ("train", "held_out"):
        said = [caption(scene, rng, wording=wording) for _ in range(40)]
        assert all(text.index("heart") < text.index("blue") < text.index("pink star") for text in said)
        assert all(" and " in text for text in said)
    assert not looks_same(scene, replace(scene, things=(things[0], things[2], things[1])))


def test_covered_cells_are_those_of_the_things():
    scene = Scene("white", (Thing("heart", "red"), Thing("ring", "blue")), relation="left of")
    covered = covered_cells(scene, cells=8)
    assert set(covered[:, :4].ravel()) == {0, 1} and set(covered[:, 4:].ravel()) == {0, 2}
    assert 4 <= (covered == 1).sum() <= 9


def test_swapped_pictures_differ_and_stay_in_their_split(bank):
    rng = np.random.default_rng(8)
    for scene in draw(150, SHAPES_ONLY):
        other = swap(scene, rng, scope=SHAPES_ONLY)
        assert not is_held_out(other)
        before, after = (render(s, size=64, bank=bank).astype(int) for s in (scene, other))
        assert np.abs(before - after).max() > 30


def test_swap_says_when_it_cannot():
    rng = np.random.default_rng(0)
    lone = Scene("white", (Thing("koala", position="centre"),))
    with pytest.raises(ValueError, match="whose relation can change"):
        swap(lone, rng, scope=FULL, attribute="relation")
    with pytest.raises(ValueError, match="expected an attribute among .* got 'mood'"):
        swap(lone, rng, scope=FULL, attribute="mood")
    assert set(swappable(lone, scope=FULL)) < set(ATTRIBUTES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scene("moon", (Thing("circle", "red", position="left"),)), "background among .* got 'moon'"),
        (lambda: Scene("white", (Thing("circle", "red"),)), "expected a position"),
        (lambda: Scene("white", (Thing("circle", "red", position="left"),) * 2), "three with a relation"),
        (lambda: Scene("white", (Thing("star", "red", count=5),)), "count of 1 to 4"),
        (lambda: Scene("white", (Thing("star", "red", count=2, size="large"),)), "small or medium"),
        (lambda: Scene("white", (Thing("star", "red"), Thing("ring", "red")), relation="near"), "got 'near'"),
    ],
)
def test_scenes_say_what_they_expected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_scope_without_held_out_combinations_is_refused():
    scope = replace(CPU, shapes=("circle",), colours=("red",), emoji=(), backgrounds=("white",), layouts=(("one", 1),))
    scene = Scene("white", (Thing("circle", "red", position="centre"),))
    lacking = "train" if is_held_out(scene) else "held_out"
    with pytest.raises(ValueError, match=f"scenes in split '{lacking}'"):
        sample_scene(np.random.default_rng(0), scope, split=lacking)


def test_dataset_and_render_refuse_what_they_cannot_make(bank):
    with pytest.raises(ValueError, match="got 0 and 3"):
        dataset(0, seed=0, scope=SHAPES_ONLY, bank=bank)
    with pytest.raises(ValueError, match="got 128"):
        render(draw(1, SHAPES_ONLY)[0], size=128, bank=bank)


def test_backgrounds_are_distinct_and_read_only():
    every = {name: [background(name, v, size=64).astype(float) for v in range(n)] for name, n in VARIANTS.items()}
    for name, variants in every.items():
        for other, others in every.items():
            if name != other:
                assert min(np.abs(a - b).mean() for a in variants for b in others) > 10, (name, other)
        for a, b in zip(variants, variants[1:], strict=False):
            assert np.abs(a - b).max() > 10
    with pytest.raises(ValueError, match="read-only"):
        background("sea", 0, size=64)[:] = 0
    assert set(PLAIN) < set(VARIANTS)


def test_shapes_contrast_with_every_background(bank):
    for name in VARIANTS:
        behind = background(name, 0, size=64).astype(float)
        for kind in bank.kinds:
            picture = render(Scene(name, (Thing(*kind, position="centre"),)), size=64, bank=bank)
            changed = np.abs(picture - behind).max(axis=-1)[20:44, 20:44]
            assert (changed > 30).mean() > 0.15, (name, kind)


def test_emoji_of_the_named_scopes_exist():
    assert set(CPU.emoji) <= set(EMOJI) and set(FULL.emoji) == set(EMOJI)
