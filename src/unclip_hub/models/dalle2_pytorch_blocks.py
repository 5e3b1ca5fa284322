"""What the prior and the U-Net of DALLE2-pytorch share: norms without a shift, multi-query attention, embedded times.

DALLE2-pytorch is the library (lucidrains, MIT) in which LAION trained its DALL·E 2 networks. Its releases changed the
numbers of these layers without changing their parameters; each change is an argument here.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn


COSINE_SCALE = 16.0  # of l2-normalised queries and keys
EPS = 1e-5


class GainNorm(nn.Module):
    """Layer normalisation with a gain and no shift, over the last axis or, with ``channels_first``, the second.

    With ``stable`` (releases 0.16.2 … 0.23.2, and the prior's last norm ever since) a row is first divided by its
    maximum, so that its sign flips where the maximum is negative.
    """

    def __init__(self, width: int, *, stable: bool = False, channels_first: bool = False):
        super().__init__()
        self.stable = stable
        self.axis = 1 if channels_first else -1
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden_states: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        if self.stable:
            hidden_states = hidden_states / hidden_states.amax(dim=self.axis, keepdim=True).detach()
        hidden_states = hidden_states.movedim(self.axis, -1)
        weight = self.weight.to(hidden_states.dtype)
        return F.layer_norm(hidden_states, weight.shape, weight, eps=EPS).movedim(-1, self.axis)


class NullKVAttnProcessor:
    """Attention through diffusers' dispatcher, a learned key and value before all others.

    A relative position bias is a float mask, which not every backend takes; torch's own attention does.
    """

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(
        self,
        attn: "NullKVAttention",
        hidden_states: Float[Tensor, "b n w"],
        context: Float[Tensor, "b m c"] | None = None,
        *,
        mask: Float[Tensor, "_ h n k"] | None = None,
        rotation: Float[Tensor, "2 n r"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        hidden_states = attn.norm(hidden_states)
        query = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1))  # (b, n, h, d)
        key, value = attn.to_kv(hidden_states if context is None else context).chunk(2, dim=-1)
        key, value = (x.unflatten(2, (attn.kv_heads, -1)) for x in (key, value))  # (b, m, 1 or h, d)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        batch_size, _, _, head_dim = key.shape
        nulls = attn.null_kv.to(key.dtype).view(2, 1, 1, 1, -1).expand(2, batch_size, 1, attn.kv_heads, head_dim)
        key, value = torch.cat([nulls[0], key], dim=1), torch.cat([nulls[1], value], dim=1)  # (b, m + 1, 1 or h, d)
        if attn.cosine:
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        key, value = (x.expand(-1, -1, attn.heads, -1) for x in (key, value))
        hidden_states = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask.to(query.dtype),
            scale=attn.scale,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return attn.norm_out(attn.to_out(hidden_states.flatten(2)))


class NullKVAttention(nn.Module, AttentionModuleMixin):
    """Normalised, attended, projected, normalised again (a sandwich); no biases, and the residual is the caller's.

    Without ``context_width`` it is self-attention with one key and one value head for all queries (Shazeer 2019,
    arXiv:1911.02150); with it, it is multi-head attention to a context.

    Args:
        scale: of the dot products; None is 1/sqrt(head_dim). With ``cosine`` it is 16, of l2-normalised vectors.
        stable: of both norms, see `GainNorm`.
    """

    processor: Any

    _default_processor_cls = NullKVAttnProcessor
    _available_processors = [NullKVAttnProcessor]
    _supports_qkv_fusion = False

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        context_width: int | None = None,
        cosine: bool = False,
        scale: float | None = None,
        stable: bool = False,
    ):
        super().__init__()
        self.heads = heads
        self.kv_heads = 1 if context_width is None else heads
        self.cosine = cosine
        self.scale = COSINE_SCALE if cosine else (head_dim**-0.5 if scale is None else scale)
        self.use_bias = False
        self.norm = GainNorm(width, stable=stable)
        self.null_kv = nn.Parameter(torch.randn(2, head_dim))
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(context_width or width, 2 * self.kv_heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, width, bias=False)
        self.norm_out = GainNorm(width, stable=stable)
        self.processor = NullKVAttnProcessor()

    def forward(
        self,
        hidden_states: Float[Tensor, "b n w"],
        context: Float[Tensor, "b m c"] | None = None,
        mask: Float[Tensor, "_ h n k"] | None = None,
        rotation: Float[Tensor, "2 n r"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        return self.processor(self, hidden_states, context, mask=mask, rotation=rotation)


class RelativeBias(nn.Module):
    """T5's causal relative position bias (Raffel et al. 2020, arXiv:1910.10683): 32 buckets up to a distance of 128.

    Key 0 is the null key, so that key j stands at position j against query i at position i.
    """

    num_buckets, max_distance = 32, 128

    def __init__(self, heads: int):
        super().__init__()
        self.relative_attention_bias = nn.Embedding(self.num_buckets, heads)

    def forward(self, length: int, *, device: torch.device) -> Float[Tensor, "1 h {length} {length}+1"]:
        query, key = torch.arange(length, device=device), torch.arange(length + 1, device=device)
        distance = (query[:, None] - key[None]).clamp(min=0)
        exact = self.num_buckets // 2
        log_ratio = torch.log(distance.clamp(min=exact).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (log_ratio * (self.num_buckets - exact)).long()).clamp(max=self.num_buckets - 1)
        buckets = torch.where(distance < exact, distance, far)
        return self.relative_attention_bias(buckets).permute(2, 0, 1)[None]


def rotation_of(length: int, *, head_dim: int, device: torch.device) -> Float[Tensor, "2 {length} r"]:
    """Cosines and sines of rotary embeddings (Su et al. 2021, arXiv:2104.09864) of the first 32 dimensions."""
    rotated = min(32, head_dim)
    frequencies = rotary_frequencies(rotated).to(device)
    angles = torch.arange(length, device=device)[:, None] * frequencies  # (n, r / 2)
    return torch.stack([angles.cos(), angles.sin()]).repeat_interleave(2, dim=-1)


def rotary_frequencies(dim: int) -> Float[Tensor, "{dim}//2"]:
    """One per pair of dimensions, from 1 down to almost 1/10,000."""
    return 10_000 ** -(torch.arange(0, dim, 2)[: dim // 2].float() / dim)


def rotate(x: Float[Tensor, "b n h d"], rotation: Float[Tensor, "2 n r"]) -> Float[Tensor, "b n h d"]:
    """Turn neighbouring pairs of the first r dimensions."""
    cos, sin = rotation.to(x.dtype)[:, None, :, None]
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.unflatten(-1, (-1, 2)).unbind(-1)
    quarter = torch.stack([-second, first], dim=-1).flatten(-2)
    return torch.cat([turned * cos + quarter * sin, rest], dim=-1)


def sinusoids(timestep: Num[Tensor, "b"], width: int) -> Float[Tensor, "b w"]:
    """[sin, cos] of the unscaled timestep; the last frequency is exactly 1/10,000."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=timestep.device) * (-math.log(10_000) / (half - 1)))
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def masked(bias: Float[Tensor, "_ h n k"], keep: Bool[Tensor, "b 1 n k"]) -> Float[Tensor, "b h n k"]:
    """A float mask: the bias where ``keep``, minus infinity elsewhere."""
    return torch.where(keep, bias, float("-inf"))
