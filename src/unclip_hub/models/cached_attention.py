"""A causal transformer block that remembers: its keys and values of the tokens before need not be computed again."""

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin, FeedForward
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from jaxtyping import Bool, Float
from torch import Tensor, nn


KeysAndValues = tuple[Float[Tensor, "b _ heads d"], Float[Tensor, "b _ heads d"]]
Cache = list[KeysAndValues]  # one pair per block
Mask = Bool[Tensor, "b 1 n p"] | None


class CachedBlock(nn.Module):
    """`PriorBlock` with a memory: pre-norm causal self-attention and feed-forward, under the same names."""

    def __init__(self, width: int, *, heads: int, dropout: float | int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = CachedAttention(width, heads=heads, dropout=dropout)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width, dropout=dropout, activation_fn="gelu")

    def forward(
        self, hidden_states: Float[Tensor, "b n w"], attention_mask: Mask = None, past: KeysAndValues | None = None
    ) -> tuple[Float[Tensor, "b n w"], KeysAndValues]:
        attended, kept = self.attn1(self.norm1(hidden_states), attention_mask, past)
        hidden_states = hidden_states + attended
        return hidden_states + self.ff(self.norm3(hidden_states)), kept


class CachedAttnProcessor:
    """Attention through diffusers' dispatcher; `set_attention_backend` writes `_attention_backend`."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: "CachedAttention",
        hidden_states: Float[Tensor, "b n w"],
        attention_mask: Mask = None,
        past: KeysAndValues | None = None,
    ) -> tuple[Float[Tensor, "b n w"], KeysAndValues]:
        if attn.fused_projections:
            projections = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            projections = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        query, key, value = (x.unflatten(2, (attn.heads, -1)) for x in projections)  # (b, n, heads, d)
        if past is not None:
            key, value = torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1)  # (b, p, heads, d)
        causal = attention_mask is None and query.shape[1] > 1  # a single token, always the last, sees all
        backend = self._attention_backend or _AttentionBackendRegistry.get_active_backend()[0]
        if causal and backend == AttentionBackendName.FLEX:
            # diffusers' flex backend ignores is_causal where there is no mask (0.42.1)
            attention_mask = causal_mask(query.shape[1], past=0, device=query.device)
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None and causal,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.to_out[1](attn.to_out[0](hidden_states.flatten(2))), (key, value)


class CachedAttention(nn.Module, AttentionModuleMixin):
    """Causal self-attention of the newest tokens to themselves and the `past`; a mask, where given, says all.

    Without a mask the tokens are the first ones, or a single one.
    """

    processor: Any
    _default_processor_cls = CachedAttnProcessor
    _available_processors = [CachedAttnProcessor]

    def __init__(self, width: int, *, heads: int, dropout: float | int):
        super().__init__()
        self.heads = heads
        self.use_bias = True
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width), nn.Dropout(dropout)])
        self.processor = CachedAttnProcessor()

    def forward(
        self, hidden_states: Float[Tensor, "b n w"], attention_mask: Mask = None, past: KeysAndValues | None = None
    ) -> tuple[Float[Tensor, "b n w"], KeysAndValues]:
        return self.processor(self, hidden_states, attention_mask, past)


def causal_mask(total: int, *, past: int, device: torch.device) -> Bool[Tensor, "1 1 n p"]:
    """True where one of the tokens after the first `past` of `total` may look: back, and at itself."""
    keys = torch.arange(total, device=device)
    return (keys <= keys[past:, None])[None, None]
