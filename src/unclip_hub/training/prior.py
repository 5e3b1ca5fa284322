"""The loss of the diffusion prior (Ramesh et al. 2022, section 2.2): predict the clean CLIP image embedding."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.diffusion import cosine_alphas_cumprod, q_sample
from unclip_hub.models.prior_transformer import PriorTransformer


@dataclass
class PriorBatch:
    """Image embeddings and the captions that they belong to."""

    image_embed: Float[Tensor, "b d"]
    caption: Conditioning


class PriorTask:
    """Squared error of the standardised x_0; a share of the captions is replaced by ``empty`` (one row)."""

    def __init__(self, prior: PriorTransformer, *, empty: Conditioning, drop_caption: float = 0.1) -> None:
        self.modules = nn.ModuleDict({"prior": prior})
        self.empty, self.drop_caption = empty, drop_caption
        self.alphas_cumprod = cosine_alphas_cumprod()

    def loss(self, batch: PriorBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Standardised x_0 loss; ``cosine`` is between the predicted and the true embedding."""
        prior: PriorTransformer = self.modules["prior"]  # type: ignore[assignment]
        b, device = len(batch.image_embed), batch.image_embed.device
        x0 = (batch.image_embed - prior.clip_mean) / prior.clip_std
        t = torch.randint(len(self.alphas_cumprod), (b,), generator=generator, device=device)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        dropped = torch.rand(b, generator=generator, device=device) < self.drop_caption
        caption = batch.caption.where(~dropped, self.empty)
        predicted = prior(
            q_sample(x0, noise, abar=self.alphas_cumprod.to(device)[t]),
            t,
            proj_embedding=caption.text_embed,
            encoder_hidden_states=caption.text_states,
            attention_mask=caption.text_mask,
        ).predicted_image_embedding.float()
        cosine = F.cosine_similarity(prior.post_process_latents(predicted), batch.image_embed).mean().item()
        return F.mse_loss(predicted, x0), {"cosine": cosine}
