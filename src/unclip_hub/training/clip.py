"""The loss of CLIP (Radford et al. 2021), with hard negatives and dense labels for small sets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from unclip_hub.embeddings import normalize


@dataclass
class ClipBatch:
    """Pictures with their captions and, beside them, captions that are wrong in one attribute (k per picture)."""

    pixels: Float[Tensor, "b 3 h w"]
    ids: Int[Tensor, "b l"]
    negative_ids: Int[Tensor, "bk l"]  # those of one picture side by side
    patch_labels: Int[Tensor, "b p"]  # what each patch shows, 0 is background
    scene_labels: Int[Tensor, "b"]  # the background


class ClipTask:
    """Symmetric contrastive loss with a learned temperature.

    Two additions make a small CLIP learn what its captions distinguish (plain retrieval is solved by background and
    layout alone): every picture's logits include its own near-miss captions, and linear probes on the patch tokens
    name what they show.
    """

    def __init__(
        self,
        text_encoder: CLIPTextModelWithProjection,
        image_encoder: CLIPVisionModelWithProjection,
        *,
        patch_classes: int,
        scene_classes: int,
        dense_weight: float = 0.5,
    ) -> None:
        width = image_encoder.config.hidden_size
        self.modules = nn.ModuleDict(
            {
                "text_encoder": text_encoder,
                "image_encoder": image_encoder,
                "patch_head": nn.Linear(width, patch_classes),
                "scene_head": nn.Linear(width, scene_classes),
                "temperature": _Temperature(),
            }
        )
        self.dense_weight = dense_weight

    def loss(self, batch: ClipBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Contrastive plus dense loss."""
        m = self.modules
        b = len(batch.pixels)
        vision = m["image_encoder"](batch.pixels)
        text = m["text_encoder"](torch.cat([batch.ids, batch.negative_ids])).text_embeds
        image = normalize(vision.image_embeds.float())
        text = normalize(text.float())
        scale = m["temperature"]()
        logits = scale * image @ text[:b].T  # (b, b)
        near = scale * torch.einsum("bd,bkd->bk", image, text[b:].view(b, -1, image.shape[1]))
        same = _same_caption(batch.ids)
        logits = logits.masked_fill(same & ~torch.eye(b, dtype=torch.bool, device=same.device), -torch.inf)
        target = torch.arange(b, device=logits.device)
        contrastive = (
            F.cross_entropy(torch.cat([logits, near], dim=1), target) + F.cross_entropy(logits.T, target)
        ) / 2
        states = vision.last_hidden_state
        patches = F.cross_entropy(m["patch_head"](states[:, 1:]).flatten(0, 1).float(), batch.patch_labels.flatten())
        scenes = F.cross_entropy(m["scene_head"](states[:, 0]).float(), batch.scene_labels)
        swap = (logits.diagonal() > near.max(dim=1).values).float().mean().item()
        stats = {"contrastive": contrastive.item(), "patches": patches.item(), "scenes": scenes.item(), "swap": swap}
        return contrastive + self.dense_weight * (patches + 0.2 * scenes), stats


class _Temperature(nn.Module):
    """exp of a learned scalar, at most 100 as in CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self) -> Tensor:
        return self.log_scale.exp().clamp(max=100)


def _same_caption(ids: Int[Tensor, "b l"]) -> Bool[Tensor, "b b"]:
    return (ids[:, None] == ids[None]).all(dim=-1)
