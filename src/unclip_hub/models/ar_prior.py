"""The autoregressive prior of the paper: an image embedding as a sentence of codes, drawn one after the other."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.utils.outputs import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.cached_attention import Cache, CachedBlock, causal_mask
from unclip_hub.models.checks import check_shape, text_mask_to_bool
from unclip_hub.models.embedding_codec import (
    BucketVectors,
    EmbeddingCodec,
    cosine_codes,
    cosine_scores,
    normal_scores,
)
from unclip_hub.models.loading import ModelMixin


UNKNOWN = -1  # in place of a similarity


@dataclass
class AutoregressivePriorOutput(BaseOutput):
    """What follows each of the j tokens that were given after the caption, and what follows the caption itself."""

    logits: Any  # (b, j, n); to accelerate's hooks an output is made of the dict of its fields, given in place of this
    similarity_logits: Float[Tensor, "b s"] | None = None
    cache: Cache | None = None


class AutoregressivePrior(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """A causal transformer over [text tokens, text embedding, similarity, codes] (arXiv:2204.06125, section 2.2).

    The codes are an image embedding's principal components in order of decreasing eigenvalue, quantised. Before them
    stands the cosine of image and text embedding, quantised too: who asks for a high one gets an embedding that suits
    the caption. Beyond the paper it is predicted, so that it is drawn among what the caption makes likely.

    Components and buckets are part of the weights: `training.ar_prior.fit_codes` sets them before a training.

    Args:
        embedding_dim: CLIP's width, that of the text encoder's states as well.
        num_embeddings: text tokens.
        num_components: how many components have a code; the paper's 319 of 1,024 lose 1 % of the variance.
        num_buckets: of each component.
        num_similarity_buckets: of the cosine, over -1 … 1, of which one CLIP uses a small part.

    Raises:
        ValueError: `num_components` not within 1 … `embedding_dim`, or fewer than 2 buckets.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["CachedBlock"]
    _repeated_blocks = ["CachedBlock"]
    _skip_layerwise_casting_patterns = ["norm", "code_in", "code_out", "similarity_in", "similarity_out"]

    _gradient_checkpointing_func: Any  # set by enable_gradient_checkpointing

    @register_to_config
    def __init__(
        self,
        num_attention_heads: int = 26,
        attention_head_dim: int = 64,
        num_layers: int = 24,
        embedding_dim: int = 768,
        num_embeddings: int = 77,
        num_components: int = 319,
        num_buckets: int = 1024,
        num_similarity_buckets: int = 1024,
        dropout: float | int = 0.0,
    ):
        super().__init__()
        if not 1 <= num_components <= embedding_dim:
            raise ValueError(
                f"num_components must be within 1 … embedding_dim = {embedding_dim}, got {num_components}"
            )
        for name, buckets in {"num_buckets": num_buckets, "num_similarity_buckets": num_similarity_buckets}.items():
            if buckets < 2:
                raise ValueError(f"{name} must be at least 2, got {buckets}")
        width = num_attention_heads * attention_head_dim
        self.embedding_dim = embedding_dim
        self.num_embeddings = num_embeddings
        self.num_components = num_components
        self.num_buckets = num_buckets
        self.num_similarity_buckets = num_similarity_buckets
        self.gradient_checkpointing = False

        self.codec = EmbeddingCodec(embedding_dim, components=num_components, buckets=num_buckets)
        self.encoder_hidden_states_proj = nn.Linear(embedding_dim, width)
        self.embedding_proj = nn.Linear(embedding_dim, width)
        self.similarity_in = BucketVectors(width, buckets=num_similarity_buckets, waves=64)
        self.unknown_similarity = nn.Parameter(torch.zeros(1, width))
        self.code_in = BucketVectors(width, buckets=num_buckets)
        self.positional_embedding = nn.Parameter(0.02 * torch.randn(1, num_embeddings + 1 + num_components, width))
        self.transformer_blocks = nn.ModuleList(
            CachedBlock(width, heads=num_attention_heads, dropout=dropout) for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(width)
        self.similarity_out = BucketVectors(width, buckets=num_similarity_buckets, waves=64, zero=True)
        self.code_out = BucketVectors(width, buckets=num_buckets, zero=True)

    def forward(
        self,
        proj_embedding: Float[Tensor, "b d"] | None = None,
        encoder_hidden_states: Float[Tensor, "b l d"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | Int[Tensor, "b l"] | None = None,
        similarity: Int[Tensor, "b"] | None = None,
        codes: Int[Tensor, "b j"] | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        return_dict: bool = True,
    ) -> AutoregressivePriorOutput | tuple[Any, ...]:
        """What follows the caption, its similarity, and each code; a call may end anywhere and go on from its cache.

        Args:
            proj_embedding: CLIP text embeddings.
            encoder_hidden_states: the text encoder's last hidden states, `num_embeddings` of them.
            attention_mask: which text tokens to keep; None keeps all. The only one to be given with a cache again.
            similarity: bucket of the cosine between the embeddings, or `UNKNOWN`.
            codes: of the first components, at most `num_components` - 1.
            cache: what an earlier call with `use_cache` returned: the tokens given to it come before these.

        Raises:
            ValueError: shapes that do not fit the configuration, or parts of the sequence that are missing.
        """
        text, parts = self.num_embeddings, []
        if proj_embedding is not None and encoder_hidden_states is not None:
            batch = len(proj_embedding)
            check_shape("proj_embedding", proj_embedding, (batch, self.embedding_dim))
            check_shape("encoder_hidden_states", encoder_hidden_states, (batch, text, self.embedding_dim))
            parts += [
                self.encoder_hidden_states_proj(encoder_hidden_states),
                self.embedding_proj(proj_embedding)[:, None],
            ]
        past = 0 if cache is None else cache[0][0].shape[1]
        self._check_order(past, caption=bool(parts), similarity=similarity, codes=codes)
        if similarity is not None:
            parts.append(self._similarity_tokens(similarity)[:, None])
        if codes is not None:
            scores, dtype = normal_scores(self.num_buckets, device=codes.device), self.positional_embedding.dtype
            parts.append(F.embedding(codes, self.code_in(scores, dtype=dtype)))
        tokens = torch.cat(parts, dim=1)  # (b, n, w)
        total = past + tokens.shape[1]
        tokens = tokens + self.positional_embedding[:, past:total].to(tokens.dtype)
        mask = self._mask(attention_mask, past, total, tokens)
        kept: Cache = []
        for i, block in enumerate(self.transformer_blocks):
            before = None if cache is None else cache[i]
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens, keys_and_values = self._gradient_checkpointing_func(block, tokens, mask, before)
            else:
                tokens, keys_and_values = block(tokens, mask, before)
            if use_cache:
                kept.append(keys_and_values)
        tokens = self.norm_out(tokens)
        output = AutoregressivePriorOutput(
            logits=self._code_logits(tokens[:, max(text + 1 - past, 0) :]),
            similarity_logits=self._similarity_logits(tokens[:, text]) if past == 0 else None,
            cache=kept if use_cache else None,
        )
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def sample(
        self,
        cond: Conditioning,
        null: Conditioning | None = None,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float | int = 1.0,
        top_p: float | int = 1.0,
        guidance_scale: float | int = 1.0,
        components: int | None = None,
        similarity: float | int | None = None,
        similarity_share: float | int = 0.5,
        use_cache: bool = True,
    ) -> Float[Tensor, "b d"]:
        """CLIP image embeddings, not normalised, for captions.

        A row's noise is one number per code, drawn before anything else: the first codes of a sample are the same
        for every number of `components`.

        Args:
            null: one row, or one per caption, to be led away from where `guidance_scale` is not 1.
            generator: one for all rows, or a list of one per row: each is then the same alone and in a batch.
            temperature: of the codes; above 1 more varied, 0 always takes the likeliest.
            top_p: draw among the likeliest codes whose probabilities reach this sum (arXiv:1904.09751).
            guidance_scale: classifier-free guidance of the logits, 1 for none.
            components: how many codes to draw, by default all; the other components are the mean's: a coarse idea.
            similarity: the cosine with the text embedding to ask for, -1 to 1; drawn by default.
            similarity_share: drawn from the upper `similarity_share` of its distribution: 0.5 in the paper, 1 is all.
            use_cache: keep keys and values from code to code; without it all are computed again for every code.

        Raises:
            ValueError: an argument outside its range, or guidance without `null`.
        """
        count = self.num_components if components is None else components
        _check_options(temperature, top_p, similarity, similarity_share, generator=generator, rows=len(cond))
        if not 1 <= count <= self.num_components:
            raise ValueError(f"components must be within 1 … {self.num_components}, got {components}")
        rows = [cond]
        if guidance_scale != 1:
            if null is None:
                raise ValueError(f"guidance with scale {guidance_scale} needs what to lead away from, got null=None")
            rows = [null.expand(len(cond)), cond]
        caption = {
            "proj_embedding": torch.cat([row.text_embed for row in rows]).to(self.dtype),
            "encoder_hidden_states": torch.cat([row.text_states for row in rows]).to(self.dtype),
        }
        mask, device = torch.cat([row.text_mask for row in rows]), cond.text_embed.device
        shape, precise = (len(cond), 1 + self.num_components), torch.promote_types(self.dtype, torch.float32)
        noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        ranks = torch.special.ndtr(noise.to(precise))  # evenly over 0 … 1

        start = self(**caption, attention_mask=mask, use_cache=use_cache)
        if similarity is None:
            rank = ranks[:, 0] if temperature else torch.full_like(ranks[:, 0], 0.5)
            own = _drawn(start.similarity_logits[-len(cond) :], 1 - similarity_share * (1 - rank))
        else:
            asked = torch.full((len(cond),), float(similarity), device=device)
            own = cosine_codes(asked, buckets=self.num_similarity_buckets)
        similarities = torch.cat([*[torch.full_like(own, UNKNOWN) for _ in rows[1:]], own])
        codes, cache = own.new_empty(len(cond), 0), start.cache
        for i in range(count):
            if not use_cache:
                given = {**caption, "similarity": similarities, "codes": codes.repeat(len(rows), 1)}
            elif i == 0:
                given = {"similarity": similarities, "cache": cache}
            else:
                given = {"codes": codes[:, -1:].repeat(len(rows), 1), "cache": cache}
            output = self(**given, attention_mask=mask, use_cache=use_cache)
            away, logits, cache = output.logits[: len(cond), -1], output.logits[-len(cond) :, -1], output.cache
            logits = away + guidance_scale * (logits - away)  # unguided, both are the same
            code = _drawn(logits, ranks[:, 1 + i], temperature=temperature, top_p=top_p)
            codes = torch.cat([codes, code[:, None]], dim=1)
        return self.codec(codes)

    def enable_group_offload(self, *args: Any, **kwargs: Any) -> None:
        """diffusers' own, but for the codec, which is not needed in `forward` but after it; it stays where it is."""
        codec = self._modules.pop("codec")
        super().enable_group_offload(*args, **kwargs)
        self._modules["codec"] = codec

    def _similarity_tokens(self, similarity: Int[Tensor, "b"]) -> Float[Tensor, "b w"]:
        scores = cosine_scores(self.num_similarity_buckets, device=similarity.device)
        dtype = self.positional_embedding.dtype
        known = F.embedding(similarity.clamp(min=0), self.similarity_in(scores, dtype=dtype))
        return torch.where((similarity == UNKNOWN)[:, None], self.unknown_similarity.to(known.dtype), known)

    def _similarity_logits(self, hidden: Float[Tensor, "b w"]) -> Float[Tensor, "b s"]:
        scores = cosine_scores(self.num_similarity_buckets, device=hidden.device)
        return F.linear(hidden, self.similarity_out(scores, dtype=hidden.dtype))

    def _code_logits(self, hidden: Float[Tensor, "b j w"]) -> Float[Tensor, "b j n"]:
        scores = normal_scores(self.num_buckets, device=hidden.device)
        return F.linear(hidden, self.code_out(scores, dtype=hidden.dtype))

    def _check_order(self, past: int, *, caption: bool, similarity: Tensor | None, codes: Tensor | None) -> None:
        """Refuse a sequence with a gap, or one with more codes than there are."""
        at = past or self.num_embeddings + 1
        awaited = at == self.num_embeddings + 1  # the similarity
        early, late = codes is not None and awaited and similarity is None, similarity is not None and not awaited
        if caption == (past > 0) or early or late:
            raise ValueError("a sequence is a caption, then its similarity, then codes; or what follows a cache")
        total = at + (similarity is not None) + (0 if codes is None else codes.shape[1])
        if total > self.positional_embedding.shape[1]:
            got = total - self.num_embeddings - 2
            raise ValueError(f"expected at most {self.num_components - 1} codes, got {got}")

    def _mask(self, attention_mask: Tensor | None, past: int, total: int, tokens: Tensor) -> Tensor | None:
        """Where the new tokens may look: back, and not at padding; padding looks at itself, as an empty row is NaN."""
        text_mask = text_mask_to_bool(attention_mask, batch_size=len(tokens), length=self.num_embeddings)
        back = causal_mask(total, past=past, device=tokens.device).expand(len(tokens), -1, -1, -1)
        if text_mask is None:
            return back if past and total - past > 1 else None
        keep = F.pad(text_mask, (0, total - self.num_embeddings), value=True)[:, None, None]
        itself = torch.eye(total, dtype=torch.bool, device=tokens.device)[past:]
        return back & (keep | itself)  # (b, 1, n, p)


def _check_options(
    temperature: float | int,
    top_p: float | int,
    similarity: float | int | None,
    similarity_share: float | int,
    *,
    generator: Any,
    rows: int,
) -> None:
    if not temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    for name, value in {"top_p": top_p, "similarity_share": similarity_share}.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, got {value}")
    if similarity is not None and not -1 <= similarity <= 1:
        raise ValueError(f"similarity must be a cosine, -1 to 1, got {similarity}")
    if isinstance(generator, list) and len(generator) != rows:
        raise ValueError(f"generator must be one generator or a list of {rows}, one per row, got {len(generator)}")


def _drawn(
    logits: Float[Tensor, "b n"], ranks: Float[Tensor, "b"], *, temperature: float | int = 1, top_p: float | int = 1
) -> Int[Tensor, "b"]:
    """The bucket in which each distribution reaches its rank; the likeliest at temperature 0."""
    if temperature == 0:
        return logits.argmax(-1)
    shares = (logits.to(ranks.dtype) / temperature).softmax(-1)
    if top_p < 1:
        ordered = shares.sort(-1, descending=True).values
        kept = ordered.cumsum(-1) - ordered < top_p
        shares = shares.where(shares >= ordered.where(kept, torch.inf).amin(-1, keepdim=True), 0)
    reached = shares.cumsum(-1)
    return torch.searchsorted(reached, ranks[:, None] * reached[:, -1:]).squeeze(1)
