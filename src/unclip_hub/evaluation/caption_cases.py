"""What a report card is measured on: captions, several pictures of each, and pictures of what each does not say."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unclip_hub.data.backgrounds import VARIANTS
from unclip_hub.data.captioned import Sample
from unclip_hub.data.pictures import open_picture
from unclip_hub.data.scene_spec import Scene, Scope, swap, swappable
from unclip_hub.data.scenes import render
from unclip_hub.data.sprites import SpriteBank
from unclip_hub.evaluation.priors import Swapped, Truth


Encode = Callable[[list[Image.Image]], Float[Tensor, "b d"]]


@dataclass(frozen=True)
class Cases:
    """n captions and ``count`` different pictures, which the other attributes name by their numbers.

    Attributes:
        picture: makes a picture.
        groups: captions that mean the same have the same number.
        pictures: of each caption, the first being the one that it was written to.
        others: further ones of each caption; none where the data has one picture of each.
        swapped: by attribute, (caption, its picture, that picture with the attribute swapped).
    """

    captions: list[str]
    count: int
    picture: Callable[[int], Image.Image]
    groups: list[int]
    pictures: list[list[int]]
    others: list[list[int]] | None = None
    swapped: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)


def scene_cases(
    scenes: Sequence[Scene],
    captions: Sequence[str],
    *,
    scope: Scope,
    bank: SpriteBank,
    size: int,
    samples: int,
    seed: int = 0,
) -> Cases:
    """Captions of procedural scenes, ``samples`` and again ``samples`` pictures of each, and every possible swap.

    A caption says all but the variant of its background: its pictures are the scene in variants drawn evenly from
    those in ``scope``, so of a plain background they are all the same picture, and their variance is 0. A swap has the
    variant of the first picture, so that nothing else differs.
    """
    rng = np.random.default_rng([seed, 0])
    numbers: dict[Scene, int] = {}

    def number(scene: Scene) -> int:
        return numbers.setdefault(scene, len(numbers))

    pictures, others = [], []
    swapped: dict[str, list[tuple[int, int, int]]] = {}
    for index, scene in enumerate(scenes):
        choices = min(scope.variants, VARIANTS[scene.background])
        drawn = [number(replace(scene, variant=int(v))) for v in rng.integers(choices, size=2 * samples - 1)]
        pictures.append([number(scene), *drawn[: samples - 1]])
        others.append(drawn[samples - 1 :])
        for attribute in swappable(scene, scope=scope):
            other = swap(scene, rng, scope=scope, split=None, attribute=attribute)
            swapped.setdefault(attribute, []).append((index, number(scene), number(other)))
    kinds: dict[object, int] = {}
    groups = [kinds.setdefault((scene.background, frozenset(scene.slots)), len(kinds)) for scene in scenes]
    every = list(numbers)

    def picture(i: int) -> Image.Image:
        return Image.fromarray(render(every[i], size=size, bank=bank))

    return Cases(list(captions), len(every), picture, groups, pictures, others, swapped)


def photo_cases(samples: Sequence[Sample]) -> Cases:
    """Any captioned pictures, each with its first caption; those with the same caption mean the same."""
    captions = [sample.captions[0] for sample in samples]
    kinds: dict[str, int] = {}
    groups = [kinds.setdefault(caption, len(kinds)) for caption in captions]

    def picture(i: int) -> Image.Image:
        return open_picture(samples[i])

    return Cases(captions, len(samples), picture, groups, [[i] for i in range(len(samples))])


@torch.no_grad()
def embed(cases: Cases, encode: Encode, *, batch: int) -> Truth:
    """The image embeddings of all pictures, ``batch`` at a time, in float32, where ``encode`` leaves them."""
    every = range(cases.count)
    chunks = (every[at : at + batch] for at in range(0, cases.count, batch))
    embeds = torch.cat([encode([cases.picture(i) for i in chunk]) for chunk in chunks]).float()

    def rows(numbers: Sequence[int]) -> Tensor:
        return embeds[torch.tensor(numbers, device=embeds.device)]

    return Truth(
        pictures=torch.stack([rows(several) for several in cases.pictures]),
        groups=torch.tensor(cases.groups, device=embeds.device),
        others=None if cases.others is None else torch.stack([rows(several) for several in cases.others]),
        swapped={
            attribute: Swapped(
                rows=torch.tensor([row for row, _, _ in found], device=embeds.device),
                own=rows([own for _, own, _ in found]),
                other=rows([other for _, _, other in found]),
            )
            for attribute, found in cases.swapped.items()
        },
    )
