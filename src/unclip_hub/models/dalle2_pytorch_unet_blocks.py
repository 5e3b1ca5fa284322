"""The blocks of DALLE2-pytorch's U-Net: resnets that attend to a context, levels, resampling, linear attention."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.models.dalle2_pytorch_blocks import EPS, GainNorm, NullKVAttention


CROSS_HEADS, CROSS_HEAD_DIM = 8, 64  # of every network, whatever its own attention has
Context = Float[Tensor, "b m e"] | None


class StandardizedConv2d(nn.Conv2d):
    """A convolution by its weight standardised per output channel (Qiao et al. 2019, arXiv:1903.10520)."""

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h2 w2"]:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        return self._conv_forward(input, (self.weight - mean) * (variance + EPS).rsqrt(), self.bias)


class CrossEmbed(nn.Module):
    """Convolutions of several kernel sizes side by side; the smallest makes half of the channels, and so on."""

    def __init__(self, in_channels: int, out_channels: int, *, kernels: Sequence[int], stride: int = 1):
        super().__init__()
        widths = [out_channels // 2**i for i in range(1, len(kernels))]
        widths.append(out_channels - sum(widths))
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, width, kernel, stride=stride, padding=(kernel - stride) // 2)
            for kernel, width in zip(sorted(kernels), widths, strict=True)
        )

    def forward(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h2 w2"]:
        return torch.cat([conv(hidden_states) for conv in self.convs], dim=1)


class SpaceToDepth(nn.Module):
    """Half the size: each 2 x 2 pixels to four times the channels, then a 1 x 1 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(4 * in_channels, out_channels, 1)

    def forward(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h//2 w//2"]:
        return self.conv(F.pixel_unshuffle(hidden_states, 2))


class PixelShuffle(nn.Module):
    """Twice the size: four times the channels by a 1 x 1 convolution, then each four to 2 x 2 pixels."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k 2*h 2*w"]:
        return F.pixel_shuffle(F.silu(self.conv(hidden_states)), 2)


class NearestUpsample(nn.Module):
    """Twice the size: each pixel four times, then a convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k 2*h 2*w"]:
        return self.conv(F.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


class ResnetBlock(nn.Module):
    """Convolve, normalise, scale and shift by the time; attend to the context, if any; convolve again."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_channels: int,
        groups: int,
        context_width: int | None = None,
        standardized: bool = False,
        cosine: bool = False,
        stable: bool = False,
    ):
        super().__init__()
        conv = StandardizedConv2d if standardized else nn.Conv2d
        self.time_emb_proj = nn.Linear(time_channels, 2 * out_channels)
        self.conv1 = conv(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, out_channels, eps=EPS)
        self.cross_attn = None
        if context_width is not None:
            self.cross_attn = NullKVAttention(
                out_channels,
                heads=CROSS_HEADS,
                head_dim=CROSS_HEAD_DIM,
                context_width=context_width,
                cosine=cosine,
                stable=stable,
            )
        self.conv2 = conv(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=EPS)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(
        self, hidden_states: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"], context: Context = None
    ) -> Float[Tensor, "b k h w"]:
        residual = self.conv_shortcut(hidden_states)
        scale, shift = self.time_emb_proj(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        hidden_states = F.silu(self.norm1(self.conv1(hidden_states)) * (scale + 1) + shift)
        if self.cross_attn is not None:
            height, width = hidden_states.shape[2:]
            tokens = hidden_states.flatten(2).transpose(1, 2)  # (b, hw, k)
            tokens = tokens + self.cross_attn(tokens, context)
            hidden_states = tokens.transpose(1, 2).unflatten(2, (height, width))
        return F.silu(self.norm2(self.conv2(hidden_states))) + residual


class SelfAttention(nn.Module):
    """Pixels attend to pixels; a residual."""

    def __init__(self, channels: int, **options: Any):
        super().__init__()
        self.attn = NullKVAttention(channels, **options)

    def forward(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        tokens = hidden_states.flatten(2).transpose(1, 2)  # (b, hw, c)
        tokens = tokens + self.attn(tokens)
        return tokens.transpose(1, 2).unflatten(2, hidden_states.shape[2:])


class LinearAttention(nn.Module):
    """Efficient attention (Shen et al. 2018, arXiv:1812.01243): softmaxes of queries and keys apart; a residual.

    Its cost is linear in the pixels because no pixel is compared with another, so that no attention backend does it.
    ``normalized`` (since 1.4.0): l2-normalised values, and the sum over pixels is a mean.
    """

    def __init__(self, channels: int, *, heads: int, head_dim: int, normalized: bool, stable: bool):
        super().__init__()
        self.heads, self.scale, self.normalized = heads, head_dim**-0.5, normalized
        self.norm = GainNorm(channels, stable=stable, channels_first=True)
        self.to_qkv = nn.Conv2d(channels, 3 * heads * head_dim, 1, bias=False)
        self.to_out = nn.Conv2d(heads * head_dim, channels, 1, bias=False)
        self.norm_out = GainNorm(channels, stable=stable, channels_first=True)

    def forward(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        height, width = hidden_states.shape[2:]
        projections = self.to_qkv(self.norm(hidden_states)).chunk(3, dim=1)
        query, key, value = (x.flatten(2).unflatten(1, (self.heads, -1)) for x in projections)  # (b, heads, d, hw)
        query, key = query.softmax(dim=2) * self.scale, key.softmax(dim=3)
        if self.normalized:
            value = F.normalize(value, dim=2) / (height * width)
        context = key @ value.transpose(2, 3)  # (b, heads, d, d)
        out = (context.transpose(2, 3) @ query).flatten(1, 2).unflatten(2, (height, width))
        return hidden_states + self.norm_out(self.to_out(F.gelu(out)))


class DownLevel(nn.Module):
    """A resnet without context, some with it, attention; either resampling may be absent.

    Returns its output and its skips: those after every resnet with context, and after the attention.
    """

    _gradient_checkpointing_func: Any  # set by diffusers' enable_gradient_checkpointing

    def __init__(
        self,
        resnet_in: ResnetBlock,
        resnets: Sequence[ResnetBlock],
        *,
        attention: nn.Module,
        resample_in: nn.Module,
        resample_out: nn.Module,
    ):
        super().__init__()
        self.gradient_checkpointing = False
        self.resample_in = resample_in
        self.resnet_in = resnet_in
        self.resnets = nn.ModuleList(resnets)
        self.attention = attention
        self.resample_out = resample_out

    def forward(
        self, hidden_states: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"], context: Context
    ) -> tuple[Tensor, list[Tensor]]:
        hidden_states = _run(self, self.resnet_in, self.resample_in(hidden_states), time, context)
        skips = []
        for resnet in self.resnets:
            hidden_states = _run(self, resnet, hidden_states, time, context)
            skips.append(hidden_states)
        hidden_states = _run(self, self.attention, hidden_states)
        return self.resample_out(hidden_states), [*skips, hidden_states]


class UpLevel(nn.Module):
    """Resnets, each fed a skip of the way down, attention, resampling; returns the skips that are left, too."""

    _gradient_checkpointing_func: Any

    def __init__(self, resnets: Sequence[ResnetBlock], *, attention: nn.Module, resample_out: nn.Module):
        super().__init__()
        self.gradient_checkpointing = False
        self.resnets = nn.ModuleList(resnets)
        self.attention = attention
        self.resample_out = resample_out

    def forward(
        self,
        hidden_states: Float[Tensor, "b c h w"],
        skips: list[Tensor],
        time: Float[Tensor, "b t"],
        context: Context,
    ) -> tuple[Tensor, list[Tensor]]:
        for i, resnet in enumerate(self.resnets):
            hidden_states = _run(self, resnet, torch.cat([hidden_states, skips[-1 - i]], dim=1), time, context)
        hidden_states = _run(self, self.attention, hidden_states)
        return self.resample_out(hidden_states), skips[: -len(self.resnets)]


class MidLevel(nn.Module):
    """Resnet, attention, resnet."""

    _gradient_checkpointing_func: Any

    def __init__(self, resnets: Sequence[ResnetBlock], *, attention: nn.Module):
        super().__init__()
        self.gradient_checkpointing = False
        self.resnets = nn.ModuleList(resnets)
        self.attention = attention

    def forward(
        self, hidden_states: Float[Tensor, "b c h w"], time: Float[Tensor, "b t"], context: Context
    ) -> Float[Tensor, "b c h w"]:
        hidden_states = _run(self, self.resnets[0], hidden_states, time, context)
        hidden_states = _run(self, self.attention, hidden_states)
        return _run(self, self.resnets[1], hidden_states, time, context)


def downsampler(kind: str, kernels: Sequence[int]) -> Callable[[int, int], nn.Module]:
    """What halves the size: "conv" (4 x 4), "space_to_depth" or "cross_embed" with ``kernels``."""
    if kind == "conv":
        return lambda i, o: nn.Conv2d(i, o, 4, stride=2, padding=1)
    if kind == "space_to_depth":
        return SpaceToDepth
    return lambda i, o: CrossEmbed(i, o, kernels=kernels, stride=2)


def upsampler(kind: str) -> Callable[[int, int], nn.Module]:
    """What doubles the size: "conv_transpose" (4 x 4), "pixel_shuffle" or "nearest"."""
    if kind == "conv_transpose":
        return lambda i, o: nn.ConvTranspose2d(i, o, 4, stride=2, padding=1)
    return PixelShuffle if kind == "pixel_shuffle" else NearestUpsample


def _run(level: DownLevel | MidLevel | UpLevel, layer: nn.Module, *inputs: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and level.gradient_checkpointing and not isinstance(layer, nn.Identity):
        return level._gradient_checkpointing_func(layer, *inputs)
    return layer(*inputs)
