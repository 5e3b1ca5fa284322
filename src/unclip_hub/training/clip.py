"""The loss of CLIP (Radford et al. 2021), if wanted with hard negatives and dense labels for small sets."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection

from unclip_hub.embeddings import normalize
from unclip_hub.training.processes import gathered, rank


@dataclass
class ClipBatch:
    """Pictures, or their embeddings, with their captions; the rest is what small sets need and large ones lack."""

    pixels: Float[Tensor, "b 3 h w"] | None  # None where there are embeddings
    ids: Int[Tensor, "b l"]
    negative_ids: Int[Tensor, "bk l"] | None = None  # captions wrong in one attribute, those of a picture side by side
    patch_labels: Int[Tensor, "b p"] | None = None  # what each patch of the picture shows, 0 is background
    scene_labels: Int[Tensor, "b"] | None = None  # the background
    image_embeds: Float[Tensor, "b d"] | None = None  # of a locked image encoder, instead of pictures


class ClipTask:
    """Symmetric contrastive loss with a learned temperature, or SigLIP's sigmoid loss.

    In several processes each picture is compared with the captions of all, and the mean of the processes' gradients is
    that of one process with the whole batch.

    Two additions make a small CLIP learn what its captions distinguish (plain retrieval is solved by background and
    layout alone): every picture's logits include its own near-miss captions, and linear probes name what each patch
    shows, from the patch's token and once more from the image embedding alone, which so learns what stands where.
    Probes exist if there are ``patch_classes`` and ``scene_classes``.

    Batches of image embeddings train the text encoder alone, towards an image encoder that stays as it is (Zhai et al.
    2022, LiT, arXiv:2111.07991): on a CPU a fraction of the work.

    Args:
        pairwise: judge every pair of picture and caption alone (Zhai et al. 2023, SigLIP, arXiv:2303.15343), which
            does better with small batches.

    Raises:
        ValueError: one number of classes without the other.
    """

    def __init__(
        self,
        text_encoder: CLIPTextModelWithProjection,
        image_encoder: CLIPVisionModelWithProjection,
        *,
        patch_classes: int | None = None,
        scene_classes: int | None = None,
        dense_weight: float = 0.5,
        pairwise: bool = False,
    ) -> None:
        if (patch_classes is None) != (scene_classes is None):
            raise ValueError(f"expected both numbers of classes or none, got {patch_classes} and {scene_classes}")
        width = image_encoder.config.hidden_size
        self.modules = nn.ModuleDict({"text_encoder": text_encoder, "image_encoder": image_encoder})
        if patch_classes is not None and scene_classes is not None:
            self.modules["patch_head"] = nn.Linear(width, patch_classes)
            self.modules["scene_head"] = nn.Linear(width, scene_classes)
            patches = image_encoder.vision_model.embeddings.num_patches
            self.modules["layout_head"] = nn.Linear(image_encoder.config.projection_dim, patches * patch_classes)
        self.modules["temperature"] = _Temperature(10.0, bias=-10.0) if pairwise else _Temperature(1 / 0.07)
        self.context = text_encoder.config.max_position_embeddings
        self.pairwise, self.dense_weight = pairwise, dense_weight

    def loss(self, batch: ClipBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Contrastive plus, with labels, dense loss."""
        m = self.modules
        b = len(batch.ids)
        vision = None if batch.pixels is None else m["image_encoder"](batch.pixels)
        image_embeds = batch.image_embeds if vision is None else vision.image_embeds
        if image_embeds is None:
            raise ValueError("a ClipBatch needs pixels or image_embeds, got neither")
        ids = batch.ids if batch.negative_ids is None else torch.cat([batch.ids, batch.negative_ids])
        text = normalize(m["text_encoder"](ids).text_embeds.float())
        image = normalize(image_embeds.float())
        wrong = text[b:].view(b, (len(text) - b) // b, image.shape[1])  # (b, k, d)
        contrastive = self._pairwise if self.pairwise else self._softmax
        value, near, right = contrastive(image, text[:b], wrong, ids=batch.ids)
        stats = {"contrastive": value.item()}
        if near.shape[1]:
            stats["swap"] = (right > near.max(dim=1).values).float().mean().item()
        if "patch_head" in m and vision is not None:
            patches, layout, scenes = self._dense(vision.last_hidden_state, vision.image_embeds, batch)
            value = value + self.dense_weight * (patches + 2 * layout + 0.2 * scenes)
            stats |= {"patches": patches.item(), "layout": layout.item(), "scenes": scenes.item()}
        return value, stats

    def _softmax(self, image: Tensor, text: Tensor, wrong: Tensor, *, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, the logits of the near misses and those of the right captions."""
        scale = self.modules["temperature"]()
        every_text, repeated, target = self._everyone(text, ids)
        logits = (scale * image @ every_text.T).masked_fill(repeated, -torch.inf)  # (b, n)
        near = scale * torch.einsum("bd,bkd->bk", image, wrong)
        backward = (scale * text @ gathered(image).T).masked_fill(repeated, -torch.inf)
        value = (F.cross_entropy(torch.cat([logits, near], dim=1), target) + F.cross_entropy(backward, target)) / 2
        return value, near, logits.gather(1, target[:, None])[:, 0]

    def _pairwise(self, image: Tensor, text: Tensor, wrong: Tensor, *, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        temperature: _Temperature = self.modules["temperature"]  # type: ignore[assignment]
        scale = temperature()
        every_text, repeated, target = self._everyone(text, ids)
        logits = scale * image @ every_text.T + temperature.bias
        near = scale * torch.einsum("bd,bkd->bk", image, wrong) + temperature.bias
        sign = 2.0 * F.one_hot(target, len(every_text)) - 1
        terms = F.logsigmoid(sign * logits).masked_fill(repeated, 0.0)
        value = -(terms.sum() + F.logsigmoid(-near).sum()) / len(image)
        return value, near, logits.gather(1, target[:, None])[:, 0]

    def _everyone(self, text: Tensor, ids: Tensor) -> tuple[Tensor, Bool[Tensor, "b n"], Int[Tensor, "b"]]:
        """The captions of all processes, which of them repeat a picture's own, and which is it."""
        # the last token pads: batches are cut to their longest caption, which differs between processes
        padded = torch.cat([ids, ids[:, -1:].expand(-1, self.context - ids.shape[1])], dim=1)
        every_text, every_id = gathered(text), gathered(padded)
        target = torch.arange(len(ids), device=ids.device) + rank() * len(ids)
        repeated = (padded[:, None] == every_id[None]).all(dim=-1)
        return every_text, repeated & ~F.one_hot(target, len(every_id)).bool(), target

    def _dense(
        self, states: Float[Tensor, "b n w"], embeds: Float[Tensor, "b d"], batch: ClipBatch
    ) -> tuple[Tensor, Tensor, Tensor]:
        if batch.patch_labels is None or batch.scene_labels is None:
            raise ValueError("a ClipTask with patch_classes and scene_classes needs batches with both labels")
        labels = batch.patch_labels.flatten()
        patches = self.modules["patch_head"](states[:, 1:]).flatten(0, 1).float()
        layout = self.modules["layout_head"](embeds).view(patches.shape).float()
        scenes = self.modules["scene_head"](states[:, 0]).float()
        return (
            F.cross_entropy(patches, labels),
            F.cross_entropy(layout, labels),
            F.cross_entropy(scenes, batch.scene_labels),
        )


class _Temperature(nn.Module):
    """exp of a learned scalar, at most 100 as in CLIP; ``bias`` is SigLIP's, a learned summand of every logit."""

    MAX = 100.0

    def __init__(self, scale: float, *, bias: float | None = None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def forward(self) -> Tensor:
        with torch.no_grad():  # the parameter itself: a clamp of its exponential would leave it without gradient
            self.log_scale.clamp_(max=math.log(self.MAX))
        return self.log_scale.exp()
