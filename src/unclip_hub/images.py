"""Pictures in and out: PIL, numpy and torch on one side, the networks' (b, 3, h, w) in [-1, 1] on the other."""

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from PIL import Image, ImageOps
from torch import Tensor


Place = tuple[int, int]  # top and left of a window


def read_picture(path: str | Path) -> Image.Image:
    """The picture in a file, all of it read; whatever PIL opens.

    Raises:
        ValueError: no such file, no picture, or a broken one.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # broken files fail in many ways
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error) or type(error).__name__
        raise ValueError(f"cannot read {path} as a picture: {reason}") from error


def to_tensor(image: Image.Image | list[Image.Image] | np.ndarray | Tensor) -> Float[Tensor, "b 3 h w"]:
    """Pictures as a batch in [-1, 1]: float32, but a floating-point tensor keeps its dtype, device and gradient.

    Args:
        image: a PIL picture of any 8-bit mode or 16-bit grey, turned upright as its EXIF says and laid over white
            where it is transparent; a list of such pictures of one size; an array (h, w, 3) or (b, h, w, 3); a tensor
            (3, h, w) or (b, 3, h, w). Arrays and tensors hold uint8 in 0..255 or floating-point numbers in [0, 1].
    """
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    return _from_pil(image if isinstance(image, list) else [image])


def to_mask(mask: Image.Image | list[Image.Image] | np.ndarray | Tensor) -> Float32[Tensor, "b 1 h w"]:
    """Masks as a batch: 1 (white) is to be repainted, 0 (black) is kept, what lies between is blended.

    Args:
        mask: PIL pictures, read as ``to_tensor`` reads them, so that what is transparent is white; an array or a
            tensor (h, w) or (b, h, w), a tensor also (b, 1, h, w): bool, uint8 in 0..255 or floating point in [0, 1].

    Raises:
        ValueError: another shape or range, or nothing to repaint.
    """
    if isinstance(mask, Tensor | np.ndarray):
        values = mask.detach().cpu() if isinstance(mask, Tensor) else torch.from_numpy(np.ascontiguousarray(mask))
        values = values[:, 0] if isinstance(mask, Tensor) and values.ndim == 4 and values.shape[1] == 1 else values
        if values.ndim not in (2, 3) or values.numel() == 0:
            raise ValueError(
                f"a mask must be (h, w) or (b, h, w), a tensor also (b, 1, h, w), got {tuple(mask.shape)}"
            )
        if values.dtype == torch.uint8 and values.max() == 1:
            raise ValueError("a uint8 mask goes from 0 to 255, got values up to 1: give it as bool")
        if not (values.is_floating_point() or values.dtype in (torch.bool, torch.uint8)):
            raise ValueError(f"a mask must be bool, uint8 or floating point, got {mask.dtype}")
        values = values.float() / (255 if values.dtype == torch.uint8 else 1)
        values = values.view(-1, 1, *values.shape[-2:])
    else:
        values = (_from_pil(mask if isinstance(mask, list) else [mask]).mean(1, keepdim=True) + 1) / 2
    low, high = values.min().item(), values.max().item()
    if not (low >= 0 and high <= 1):  # written so that NaN fails it
        raise ValueError(f"a floating-point mask must lie in [0, 1], got values from {low:g} to {high:g}")
    if high == 0:
        raise ValueError("the mask is black everywhere: expected white where the picture is to be repainted")
    return values


def to_numpy(images: Float[Tensor, "b 3 h w"]) -> Float32[np.ndarray, "b h w 3"]:
    """A batch in [-1, 1] as an array in [0, 1]; what lies outside is clamped."""
    return ((images.detach().float().cpu() + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).numpy()


def to_pil(images: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """A batch in [-1, 1] as RGB pictures; what lies outside is clamped."""
    return [Image.fromarray(array) for array in (to_numpy(images) * 255).round().astype(np.uint8)]


def resize(images: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c new_h new_w"]:
    """A batch at the size (height, width), bicubic with antialiasing; edges may overshoot the range a little."""
    # at least float32: PyTorch has no half-precision kernel for this on the CPU
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    resized = F.interpolate(exact, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)
    return resized.to(images.dtype)


def centre_square(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c s s"]:
    """The largest square in the middle."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def outpainting_canvas(
    images: Float[Tensor, "b c h w"], *, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
) -> tuple[Float[Tensor, "b c new_h new_w"], Float[Tensor, "1 1 new_h new_w"]]:
    """Pictures with room around them, filled with their outermost pixels, and the mask that repaints that room.

    Raises:
        ValueError: a margin below 0, or none above it.
    """
    margins = (left, right, top, bottom)
    if min(margins) < 0 or max(margins) == 0:
        raise ValueError(f"expected margins of at least 0 and one above it, got left, right, top, bottom = {margins}")
    canvas = F.pad(images, margins, mode="replicate")
    inside = torch.zeros(1, 1, *images.shape[-2:], dtype=images.dtype, device=images.device)
    return canvas, F.pad(inside, margins, value=1.0)


