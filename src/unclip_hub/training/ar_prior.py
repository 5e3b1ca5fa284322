"""The loss of the autoregressive prior (Ramesh et al. 2022, section 2.2): the likelihood of the codes, one by one."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.embeddings import PCA
from unclip_hub.models.ar_prior import UNKNOWN, AutoregressivePrior
from unclip_hub.models.embedding_codec import cosine_codes
from unclip_hub.training.prior import PriorBatch, cosines


class AutoregressivePriorTask:
    """Cross-entropy of similarity and codes, in nats per token; a share of the captions is replaced by ``empty``.

    Guidance leads away from a caption, empty or not, whose similarity is not known: half of the empty captions and
    ``drop_caption`` of the others are shown without theirs.
    """

    def __init__(self, prior: AutoregressivePrior, *, empty: Conditioning, drop_caption: float = 0.1) -> None:
        self.modules = nn.ModuleDict({"prior": prior})
        self.empty, self.drop_caption = empty, drop_caption

    def loss(self, batch: PriorBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """``nats`` are those per code, ln(num_buckets) without any knowledge.

        ``cosine`` is between the true embedding and the expected one, every code predicted from the true ones before
        it; ``ceiling`` is what the true codes reach, as components were left out and the others quantised.
        """
        prior: AutoregressivePrior = self.modules["prior"]  # type: ignore[assignment]
        embeds = batch.image_embed
        dropped, hidden = torch.rand(2, len(embeds), generator=generator, device=embeds.device)
        dropped = dropped < self.drop_caption
        hidden = hidden < torch.where(dropped, 0.5, self.drop_caption)
        caption = batch.caption.where(~dropped, self.empty)
        cosine = F.cosine_similarity(embeds, caption.text_embed)
        similarity = cosine_codes(cosine, buckets=prior.num_similarity_buckets)
        codes = prior.codec.encode(embeds)
        output = prior(
            proj_embedding=caption.text_embed,
            encoder_hidden_states=caption.text_states,
            attention_mask=caption.text_mask,
            similarity=torch.where(hidden, UNKNOWN, similarity),
            codes=codes[:, :-1],
        )
        logits = output.logits.float()  # (b, k, n)
        nats = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="sum") / len(codes)
        of_similarity = F.cross_entropy(output.similarity_logits.float(), similarity)
        with torch.no_grad():
            expected = prior.codec.embed(prior.codec.expected(logits))
            ceiling = F.cosine_similarity(prior.codec(codes), embeds).mean().item()
            metrics = {"nats": nats.item() / codes.shape[1], **cosines(expected, batch), "ceiling": ceiling}
        return (nats + of_similarity) / (codes.shape[1] + 1), metrics


def fit_codes(prior: AutoregressivePrior, image_embeds: Float[Tensor, "n d"]) -> None:
    """Give an untrained prior the principal components of the embeddings that it is going to learn, and their buckets.

    Raises:
        ValueError: fewer than two embeddings, of another width than the prior's, or not finite.
    """
    if not image_embeds.isfinite().all():
        raise ValueError("image embeddings must be finite")
    prior.codec.fit(image_embeds)


def count_components(image_embeds: Float[Tensor, "n d"], *, kept_variance: float = 0.99) -> int:
    """How many of the principal components hold this share of the embeddings' variance: a prior's ``num_components``.

    Raises:
        ValueError: fewer than two embeddings, or a share outside 0 … 1.
    """
    if not 0 < kept_variance <= 1:
        raise ValueError(f"kept_variance must be above 0 and at most 1, got {kept_variance}")
    shares = PCA.fit(image_embeds).eigenvalues.cumsum(0)
    return min(int((shares < kept_variance * shares[-1]).sum()) + 1, len(shares))
