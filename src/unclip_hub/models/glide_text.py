"""GLIDE's text encoder, which each of its networks has for itself."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip_hub.models.checks import text_mask_to_bool
from unclip_hub.models.loading import ModelMixin
from unclip_hub.models.prior_transformer import PriorBlock


class GlideTextEncoder(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """Caption tokens to the two conditions of GLIDE's U-Net (Nichol et al. 2021, arXiv:2112.10741, section 3.1).

    Attention is neither causal nor masked: a place without a token holds a learned vector of its own, and every place
    is seen. What is added to the timestep's embedding is projected from the last place, whether a token or not.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PriorBlock"]
    _repeated_blocks = ["PriorBlock"]
    _skip_layerwise_casting_patterns = ["norm"]

    _gradient_checkpointing_func: Any  # set by enable_gradient_checkpointing

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 50257,
        num_embeddings: int = 128,
        num_attention_heads: int = 8,
        attention_head_dim: int = 64,
        num_layers: int = 16,
        time_embed_dim: int = 768,
    ):
        super().__init__()
        width = num_attention_heads * attention_head_dim
        self.num_embeddings = num_embeddings
        self.gradient_checkpointing = False

        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.zeros(num_embeddings, width))
        self.padding_embedding = nn.Parameter(torch.zeros(num_embeddings, width))
        self.transformer_blocks = nn.ModuleList(
            PriorBlock(width, heads=num_attention_heads, dropout=0.0, causal=False) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.time_proj = nn.Linear(width, time_embed_dim)

    def forward(
        self, input_ids: Int[Tensor, "b l"], attention_mask: Bool[Tensor, "b l"] | Int[Tensor, "b l"]
    ) -> tuple[Float[Tensor, "b l w"], Float[Tensor, "b t"]]:
        """The U-Net's `encoder_hidden_states`, none of which is to be masked there, and its `class_labels`.

        Args:
            input_ids: `num_embeddings` tokens of GLIDE's vocabulary, without start or end; what stands on padding
                does not matter.
            attention_mask: 1 on tokens, 0 on padding; all 0 is the empty caption of guidance.

        Raises:
            ValueError: another number of tokens.
        """
        batch_size, length = input_ids.shape
        if length != self.num_embeddings:
            raise ValueError(f"input_ids must be (b, {self.num_embeddings}), got {tuple(input_ids.shape)}")
        mask = text_mask_to_bool(attention_mask, batch_size=batch_size, length=length)
        assert mask is not None

        tokens = self.token_embedding(input_ids) + self.positional_embedding
        tokens = torch.where(mask[..., None], tokens, self.padding_embedding)  # (b, l, w)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens)
            else:
                tokens = block(tokens)
        states = self.norm_out(tokens)
        return states, self.time_proj(states[:, -1])
