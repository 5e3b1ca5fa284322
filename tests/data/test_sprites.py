import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from unclip_hub.data.sprites import (
    COLOURS,
    EMOJI,
    SHAPES,
    SIZES,
    box_reduce,
    build_bank,
    load_emoji_svgs,
    render_svg,
    shape_masks,
)


@pytest.fixture(scope="module")
def bank():
    return build_bank(("circle", "star"), colours=("red", "blue"), canvases=(64, 256, 1024))


def icons_file(folder: Path) -> Path:
    """An icons.json in Iconify's form whose every picture is a tall green bar, off-centre."""
    icon = {"body": '<path fill="#0a0" d="M10 4h20v100H10z"/>'}
    path = folder / "icons.json"
    path.write_text(json.dumps({"icons": dict.fromkeys(EMOJI.values(), icon), "width": 128, "height": 128}))
    return path


def test_every_size_and_canvas_has_its_side(bank):
    for size, side in SIZES.items():
        for canvas in (64, 256, 1024):
            sprite = bank.sprite(("star", "blue"), size=size, canvas=canvas)
            assert sprite.shape == (side * canvas // 256, side * canvas // 256, 4)
            assert sprite.dtype == np.uint8
            assert (sprite[..., :3] <= sprite[..., 3:]).all(), "premultiplied colour cannot exceed alpha"
    assert bank.kinds == (("circle", "red"), ("circle", "blue"), ("star", "red"), ("star", "blue"))


def test_canvases_are_box_reductions_of_each_other(bank):
    large, middle, small = (bank.sprite(("star", "red"), size="medium", canvas=c).astype(int) for c in (1024, 256, 64))
    for fine, coarse in ((large, middle), (middle, small)):
        side = coarse.shape[0]
        mean = fine.reshape(side, 4, side, 4, 4).mean(axis=(1, 3))
        assert np.abs(mean - coarse).max() < 2


def test_sprites_cannot_be_written_to(bank):
    with pytest.raises(ValueError, match="read-only"):
        bank.sprite(("star", "red"), size="small", canvas=64)[:] = 0


def test_shapes_are_mutually_distinct_at_24_px():
    masks = {shape: shape_masks(shape, side=24)[0] for shape in SHAPES}
    for a in SHAPES:
        for b in SHAPES:
            union = np.maximum(masks[a], masks[b]).sum()
            assert a == b or np.minimum(masks[a], masks[b]).sum() / union < 0.85, (a, b)


def test_colours_are_mutually_distinct():
    rgb = np.asarray(list(COLOURS.values()), dtype=float)
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)
    assert apart[~np.eye(len(rgb), dtype=bool)].min() > 70


def test_a_ring_has_a_hole_and_a_rim_follows_its_shape():
    fill, rim = shape_masks("ring", side=48)
    assert fill[24, 24] == 0
    assert fill[24, 8] == 1
    assert (rim <= fill + 1e-6).all()
    assert 0 < rim.sum() < fill.sum() / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nouns": ("circle", "dodo")}, "expected noun to be one of .* got 'dodo'"),
        ({"colours": ("red", "mauve")}, "expected colour .* got 'mauve'"),
        ({"canvases": (64, 128)}, "expected canvas .* got 128"),
        ({"nouns": ("koala",)}, "expected icons .* or a cache holding .*koala"),
    ],
)
def test_build_bank_says_what_it_expected(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_bank(**arguments)


def test_a_bank_says_what_it_lacks(bank):
    with pytest.raises(ValueError, match="got .'koala', None., 'small', 64"):
        bank.sprite(("koala", None), size="small", canvas=64)


def test_emoji_are_rendered_once_and_then_come_from_the_cache(tmp_path):
    pytest.importorskip("resvg_py", reason="resvg-py, of the extra `train`, renders the emoji")
    cache = tmp_path / "made" / "emoji.npz"
    first = build_bank(("koala", "frog"), icons=icons_file(tmp_path), cache=cache)
    again = build_bank(("frog",), cache=cache)
    sprite = first.sprite(("frog", None), size="large", canvas=256)
    np.testing.assert_array_equal(sprite, again.sprite(("frog", None), size="large", canvas=256))
    alpha = sprite[..., 3].astype(float)
    rows, columns = alpha.sum(axis=1), alpha.sum(axis=0)
    assert np.ptp(np.argwhere(rows > 100)) > 120
    middle = (columns * np.arange(136)).sum() / columns.sum()
    assert abs(middle - 67.5) < 1, "what is visible stands in the middle"
    np.testing.assert_allclose(sprite[68, 68], (0, 170, 0, 255), atol=3)


def test_without_resvg_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ImportError, match=r'pip install "unclip_hub\[train\]"'):
        render_svg("<svg/>")


def test_a_missing_or_incomplete_icons_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="@iconify-json/noto.*which is no file"):
        load_emoji_svgs(tmp_path / "nowhere.json")
    path = tmp_path / "icons.json"
    path.write_text(json.dumps({"icons": {"frog": {"body": ""}}}))
    with pytest.raises(ValueError, match="expected an icon named"):
        load_emoji_svgs(path)


@pytest.mark.skipif("NOTO_ICONS" not in os.environ, reason="NOTO_ICONS does not name icons.json of @iconify-json/noto")
def test_the_real_emoji_fill_their_boxes():
    pytest.importorskip("resvg_py", reason="resvg-py, of the extra `train`, renders the emoji")
    svgs = load_emoji_svgs(Path(os.environ["NOTO_ICONS"]))
    assert list(svgs) == list(EMOJI)
    alpha = render_svg(svgs["koala"])[..., 3]
    assert alpha.shape == (544, 544)
    assert (alpha > 128).any(axis=0).sum() > 480


def test_box_reduce_averages_and_refuses_remainders():
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    np.testing.assert_array_equal(box_reduce(pixels, 2)[0, 0], np.floor(pixels[:2, :2].mean(axis=(0, 1)) + 0.5))
    with pytest.raises(ValueError, match="multiples of 4, got .2, 4."):
        box_reduce(pixels, 4)
