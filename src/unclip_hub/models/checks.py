"""What a user may give a network: configurations of its family and inputs that fit. All else is a ValueError."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int, Num
from torch import Tensor


def check_family(config: Mapping[str, Any], class_name: str, fixed: Mapping[str, Any]) -> None:
    """Refuse the values of diffusers' keys which this family of networks does not have."""
    for key, expected in fixed.items():
        if config[key] != expected:
            got = config[key]
            raise ValueError(f"{key} must be {expected!r} in unclip_hub's {class_name} (Karlo's family), got {got!r}")


def check_one_of(value: Any, key: str, allowed: Sequence[Any]) -> None:
    """Refuse a value outside `allowed`, naming its key."""
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_block_types(
    down: Sequence[str], up: Sequence[str], block_out_channels: Sequence[int], up_of_down: Mapping[str, str]
) -> None:
    """Refuse block types outside the family, and lists which do not describe one symmetric U-Net."""
    for kind in down:
        check_one_of(kind, "down_block_types", tuple(up_of_down))
    expected = [up_of_down[kind] for kind in reversed(down)]
    if list(up) != expected:
        raise ValueError(f"up_block_types must mirror down_block_types: expected {expected}, got {list(up)}")
    if len(block_out_channels) != len(down):
        raise ValueError(
            f"block_out_channels must have {len(down)} levels, as down_block_types has, got {block_out_channels}"
        )


def per_level(value: Any, key: str, levels: int) -> list:
    """One value per level out of one value for all or a list."""
    if not isinstance(value, list | tuple):
        return [value] * levels
    if len(value) != levels:
        raise ValueError(f"{key} must be one value or {levels}, got {value}")
    return list(value)


def check_sample(sample: Tensor, *, channels: int, multiple: int) -> None:
    """Refuse an image which the U-Net cannot take, before the first convolution fails with less to say."""
    if sample.ndim != 4 or sample.shape[1] != channels:
        raise ValueError(f"sample must be (b, {channels}, h, w), got {tuple(sample.shape)}")
    height, width = sample.shape[2:]
    if height % multiple or width % multiple:
        raise ValueError(
            "sample's height and width must be divisible by patch_size * 2**(levels - 1) = "
            f"{multiple}, got {height} x {width}"
        )


def expand_timestep(
    timestep: Num[Tensor, "..."] | float | int, *, batch_size: int, device: torch.device
) -> Num[Tensor, " b"]:
    """A timestep per sample out of a number, a 0-d tensor, or a tensor of one or `batch_size` timesteps."""
    timesteps = torch.as_tensor(timestep, device=device).reshape(-1)
    if timesteps.shape[0] not in (1, batch_size):
        raise ValueError(f"timestep must be one number or ({batch_size},), got {tuple(timesteps.shape)}")
    return timesteps.expand(batch_size)


def text_mask_to_bool(
    mask: Bool[Tensor, "b l"] | Int[Tensor, "b l"] | None, *, batch_size: int, length: int
) -> Bool[Tensor, "b l"] | None:
    """The text mask as bool; refuses what is not a keep (1) / discard (0) mask with an entry per token."""
    if mask is None:
        return None
    if mask.shape != (batch_size, length):
        raise ValueError(
            f"the text mask must be ({batch_size}, {length}), one per text token, got {tuple(mask.shape)}"
        )
    if mask.is_floating_point():
        raise ValueError(f"the text mask must be bool or integer, 1 to keep a token and 0 not to, got {mask.dtype}")
    return mask.to(torch.bool)


def check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse a tensor of another shape, naming it."""
    if tensor.shape != expected:
        raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)}")
