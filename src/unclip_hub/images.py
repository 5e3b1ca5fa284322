"""Pictures in and out: PIL, numpy and torch on one side, the networks' (b, 3, h, w) in [-1, 1] on the other."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from PIL import Image, ImageOps
from torch import Tensor


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
