"""Train the detector that `adherence.py` asks for a second opinion: on real renders alone, in minutes.

    python benchmarks/train_detector.py --icons icons.json

Writes `benchmarks/scene_detector.safetensors` and prints how often it is right on renders that it has not seen, as
they are and blurred, the ceiling of whatever it says of a model.
"""

import time
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unclip_hub.data.scene_spec import CPU
from unclip_hub.data.scenes import Scene, dataset, render, sample_scene
from unclip_hub.data.sprites import SpriteBank, build_bank
from unclip_hub.evaluation.scene_detector import SceneDetector, labels, right
from unclip_hub.evaluation.sprite_matching import wilson
from unclip_hub.training.world import as_pixels


WEIGHTS = Path(__file__).parent / "scene_detector.safetensors"


@click.command(help=__doc__)
@click.option("--icons", type=click.Path(path_type=Path), help="icons.json of Noto Emoji.")
@click.option("--cache", type=click.Path(path_type=Path), help="Rendered emoji (.npz), instead of --icons.")
@click.option("--steps", default=1_500, show_default=True)
@click.option("--batch", default=48, show_default=True)
@click.option("--lr", default=2e-3, show_default=True)
@click.option("--checked", default=600, show_default=True, help="Renders that it is checked on.")
@click.option("--output", type=click.Path(path_type=Path), default=WEIGHTS)
def main(icons, cache, steps, batch, lr, checked, output) -> None:
    bank = build_bank(CPU.nouns, icons=icons, cache=cache, canvases=(64,))
    torch.manual_seed(0)
    model, generator, started = SceneDetector(), torch.Generator().manual_seed(0), time.monotonic()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        scenes = _scenes(np.random.default_rng([11, step]), batch)
        nouns, hues = model(worsened(_pixels(scenes, bank), generator))
        wanted = labels(scenes)
        loss = F.cross_entropy(nouns, wanted.nouns) + F.cross_entropy(hues, wanted.hues)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  loss {loss.item():.4f}  seconds {time.monotonic() - started:.0f}", flush=True)
    model.eval().save(output)
    held_out = dataset(checked, seed=12, scope=CPU, bank=bank, split="held_out", captions=1)
    pixels = as_pixels(held_out.pictures)
    for name, pictures in {"as they are": pixels, "blurred and noisy": worsened(pixels, generator)}.items():
        seen = SceneDetector.load(output).see(pictures)
        verdicts = [right(kinds, scene) for kinds, scene in zip(seen, held_out.scenes, strict=True)]
        for what in ("object", "object and colour"):
            rate = wilson(sum(verdict[what] for verdict in verdicts), checked)
            print(f"{what}, {name}: {rate.rate:.3f} [{rate.low:.3f}, {rate.high:.3f}], n {rate.n}")


def worsened(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to 2 px, blurred or not, noisy, lighter or darker: pictures as a generator makes them."""
    b = len(pixels)
    dx, dy = torch.randint(-2, 3, (2,), generator=generator).tolist()
    padded = F.pad(pixels, (2, 2, 2, 2), mode="replicate")
    shifted = padded[..., 2 + dy : 66 + dy, 2 + dx : 66 + dx]
    blurred = F.avg_pool2d(F.pad(shifted, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    amount, noise, light = (torch.rand(b, 1, 1, 1, generator=generator) for _ in range(3))
    mixed = shifted + amount * (blurred - shifted)
    noisy = mixed + 0.1 * noise * torch.randn(mixed.shape, generator=generator)
    return (noisy + 0.1 * (light - 0.5)).clamp(-1, 1)


def _scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes of both splits: it has to name what the model was not trained on."""
    return [sample_scene(rng, CPU, split="held_out" if rng.random() < 0.3 else "train") for _ in range(count)]


def _pixels(scenes: list[Scene], bank: SpriteBank) -> Tensor:
    return as_pixels(np.stack([render(scene, size=64, bank=bank) for scene in scenes]))


if __name__ == "__main__":
    main()
