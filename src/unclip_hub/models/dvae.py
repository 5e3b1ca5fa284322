"""DALL-E's discrete VAE: images to a grid of codes out of one vocabulary, and back."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.autoencoders.vae import DecoderOutput
from jaxtyping import Float, Int
from torch import Tensor, nn

from unclip_hub.models.checks import check_sample
from unclip_hub.models.loading import ModelMixin


_GROUPS = 4  # with halving, or doubling, between them
_MARGIN = 0.1  # pixels are kept this far from 0 and 1, where their logits have no end


class DVAE(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The discrete VAE of Ramesh et al. 2021 (arXiv:2102.12092, section 2.1 and appendix A).

    An image becomes `vocab_size` logits per 8 x 8 pixels; the code is the largest. The decoder returns the mean and
    the log scale of a logit-Laplace distribution for every pixel and colour; the image is the mean's sigmoid.

    Args:
        channels: of the first group of the encoder and the last of the decoder; the groups between have 2, 4 and 8
            times as many.
        decoder_in_channels: into which the decoder projects the codes.
        layers_per_group: blocks in each of the four groups.
    """

    _no_split_modules = ["DVAEBlock"]
    _repeated_blocks = ["DVAEBlock"]

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 8192,
        channels: int = 256,
        decoder_in_channels: int = 128,
        layers_per_group: int = 2,
    ):
        super().__init__()
        self.vocab_size = vocab_size
        widths = [channels * 2**i for i in range(_GROUPS)]
        self.encoder = DVAEHalf(
            3,
            vocab_size,
            widths=[channels, *widths],
            layers_per_group=layers_per_group,
            in_kernel=7,
            kernels=(3, 3, 3, 1),
            resample=_halve,
        )
        self.decoder = DVAEHalf(
            vocab_size,
            6,
            widths=[decoder_in_channels, *widths[::-1]],
            layers_per_group=layers_per_group,
            in_kernel=1,
            kernels=(1, 3, 3, 3),
            resample=_double,
        )

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b h//8 w//8"]:
        """The codes of images in [-1, 1]."""
        return self.encode_logits(images).argmax(dim=1)

    def decode(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b 3 8*h 8*w"]:
        """Images in [-1, 1] of codes in 0 ... `vocab_size` - 1."""
        weights = F.one_hot(codes.long(), self.vocab_size).movedim(-1, 1)
        return unmap_pixels(self.decode_statistics(weights.to(self.dtype))[:, :3].sigmoid())

    def encode_logits(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b v h//8 w//8"]:
        """The unnormalised log probabilities of the codes.

        Args:
            images: in [-1, 1], height and width divisible by 8.

        Raises:
            ValueError: another shape.
        """
        check_sample(images, channels=3, multiple=2 ** (_GROUPS - 1))
        return self.encoder(map_pixels(images))

    def decode_statistics(self, weights: Float[Tensor, "b v h w"]) -> Float[Tensor, "b 6 8*h 8*w"]:
        """The means (first three channels) and log scales of the mapped pixels' logits.

        Args:
            weights: probabilities of the codes, or codes as one-hot vectors.
        """
        if weights.ndim != 4 or weights.shape[1] != self.vocab_size:
            raise ValueError(f"weights must be (b, {self.vocab_size}, h, w), got {tuple(weights.shape)}")
        return self.decoder(weights)

    def forward(
        self, sample: Float[Tensor, "b 3 h w"], return_dict: bool = True
    ) -> DecoderOutput | tuple[Float[Tensor, "b 3 h w"]]:
        """The reconstruction of images in [-1, 1] from the mean over codes, which gradients pass."""
        statistics = self.decode_statistics(self.encode_logits(sample).softmax(dim=1))
        images = unmap_pixels(statistics[:, :3].sigmoid())
        return DecoderOutput(sample=images) if return_dict else (images,)


def map_pixels(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images in [-1, 1] as the encoder takes them, in [0.1, 0.9]."""
    return (images + 1) / 2 * (1 - 2 * _MARGIN) + _MARGIN


def unmap_pixels(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The inverse of `map_pixels`; what lies outside is clamped to [-1, 1]."""
    return ((images - _MARGIN) / (1 - 2 * _MARGIN)).clamp(0, 1) * 2 - 1


class DVAEHalf(nn.Module):
    """The encoder or the decoder: a convolution, four groups of blocks with resampling in between, a 1x1 convolution.

    `widths` are those of the first convolution and of each group.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int],
        layers_per_group: int,
        in_kernel: int,
        kernels: Sequence[int],
        resample: Callable[[Tensor], Tensor],
    ):
        super().__init__()
        self.resample = resample
        block = partial(DVAEBlock, kernels=kernels, gain=1 / (_GROUPS * layers_per_group) ** 2)
        self.conv_in = nn.Conv2d(in_channels, widths[0], in_kernel, padding=in_kernel // 2)
        self.groups = nn.ModuleList(
            nn.Sequential(block(before, after), *(block(after, after) for _ in range(layers_per_group - 1)))
            for before, after in pairwise(widths)
        )
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 1)

    def forward(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h2 w2"]:
        hidden_states = self.conv_in(hidden_states)
        for i, group in enumerate(self.groups):
            hidden_states = group(self.resample(hidden_states) if i else hidden_states)
        return self.conv_out(F.relu(hidden_states))


class DVAEBlock(nn.Module):
    """Four convolutions at a quarter of the width, scaled by `gain`, beside the identity or a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, kernels: Sequence[int], gain: float):
        super().__init__()
        self.gain = gain
        hidden = out_channels // 4
        widths = pairwise([in_channels, hidden, hidden, hidden, out_channels])
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, kernel, padding=kernel // 2)
            for (before, after), kernel in zip(widths, kernels, strict=True)
        )
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, hidden_states: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        residual = hidden_states if self.conv_shortcut is None else self.conv_shortcut(hidden_states)
        for conv in self.convs:
            hidden_states = conv(F.relu(hidden_states))
        return residual + self.gain * hidden_states


def _halve(images: Tensor) -> Tensor:
    return F.max_pool2d(images, 2)


def _double(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2.0, mode="nearest")
