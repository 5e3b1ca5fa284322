"""3 x 3 convolutions with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3) (Lavin & Gray 2016).

A tile of 4 x 4 outputs comes of 6 x 6 inputs, arXiv:1509.09308, eq. 8: Y = A^T [(G g G^T) * (B^T d B)] A, where the
products of all channels are 36 matrix products. Everything is an operation of PyTorch's; nothing is kept.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


TILE = 4  # outputs along each axis of a tile
_WINDOW = TILE + 2  # inputs along each axis of a tile
_FILTERS_AT_ONCE = 2**24  # numbers of transformed filters, 64 MiB: more would be most of the memory that a layer takes
_TILES_AT_ONCE = 256  # what is computed of them stays in the cache, and the 36 products are large enough


class Scratch:
    """Memory that is used again and again: fresh one costs more than what is computed in it."""

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Float[Tensor, "..."]:
        """Uninitialised float32 memory on the CPU; what was taken under the same name before is overwritten."""
        size = torch.Size(shape).numel()
        if name not in self._held or len(self._held[name]) < size:
            self._held[name] = torch.empty(size)
        return self._held[name][:size].view(shape)


def convolve(
    images: Float[Tensor, "b c h w"],
    weight: Float[Tensor, "k c 3 3"],
    bias: Float[Tensor, " k"] | None = None,
    *,
    scratch: Scratch,
) -> Float[Tensor, "b k h w"]:
    """``F.conv2d(images, weight, bias, padding=1)`` in float32 on a CPU, in channels-last; h and w multiples of 4.

    Rounding errors are 2e-6 in root mean square where outputs are of size 1; those of usual sums are 2e-7 to 1e-6.
    """
    matrices = _matrices()
    batch_size, channels, height, width = images.shape
    columns = width // TILE
    rows = max(1, min(height // TILE, _TILES_AT_ONCE // columns))  # of tiles in one strip
    pixels = images.permute(0, 2, 3, 1)  # (b, h, w, c)
    outputs = images.new_empty(batch_size, height, width, len(weight))
    windows = scratch.take("windows", _WINDOW, TILE * rows + 2, columns, channels).zero_()
    at_once = max(1, _FILTERS_AT_ONCE // (_WINDOW**2 * channels))
    for k in range(0, len(weight), at_once):
        filters = _filters(weight[k : k + at_once], matrices.g, scratch)  # (36, k, c)
        shift = None if bias is None else bias[k : k + at_once]
        products = scratch.take("products", _WINDOW**2, rows * columns, filters.shape[1])
        for picture, output in zip(pixels, outputs[..., k : k + at_once], strict=True):
            output = output.view(-1, TILE, columns, TILE, filters.shape[1])  # (rows, y, columns, x, k)
            for begin in range(0, height // TILE, rows):
                begin = min(begin, height // TILE - rows)  # the last strip ends with the picture
                _gather(picture, TILE * begin, windows)
                transformed = _input_transform(windows, matrices.b, scratch)  # (36, tiles, c)
                for product, of_tiles, of_filters in zip(products, transformed, filters, strict=True):
                    product.copy_(multiply(of_tiles, of_filters))
                tiles = _output_transform(products, matrices.a, scratch).view(TILE, TILE, rows, columns, -1)
                if shift is not None:
                    tiles += shift
                output[begin : begin + rows].copy_(tiles.permute(2, 1, 3, 0, 4))
    return outputs.permute(0, 3, 1, 2)


def multiply(
    rows: Float[Tensor, "*n c"], weight: Float[Tensor, "k c"], bias: Float[Tensor, " k"] | None = None
) -> Float[Tensor, "*n k"]:
    """``F.linear`` by oneDNN, where PyTorch's own is MKL's in float32."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Matrices(NamedTuple):
    """The transposes of Lavin & Gray's A and B, and G."""

    a: Float[Tensor, "4 6"]
    g: Float[Tensor, "6 3"]
    b: Float[Tensor, "6 6"]


