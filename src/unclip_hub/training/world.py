"""The procedural scenes as training data: drawn once, then batches by step number."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import CLIPTokenizer

from unclip_hub.data.scene_spec import Kind, Scene, Scope, sample_scene, swap
from unclip_hub.data.scenes import caption, covered_cells, render
from unclip_hub.data.sprites import SpriteBank
from unclip_hub.training.clip import ClipBatch


@dataclass(frozen=True)
class World:
    """Pictures of one scope at 64 px; ``scenes`` is what each shows."""

    scope: Scope
    bank: SpriteBank
    pictures: UInt8[np.ndarray, "n 64 64 3"]
    scenes: list[Scene]

    def __len__(self) -> int:
        return len(self.pictures)

    def pixels(self, indices: Sequence[int] | np.ndarray) -> Float[Tensor, "b 3 64 64"]:
        """Pictures in [-1, 1]."""
        return as_pixels(self.pictures[indices])

    def captions_of(self, indices: Sequence[int] | np.ndarray, rng: np.random.Generator) -> list[str]:
        """A new caption of each picture."""
        return [caption(self.scenes[i], rng) for i in indices]


def draw_world(count: int, *, scope: Scope, bank: SpriteBank, cache: Path, seed: int = 0) -> World:
    """``count`` training scenes; pictures are kept in ``cache`` and read from there the next time.

    Raises:
        ValueError: ``cache`` holds pictures of other scenes.
    """
    rng = np.random.default_rng([seed, 0, False])
    scenes = [sample_scene(rng, scope) for _ in range(count)]
    drawn, said = cache / "pictures.npy", cache / "scenes.json"
    asked = json.loads(json.dumps({"count": count, "seed": seed, "scope": asdict(scope)}))
    if not said.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(drawn, np.stack([render(scene, size=64, bank=bank) for scene in scenes]))
        said.write_text(json.dumps(asked, indent=1) + "\n")
    elif (there := json.loads(said.read_text())) != asked:
        raise ValueError(f"{cache} holds pictures of {there}, expected of {asked}: choose another folder")
    return World(scope, bank, np.load(drawn, mmap_mode="r"), scenes)


def as_pixels(pictures: UInt8[np.ndarray, "b h w 3"]) -> Float[Tensor, "b 3 h w"]:
    """uint8 pictures as [-1, 1] NCHW."""
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def token_ids(captions: Sequence[str], tokenizer: CLIPTokenizer) -> Int[Tensor, "b l"]:
    """Captions padded to the tokenizer's context."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


def clip_batch(
    world: World, step: int, *, size: int, negatives: int, patches: int, tokenizer: CLIPTokenizer, seed: int
) -> ClipBatch:
    """Pictures, captions and, per picture, ``negatives`` captions of scenes that differ in one attribute."""
    indices = np.random.default_rng([seed, step, 0]).integers(len(world), size=size)
    ids, negative_ids = _worded(world, indices, [seed, step, 1], negatives=negatives, tokenizer=tokenizer)
    scenes = [world.scenes[i] for i in indices]
    return ClipBatch(
        pixels=world.pixels(indices),
        ids=ids,
        negative_ids=negative_ids,
        patch_labels=torch.stack([_patch_labels(scene, world.bank.kinds, patches) for scene in scenes]),
        scene_labels=torch.tensor([world.scope.backgrounds.index(scene.background) for scene in scenes]),
    )


def text_batch(
    world: World,
    step: int,
    *,
    image_embeds: Float[Tensor, "n d"],
    size: int,
    negatives: int,
    tokenizer: CLIPTokenizer,
    seed: int,
) -> ClipBatch:
    """As `clip_batch`, with embeddings, those of the first n pictures, instead of pictures."""
    indices = np.random.default_rng([seed, step, 0]).integers(len(image_embeds), size=size)
    ids, negative_ids = _worded(world, indices, [seed, step, 1], negatives=negatives, tokenizer=tokenizer)
    return ClipBatch(pixels=None, ids=ids, negative_ids=negative_ids, image_embeds=image_embeds[indices])


def _worded(
    world: World, indices: np.ndarray, seed: list[int], *, negatives: int, tokenizer: CLIPTokenizer
) -> tuple[Int[Tensor, "b l"], Int[Tensor, "bk l"]]:
    """A new caption of each picture, and captions of scenes that differ from it in one attribute."""
    rng = np.random.default_rng(seed)
    scenes = [world.scenes[i] for i in indices]
    wrong = [caption(swap(scene, rng, scope=world.scope), rng) for scene in scenes for _ in range(negatives)]
    ids = token_ids(world.captions_of(indices, rng) + wrong, tokenizer)
    ids = ids[:, : ids.ne(len(tokenizer) - 1).sum(1).max() + 1]  # the end token pads: its first one must stay
    return ids[: len(indices)], ids[len(indices) :]


def _patch_labels(scene: Scene, kinds: tuple[Kind, ...], patches: int) -> Int[Tensor, "p"]:
    """For each cell of a ``patches`` × ``patches`` grid the kind of thing on its centre, from 1; 0 is background."""
    numbers = np.array([0, *(kinds.index(kind) + 1 for kind, _, _, _ in scene.slots)])
    return torch.from_numpy(numbers[covered_cells(scene, cells=patches)].ravel())
