"""The upsampler: Karlo's family of diffusers' `UNet2DModel`."""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d import UNet2DOutput
from jaxtyping import Float, Num
from torch import Tensor, nn

from unclip_hub.models.checks import (
    check_block_types,
    check_family,
    check_one_of,
    check_sample,
    expand_timestep,
    per_level,
)
from unclip_hub.models.loading import ModelMixin
from unclip_hub.models.unet import ResnetBlock, activated, laid_out, make_blocks, patchify, run_blocks, unpatchify


_UP_OF_DOWN = {"ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D"}
# keys with one value in Karlo's family: diffusers writes them, so they are accepted; any other value is refused
_FIXED = {
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "add_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}


class UNet2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The upsampler's U-Net: noisy image and upscaled low-resolution image side by side in the channels, noise out.

    ADM without attention, so that it also runs at sizes it was not trained at (Ramesh et al. 2022, arXiv:2204.06125,
    section 2.1). Configuration and parameters are those of diffusers' class of the same name, restricted to
    `ResnetDownsampleBlock2D`, `ResnetUpsampleBlock2D` and `UNetMidBlock2D` without attention (`attention_head_dim` is
    then without meaning, there as here); every other key of diffusers' is accepted with the value Karlo's family has.
    `layers_per_block` may be given per level.

    Three keys are ours, and their defaults leave diffusers' network:
        patch_size: space to depth before `conv_in`, depth to space after `conv_out`. `in_channels` and `out_channels`
            keep counting image channels.
        coordinates: two more input channels of `conv_in`, after the patched ones: the x and the y of each patch's
            centre, in (-1, 1).
        residual: what comes out is added to the last `out_channels` of the input, the upscaled low-resolution image:
            for a network that predicts the image (prediction type "sample"), and then only what that one lacks.

    Raises:
        ValueError: a configuration outside this family (the message names the key), or block types that are no U-Net.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock", "UpBlock"]
    _repeated_blocks = ["ResnetBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        center_input_sample: bool = False,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        freq_shift: float | int = 0,
        flip_sin_to_cos: bool = True,
        down_block_types: Sequence[str] = ("ResnetDownsampleBlock2D",) * 4,
        mid_block_type: str | None = "UNetMidBlock2D",
        up_block_types: Sequence[str] = ("ResnetUpsampleBlock2D",) * 4,
        block_out_channels: Sequence[int] = (224, 448, 672, 896),
        layers_per_block: int | Sequence[int] = 2,
        mid_block_scale_factor: float | int = 1,
        downsample_padding: int = 1,
        downsample_type: str = "conv",
        upsample_type: str = "conv",
        dropout: float | int = 0.0,
        act_fn: str = "silu",
        attention_head_dim: int | None = 8,
        norm_num_groups: int = 32,
        attn_norm_num_groups: int | None = None,
        norm_eps: float = 1e-5,
        resnet_time_scale_shift: str = "default",
        add_attention: bool = False,
        class_embed_type: str | None = None,
        num_class_embeds: int | None = None,
        num_train_timesteps: int | None = None,
        patch_size: int = 1,
        coordinates: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        check_family(self.config, "UNet2DModel", _FIXED)
        check_one_of(resnet_time_scale_shift, "resnet_time_scale_shift", ("default", "scale_shift"))
        check_block_types(down_block_types, up_block_types, block_out_channels, _UP_OF_DOWN)
        levels = len(block_out_channels)
        time_embed_dim = time_embedding_dim or 4 * block_out_channels[0]

        self.in_channels = in_channels
        self.patch_size = patch_size
        self.coordinates = coordinates
        self.residual = residual
        self.multiple = patch_size * 2 ** (levels - 1)

        self.conv_in = nn.Conv2d(in_channels * patch_size**2 + 2 * coordinates, block_out_channels[0], 3, padding=1)
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_embed_dim)
        self.down_blocks, self.mid_block, self.up_blocks = make_blocks(
            block_out_channels,
            per_level(layers_per_block, "layers_per_block", levels),
            resnet=partial(
                ResnetBlock,
                time_channels=time_embed_dim,
                scale_shift=resnet_time_scale_shift == "scale_shift",
                groups=norm_num_groups,
                eps=norm_eps,
                dropout=dropout,
            ),
            attentions=[None] * levels,
            mid_attention=None,
        )
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, block_out_channels[0], eps=norm_eps)
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels * patch_size**2, 3, padding=1)

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Num[Tensor, "..."] | float | int,
        *,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Float[Tensor, "b k h w"]]:
        """Predict the noise.

        Args:
            sample: noisy images, then the upscaled low-resolution images, along the channels; height and width
                divisible by `patch_size * 2**(levels - 1)`.
            timestep: one for all or one per sample, in [0, 1000) for Karlo.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        check_sample(sample, channels=self.in_channels, multiple=self.multiple)
        timesteps = expand_timestep(timestep, batch_size=sample.shape[0], device=sample.device)
        time = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))  # (b, t)
        patches = patchify(sample, patch_size=self.patch_size, coordinates=self.coordinates)
        hidden_states = self.conv_in(laid_out(patches, channels=self.config["block_out_channels"][0]))
        hidden_states = run_blocks(
            self.down_blocks, self.mid_block, self.up_blocks, hidden_states=hidden_states, time=F.silu(time)
        )  # (b, c0, h/p, w/p)
        hidden_states = self.conv_out(activated(self.conv_norm_out(hidden_states)))
        output = unpatchify(hidden_states, patch_size=self.patch_size).contiguous()  # (b, k, h, w)
        if self.residual:
            output = output + sample[:, -output.shape[1] :]
        return UNet2DOutput(sample=output) if return_dict else (output,)
