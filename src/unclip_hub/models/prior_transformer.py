"""The diffusion prior: Karlo's and Kandinsky's family of diffusers' `PriorTransformer`."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin, AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.transformers.prior_transformer import PriorTransformerOutput
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from unclip_hub.models.checks import (
    check_family,
    check_one_of,
    check_shape,
    expand_timestep,
    text_mask_to_bool,
)
from unclip_hub.models.loading import ModelMixin
from unclip_hub.models.step_cache import KeyValues, StepCache


# after the text tokens: text embedding, timestep, noised image embedding, query (arXiv:2204.06125, section 2.2)
_ADDITIONAL_TOKENS = 4
_FIXED = {
    "additional_embeddings": _ADDITIONAL_TOKENS,
    "time_embed_act_fn": "silu",
    "encoder_hid_proj_type": "linear",
    "added_emb_type": "prd",
}
Mask = Bool[Tensor, "b 1 n m"] | None


class PriorTransformer(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """A causal transformer that predicts the CLIP image embedding out of a noised one and the caption.

    The sequence is [text tokens, text embedding, timestep, noised image embedding, query], and the query's output is
    the prediction (Ramesh et al. 2022, arXiv:2204.06125, section 2.2). Configuration and parameters are those of
    diffusers' class of the same name, restricted to Karlo's and Kandinsky's family (`added_emb_type="prd"`,
    `encoder_hid_proj_type="linear"`, four additional embeddings).

    It differs from diffusers' in three ways. Attention is causal with and without a text mask, as these weights were
    trained; diffusers drops the causal mask where no text mask is given. `clip_mean` and `clip_std`, the statistics of
    the embeddings which the prior was trained on, are buffers (0 and 1 until set), not parameters of zeros. A key of
    our own, whose default leaves diffusers' network:
        self_conditioning: the network also sees what it predicted before (Chen et al. 2022, arXiv:2208.04202, section
            3.2), by one more projection.

    Raises:
        ValueError: a configuration outside this family; the message names the key.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["PriorBlock"]
    _repeated_blocks = ["PriorBlock"]
    _skip_layerwise_casting_patterns = ["norm", "time_embedding"]

    clip_mean: Tensor
    clip_std: Tensor
    _hf_hook: Any  # set by accelerate
    _gradient_checkpointing_func: Any  # set by enable_gradient_checkpointing

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 32,
        attention_head_dim: int = 64,
        num_layers: int = 20,
        embedding_dim: int = 768,
        num_embeddings: int = 77,
        additional_embeddings: int = 4,
        dropout: float | int = 0.0,
        time_embed_act_fn: str = "silu",
        norm_in_type: str | None = None,
        embedding_proj_norm_type: str | None = None,
        encoder_hid_proj_type: str | None = "linear",
        added_emb_type: str | None = "prd",
        time_embed_dim: int | None = None,
        embedding_proj_dim: int | None = None,
        clip_embed_dim: int | None = None,
        self_conditioning: bool = False,
    ):
        super().__init__()
        check_family(self.config, "PriorTransformer", _FIXED)
        check_one_of(norm_in_type, "norm_in_type", (None, "layer"))
        check_one_of(embedding_proj_norm_type, "embedding_proj_norm_type", (None, "layer"))
        width = num_attention_heads * attention_head_dim
        self.embedding_dim = embedding_dim
        self.embedding_proj_dim = embedding_proj_dim or embedding_dim
        self.num_embeddings = num_embeddings
        self.gradient_checkpointing = False

        self.time_proj = Timesteps(width, True, 0)
        self.time_embedding = TimestepEmbedding(width, time_embed_dim or width, out_dim=width)
        self.proj_in = nn.Linear(embedding_dim, width)
        self.self_condition_proj = None
        if self_conditioning:
            self.self_condition_proj = nn.Linear(clip_embed_dim or embedding_dim, width, bias=False)
        self.embedding_proj_norm = nn.LayerNorm(self.embedding_proj_dim) if embedding_proj_norm_type else None
        self.embedding_proj = nn.Linear(self.embedding_proj_dim, width)
        self.encoder_hidden_states_proj = nn.Linear(embedding_dim, width)
        self.positional_embedding = nn.Parameter(torch.zeros(1, num_embeddings + _ADDITIONAL_TOKENS, width))
        self.prd_embedding = nn.Parameter(torch.zeros(1, 1, width))
        self.norm_in = nn.LayerNorm(width) if norm_in_type else None
        self.transformer_blocks = nn.ModuleList(
            PriorBlock(width, heads=num_attention_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, clip_embed_dim or embedding_dim)
        self.register_buffer("clip_mean", torch.zeros(1, clip_embed_dim or embedding_dim))
        self.register_buffer("clip_std", torch.ones(1, clip_embed_dim or embedding_dim))

    def forward(
        self,
        hidden_states: Float[Tensor, "b d"],
        timestep: Num[Tensor, "..."] | float | int,
        proj_embedding: Float[Tensor, "u p"],
        encoder_hidden_states: Float[Tensor, "u l d"],
        attention_mask: Bool[Tensor, "u l"] | Int[Tensor, "u l"] | None = None,
        return_dict: bool = True,
        *,
        self_condition: Float[Tensor, "b k"] | None = None,
        cache: StepCache | None = None,
    ) -> PriorTransformerOutput | tuple[Float[Tensor, "b k"]]:
        """Predict the clean image embedding, in the normalised space of `post_process_latents`'s input.

        Args:
            hidden_states: noised image embeddings.
            timestep: one for all or one per sample, in [0, 1000) for Karlo.
            proj_embedding: CLIP text embeddings.
            encoder_hidden_states: the text encoder's last hidden states, `num_embeddings` of them, or fewer: those
                that are missing are padding.
            attention_mask: which text tokens to keep; None keeps all.
            self_condition: what the network, if it has `self_conditioning`, predicted at the step before; None at the
                first one, which is as zeros.
            cache: new at the first step of a call. The text tokens and the text embedding, which see nothing of what
                changes, are then run only at that step. Captions are as `cache.rows` tells; without it one per sample.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        batch_size, captions = len(hidden_states), len(hidden_states if cache is None else proj_embedding)
        length = min(encoder_hidden_states.shape[1], self.num_embeddings)
        check_shape("hidden_states", hidden_states, (batch_size, self.embedding_dim))
        check_shape("proj_embedding", proj_embedding, (captions, self.embedding_proj_dim))
        check_shape("encoder_hidden_states", encoder_hidden_states, (captions, length, self.embedding_dim))
        text_mask = text_mask_to_bool(attention_mask, batch_size=captions, length=length)

        tokens = self._step_tokens(hidden_states, timestep, self_condition)  # (b, 3, w)
        if cache is None:
            tokens = torch.cat([self._caption_tokens(encoder_hidden_states, proj_embedding), tokens], dim=1)
            tokens = self._run(tokens, _mask(text_mask, additional_tokens=_ADDITIONAL_TOKENS))  # (b, l + 4, w)
        else:
            layers = cache.layers(len(self.transformer_blocks))
            if layers[0].pair is None:
                caption = self._caption_tokens(encoder_hidden_states, proj_embedding)  # (u, l + 1, w)
                self._run(caption, _mask(text_mask, additional_tokens=1), layers)
            seen = text_mask if text_mask is not None else torch.ones_like(encoder_hidden_states[..., 0]).bool()
            mask = causal_and_text_mask(seen[cache.rows], additional_tokens=_ADDITIONAL_TOKENS)[:, :, -3:]
            tokens = self._run(tokens, mask, layers)  # (b, 3, w)
        predicted = self.proj_to_clip_embeddings(self.norm_out(tokens[:, -1]))  # (b, k)
        return PriorTransformerOutput(predicted_image_embedding=predicted) if return_dict else (predicted,)

    def post_process_latents(self, prior_latents: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """The prior's normalised embedding as a CLIP image embedding: times `clip_std`, plus `clip_mean`."""
        if not self.clip_std.is_meta:
            return prior_latents * self.clip_std.to(prior_latents) + self.clip_mean.to(prior_latents)
        self._hf_hook.pre_forward(self, prior_latents)  # accelerate's sequential offloading fetches them for `forward`
        embeddings = self.post_process_latents(prior_latents)
        self._hf_hook.post_forward(self, embeddings)
        return embeddings

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' own, but for the statistics: two rows that `post_process_latents` needs outside `forward`."""
        statistics = {name: self._buffers.pop(name) for name in ("clip_mean", "clip_std")}
        super().enable_group_offload(*args, **kwargs)
        self._buffers.update(statistics)

    def _caption_tokens(self, text_states: Tensor, text_embed: Tensor) -> Float[Tensor, "u n w"]:
        """The tokens that come first and, as attention is causal, see nothing of what follows."""
        if self.embedding_proj_norm is not None:
            text_embed = self.embedding_proj_norm(text_embed)
        text, embed = self.encoder_hidden_states_proj(text_states), self.embedding_proj(text_embed)[:, None]
        positions = self.positional_embedding.to(text.dtype)
        end = self.num_embeddings
        tokens = torch.cat([text + positions[:, : text.shape[1]], embed + positions[:, end : end + 1]], dim=1)
        return tokens if self.norm_in is None else self.norm_in(tokens)

    def _step_tokens(
        self, noised: Tensor, timestep: Tensor | float | int, predicted: Tensor | None
    ) -> Float[Tensor, "b 3 w"]:
        """Timestep, noised embedding (and the one predicted before) and query."""
        timesteps = expand_timestep(timestep, batch_size=len(noised), device=noised.device)
        time = self.time_embedding(self.time_proj(timesteps).to(noised.dtype))
        embed = self.proj_in(noised)
        if predicted is not None:
            if self.self_condition_proj is None:
                raise ValueError("self_condition needs a prior with self_conditioning=True, got one without")
            embed = embed + self.self_condition_proj(predicted)
        query = self.prd_embedding[0].to(embed.dtype).expand_as(embed)
        tokens = torch.stack([time, embed, query], dim=1)
        tokens = tokens + self.positional_embedding[:, self.num_embeddings + 1 :].to(tokens.dtype)
        return tokens if self.norm_in is None else self.norm_in(tokens)

    def _run(self, tokens: Tensor, mask: Mask, layers: list[KeyValues] | None = None) -> Float[Tensor, "b n w"]:
        for i, block in enumerate(self.transformer_blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, mask)
            else:
                tokens = block(tokens, mask, None if layers is None else layers[i])
        return tokens


class PriorBlock(nn.Module):
    """Pre-norm self-attention and feed-forward, with the parameter names of diffusers' `BasicTransformerBlock`.

    `causal` is whether attention without a mask is.
    """

    def __init__(self, width: int, *, heads: int, dropout: float, causal: bool = True):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = PriorAttention(width, heads=heads, dropout=dropout, causal=causal)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, dropout=dropout, activation_fn="gelu")

    def forward(
        self, hidden_states: Float[Tensor, "b n w"], attention_mask: Mask = None, kept: KeyValues | None = None
    ) -> Float[Tensor, "b n w"]:
        hidden_states = hidden_states + self.attn1(self.norm1(hidden_states), attention_mask, kept)
        return hidden_states + self.ff(self.norm3(hidden_states))