def paste(
    made: Float[Tensor, "b c h w"], original: Float[Tensor, "b c h w"], *, mask: Float[Tensor, "#b 1 h w"]
) -> Float[Tensor, "b c h w"]:
    """What was made where the mask is white, the original's own pixels, to the bit, where it is black."""
    return torch.where(mask == 0, original, torch.where(mask == 1, made, original + mask * (made - original)))


def shrink_known(
    images: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"], size: Sequence[int]
) -> tuple[Float[Tensor, "b c new_h new_w"], Float[Tensor, "b 1 new_h new_w"]]:
    """Pictures and their mask at another size (height, width); a pixel is known only if all that it covers is.

    So nothing that is to be repainted is mixed into what is kept.
    """
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    height, width = size
    known = F.adaptive_avg_pool2d(exact, (height, width)).to(images.dtype)
    return known, F.adaptive_max_pool2d(mask, (height, width))


def places(height: int, width: int, *, size: int, overlap: int) -> list[Place]:
    """The corners of the windows (size, size) that cover a canvas, evenly spread, overlapping by at least ``overlap``.

    The canvas is at least one window large.
    """
    starts = []
    for length in (height, width):
        count = 1 + math.ceil((length - size) / (size - overlap))
        starts.append([round(i * (length - size) / max(count - 1, 1)) for i in range(count)])
    return list(product(*starts))


def window(canvas: Float[Tensor, "b c h w"], place: Place, *, size: int) -> Float[Tensor, "b c s s"]:
    """One window of a canvas."""
    top, left = place
    return canvas[..., top : top + size, left : left + size]


def blend(
    windows: Sequence[Float[Tensor, "b c s s"]], at: Sequence[Place], *, height: int, width: int
) -> Float[Tensor, "b c h w"]:
    """The canvas (height, width) from its windows: where they overlap each counts the less the nearer its edge is."""
    size = windows[0].shape[-1]
    ramp = torch.arange(1, size + 1).minimum(torch.arange(size, 0, -1)).to(windows[0])
    weight = ramp[:, None] * ramp
    total = windows[0].new_zeros(*windows[0].shape[:2], height, width)
    weights = windows[0].new_zeros(height, width)
    for one, (top, left) in zip(windows, at, strict=True):
        total[..., top : top + size, left : left + size] += weight * one
        weights[top : top + size, left : left + size] += weight
    return total / weights


def grid(images: list[Image.Image], columns: int) -> Image.Image:
    """Pictures of one size side by side, row by row; places left over are white."""
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    width, height = _common_size(images)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def _from_pil(images: list[Image.Image]) -> Tensor:
    upright = [_rgb(ImageOps.exif_transpose(image)) for image in images]
    _common_size(upright)
    return _from_array(np.stack([np.asarray(image) for image in upright]))


def _from_array(array: np.ndarray) -> Tensor:
    if array.ndim not in (3, 4) or array.shape[-1] != 3:
        raise ValueError(f"an array of pictures must be (h, w, 3) or (b, h, w, 3), got {array.shape}")
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
    elif not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"an array of pictures must be uint8 or floating point, got {array.dtype}")
    batch = array.astype(np.float32)[(None,) * (4 - array.ndim)].transpose(0, 3, 1, 2)
    return _from_tensor(torch.from_numpy(np.ascontiguousarray(batch)))


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
        raise ValueError(f"a tensor of pictures must be (3, h, w) or (b, 3, h, w), got {tuple(tensor.shape)}")
    if tensor.numel() == 0:
        raise ValueError(f"expected at least one pixel, got pictures of shape {tuple(tensor.shape)}")
    if tensor.dtype == torch.uint8:
        tensor = tensor.float() / 255
    elif not tensor.is_floating_point():
        raise ValueError(f"a tensor of pictures must be uint8 or floating point, got {tensor.dtype}")
    low, high = tensor.min().item(), tensor.max().item()
    if not (low >= 0 and high <= 1):  # written so that NaN fails it
        raise ValueError(f"floating-point pictures must lie in [0, 1], got values from {low:g} to {high:g}")
    return (tensor if tensor.ndim == 4 else tensor[None]) * 2 - 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError(f"a picture of mode {image.mode!r} has no fixed range: expected 8-bit pixels or 16-bit grey")
    if image.mode.startswith("I;16"):  # PIL's own conversion clips at 255
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _common_size(images: list[Image.Image]) -> tuple[int, int]:
    sizes = sorted({image.size for image in images})
    if len(sizes) != 1:
        raise ValueError(f"expected pictures of one size (width, height), got {sizes or 'no pictures'}")
    return sizes[0]
