"""The decoders of DALLE2-pytorch, which LAION's DALL·E 2 decoders and upsamplers are."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from unclip_hub.models.checks import check_one_of, check_shape, expand_timestep, per_level, text_mask_to_bool
from unclip_hub.models.dalle2_pytorch_blocks import sinusoids
from unclip_hub.models.dalle2_pytorch_unet_blocks import (
    CrossEmbed,
    DownLevel,
    LinearAttention,
    MidLevel,
    ResnetBlock,
    SelfAttention,
    UpLevel,
    downsampler,
    upsampler,
)
from unclip_hub.models.loading import ModelMixin


class DALLE2PytorchUNet(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """A U-Net whose resnets attend to [timestep tokens, image tokens], in the middle to text tokens too.

    It is called as `UNet2DConditionModel` is, with what `DALLE2PytorchProjection` makes of CLIP's embeddings; without
    image and text as the upsampler `UNet2DModel` is, with the small picture, nearest-resized, after the noisy one.
    Text tokens that the mask discards become learned padding; discarding all of them is the unconditional pass.

    Args:
        in_channels, out_channels: of the picture as it goes in (twice a picture's with `low_res`) and comes out (twice
            a picture's with a learned variance).
        base_channels: of the first convolution; a quarter of the time embedding's width.
        channel_mult: of every level; the first is 1 but with `resample_first`.
        self_attention, linear_attention: which levels have which; the middle always has self-attention.
        num_image_tokens: 0 for a network that is not given the image embedding, in time and tokens alike.
        max_text_len: text tokens in the middle's context; None for a network without text.
        low_res, low_res_noise: it is given a small picture; and may be told how much noise that has.
        low_res_to_output: the small picture enters the last convolution, too (since 0.16).
        self_condition: it may be given its last estimate of the clean picture.
        conv_in_kernel: one kernel size, or several side by side.
        resample_first: a level's resampling comes first, and every level has one ("memory efficient").
        skip_scale: of the skip connections.
        squared_attention_scale: self-attention's dot products by 1/d, not 1/sqrt(d) (since 1.4.3).
        normalize_linear_attention: see `LinearAttention`.
        stable_norms: norms divide by a row's maximum (0.16.2 … 0.23.2).

    Raises:
        ValueError: a value that is not among those possible; the message names the key.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock", "SelfAttention", "UpLevel"]
    _repeated_blocks = ["ResnetBlock", "SelfAttention"]
    _skip_layerwise_casting_patterns = ["norm"]

    _gradient_checkpointing_func: Any  # set by enable_gradient_checkpointing

    @register_to_config
    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 3,
        out_channels: int = 3,
        base_channels: int = 320,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        layers_per_block: int | Sequence[int] = 2,
        norm_num_groups: int | Sequence[int] = 8,
        self_attention: bool | Sequence[bool] = False,
        linear_attention: bool = False,
        num_attention_heads: int = 16,
        attention_head_dim: int = 32,
        cross_attention_dim: int = 512,
        num_image_tokens: int = 4,
        num_time_tokens: int = 2,
        max_text_len: int | None = 256,
        low_res: bool = False,
        low_res_noise: bool = False,
        low_res_to_output: bool = False,
        self_condition: bool = False,
        conv_in_kernel: int | Sequence[int] = (3, 7, 15),
        conv_out_kernel: int = 1,
        resample_first: bool = False,
        downsample: str = "space_to_depth",
        downsample_kernels: Sequence[int] = (2, 4),
        upsample: str = "pixel_shuffle",
        skip_scale: float | int = 1.0,
        weight_standardization: bool = False,
        cosine_self_attention: bool = False,
        cosine_cross_attention: bool = False,
        squared_attention_scale: bool = True,
        normalize_linear_attention: bool = True,
        stable_norms: bool = False,
    ):
        super().__init__()
        check_one_of(downsample, "downsample", ("conv", "space_to_depth", "cross_embed"))
        check_one_of(upsample, "upsample", ("conv_transpose", "pixel_shuffle", "nearest"))
        if channel_mult[0] != 1 and not resample_first:
            raise ValueError(f"channel_mult must begin with 1 where resample_first=False, got {list(channel_mult)}")
        levels = len(channel_mult)
        picture = in_channels // (2 if low_res else 1)
        time_channels = 4 * base_channels
        self.picture_channels = picture
        self.cross_attention_dim = cross_attention_dim
        self.multiple = 2 ** (levels if resample_first else levels - 1)

        taken = in_channels + (picture if self_condition else 0)
        self.conv_in = _conv_in(taken, base_channels, conv_in_kernel)
        self.time_embedding = nn.Linear(base_channels, time_channels)
        self.time_to_tokens = nn.Linear(time_channels, cross_attention_dim * num_time_tokens)
        self.time_to_cond = nn.Linear(time_channels, time_channels)
        if low_res_noise:
            self.noise_embedding = nn.Linear(base_channels, time_channels)
            self.noise_to_cond = nn.Linear(time_channels, time_channels)
        self.norm_cond = nn.LayerNorm(cross_attention_dim)
        self.norm_mid_cond = nn.LayerNorm(cross_attention_dim)
        if max_text_len is not None:
            self.null_text_embed = nn.Parameter(torch.randn(1, max_text_len, cross_attention_dim))

        resnet = partial(
            ResnetBlock,
            time_channels=time_channels,
            standardized=weight_standardization,
            cosine=cosine_cross_attention,
            stable=stable_norms,
        )
        scale = 1 / attention_head_dim if squared_attention_scale else None
        pixels = partial(
            SelfAttention,
            heads=num_attention_heads,
            head_dim=attention_head_dim,
            cosine=cosine_self_attention,
            scale=scale,
            stable=stable_norms,
        )
        linear = partial(
            LinearAttention,
            heads=num_attention_heads,
            head_dim=attention_head_dim,
            normalized=normalize_linear_attention,
            stable=stable_norms,
        )
        kinds = [
            pixels if own else linear if linear_attention else None
            for own in per_level(self_attention, "self_attention", levels)
        ]
        self._make_levels(
            [base_channels, *(base_channels * mult for mult in channel_mult)],
            per_level(layers_per_block, "layers_per_block", levels),
            groups=per_level(norm_num_groups, "norm_num_groups", levels),
            resnet=resnet,
            attentions=[kind or (lambda channels: nn.Identity()) for kind in kinds],
            mid_attention=pixels,
        )
        last = base_channels + (picture if low_res_to_output else 0)
        self.conv_out = nn.Conv2d(last, out_channels, conv_out_kernel, padding=conv_out_kernel // 2)

    def _make_levels(
        self,
        channels: Sequence[int],
        layers: Sequence[int],
        *,
        groups: Sequence[int],
        resnet: Any,
        attentions: Any,
        mid_attention: Any,
    ) -> None:
        """Resnets of the first level, on both ways, have no context: there it would cost the most."""
        first, levels, context = self.config["resample_first"], len(layers), self.cross_attention_dim
        down = downsampler(self.config["downsample"], self.config["downsample_kernels"])
        up = upsampler(self.config["upsample"])
        self.resnet_in = resnet(channels[0], channels[0], groups=groups[0]) if first else None
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for i, (before, after) in enumerate(zip(channels[:-1], channels[1:], strict=True)):
            width = after if first else before
            seeing = None if i == 0 else context
            resample_out = nn.Conv2d(width, after, 1) if first or i == levels - 1 else down(width, after)
            self.down_blocks.append(
                DownLevel(
                    resnet(width, width, groups=groups[i]),
                    [resnet(width, width, groups=groups[i], context_width=seeing) for _ in range(layers[i])],
                    attention=attentions[i](width),
                    resample_in=down(before, after) if first else nn.Identity(),
                    resample_out=resample_out,
                )
            )
            self.up_blocks.insert(
                0,
                UpLevel(
                    [
                        resnet(after + width, after, groups=groups[i], context_width=seeing)
                        for _ in range(layers[i] + 1)
                    ],
                    attention=attentions[i](after),
                    resample_out=up(after, before) if first or i > 0 else nn.Identity(),
                ),
            )
        wide = partial(resnet, channels[-1], channels[-1], groups=groups[-1], context_width=context)
        self.mid_block = MidLevel([wide(), wide()], attention=mid_attention(channels[-1]))
        self.resnet_out = resnet(2 * channels[0], channels[0], groups=groups[0])

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Num[Tensor, "..."] | float | int,
        encoder_hidden_states: Float[Tensor, "b l e"] | None = None,
        *,
        class_labels: Float[Tensor, "b t"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | Int[Tensor, "b l"] | None = None,
        low_res_noise_level: Num[Tensor, "..."] | float | int | None = None,
        last_estimate: Float[Tensor, "b p h w"] | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[Float[Tensor, "b k h w"]]:
        """Predict the noise (or what it was trained for) and, with twice the channels, the learned variance.

        Args:
            sample: noisy pictures in [-1, 1]; with `low_res` the small picture's channels follow.
            timestep: one for all or one per sample.
            encoder_hidden_states, class_labels: what `DALLE2PytorchProjection` returns: the image's tokens and, after
                them, the text's; and the addition to the timestep. Text tokens may be absent; a network without text
                does not look at them.
            attention_mask: which of those tokens to keep; None keeps all. Image tokens are always kept.
            low_res_noise_level: timestep, of 1,000 in the linear schedule, of the small picture's noise.
            last_estimate: with `self_condition`, the last step's clean picture; None is zeros, as at the first step.

        Raises:
            ValueError: shapes or inputs that do not fit the configuration.
        """
        self._check(sample, encoder_hidden_states, class_labels, low_res_noise_level, last_estimate)
        batch_size, width = sample.shape[0], self.config["base_channels"]
        low_res = sample[:, self.picture_channels :]
        if self.config["self_condition"]:
            noisy = sample[:, : self.picture_channels]
            estimate = torch.zeros_like(noisy) if last_estimate is None else last_estimate
            sample = torch.cat([noisy, estimate, low_res], dim=1)
        hidden_states = residual = self.conv_in(sample)  # (b, c0, h, w)

        timesteps = expand_timestep(timestep, batch_size=batch_size, device=sample.device)
        embedded = F.gelu(self.time_embedding(sinusoids(timesteps, width).to(sample.dtype)))  # (b, t)
        time = self.time_to_cond(embedded)
        if low_res_noise_level is not None:
            levels = expand_timestep(low_res_noise_level, batch_size=batch_size, device=sample.device)
            noise = F.gelu(self.noise_embedding(sinusoids(levels, width).to(sample.dtype)))
            time = time + self.noise_to_cond(noise)
        if class_labels is not None:
            time = time + class_labels.to(time.dtype)
        context = self.time_to_tokens(embedded).unflatten(1, (-1, self.cross_attention_dim))  # (b, m, e)
        context, mid_context = self._contexts(context, encoder_hidden_states, attention_mask)

        if self.resnet_in is not None:
            hidden_states = self.resnet_in(hidden_states, time)
        skips: list[Tensor] = []
        for block in self.down_blocks:
            hidden_states, outputs = block(hidden_states, time, context)
            skips.extend(output * self.config["skip_scale"] for output in outputs)
        hidden_states = self.mid_block(hidden_states, time, mid_context)
        for block in self.up_blocks:
            hidden_states, skips = block(hidden_states, skips, time, context)
        hidden_states = self.resnet_out(torch.cat([hidden_states, residual], dim=1), time)
        if self.config["low_res_to_output"]:
            hidden_states = torch.cat([hidden_states, low_res], dim=1)
        sample = self.conv_out(hidden_states)  # (b, k, h, w)
        return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)

    def _contexts(self, time: Tensor, states: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The normalised context of the resnets, and that of the middle's."""
        if states is None:
            return self.norm_cond(time), self.norm_mid_cond(time)
        keep = text_mask_to_bool(mask, batch_size=len(states), length=states.shape[1])
        images, length = self.config["num_image_tokens"], self.config["max_text_len"]
        context = torch.cat([time, states[:, :images].to(time.dtype)], dim=1)
        text = states[:, images:]
        if length is None or text.shape[1] == 0:
            return self.norm_cond(context), self.norm_mid_cond(context)
        keep = torch.ones_like(text[..., 0], dtype=torch.bool) if keep is None else keep[:, images:]
        missing = max(length - text.shape[1], 0)
        text, keep = F.pad(text[:, :length], (0, 0, 0, missing)), F.pad(keep[:, :length], (0, missing), value=False)
        text = torch.where(keep[..., None], text.to(time.dtype), self.null_text_embed.to(time.dtype))
        return self.norm_cond(context), self.norm_mid_cond(torch.cat([context, text], dim=1))

    def _check(
        self,
        sample: Tensor,
        states: Tensor | None,
        class_labels: Tensor | None,
        noise_level: Any,
        estimate: Tensor | None,
    ) -> None:
        config, batch_size = self.config, len(sample)
        if (
            sample.ndim != 4
            or sample.shape[1] != config["in_channels"]
            or any(n % self.multiple for n in sample.shape[2:])
        ):
            raise ValueError(
                f"sample must be (b, {config['in_channels']}, h, w) with h and w divisible by {self.multiple}, got "
                f"{tuple(sample.shape)}"
            )
        images = config["num_image_tokens"]
        if images and (states is None or class_labels is None or states.shape[1] < images):
            raise ValueError(
                f"this network needs encoder_hidden_states with {images} image tokens and class_labels: "
                "DALLE2PytorchProjection makes them"
            )
        if states is not None:
            check_shape("encoder_hidden_states", states, (batch_size, states.shape[1], self.cross_attention_dim))
        if class_labels is not None:
            check_shape("class_labels", class_labels, (batch_size, 4 * config["base_channels"]))
            if not images:
                raise ValueError("class_labels must be None for a network without image embedding")
        if noise_level is not None and not config["low_res_noise"]:
            raise ValueError("low_res_noise_level needs a network with low_res_noise=True, got one without")
        if estimate is not None and not config["self_condition"]:
            raise ValueError("last_estimate needs a network with self_condition=True, got one without")


def _conv_in(in_channels: int, out_channels: int, kernel: int | Sequence[int]) -> nn.Module:
    if isinstance(kernel, int):
        return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    return CrossEmbed(in_channels, out_channels, kernels=kernel)
