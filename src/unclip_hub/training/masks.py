"""Random masks for the inpainting fine-tune: what a person might want repainted, 1 where to repaint."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


KINDS = ("rectangles", "strokes", "outside", "everything")
SHARES = (0.4, 0.35, 0.2, 0.05)


def random_masks(
    count: int, size: Sequence[int], *, generator: torch.Generator, shares: Sequence[float] = SHARES
) -> Float[Tensor, "b 1 h w"]:
    """Masks of 0 and 1 (repaint) for pictures of ``size`` (height, width), each of a kind drawn with ``shares``.

    Rectangles; strokes of a brush; all outside a window, which outpaints one side or several; and the whole picture,
    so that the decoder still draws without one.
    """
    if len(shares) != len(KINDS) or min(shares) < 0 or not sum(shares) > 0:
        raise ValueError(f"shares must be {len(KINDS)} numbers of at least 0, for {', '.join(KINDS)}, got {shares}")
    device = generator.device
    kinds = torch.multinomial(torch.tensor(shares, device=device), count, replacement=True, generator=generator)
    height, width = size
    y = ((torch.arange(height, device=device) + 0.5) / height)[:, None].expand(height, width)
    x = ((torch.arange(width, device=device) + 0.5) / width).expand(height, width)
    points = torch.stack([y, x], dim=-1)  # in (0, 1)
    draw = (_rectangles, _strokes, _outside, _everything)
    return torch.stack([draw[kind](points, generator) for kind in kinds.tolist()])[:, None].float()


def _rectangles(points: Tensor, generator: torch.Generator) -> Tensor:
    count = 1 + int(3 * _uniform((), generator))
    centres, halves = _uniform((count, 2), generator), 0.05 + 0.25 * _uniform((count, 2), generator)
    inside = ((points[..., None, :] - centres).abs() <= halves).all(dim=-1)  # (h, w, count)
    return inside.any(dim=-1)


def _strokes(points: Tensor, generator: torch.Generator) -> Tensor:
    """A random walk of straight pieces under a round brush."""
    pieces = 3 + int(6 * _uniform((), generator))
    moves = 0.5 * (_uniform((pieces, 2), generator) - 0.5)
    corners = (_uniform((1, 2), generator) + torch.cat([torch.zeros_like(moves[:1]), moves]).cumsum(0)).clamp(0, 1)
    start, along = corners[:-1], corners.diff(dim=0)  # (pieces, 2)
    offset = points[..., None, :] - start  # (h, w, pieces, 2)
    fraction = ((offset * along).sum(-1) / along.square().sum(-1).clamp(min=1e-9)).clamp(0, 1)
    distance = (offset - fraction[..., None] * along).norm(dim=-1)
    return (distance <= 0.03 + 0.09 * _uniform((), generator)).any(dim=-1)


def _outside(points: Tensor, generator: torch.Generator) -> Tensor:
    """What lies off one to four sides of the picture that is kept."""
    off = 0.15 + 0.25 * _uniform((2, 2), generator)  # of the top and the left, the bottom and the right
    sides = _uniform((2, 2), generator) < 0.4
    sides.view(-1)[int(4 * _uniform((), generator))] = True
    off = off * sides
    return ((points < off[0]) | (points > 1 - off[1])).any(dim=-1)


def _everything(points: Tensor, generator: torch.Generator) -> Tensor:
    return torch.ones(points.shape[:2], dtype=torch.bool, device=generator.device)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)
