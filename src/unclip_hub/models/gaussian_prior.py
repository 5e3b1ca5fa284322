"""The Gaussian prior: a linear map of the caption's embedding and a normal residual, known in closed form."""

import math

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.checks import check_shape
from unclip_hub.models.loading import ModelMixin


class GaussianPrior(ModelMixin, ConfigMixin):
    """p(z_i | caption) = N(W f + b, L L'), f the caption's features; fitted, not trained, in one pass over the data.

    f is the CLIP text embedding and, if ``text_states_dim`` is given, the mean of the text encoder's last hidden
    states over the caption's tokens. A linear prior is a strong baseline (in the ablation of Razzhigaev et al. 2023,
    arXiv:2310.03502, it has the best FID of all); the residual's covariance gives it the diversity that a mean lacks.
    Untrained it is N(b, 1) with a random W.

    Args:
        embedding_dim: of the CLIP image embedding.
        text_embed_dim: of the CLIP text embedding; by default the same.
        text_states_dim: of the text encoder's states; None leaves them out.
    """

    @register_to_config
    def __init__(
        self, embedding_dim: int = 768, text_embed_dim: int | None = None, text_states_dim: int | None = None
    ) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.text_embed_dim = text_embed_dim or embedding_dim
        self.text_states_dim = text_states_dim
        self.mean = nn.Linear(self.text_embed_dim + (text_states_dim or 0), embedding_dim)
        self.factor = nn.Parameter(torch.eye(embedding_dim))  # L, lower triangular

    def forward(
        self,
        hidden_states: Float[Tensor, "b d"],
        proj_embedding: Float[Tensor, "b p"],
        encoder_hidden_states: Float[Tensor, "b l e"],
        attention_mask: Bool[Tensor, "b l"],
    ) -> Float[Tensor, "b d"]:
        """The CLIP image embedding, not normalised, that standard normal noise becomes; of zeros it is the mean.

        Args:
            hidden_states: the noise.
            proj_embedding: CLIP text embeddings.
            encoder_hidden_states: the text encoder's last hidden states.
            attention_mask: which text tokens to keep.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        check_shape("hidden_states", hidden_states, (len(proj_embedding), self.embedding_dim))
        caption = Conditioning(proj_embedding, encoder_hidden_states, attention_mask)
        return self.mean(self.features(caption)) + hidden_states @ self.factor.tril().T

    def features(self, cond: Conditioning) -> Float[Tensor, "b f"]:
        """What the mean is linear in.

        Raises:
            ValueError: captions of another width.
        """
        check_shape("text_embed", cond.text_embed, (len(cond), self.text_embed_dim))
        if self.text_states_dim is None:
            return cond.text_embed
        check_shape("text_states", cond.text_states, (*cond.text_mask.shape, self.text_states_dim))
        kept = cond.text_mask[..., None].to(cond.text_states)
        pooled = (cond.text_states * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        return torch.cat([cond.text_embed, pooled], dim=1)

    def sample(
        self,
        cond: Conditioning,
        null: Conditioning | None = None,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float | int = 1.0,
    ) -> Float[Tensor, "b d"]:
        """A CLIP image embedding, not normalised, for each caption.

        Args:
            null: what other priors are guided away from; this one has no guidance.
            generator: one, or one for each caption.
            temperature: the residual's standard deviation, of that in the data: 0 is the mean, above 1 more varied.

        Raises:
            ValueError: a temperature below 0, or captions of another width.
        """
        if not temperature >= 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}")
        device = cond.text_embed.device
        noise = randn_tensor((len(cond), self.embedding_dim), generator=generator, device=device, dtype=torch.float32)
        caption = cond.to(dtype=self.dtype)
        return self(
            (temperature * noise).to(self.dtype),
            proj_embedding=caption.text_embed,
            encoder_hidden_states=caption.text_states,
            attention_mask=caption.text_mask,
        ).to(torch.promote_types(self.dtype, torch.float32))

    def log_prob(self, image_embed: Float[Tensor, "b d"], cond: Conditioning) -> Float64[Tensor, "b"]:
        """The log-density of each caption's image embedding, in nats and float64.

        Raises:
            ValueError: shapes that do not fit the configuration.
        """
        check_shape("image_embed", image_embed, (len(cond), self.embedding_dim))
        factor = self.factor.double().tril()
        mean = self.features(cond.to(dtype=torch.float64)) @ self.mean.weight.double().T + self.mean.bias.double()
        white = torch.linalg.solve_triangular(factor, (image_embed.double() - mean).T, upper=False)  # (d, b)
        log_volume = factor.diagonal().abs().log().sum()
        return -0.5 * white.square().sum(dim=0) - log_volume - 0.5 * self.embedding_dim * math.log(2 * math.pi)
