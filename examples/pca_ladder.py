"""What a CLIP embedding holds, from the coarse to the fine: pictures decoded from 1, 2, 4, ... principal components.

    python examples/pca_ladder.py --output ladder.png

Figure 7 of the unCLIP paper (Ramesh et al. 2022, section 4), there with 20 to 320 of 1,024 components. The components
are those of rendered training scenes, the decoder's noise is the same in every picture of a row, and the last column
is the scene itself.
"""

from pathlib import Path

import click
import torch
from PIL import Image

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.data.scene_spec import Scope
from unclip_hub.data.scenes import dataset
from unclip_hub.data.sprites import build_bank
from unclip_hub.embeddings import PCA
from unclip_hub.images import grid, to_pil


FAST = ["--scenes", "40", "--count", "1", "--steps", "1"]
RUNGS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@click.command(help=__doc__)
@click.option("--model", default=BUNDLED_MODEL, help="Folder or repository.", show_default=False)
@click.option("--scenes", type=click.IntRange(2), default=1000, show_default=True, help="To find the components from.")
@click.option("--count", type=click.IntRange(1, 16), default=5, show_default=True, help="Pictures.")
@click.option("--steps", type=click.IntRange(1), help="Of the decoder, by default the model's own.")
@click.option("--seed", default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), default="pca_ladder.png", show_default=True)
@torch.no_grad()
def main(model: str, scenes: int, count: int, steps: int | None, seed: int, output: Path) -> None:
    pipe = UnCLIPPipeline.from_pretrained(model)
    pipe = UnCLIPPipeline(**pipe.components | {"super_res_first": None})
    scope = Scope(variants=2)
    bank = build_bank(scope.nouns)
    known = dataset(scenes, seed=seed, scope=scope, bank=bank, captions=1)
    pca = PCA.fit(torch.cat([pipe.encode_image(known.pictures[i : i + 100] / 255) for i in range(0, scenes, 100)]))
    width = len(pca.mean)
    rungs = [k for k in RUNGS if k < width] + [width]
    shares = pca.eigenvalues.cumsum(0) / pca.eigenvalues.sum()
    for k in rungs:
        click.echo(f"{k:5} components hold {shares[k - 1]:.1%} of the variance")

    shown = dataset(count, seed=seed, scope=scope, bank=bank, split="held_out", captions=1).pictures
    coordinates = pca.transform(pipe.encode_image(shown / 255))
    rows: list[Image.Image] = []
    for i in range(count):
        embeds = torch.cat([pca.inverse(coordinates[i : i + 1, :k]) for k in rungs]).float()
        noise = [torch.Generator().manual_seed(seed + i) for _ in rungs]
        made = pipe("", image_embeds=embeds, num_images_per_prompt=len(rungs), generator=noise,
                    decoder_num_inference_steps=steps, output_type="pt").images  # fmt: skip
        rows += [*to_pil(made * 2 - 1), Image.fromarray(shown[i])]
    grid([row.resize((96, 96), Image.Resampling.NEAREST) for row in rows], len(rungs) + 1).save(output)
    click.echo(output)


if __name__ == "__main__":
    main()
