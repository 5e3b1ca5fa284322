"""What a network in training makes of a few pictures that stay the same from checkpoint to checkpoint."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unclip_hub.images import grid, resize, to_pil
from unclip_hub.models.dvae import DVAE
from unclip_hub.sampling import Predict, denoise
from unclip_hub.training.decoder import DecoderBatch, DecoderTask
from unclip_hub.training.dvae import DvaeBatch
from unclip_hub.training.upsampler import UpsamplerBatch


STEPS = 12


SHOWN = 8  # pictures


def decoder_samples(task: DecoderTask, batch: DecoderBatch, scheduler: Any) -> list[Tensor]:
    """The true pictures, and what the decoder paints from their embeddings and captions."""
    pixels, condition = batch.pixels[:SHOWN], batch.condition.take(SHOWN)
    keep = torch.ones(len(pixels), dtype=torch.bool, device=pixels.device)
    painted = _sampled(lambda x, t: task.predict(x, t.expand(len(x)), condition, keep), pixels, scheduler)
    return [pixels, painted]


def upsampler_samples(network: nn.Module, batch: UpsamplerBatch, scheduler: Any) -> list[Tensor]:
    """The small pictures, what the upsampler makes of them, and the true large ones."""
    pixels = batch.pixels[:SHOWN]
    low = resize(batch.low[:SHOWN], pixels.shape[-2:])
    made = _sampled(lambda x, t: network(torch.cat([x, low], dim=1), t).sample, pixels, scheduler)
    return [low, made, pixels]


@torch.no_grad()
def dvae_samples(dvae: DVAE, batch: DvaeBatch) -> list[Tensor]:
    """The true pictures, and what is decoded from their codes."""
    pixels = batch.pixels[:SHOWN]
    return [pixels, dvae.decode(dvae.encode(pixels))]


def save_rows(rows: list[Tensor], path: Path) -> None:
    """Batches of pictures in [-1, 1] as rows of one PNG."""
    images = [image for row in rows for image in to_pil(row)]
    grid(images, columns=len(rows[0])).save(path)


@torch.no_grad()
def _sampled(predict: Predict, like: Tensor, scheduler: Any) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(0)
    scheduler.set_timesteps(STEPS, device=like.device)
    noise = torch.randn(like.shape, generator=generator, device=like.device)
    return denoise(lambda x, t: predict(x, t).float(), noise, scheduler, generator=generator).clamp(-1, 1)
