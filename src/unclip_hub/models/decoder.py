"""The 64 px decoder: Karlo's family of diffusers' `UNet2DConditionModel`."""

import itertools
from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from unclip_hub.models.checks import (
    check_block_types,
    check_family,
    check_one_of,
    check_sample,
    check_shape,
    expand_timestep,
    per_level,
    text_mask_to_bool,
)
from unclip_hub.models.loading import ModelMixin
from unclip_hub.models.step_cache import StepCache
from unclip_hub.models.unet import (
    ADMAttention,
    ResnetBlock,
    activated,
    laid_out,
    make_blocks,
    patchify,
    run_blocks,
    unpatchify,
)


_UP_OF_DOWN = {
    "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D",
    "SimpleCrossAttnDownBlock2D": "SimpleCrossAttnUpBlock2D",
}
# keys with one value in Karlo's family: diffusers writes them, so they are accepted; any other value is refused
_FIXED = {
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "projection_class_embeddings_input_dim": None,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}


class UNet2DConditionModel(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """The decoder's U-Net: noisy image, timestep, context tokens and an embedding to add to the timestep's; noise out.

    GLIDE's text-conditional ADM with unCLIP's conditioning (Ramesh et al. 2022, arXiv:2204.06125, section 2.1).
    Configuration and parameters are those of diffusers' class of the same name, restricted to the blocks
    `ResnetDownsampleBlock2D`, `SimpleCrossAttnDownBlock2D`, `UNetMidBlock2DSimpleCrossAttn` and their up counterparts;
    every other key of diffusers' is accepted with the value Karlo's family has. `layers_per_block` and
    `only_cross_attention` may be given per level.

    Two keys are ours, and their defaults leave diffusers' network:
        patch_size: space to depth before `conv_in`, depth to space after `conv_out`. `in_channels` and `out_channels`
            keep counting image channels.
        coordinates: two more input channels of `conv_in`, after the patched ones: the x and the y of each patch's
            centre, in (-1, 1).

    Raises:
        ValueError: a configuration outside this family (the message names the key), or block types that are no U-Net.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock", "ADMAttention", "UpBlock"]
    _repeated_blocks = ["ResnetBlock", "ADMAttention"]
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: float | int = 0,
        down_block_types: Sequence[str] = ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
        mid_block_type: str | None = "UNetMidBlock2DSimpleCrossAttn",
        up_block_types: Sequence[str] = (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        only_cross_attention: bool | Sequence[bool] = False,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int | Sequence[int] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float | int = 1,
        dropout: float | int = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | Sequence[int] = 1280,
        transformer_layers_per_block: int | Sequence = 1,
        reverse_transformer_layers_per_block: Sequence | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | Sequence[int] = 8,
        num_attention_heads: int | Sequence[int] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float | int = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
        patch_size: int = 1,
        coordinates: bool = False,
    ):
        super().__init__()
        check_family(self.config, "UNet2DConditionModel", _FIXED)
        check_one_of(resnet_time_scale_shift, "resnet_time_scale_shift", ("default", "scale_shift"))
        check_one_of(class_embed_type, "class_embed_type", (None, "identity"))
        check_block_types(down_block_types, up_block_types, block_out_channels, _UP_OF_DOWN)
        if not isinstance(norm_num_groups, int):
            raise ValueError(f"norm_num_groups must be an int, got {norm_num_groups}")
        if not isinstance(cross_attention_dim, int):
            raise ValueError(f"cross_attention_dim must be one int for all levels, got {cross_attention_dim}")
        levels = len(block_out_channels)
        if mid_block_only_cross_attention is None:
            mid_block_only_cross_attention = only_cross_attention is True
        only_cross = per_level(only_cross_attention, "only_cross_attention", levels)
        head_dim, *others = per_level(attention_head_dim, "attention_head_dim", levels)
        if any(other != head_dim for other in others):  # diffusers reads a list from the top both down and up
            raise ValueError(f"attention_head_dim must be the same at every level, got {attention_head_dim}")
        time_embed_dim = time_embedding_dim or 4 * block_out_channels[0]

        self.in_channels = in_channels
        self.patch_size = patch_size
        self.coordinates = coordinates
        self.cross_attention_dim = cross_attention_dim
        self.class_embed_dim = time_embed_dim if class_embed_type == "identity" else None
        self.multiple = patch_size * 2 ** (levels - 1)

        self.conv_in = nn.Conv2d(in_channels * patch_size**2 + 2 * coordinates, block_out_channels[0], 3, padding=1)
        self.time_proj = Timesteps(block_out_channels[0], flip_sin_to_cos, freq_shift)
        self.time_embedding = TimestepEmbedding(block_out_channels[0], time_embed_dim)
        attention = partial(ADMAttention, head_dim=head_dim, context_dim=cross_attention_dim, groups=norm_num_groups)
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
            attentions=[
                partial(attention, only_cross_attention=only_cross[i]) if "Attn" in kind else None
                for i, kind in enumerate(down_block_types)
            ],
            mid_attention=partial(attention, only_cross_attention=mid_block_only_cross_attention),
        )
        self.num_attentions = sum(isinstance(module, ADMAttention) for module in self.modules())
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, block_out_channels[0], eps=norm_eps)
        self.conv_out = nn.Conv2d(block_out_channels[0], out_channels * patch_size**2, 3, padding=1)

    def forward(
        self,
        sample: Float[Tensor, "b c h w"],
        timestep: Num[Tensor, "..."] | float | int,
        encoder_hidden_states: Float[Tensor, "u l e"],
        *,
        class_labels: Float[Tensor, "u t"] | None = None,
        attention_mask: Bool[Tensor, "u l"] | Int[Tensor, "u l"] | None = None,
        encoder_attention_mask: Bool[Tensor, "u l"] | Int[Tensor, "u l"] | None = None,
        return_dict: bool = True,
        cache: StepCache | None = None,
    ) -> UNet2DConditionOutput | tuple[Float[Tensor, "b k h w"]]:
        """Predict the noise (the first `in_channels` channels) and, with twice the channels, the learned variance.

        Args:
            sample: noisy images, height and width divisible by `patch_size * 2**(levels - 1)`.
            timestep: one for all or one per sample, in [0, 1000) for Karlo.
            encoder_hidden_states: the context: CLIP's extra tokens, then the text's.
            class_labels: what `UnCLIPTextProjModel` returns second; added to the time embedding.
            attention_mask: which context tokens to keep; None keeps all. Image tokens are never masked.
            encoder_attention_mask: the same under diffusers' newer name; give one of the two.
            cache: new at the first step of a call: the context's keys and values are then computed only at that step.
                Contexts and class labels are as `cache.rows` tells; without it one per sample.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        batch_size, length = sample.shape[0], encoder_hidden_states.shape[1]
        captions = batch_size if cache is None else len(encoder_hidden_states)
        check_sample(sample, channels=self.in_channels, multiple=self.multiple)
        check_shape("encoder_hidden_states", encoder_hidden_states, (captions, length, self.cross_attention_dim))
        self._check_class_labels(class_labels, captions)
        if attention_mask is not None and encoder_attention_mask is not None:
            raise ValueError("attention_mask and encoder_attention_mask mean the same here: expected one, got both")
        mask = attention_mask if attention_mask is not None else encoder_attention_mask
        mask = text_mask_to_bool(mask, batch_size=captions, length=length)

        timesteps = expand_timestep(timestep, batch_size=batch_size, device=sample.device)
        time = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))  # (b, t)
        contexts = itertools.repeat((encoder_hidden_states, mask))
        if cache is not None:
            mask = None if mask is None else mask[cache.rows]
            class_labels = None if class_labels is None else class_labels[cache.rows]
            contexts = iter([(encoder_hidden_states, mask, kept) for kept in cache.layers(self.num_attentions)])
        if class_labels is not None:
            time = time + class_labels.to(time.dtype)

        patches = patchify(sample, patch_size=self.patch_size, coordinates=self.coordinates)
        hidden_states = self.conv_in(laid_out(patches, channels=self.config["block_out_channels"][0]))
        hidden_states = run_blocks(
            self.down_blocks,
            self.mid_block,
            self.up_blocks,
            hidden_states=hidden_states,
            time=F.silu(time),
            contexts=contexts,
        )  # (b, c0, h/p, w/p)
        hidden_states = self.conv_out(activated(self.conv_norm_out(hidden_states)))
        sample = unpatchify(hidden_states, patch_size=self.patch_size).contiguous()  # (b, k, h, w)
        return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)

    def _check_class_labels(self, class_labels: Tensor | None, captions: int) -> None:
        expected = None if self.class_embed_dim is None else (captions, self.class_embed_dim)
        got = None if class_labels is None else tuple(class_labels.shape)
        if got != expected:
            raise ValueError(f"class_labels must be {expected}, got {got}")
