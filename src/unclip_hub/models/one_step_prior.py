"""The one-step prior: ECLIPSE's time-free relative of `PriorTransformer`."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.transformers.prior_transformer import PriorTransformerOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.checks import check_family, check_one_of, check_shape, text_mask_to_bool
from unclip_hub.models.loading import ModelMixin
from unclip_hub.models.prior_transformer import PriorBlock, causal_and_text_mask


_ADDITIONAL_TOKENS = 3  # after the text tokens: text embedding, noise, query
_FIXED = {"additional_embeddings": _ADDITIONAL_TOKENS, "encoder_hid_proj_type": "linear", "added_emb_type": "prd"}


class OneStepPrior(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """A transformer that turns noise and the caption into a CLIP image embedding at once (arXiv:2312.04655).

    The sequence is [text tokens, text embedding, noise, query] and the query's output is the embedding itself: there
    is no timestep, no scheduler, no guidance, and no mean and deviation to undo. Configuration and parameters are
    those of ECLIPSE's checkpoints, which name their class `PriorTransformer` too; the statistics that they store
    without using are not read.

    Raises:
        ValueError: a configuration outside this family; the message names the key.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PriorBlock"]
    _repeated_blocks = ["PriorBlock"]
    _skip_layerwise_casting_patterns = ["norm"]
    _keys_to_ignore_on_load_unexpected = ["^clip_mean$", "^clip_std$"]

    _gradient_checkpointing_func: Any  # set by enable_gradient_checkpointing

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 16,
        attention_head_dim: int = 32,
        num_layers: int = 10,
        embedding_dim: int = 768,
        num_embeddings: int = 77,
        additional_embeddings: int = 3,
        dropout: float | int = 0.0,
        norm_in_type: str | None = None,
        embedding_proj_norm_type: str | None = None,
        encoder_hid_proj_type: str | None = "linear",
        added_emb_type: str | None = "prd",
        embedding_proj_dim: int | None = None,
        clip_embed_dim: int | None = None,
    ):
        super().__init__()
        check_family(self.config, "OneStepPrior", _FIXED)
        check_one_of(norm_in_type, "norm_in_type", (None, "layer"))
        check_one_of(embedding_proj_norm_type, "embedding_proj_norm_type", (None, "layer"))
        width = num_attention_heads * attention_head_dim
        self.embedding_dim = embedding_dim
        self.embedding_proj_dim = embedding_proj_dim or embedding_dim
        self.num_embeddings = num_embeddings
        self.gradient_checkpointing = False

        self.proj_in = nn.Linear(embedding_dim, width)
        self.embedding_proj_norm = nn.LayerNorm(self.embedding_proj_dim) if embedding_proj_norm_type else None
        self.embedding_proj = nn.Linear(self.embedding_proj_dim, width)
        self.encoder_hidden_states_proj = nn.Linear(embedding_dim, width)
        self.positional_embedding = nn.Parameter(torch.zeros(1, num_embeddings + _ADDITIONAL_TOKENS, width))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.norm_in = nn.LayerNorm(width) if norm_in_type else None
        self.transformer_blocks = nn.ModuleList(
            PriorBlock(width, heads=num_attention_heads, dropout=dropout, causal=False) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, clip_embed_dim or embedding_dim)

    def forward(
        self,
        hidden_states: Float[Tensor, "b d"],
        proj_embedding: Float[Tensor, "b p"],
        encoder_hidden_states: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "b l"] | Int[Tensor, "b l"] | None = None,
        return_dict: bool = True,
    ) -> PriorTransformerOutput | tuple[Float[Tensor, "b k"]]:
        """The CLIP image embedding, not normalised.

        Args:
            hidden_states: standard normal noise.
            proj_embedding: CLIP text embeddings.
            encoder_hidden_states: the text encoder's last hidden states, `num_embeddings` of them.
            attention_mask: which text tokens to keep; attention is causal then. Without it, as in ECLIPSE's code,
                every token sees every other, which is not how the published weights are meant to be called.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        batch_size = hidden_states.shape[0]
        check_shape("hidden_states", hidden_states, (batch_size, self.embedding_dim))
        check_shape("proj_embedding", proj_embedding, (batch_size, self.embedding_proj_dim))
        text_shape = (batch_size, self.num_embeddings, self.embedding_dim)
        check_shape("encoder_hidden_states", encoder_hidden_states, text_shape)
        text_mask = text_mask_to_bool(attention_mask, batch_size=batch_size, length=self.num_embeddings)

        if self.embedding_proj_norm is not None:
            proj_embedding = self.embedding_proj_norm(proj_embedding)
        text = self.encoder_hidden_states_proj(encoder_hidden_states)  # (b, l, w)
        tokens = torch.cat(
            [
                text,
                self.embedding_proj(proj_embedding)[:, None],
                self.proj_in(hidden_states)[:, None],
                self.prd_embedding.to(text.dtype).expand(batch_size, -1, -1),
            ],
            dim=1,
        )  # (b, l + 3, w)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        if self.norm_in is not None:
            tokens = self.norm_in(tokens)
        mask = None
        if text_mask is not None:
            mask = causal_and_text_mask(text_mask, additional_tokens=_ADDITIONAL_TOKENS)  # (b, 1, l + 3, l + 3)
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, mask)
            else:
                tokens = block(tokens, mask)
        predicted = self.proj_to_clip_embeddings(self.norm_out(tokens[:, -1]))  # (b, k)
        return PriorTransformerOutput(predicted_image_embedding=predicted) if return_dict else (predicted,)

    def sample(
        self,
        cond: Conditioning,
        null: Conditioning | None = None,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Float[Tensor, "b k"]:
        """A CLIP image embedding, not normalised, for each caption.

        Args:
            null: what other priors are guided away from; this one has no guidance.
            generator: one, or one for each caption.
        """
        device = cond.text_embed.device
        noise = randn_tensor((len(cond), self.embedding_dim), generator=generator, device=device, dtype=torch.float32)
        caption = cond.to(dtype=self.dtype)
        predicted = self(
            noise.to(self.dtype),
            proj_embedding=caption.text_embed,
            encoder_hidden_states=caption.text_states,
            attention_mask=caption.text_mask,
        ).predicted_image_embedding
        return predicted.to(torch.promote_types(self.dtype, torch.float32))