@cache
def _matrices() -> _Matrices:
    """Toom-Cook's construction at 0, +-3/4, +-3/2 and infinity: half of the errors that the usual +-1, +-2 make.

    On how the points decide the error: Barabasz et al. 2018, arXiv:1803.10986.
    """
    points = [0.0, 0.75, -0.75, 1.5, -1.5]
    others = [[q for q in points if q != p] for p in points]
    scales = torch.tensor([math.prod(p - q for q in rest) for p, rest in zip(points, others, strict=True)])
    powers = torch.tensor(points)[:, None] ** torch.arange(TILE)
    a = torch.cat([powers.T, torch.eye(TILE)[:, -1:]], dim=1)
    g = torch.cat([powers[:, :3] / scales[:, None], torch.eye(3)[-1:]])
    b = torch.stack([_polynomial(roots) for roots in [*others, points]])
    return _Matrices(a, g, b)


def _polynomial(roots: list[float]) -> Float[Tensor, " 6"]:
    """Coefficients, the constant first, of the product of all x - root."""
    found = torch.tensor([1.0])
    for root in roots:
        found = torch.cat([torch.zeros(1), found]) - root * torch.cat([found, torch.zeros(1)])
    return torch.cat([found, torch.zeros(_WINDOW - len(found))])


def _filters(weight: Tensor, g: Tensor, scratch: Scratch) -> Float[Tensor, "36 k c"]:
    k, c = weight.shape[:2]
    both = torch.einsum("xj,yi->xyij", g, g).reshape(-1, 9)  # the windows' order: along x first
    return torch.mm(both, weight.reshape(-1, 9).T, out=scratch.take("filters", len(both), k * c)).view(-1, k, c)


def _gather(picture: Float[Tensor, "h w c"], top: int, windows: Float[Tensor, "6 rows columns c"]) -> None:
    """Column x of every tile's window, for rows ``top - 1`` onwards, into ``windows[x]``; outside stay zeros."""
    height, width = picture.shape[:2]
    rows, columns = windows.shape[1:3]
    first, last = max(top - 1, 0), min(top - 1 + rows, height)
    above, inside = first - (top - 1), last - (top - 1)
    for x, column in enumerate(windows):
        begin, end = int(x == 0), columns - int(x == _WINDOW - 1)  # the outermost columns are the padding
        left = TILE * begin + x - 1
        column[above:inside, begin:end] = picture[first:last, left : left + TILE * (end - begin - 1) + 1 : TILE]
    windows[:, :above] = 0
    windows[:, inside:] = 0


def _input_transform(
    windows: Float[Tensor, "6 rows columns c"], b: Tensor, scratch: Scratch
) -> Float[Tensor, "36 tiles c"]:
    rows, columns, c = windows.shape[1:]
    strips = (rows - 2) // TILE
    along_x = torch.mm(b, windows.view(_WINDOW, -1), out=scratch.take("x", _WINDOW, rows * columns * c))
    lines = along_x.view(_WINDOW, rows, columns * c)
    found = scratch.take("transformed", _WINDOW, _WINDOW, strips, columns * c)
    for i in range(strips):  # their windows overlap
        torch.bmm(b.expand(_WINDOW, -1, -1), lines[:, TILE * i : TILE * i + _WINDOW], out=found[:, :, i])
    return found.view(_WINDOW**2, strips * columns, c)


def _output_transform(
    products: Float[Tensor, "36 tiles k"], a: Tensor, scratch: Scratch
) -> Float[Tensor, "4 {4*products.shape[1]*products.shape[2]}"]:
    size = products[0].numel()
    along_y = scratch.take("y", _WINDOW, TILE, size)
    torch.bmm(a.expand(_WINDOW, -1, -1), products.view(_WINDOW, _WINDOW, size), out=along_y)
    return torch.mm(a, along_y.view(_WINDOW, -1), out=scratch.take("tiles", TILE, TILE * size))
