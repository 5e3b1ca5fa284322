"""The loss of the decoder (Ramesh et al. 2022, section 2.1): a picture from its CLIP image embedding and caption."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.training.masks import random_masks
from unclip_hub.training.objective import Objective


@dataclass
class DecoderBatch:
    """Pictures in [-1, 1] and what they are decoded from, the image embedding included."""

    pixels: Float[Tensor, "b 3 h w"]
    condition: Conditioning


@dataclass(frozen=True)
class Drops:
    """How often a condition is withheld, each case exclusive of the others; the rest sees both."""

    both: float = 0.1
    image: float = 0.2
    caption: float = 0.25

    def __post_init__(self) -> None:
        shares = (self.both, self.image, self.caption)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ValueError(f"shares of withheld conditions must be at least 0 and at most 1 together, got {shares}")

    @classmethod
    def independent(cls, *, image: float = 0.1, caption: float = 0.5) -> "Drops":
        """Each withheld without regard to the other; the paper's rates (Ramesh et al. 2022, section 2.1)."""
        return cls(both=image * caption, image=image * (1 - caption), caption=caption * (1 - image))


class DecoderTask:
    """The diffusion loss of the decoder and text_proj.

    A withheld caption is the empty caption, a withheld image embedding text_proj's learned one. A decoder with 6
    output channels learns its variance too. One with 7 input channels learns to inpaint: random masks are drawn, and
    the masked picture and its mask (1 where to repaint) follow the noised picture.
    """

    def __init__(
        self,
        decoder: UNet2DConditionModel,
        text_proj: UnCLIPTextProjModel,
        *,
        empty: Conditioning,
        drops: Drops = Drops(),
        objective: Objective = Objective(),  # noqa: B008  frozen
    ) -> None:
        self.modules = nn.ModuleDict({"decoder": decoder, "text_proj": text_proj})
        self.empty, self.drops, self.objective = empty, drops, objective
        self.inpaints = decoder.config["in_channels"] == 7

    def loss(self, batch: DecoderBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The mean loss; logged apart for five bins of the noise level, low to high."""
        noised = self.objective.noised(batch.pixels, generator)
        sample, t = noised.x_t, noised.t
        case = torch.rand(len(t), generator=generator, device=t.device)
        drops = self.drops
        keep_image = case >= drops.both + drops.image
        keep_caption = (case >= drops.both) & (case < 1 - drops.caption)
        if self.inpaints:
            mask = random_masks(len(t), batch.pixels.shape[-2:], generator=generator)
            sample = torch.cat([sample, batch.pixels * (1 - mask), mask], dim=1)
        output = self.predict(sample, t, batch.condition.where(keep_caption, self.empty), keep_image).float()
        losses, _ = self.objective.losses(output, batch.pixels, noised)
        return losses.mean(), by_noise(losses.detach(), t, len(self.objective.alphas_cumprod))

    def predict(self, sample: Tensor, t: Tensor, condition: Conditioning, keep_image: Tensor) -> Tensor:
        """The network's output; where ``keep_image`` (b,) is False, text_proj's learned embedding is the picture's."""
        text_proj: UnCLIPTextProjModel = self.modules["text_proj"]  # type: ignore[assignment]
        assert condition.image_embed is not None
        no_image = text_proj.learned_classifier_free_guidance_embeddings
        states, time_embed = text_proj(
            image_embeddings=torch.where(keep_image[:, None], condition.image_embed, no_image),
            prompt_embeds=condition.text_embed,
            text_encoder_hidden_states=condition.text_states,
            do_classifier_free_guidance=False,
        )
        mask = torch.nn.functional.pad(condition.text_mask, (text_proj.clip_extra_context_tokens, 0), value=True)
        return self.modules["decoder"](
            sample, t, encoder_hidden_states=states, class_labels=time_embed, attention_mask=mask
        ).sample


def by_noise(error: Float[Tensor, "b"], t: Tensor, steps: int, *, bins: int = 5) -> dict[str, float]:
    which = t * bins // steps
    return {f"v{i}": error[which == i].mean().item() for i in range(bins) if (which == i).any()}
