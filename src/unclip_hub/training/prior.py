"""The loss of the diffusion prior (Ramesh et al. 2022, section 2.2): predict the clean CLIP image embedding."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.embeddings import statistics
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.training.objective import Objective


@dataclass
class PriorBatch:
    """Image embeddings and the captions that they belong to."""

    image_embed: Float[Tensor, "b d"]
    caption: Conditioning


class PriorTask:
    """Squared error of the standardised x_0; a share of the captions is replaced by ``empty`` (one row).

    A prior with ``self_conditioning`` is shown, in half of the rows, what it predicts without it.
    """

    def __init__(
        self,
        prior: PriorTransformer,
        *,
        empty: Conditioning,
        drop_caption: float = 0.1,
        objective: Objective = Objective(weighting="simple"),  # noqa: B008  frozen
    ) -> None:
        self.modules = nn.ModuleDict({"prior": prior})
        self.empty, self.drop_caption, self.objective = empty, drop_caption, objective

    def loss(self, batch: PriorBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Standardised x_0 loss, and ``cosines`` of the x_0 that was predicted at the drawn noise levels."""
        prior: PriorTransformer = self.modules["prior"]  # type: ignore[assignment]
        x0 = (batch.image_embed - prior.clip_mean) / prior.clip_std
        noised = self.objective.noised(x0, generator)
        dropped = torch.rand(len(x0), generator=generator, device=x0.device) < self.drop_caption
        caption = batch.caption.where(~dropped, self.empty)
        condition: dict[str, Tensor] = {
            "proj_embedding": caption.text_embed,
            "encoder_hidden_states": caption.text_states,
            "attention_mask": caption.text_mask,
        }
        if prior.config["self_conditioning"]:
            with torch.no_grad():
                before = prior(noised.x_t, noised.t, **condition).predicted_image_embedding
            seen = torch.rand(len(x0), generator=generator, device=x0.device) < 0.5
            condition["self_condition"] = before * seen[:, None]
        predicted = prior(noised.x_t, noised.t, **condition).predicted_image_embedding.float()
        losses, _ = self.objective.losses(predicted, x0, noised)
        embed = prior.post_process_latents(self.objective.clean(predicted.detach(), noised))
        return losses.mean(), cosines(embed, batch)


def cosines(predicted: Float[Tensor, "b d"], batch: PriorBatch) -> dict[str, float]:
    """``cosine`` of predicted to true embeddings; ``baseline_cosine`` is that of the captions' own, without a prior.

    Where text embeddings are of another width, the baseline is the mean image embedding of the batch.
    """
    image, text = batch.image_embed, batch.caption.text_embed
    baseline = text if text.shape == image.shape else image.mean(dim=0, keepdim=True)
    pairs = {"cosine": predicted, "baseline_cosine": baseline}
    return {name: F.cosine_similarity(embed, image).mean().item() for name, embed in pairs.items()}


def set_statistics(prior: PriorTransformer, image_embeds: Float[Tensor, "n d"]) -> None:
    """Give an untrained prior the mean and standard deviation of the embeddings that it is going to learn.

    Raises:
        ValueError: fewer than two embeddings, or a dimension that never varies, which cannot be standardised.
    """
    mean, std = statistics(image_embeds)
    if not (std > 0).all():
        constant = (~(std > 0)).nonzero().flatten().tolist()
        raise ValueError(f"image embeddings must vary and be finite in every dimension; not so {constant[:5]}")
    prior.clip_mean.copy_(mean[None])
    prior.clip_std.copy_(std[None])
