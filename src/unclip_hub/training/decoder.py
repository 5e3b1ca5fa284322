"""The loss of the decoder (Ramesh et al. 2022, section 2.1): a picture from its CLIP image embedding and caption."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.diffusion import cosine_alphas_cumprod
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.training.velocity import noised, x0_error


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


class DecoderTask:
    """Velocity loss ||v - v̂||², whichever of x_0, eps and v the network predicts (Salimans & Ho 2022, section 4).

    A withheld caption is the empty caption, a withheld image embedding text_proj's learned one.
    """

    def __init__(
        self,
        decoder: UNet2DConditionModel,
        text_proj: UnCLIPTextProjModel,
        *,
        empty: Conditioning,
        prediction_type: str = "sample",
        drops: Drops = Drops(),
        min_noise: float = 0.2,
    ) -> None:
        self.modules = nn.ModuleDict({"decoder": decoder, "text_proj": text_proj})
        self.empty, self.prediction_type, self.drops = empty, prediction_type, drops
        self.min_noise = min_noise  # bounds the weight 1 / sigma² of the x_0 error where sigma goes to 0
        self.alphas_cumprod = cosine_alphas_cumprod()

    def loss(self, batch: DecoderBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Velocity loss; logged apart for five bins of the noise level, low to high."""
        x_t, t, abar = noised(batch.pixels, self.alphas_cumprod, generator=generator)
        case = torch.rand(len(x_t), generator=generator, device=x_t.device)
        drops = self.drops
        keep_image = case >= drops.both + drops.image
        keep_caption = (case >= drops.both) & (case < 1 - drops.caption)
        output = self._forward(x_t, t, batch.condition.where(keep_caption, self.empty), keep_image).float()
        error, weight = x0_error(
            output,
            x_t,
            batch.pixels,
            abar=abar,
            prediction_type=self.prediction_type,
            min_noise=self.min_noise,
        )
        velocity = error * weight
        return velocity.mean(), _by_noise(velocity.detach(), t, len(self.alphas_cumprod))

    def _forward(self, x_t: Tensor, t: Tensor, condition: Conditioning, keep_image: Tensor) -> Tensor:
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
            x_t, t, encoder_hidden_states=states, class_labels=time_embed, attention_mask=mask
        ).sample


def _by_noise(error: Float[Tensor, "b"], t: Tensor, steps: int, *, bins: int = 5) -> dict[str, float]:
    which = t * bins // steps
    return {f"v{i}": error[which == i].mean().item() for i in range(bins) if (which == i).any()}
