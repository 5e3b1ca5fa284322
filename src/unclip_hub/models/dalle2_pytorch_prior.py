"""The diffusion prior of DALLE2-pytorch, which LAION's DALL·E 2 priors are."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.transformers.prior_transformer import PriorTransformerOutput
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.embeddings import normalize
from unclip_hub.models.checks import check_one_of, check_shape, expand_timestep, text_mask_to_bool
from unclip_hub.models.dalle2_pytorch_blocks import (
    GainNorm,
    NullKVAttention,
    RelativeBias,
    masked,
    rotation_of,
    sinusoids,
)
from unclip_hub.models.loading import ModelMixin


class DALLE2PytorchPrior(ModelMixin, AttentionMixin, ConfigMixin, PeftAdapterMixin):
    """A causal transformer that predicts the CLIP image embedding out of a noised one and the caption.

    The sequence is [text tokens, text embedding, timestep, noised image embedding, (last estimate), query], and the
    query's output is the prediction (Ramesh et al. 2022, arXiv:2204.06125, section 2.2). It is called as
    `PriorTransformer` is. It works on unit CLIP embeddings times `embedding_scale`, which `post_process_latents`
    undoes: its results are of about unit length.

    An all-zero row of `proj_embedding` stands for a dropped caption, see `null`. What became of one is the release's:

    Args:
        unconditional: "masked": padding and dropped captions are not attended to (before 0.23.1). "none": padding is
            learned, dropping has no effect, so that guidance must be 1 (0.23.1 … 1.8). "learned": padding, a dropped
            caption and the noised embedding beside it are learned (since 1.9).
        max_text_len: text tokens in the sequence, a longer text is cut; None, with "masked": as many as the text has.
        cosine_attention: l2-normalised queries and keys (since 1.4.3).
        relative_bias_scale: of the relative position bias: 1,024 (0.16.2 … 0.23.2), 128 (0.23.3 … 1.4.2), else 1.
        stable_norms: which norms divide by a row's maximum: "none" (before 0.16.2), "all" (… 0.23.2) or "last".
        num_timesteps: rows of the learned timestep table; None embeds any timestep.
        embedding_scale: None is the square root of `embedding_dim`.
        clip_embed_dim: `embedding_dim` or None: pipelines ask every prior for it.

    Raises:
        ValueError: a value that no release had; the message names the key.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DALLE2PytorchPriorBlock"]
    _repeated_blocks = ["DALLE2PytorchPriorBlock"]
    _skip_layerwise_casting_patterns = ["norm", "time_embedding", "relative_bias"]

    _gradient_checkpointing_func: Any  # set by enable_gradient_checkpointing

    @register_to_config
    def __init__(
        self,
        embedding_dim: int = 768,
        num_layers: int = 12,
        num_attention_heads: int = 8,
        attention_head_dim: int = 64,
        ff_mult: float | int = 4,
        num_timesteps: int | None = 1000,
        num_time_tokens: int = 1,
        num_image_tokens: int = 1,
        num_text_tokens: int = 1,
        max_text_len: int | None = 256,
        unconditional: str = "learned",
        self_condition: bool = False,
        rotary: bool = True,
        normalize_input: bool = False,
        normalize_output: bool = True,
        project_output: bool = True,
        normalize_feed_forward: bool = False,
        cosine_attention: bool = True,
        relative_bias_scale: float | int = 1.0,
        stable_norms: str = "last",
        dropout: float | int = 0.0,
        embedding_scale: float | int | None = None,
        clip_embed_dim: int | None = None,
    ):
        super().__init__()
        check_one_of(unconditional, "unconditional", ("masked", "none", "learned"))
        check_one_of(stable_norms, "stable_norms", ("none", "last", "all"))
        check_one_of(clip_embed_dim, "clip_embed_dim", (None, embedding_dim))
        if (max_text_len is None) != (unconditional == "masked"):
            raise ValueError(
                f"max_text_len must be None with unconditional='masked', else an int, got {max_text_len} with "
                f"{unconditional!r}"
            )
        self.embedding_dim = width = embedding_dim
        self.head_dim = attention_head_dim
        self.max_text_len = max_text_len
        self.unconditional = unconditional
        self.rotary = rotary
        self.relative_bias_scale = relative_bias_scale
        self.gradient_checkpointing = False
        everywhere = stable_norms == "all"

        self.time_embedding = _time_embedding(num_timesteps, width, width * num_time_tokens)
        self.text_to_tokens = nn.Linear(width, width * num_text_tokens) if num_text_tokens > 1 else nn.Identity()
        self.image_to_tokens = nn.Linear(width, width * num_image_tokens) if num_image_tokens > 1 else nn.Identity()
        self.query = nn.Parameter(torch.randn(width))
        if unconditional != "masked":
            self.null_text_states = nn.Parameter(torch.randn(1, max_text_len or 0, width))
        if unconditional == "learned":
            self.null_text_embed = nn.Parameter(torch.randn(1, num_text_tokens, width))
            self.null_image_embed = nn.Parameter(torch.randn(1, 1, width))
        self.norm_in = GainNorm(width, stable=everywhere) if normalize_input else nn.Identity()
        self.relative_bias = RelativeBias(num_attention_heads)
        self.transformer_blocks = nn.ModuleList(
            DALLE2PytorchPriorBlock(
                width,
                heads=num_attention_heads,
                head_dim=attention_head_dim,
                ff_width=int(ff_mult * width),
                normalize_feed_forward=normalize_feed_forward,
                cosine=cosine_attention,
                stable=everywhere,
                dropout=dropout,
            )
            for _ in range(num_layers)
        )
        self.norm_out = GainNorm(width, stable=stable_norms != "none") if normalize_output else nn.Identity()
        self.project_out = nn.Linear(width, width, bias=False) if project_output else nn.Identity()

    def forward(
        self,
        hidden_states: Float[Tensor, "b d"],
        timestep: Num[Tensor, "..."] | float | int,
        proj_embedding: Float[Tensor, "b d"],
        encoder_hidden_states: Float[Tensor, "b l d"] | None = None,
        attention_mask: Bool[Tensor, "b l"] | Int[Tensor, "b l"] | None = None,
        *,
        last_estimate: Float[Tensor, "b d"] | None = None,
        return_dict: bool = True,
    ) -> PriorTransformerOutput | tuple[Float[Tensor, "b d"]]:
        """Predict the clean image embedding (or the noise, or v, as it was trained), times `embedding_scale`.

        Args:
            hidden_states: noised image embeddings: unit ones times `embedding_scale`, plus noise.
            timestep: one for all or one per sample, in [0, num_timesteps).
            proj_embedding: CLIP text embeddings of any length, they are normalised here; zeros where dropped.
            encoder_hidden_states: CLIP's last hidden states; None for a caption without them.
            attention_mask: which text tokens to keep; None keeps all.
            last_estimate: with `self_condition`, the last step's clean embedding; None is zeros, as at the first step.

        Raises:
            ValueError: shapes that do not fit the configuration, or a `last_estimate` that it has no place for.
        """
        batch_size, width = hidden_states.shape[0], self.embedding_dim
        check_shape("hidden_states", hidden_states, (batch_size, width))
        check_shape("proj_embedding", proj_embedding, (batch_size, width))
        if encoder_hidden_states is None:
            encoder_hidden_states = hidden_states.new_zeros(batch_size, 0, width)
        length = encoder_hidden_states.shape[1]
        check_shape("encoder_hidden_states", encoder_hidden_states, (batch_size, length, width))
        mask = text_mask_to_bool(attention_mask, batch_size=batch_size, length=length)
        if mask is None:
            mask = torch.ones(batch_size, length, dtype=torch.bool, device=hidden_states.device)
        timesteps = expand_timestep(timestep, batch_size=batch_size, device=hidden_states.device)

        keep = proj_embedding.any(dim=1)  # (b,)
        text, image, mask = self._condition(hidden_states, proj_embedding, encoder_hidden_states, mask, keep)
        tokens = [*text, self._time(timesteps, like=hidden_states), image]
        if self.config["self_condition"]:
            estimate = torch.zeros_like(hidden_states) if last_estimate is None else last_estimate
            tokens.append(estimate[:, None])
        elif last_estimate is not None:
            raise ValueError("last_estimate needs a prior with self_condition=True, got one without")
        tokens.append(self.query.to(hidden_states.dtype).expand(batch_size, 1, -1))
        predicted = self.project_out(self._transform(torch.cat(tokens, dim=1), mask))
        return PriorTransformerOutput(predicted_image_embedding=predicted) if return_dict else (predicted,)

    def post_process_latents(self, prior_latents: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """The prior's scaled embedding as a CLIP image embedding of about unit length."""
        scale = self.config["embedding_scale"]
        return prior_latents / (self.embedding_dim**0.5 if scale is None else scale)

    def null(self, cond: Conditioning) -> Conditioning:
        """What guidance leads away from, as `sample_prior` takes it: these captions, dropped.

        Raises:
            ValueError: the release of this prior had no unconditional pass.
        """
        if self.unconditional == "none":
            raise ValueError(
                "this prior's release (0.23.1 … 1.8) had no unconditional pass, so it cannot be guided: expected a "
                "guidance scale of 1"
            )
        return Conditioning(
            text_embed=torch.zeros_like(cond.text_embed),
            text_states=torch.zeros_like(cond.text_states),
            text_mask=torch.zeros_like(cond.text_mask),
        )

    def _condition(
        self, noised: Tensor, text_embed: Tensor, text_states: Tensor, mask: Tensor, keep: Bool[Tensor, "b"]
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """The caption's tokens, the noised image's, and which of the caption's are attended to (None: all)."""
        width = self.embedding_dim
        pooled = self.text_to_tokens(normalize(text_embed)).unflatten(1, (-1, width))  # (b, num_text_tokens, d)
        image = self.image_to_tokens(noised).unflatten(1, (-1, width))
        if self.max_text_len is None:
            mask = mask & keep[:, None]
            return [text_states, pooled], image, torch.cat([mask, keep[:, None].expand(*pooled.shape[:2])], dim=1)
        missing = max(self.max_text_len - text_states.shape[1], 0)
        mask = F.pad(mask[:, : self.max_text_len], (0, missing), value=False)
        text_states = F.pad(text_states[:, : self.max_text_len], (0, 0, 0, missing))
        if self.unconditional == "learned":
            mask = mask & keep[:, None]
            pooled = torch.where(keep[:, None, None], pooled, self.null_text_embed.to(pooled.dtype))
            image = torch.where(keep[:, None, None], image, self.null_image_embed.to(image.dtype))
        text_states = torch.where(mask[..., None], text_states, self.null_text_states.to(text_states.dtype))
        return [text_states, pooled], image, None

    def _time(self, timesteps: Num[Tensor, "b"], *, like: Tensor) -> Float[Tensor, "b n d"]:
        if isinstance(self.time_embedding, nn.Embedding):
            time = self.time_embedding(timesteps.long())
        else:
            time = self.time_embedding(sinusoids(timesteps, self.embedding_dim).to(like.dtype))
        return time.to(like.dtype).unflatten(1, (-1, self.embedding_dim))

    def _transform(self, tokens: Float[Tensor, "b n d"], text_mask: Tensor | None) -> Float[Tensor, "b d"]:
        """The blocks under the causal mask; the last token's output, normalised."""
        tokens = self.norm_in(tokens)
        length, device = tokens.shape[1], tokens.device
        causal = torch.ones(length, length + 1, dtype=torch.bool, device=device).tril(1)[None, None]
        if text_mask is not None:  # the null key and what follows the text are never masked
            padding = F.pad(text_mask, (1, length - text_mask.shape[1]), value=True)
            causal = causal & padding[:, None, None]
        mask = masked(self.relative_bias(length, device=device) * self.relative_bias_scale, causal).to(tokens.dtype)
        rotation = rotation_of(length, head_dim=self.head_dim, device=device) if self.rotary else None
        for block in self.transformer_blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = self._gradient_checkpointing_func(block, tokens, mask, rotation)
            else:
                tokens = block(tokens, mask, rotation)
        return self.norm_out(tokens[:, -1])


class DALLE2PytorchPriorBlock(nn.Module):
    """Self-attention and a SwiGLU feed-forward (Shazeer 2020, arXiv:2002.05202), each a residual."""

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int,
        ff_width: int,
        normalize_feed_forward: bool,
        cosine: bool,
        stable: bool,
        dropout: float,
    ):
        super().__init__()
        self.attn = NullKVAttention(width, heads=heads, head_dim=head_dim, cosine=cosine, stable=stable)
        self.norm = GainNorm(width, stable=stable)
        self.ff_in = nn.Linear(width, 2 * ff_width, bias=False)
        self.norm_ff = GainNorm(ff_width, stable=stable) if normalize_feed_forward else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.ff_out = nn.Linear(ff_width, width, bias=False)

    def forward(
        self,
        hidden_states: Float[Tensor, "b n w"],
        mask: Float[Tensor, "_ h n k"],
        rotation: Float[Tensor, "2 n r"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        hidden_states = hidden_states + self.attn(hidden_states, mask=mask, rotation=rotation)
        value, gate = self.ff_in(self.norm(hidden_states)).chunk(2, dim=-1)
        return hidden_states + self.ff_out(self.dropout(self.norm_ff(value * F.silu(gate))))


def _time_embedding(num_timesteps: int | None, width: int, out_width: int) -> nn.Module:
    if num_timesteps is not None:
        return nn.Embedding(num_timesteps, out_width)
    hidden = 2 * out_width
    return nn.Sequential(
        nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out_width)
    )
