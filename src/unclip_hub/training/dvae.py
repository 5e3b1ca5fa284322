"""The loss of DALL-E's discrete VAE (Ramesh et al. 2021, arXiv:2102.12092, section 2.1 and appendix A.2)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unclip_hub.models.dvae import DVAE, map_pixels


LIKELIHOODS = ("logit_laplace", "l2")
EXAMINED = 8  # pictures of a batch that are decoded once more, from their codes
# a mapped pixel's logit moves by at least this from one of its 256 levels to the next; a Laplace scale below half of
# it would be rewarded without end on flat pictures, and says nothing
SMALLEST_SCALE = 0.5 * 4 * 0.8 / 255


@dataclass
class DvaeBatch:
    """Pictures in [-1, 1], height and width divisible by 8. Nothing conditions them."""

    pixels: Float[Tensor, "b 3 h w"]


class DvaeTask:
    """The evidence bound of a dVAE whose codes are relaxed by Gumbel noise and a falling temperature.

    As in the paper the bound is divided by the number of pixels and colours, so the divergence of a code from the
    uniform prior, in nats, counts ``kl_weight / 192``.

    Args:
        micro_batches: of the whole run in this process; both schedules are parts of it, and count it themselves.
        kl_weight: beta at its highest.
        kl_ramp: over which part of the run beta rises from 0, along half a cosine.
        temperature: at its lowest; it is 1 at the start.
        temperature_ramp: over which part of the run it falls, likewise.
        likelihood: of the pixels. ``"logit_laplace"`` is the paper's (appendix A.3), in nats above those of the best
            scale for 256 levels, so never negative. ``"l2"`` is the squared error in [-1, 1], for which a much smaller
            ``kl_weight`` is fit; the decoder's log scales then learn nothing.

    Raises:
        ValueError: a number that no schedule can have, or an unknown likelihood.
    """

    def __init__(
        self,
        dvae: DVAE,
        *,
        micro_batches: int,
        kl_weight: float = 6.6,
        kl_ramp: float = 0.1,
        temperature: float = 1 / 16,
        temperature_ramp: float = 0.5,
        likelihood: str = "logit_laplace",
    ) -> None:
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
        if not (kl_weight >= 0 and 0 < temperature <= 1 and 0 <= kl_ramp <= 1 and 0 <= temperature_ramp <= 1):
            raise ValueError(
                "expected kl_weight >= 0, temperature in (0, 1] and both ramps in [0, 1], got "
                f"{kl_weight=}, {temperature=}, {kl_ramp=}, {temperature_ramp=}"
            )
        self.modules = nn.ModuleDict({"dvae": dvae, "progress": _Progress(micro_batches)})
        self.kl_weight, self.kl_ramp = kl_weight, kl_ramp
        self.temperature, self.temperature_ramp = temperature, temperature_ramp
        self.likelihood = likelihood

    def loss(self, batch: DvaeBatch, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The negative bound, up to a constant; logged beside it is what the codes alone are worth."""
        dvae: DVAE = self.modules["dvae"]  # type: ignore[assignment]
        progress = self.modules["progress"]()
        temperature = 1 + (self.temperature - 1) * _rise(progress, self.temperature_ramp)
        beta = self.kl_weight * _rise(progress, self.kl_ramp)
        logits = dvae.encode_logits(batch.pixels).float()
        noise = torch.empty_like(logits).exponential_(generator=generator).clamp(min=1e-20)
        relaxed = ((logits - noise.log()) / temperature).softmax(dim=1)
        statistics = dvae.decode_statistics(relaxed).float()
        logs = logits.log_softmax(dim=1)
        kl = (logs.exp() * logs).sum(dim=1).mean() + math.log(dvae.vocab_size)
        reconstruction = self._reconstruction(statistics, batch.pixels)
        pixels_per_code = batch.pixels[0].numel() / logits[0, 0].numel()  # 8 * 8 * 3
        value = reconstruction + beta / pixels_per_code * kl
        stats = {"reconstruction": reconstruction.item(), "kl": kl.item(), "temperature": temperature}
        return value, stats | _worth(dvae, batch.pixels, logits.detach().argmax(dim=1))

    def _reconstruction(self, statistics: Float[Tensor, "b 6 h w"], pixels: Float[Tensor, "b 3 h w"]) -> Tensor:
        """Per pixel and colour."""
        mean, log_scale = statistics.chunk(2, dim=1)
        if self.likelihood == "l2":
            # not `unmap_pixels`, whose clamp would hold back the gradient
            return ((mean.sigmoid() - map_pixels(pixels)) / 0.4).square().mean() + 0 * log_scale.sum()
        scale = log_scale.exp() + SMALLEST_SCALE
        distance = (torch.logit(map_pixels(pixels)) - mean).abs() / scale
        return ((scale / SMALLEST_SCALE).log() + distance).mean()


class _Progress(nn.Module):
    """Which part of the run is over, 0 to 1; counted in a buffer, so that a checkpoint holds it."""

    seen: Tensor

    def __init__(self, micro_batches: int) -> None:
        super().__init__()
        self.total = micro_batches
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self) -> float:
        part = min(1.0, self.seen.item() / self.total)
        if self.training and torch.is_grad_enabled():
            self.seen += 1
        return part


def _rise(progress: float, ramp: float) -> float:
    """From 0 to 1 over the first part of the run, along half a cosine."""
    part = min(1.0, progress / ramp) if ramp else 1.0
    return (1 - math.cos(math.pi * part)) / 2


@torch.no_grad()
def _worth(dvae: DVAE, pixels: Float[Tensor, "b 3 h w"], codes: Int[Tensor, "b gh gw"]) -> dict[str, float]:
    """The squared error of pictures decoded from codes, in [-1, 1], and how many codes the batch has."""
    error = (dvae.decode(codes[:EXAMINED]).float() - pixels[:EXAMINED]).square().mean()
    share = F.one_hot(codes.flatten(), dvae.vocab_size).float().mean(dim=0)
    entropy = -torch.special.xlogy(share, share).sum()
    return {"error": error.item(), "perplexity": entropy.exp().item(), "codes": float((share > 0).sum())}