class PriorAttnProcessor:
    """Attention through diffusers' dispatcher; `set_attention_backend` writes `_attention_backend`."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: "PriorAttention",
        hidden_states: Float[Tensor, "b n w"],
        attention_mask: Mask = None,
        kept: KeyValues | None = None,
    ) -> Float[Tensor, "b n w"]:
        if attn.fused_projections:
            projections = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            projections = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in projections)  # (b, n, heads, d)
        if kept is not None and kept.pair is None:
            kept.pair = key, value
        elif kept is not None:
            before = kept.of_each_sample()
            key, value = torch.cat([before[0], key], dim=1), torch.cat([before[1], value], dim=1)
        backend = self._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
        if attn.causal and attention_mask is None and backend == AttentionBackendName.FLEX:
            # diffusers' flex backend ignores is_causal where there is no mask (0.42.1)
            attention_mask = _causal_mask(hidden_states.shape[1], hidden_states.device)
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attn.causal and attention_mask is None,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[1](attn.to_out[0](hidden_states.flatten(2)))


class PriorAttention(nn.Module, AttentionModuleMixin):
    """Self-attention, causal or not; a mask, where given, says all: it already contains the causal one.

    What is `kept` comes before the tokens; if nothing is yet, these tokens' keys and values are.
    """

    processor: Any
    _default_processor_cls = PriorAttnProcessor
    _available_processors = [PriorAttnProcessor]

    def __init__(self, width: int, *, heads: int, dropout: float, causal: bool):
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.use_bias = True
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(dropout)])
        self.processor = PriorAttnProcessor()

    def forward(
        self, hidden_states: Float[Tensor, "b n w"], attention_mask: Mask = None, kept: KeyValues | None = None
    ) -> Float[Tensor, "b n w"]:
        return self.processor(self, hidden_states, attention_mask, kept)


def causal_and_text_mask(text_mask: Bool[Tensor, "b l"], *, additional_tokens: int) -> Bool[Tensor, "b 1 n n"]:
    """True where a token may look: back, and not at padding; tokens after the text are never padding.

    Padding looks at itself too: an empty row is NaN on some backends, and NaN spreads through masked keys' values.
    """
    keep = torch.nn.functional.pad(text_mask, (0, additional_tokens), value=True)
    length = keep.shape[1]
    itself = torch.eye(length, dtype=torch.bool, device=keep.device)
    return _causal_mask(length, keep.device) & (keep[:, None, None] | itself)


def _mask(text_mask: Bool[Tensor, "b l"] | None, *, additional_tokens: int) -> Mask:
    return None if text_mask is None else causal_and_text_mask(text_mask, additional_tokens=additional_tokens)


def _causal_mask(length: int, device: torch.device) -> Bool[Tensor, "1 1 n n"]:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]
