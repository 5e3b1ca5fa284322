"""How an autoregressive prior makes up its mind: pictures decoded after 1, 2, 4, ... of its codes were drawn.

    python examples/ar_ladder.py --model runs/autoregressive/model --output ar_ladder.png

The codes are principal components of the CLIP image embedding, the strongest first (Ramesh et al. 2022, section 2.2);
those that are not drawn yet are the mean's. A row is a caption; its codes and the decoder's noise are the same in all
of its pictures, and the last has all codes. Without --model a prior is trained first, on rendered scenes, which takes
a few minutes.
"""

from pathlib import Path

import click
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.cli import main as unclip
from unclip_hub.data.scene_spec import Scope
from unclip_hub.data.scenes import dataset
from unclip_hub.data.sprites import build_bank
from unclip_hub.images import grid, to_pil
from unclip_hub.models.ar_prior import AutoregressivePrior


FAST = ["--scenes", "16", "--train-steps", "2", "--count", "1", "--steps", "1", "--run", "run"]


@click.command(help=__doc__)
@click.option("--model", metavar="FOLDER_OR_REPO", help="A model with an autoregressive prior.")
@click.option("--count", type=click.IntRange(1, 16), default=5, show_default=True, help="Captions.")
@click.option("--steps", type=click.IntRange(1), help="Of the decoder, by default the model's own.")
@click.option("--seed", default=0, show_default=True)
@click.option("--scenes", type=click.IntRange(16), default=10_000, show_default=True, help="To train on.")
@click.option("--train-steps", type=click.IntRange(1), default=1000, show_default=True)
@click.option(
    "--run", type=click.Path(path_type=Path), default="ar_prior", show_default=True, help="Folder to train in."
)
@click.option("--output", type=click.Path(path_type=Path), default="ar_ladder.png", show_default=True)
def main(
    model: str | None,
    count: int,
    steps: int | None,
    seed: int,
    scenes: int,
    train_steps: int,
    run: Path,
    output: Path,
) -> None:
    pipe = UnCLIPPipeline.from_pretrained(model or str(trained(run, scenes=scenes, steps=train_steps)))
    prior = pipe.prior
    if not isinstance(prior, AutoregressivePrior):
        raise click.UsageError(f"{model} has a {type(prior).__name__}: expected a model with an autoregressive prior")
    pipe = UnCLIPPipeline(**pipe.components | {"super_res_first": None})
    pipe.set_progress_bar_config(disable=True)
    rungs = [2**i for i in range(prior.num_components.bit_length()) if 2**i < prior.num_components]
    rungs.append(prior.num_components)

    scope = Scope(variants=2)
    held_out = dataset(count, seed=seed, scope=scope, bank=build_bank(scope.nouns), split="held_out", captions=1)
    rows: list[Image.Image] = []
    for i, (caption,) in enumerate(held_out.captions):
        noise = [torch.Generator().manual_seed(seed + i) for _ in rungs]
        made = pipe(
            caption,
            image_embeds=guesses(pipe, caption, rungs, seed=seed + i),
            num_images_per_prompt=len(rungs),
            decoder_num_inference_steps=steps,
            generator=noise,
            output_type="pt",
        ).images
        rows += to_pil(made * 2 - 1)
        click.echo(caption)
    grid([row.resize((96, 96), Image.Resampling.NEAREST) for row in rows], len(rungs)).save(output)
    click.echo(f"{output}: after {', '.join(map(str, rungs))} codes")


@torch.no_grad()
def guesses(pipe: UnCLIPPipeline, caption: str, rungs: list[int], *, seed: int) -> Float[Tensor, "r d"]:
    """The embedding of one and the same sample after so many codes."""
    cond = pipe.encode_text(caption)
    seeds = [torch.Generator().manual_seed(seed) for _ in rungs]
    drawn = [pipe.sample_prior(cond, generator=one, components=k) for one, k in zip(seeds, rungs, strict=True)]
    return torch.cat(drawn)


def trained(run: Path, *, scenes: int, steps: int) -> Path:
    """A model with an autoregressive prior for the bundled model's CLIP."""
    cached = run / "embeddings"
    unclip(["embed", f"scenes:64:{scenes}", "--output", str(cached), "--quiet"], standalone_mode=False)
    settings = {"batch": min(256, scenes), "train.steps": steps, "train.warmup": min(100, steps)}
    settings |= {"train.log_every": min(50, steps), "train.tracker": "none"}
    changes = [text for name, value in settings.items() for text in ("--set", f"{name}={value}")]
    arguments = ["--kind", "autoregressive", "--data", str(cached), "--base", BUNDLED_MODEL, "--proof-steps", "0"]
    unclip(["train", "prior", *arguments, "--output", str(run), *changes], standalone_mode=False)
    return run / "model"


if __name__ == "__main__":
    main()
