"""The loss of the one-step prior (Patel et al. 2024, ECLIPSE, arXiv:2312.04655, section 3)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unclip_hub.embeddings import normalize
from unclip_hub.models.one_step_prior import OneStepPrior
from unclip_hub.training.prior import PriorBatch, cosines
from unclip_hub.training.processes import gathered, rank


SAME = 1 - 1e-5  # cosine of two text embeddings from which on they are of the same caption


class OneStepPriorTask:
    """Squared error of the embedding itself, and a contrast that its own caption is nearer to it than the others'.

    Both are of embeddings as CLIP gives them: as in the paper there are no statistics that would standardise them. The
    paper gives its squared error's weight relative to the contrast, but embeddings of another CLIP may be larger.
    In several processes the captions of all are contrasted. A caption that occurs twice does not contrast with itself.

    Args:
        contrastive: weight of the contrast (lambda, 0.2 in the paper); 0 leaves the squared error alone.
        temperature: of its softmax; the paper gives none, this is the one that CLIP's own begins with.

    Raises:
        ValueError: a weight below 0, a temperature not above 0, or text embeddings of another width than images'.
    """

    def __init__(self, prior: OneStepPrior, *, contrastive: float = 0.2, temperature: float = 0.07) -> None:
        if not (contrastive >= 0 and temperature > 0):
            raise ValueError(
                f"expected contrastive at least 0 and temperature above 0, got {contrastive} and {temperature}"
            )
        text, image = prior.embedding_proj_dim, prior.proj_to_clip_embeddings.out_features
        if contrastive and text != image:
            raise ValueError(f"the contrast needs text and image embeddings of one width, got {text} and {image}")
        self.modules = nn.ModuleDict({"prior": prior})
        self.contrastive, self.temperature = contrastive, temperature

    def loss(self, batch: PriorBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Both terms; ``cosine`` is between the predicted and the true embedding."""
        caption, image = batch.caption, batch.image_embed
        noise = torch.randn(image.shape, generator=generator, device=image.device)
        predicted = self.modules["prior"](
            noise,
            proj_embedding=caption.text_embed,
            encoder_hidden_states=caption.text_states,
            attention_mask=caption.text_mask,
        ).predicted_image_embedding.float()
        projection = F.mse_loss(predicted, image)
        stats = {"projection": projection.item(), **cosines(predicted.detach(), batch)}
        if not self.contrastive:
            return projection, stats
        contrast = self._contrast(normalize(predicted), normalize(caption.text_embed.float()))
        return projection + self.contrastive * contrast, stats | {"contrastive": contrast.item()}

    def _contrast(self, predicted: Tensor, text: Tensor) -> Tensor:
        everyone = gathered(text)
        own = torch.arange(len(text), device=text.device) + rank() * len(text)
        repeated = (text @ everyone.T > SAME) & ~F.one_hot(own, len(everyone)).bool()  # (b, n)
        return F.cross_entropy((predicted @ everyone.T / self.temperature).masked_fill(repeated, -torch.inf), own)
