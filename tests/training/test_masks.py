"""Masks of every kind."""

import pytest
import torch

from unclip_hub.training.masks import KINDS, SHARES, random_masks


SIZE = (24, 40)


def only(kind):
    return [float(kind == name) for name in KINDS]


def masks(kind, count=60):
    return random_masks(count, SIZE, generator=torch.Generator().manual_seed(0), shares=only(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_masks_something_and_follows_the_generator(kind):
    drawn = masks(kind)
    assert drawn.shape == (60, 1, *SIZE) and drawn.dtype == torch.float32
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(drawn, masks(kind))
    share = drawn.mean(dim=(1, 2, 3))
    assert (share > 0).all()
    if kind == "everything":
        assert (share == 1).all()
    else:
        assert 0.05 < share.mean() < 0.7 and (share < 1).all()
        assert len({tuple(mask.flatten().tolist()) for mask in drawn}) > 50  # they differ


def test_what_is_outpainted_leaves_a_window():
    drawn = masks("outside")[:, 0]
    for mask in drawn:
        kept = (mask == 0).nonzero()
        (top, left), (bottom, right) = kept.min(0).values.tolist(), kept.max(0).values.tolist()
        assert not mask[top : bottom + 1, left : right + 1].any()  # a rectangle
        assert (top, left, bottom, right) != (0, 0, SIZE[0] - 1, SIZE[1] - 1)
    for side in (drawn[:, 0, :], drawn[:, -1, :], drawn[:, :, 0], drawn[:, :, -1]):
        assert 0.2 < side.all(dim=1).float().mean() < 0.9  # each side is outpainted now and then


def test_a_stroke_holds_together():
    for mask in masks("strokes", count=20)[:, 0]:
        seen, ahead = set(), [tuple(mask.nonzero()[0].tolist())]
        while ahead:
            y, x = ahead.pop()
            if (y, x) not in seen and 0 <= y < SIZE[0] and 0 <= x < SIZE[1] and mask[y, x]:
                seen.add((y, x))
                ahead += [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        assert len(seen) == mask.sum()


def test_kinds_come_in_their_shares():
    drawn = random_masks(400, (6, 8), generator=torch.Generator().manual_seed(0))
    assert drawn.flatten(1).all(dim=1).float().mean().item() == pytest.approx(SHARES[-1], abs=0.04)


@pytest.mark.parametrize("shares", [(1.0, 1.0), (0.0, 0.0, 0.0, 0.0), (1.0, -1.0, 1.0, 1.0)])
def test_shares_that_are_none_are_refused(shares):
    with pytest.raises(ValueError, match="shares must be 4 numbers of at least 0, for rectangles, strokes"):
        random_masks(1, SIZE, generator=torch.Generator(), shares=shares)
