"""The bundled model from nothing: ``python -m unclip_hub.training.bundled --output runs/bundled --icons icons.json``.

Stages run in order and resume where they stopped; each leaves averaged weights in ``OUTPUT/<stage>/ema.pt``.
``icons.json`` is that of Noto Emoji (npm package @iconify-json/noto), whose pictures are Apache-2.0.
"""

from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from unclip_hub.conditioning import Conditioning
from unclip_hub.data.scene_spec import CPU, Scope
from unclip_hub.data.sprites import build_bank
from unclip_hub.hub.layout import write_index
from unclip_hub.schedulers.unclip import UnCLIPScheduler
from unclip_hub.training.clip import ClipTask
from unclip_hub.training.decoder import DecoderBatch, DecoderTask
from unclip_hub.training.loop import TrainConfig, train
from unclip_hub.training.presets import (
    context_length,
    new_decoder,
    new_image_encoder,
    new_prior,
    new_text_encoder,
    new_upsampler,
)
from unclip_hub.training.prior import PriorBatch, PriorTask, set_statistics
from unclip_hub.training.tokenizer import train_tokenizer
from unclip_hub.training.upsampler import UpsamplerTask
from unclip_hub.training.world import clip_batch, draw_world, upsampler_batch


PRESET = "tiny"
STAGES = ("clip", "decoder", "prior", "upsampler", "export")


@dataclass(frozen=True)
class Recipe:
    """Sizes, steps and learning rates of the bundled model; times are of two cores of a CPU with bf16 instructions."""

    scope: Scope = CPU
    pictures: int = 100_000
    # 8 minutes: 128,000 pairs
    clip: TrainConfig = TrainConfig(steps=1_000, lr=1e-3, warmup=60, weight_decay=0.05, betas=(0.9, 0.98), ema=0.99)
    clip_batch: int = 128
    # 60 minutes: 384,000 views
    decoder: TrainConfig = TrainConfig(steps=12_000, lr=8e-4, ema=0.999)
    decoder_batch: int = 32
    decoder_widths: tuple[int, ...] = (96, 160)
    # 4 minutes: 256,000 embeddings
    prior: TrainConfig = TrainConfig(steps=1_000, lr=1e-3, ema=0.995)
    prior_batch: int = 256
    # 4 minutes: 24,000 crops
    upsampler: TrainConfig = TrainConfig(steps=1_500, lr=1e-3, ema=0.995)
    upsampler_batch: int = 16
    upsampler_crop: int = 128
    sampling_defaults: dict[str, float] = field(
        default_factory=lambda: {
            "prior_num_inference_steps": 12,
            "decoder_num_inference_steps": 12,
            "super_res_num_inference_steps": 6,
            "prior_guidance_scale": 1.5,
            "decoder_guidance_scale": 3.0,
        }
    )


class Build:
    """One build of the bundled model in a folder: its data, its stages, its networks as far as they are trained."""

    def __init__(self, recipe: Recipe, *, output: Path, icons: Path | None) -> None:
        self.recipe, self.output = recipe, output
        bank = build_bank(recipe.scope.nouns, icons=icons, cache=output / "emoji.npz")
        self.world = draw_world(recipe.pictures, scope=recipe.scope, bank=bank, cache=output / "world")
        self.tokenizer = self._tokenizer()

    def clip(self) -> None:
        """Both CLIP encoders, and the image embedding of every picture."""
        torch.manual_seed(0)
        recipe, world = self.recipe, self.world
        text_encoder = new_text_encoder(PRESET, vocab_size=len(self.tokenizer))
        image_encoder = new_image_encoder(PRESET)
        for encoder in (
            text_encoder,
            image_encoder,
        ):  # short sequences: on a CPU 2.7 times as fast as the fused kernel
            encoder.set_attn_implementation("eager")
        task = ClipTask(
            text_encoder,
            image_encoder,
            patch_classes=len(world.bank.kinds) + 1,
            scene_classes=len(recipe.scope.backgrounds),
        )

        def batch(step: int):
            return clip_batch(
                world, step, size=recipe.clip_batch, negatives=2, patches=8, tokenizer=self.tokenizer, seed=1
            )

        train(task, batch, recipe.clip, output=self.output / "clip")

    def decoder(self) -> None:
        """The 64 px decoder and text_proj."""
        torch.manual_seed(1)
        decoder, text_proj = new_decoder(PRESET, block_out_channels=self.recipe.decoder_widths)
        decoder.set_attention_backend("_native_math")  # likewise: 1.2 times as fast
        embeds, encoder = self.image_embeds(), self.text_encoder()

        def batch(step: int) -> DecoderBatch:
            rng = np.random.default_rng([2, step])
            indices = rng.integers(len(self.world), size=self.recipe.decoder_batch)
            caption = self._encode(encoder, self.world.captions_of(indices, rng))
            return DecoderBatch(self.world.pixels(indices), caption.with_image(embeds[indices]))

        task = DecoderTask(decoder, text_proj, empty=self._encode(encoder, [""]))
        train(task, batch, self.recipe.decoder, output=self.output / "decoder")

    def prior(self) -> None:
        """The diffusion prior, with the statistics of the image embeddings."""
        torch.manual_seed(2)
        embeds, encoder = self.image_embeds(), self.text_encoder()
        prior = new_prior(PRESET)
        prior.set_attention_backend("_native_math")
        set_statistics(prior, embeds)

        def batch(step: int) -> PriorBatch:
            rng = np.random.default_rng([3, step])
            indices = rng.integers(len(self.world), size=self.recipe.prior_batch)
            return PriorBatch(embeds[indices], self._encode(encoder, self.world.captions_of(indices, rng)))

        task = PriorTask(prior, empty=self._encode(encoder, [""]))
        train(task, batch, self.recipe.prior, output=self.output / "prior")

    def upsampler(self) -> None:
        """The 64 → 256 px upsampler."""
        torch.manual_seed(3)
        recipe = self.recipe

        def batch(step: int):
            return upsampler_batch(self.world, step, size=recipe.upsampler_batch, crop=recipe.upsampler_crop, seed=4)

        train(UpsamplerTask(new_upsampler(PRESET)), batch, recipe.upsampler, output=self.output / "upsampler")

    def export(self) -> None:
        """All stages as a folder that ``UnCLIPPipeline.from_pretrained`` opens: ``OUTPUT/model``, fp16 on disk."""
        folder, recipe = self.output / "model", self.recipe
        decoder, text_proj = new_decoder(PRESET, block_out_channels=recipe.decoder_widths)
        models = {
            "text_encoder": self.text_encoder(),
            "image_encoder": self.image_encoder(),
            "prior": _frozen(new_prior(PRESET), self._averaged("prior", "prior")),
            "decoder": _frozen(decoder, self._averaged("decoder", "decoder")),
            "text_proj": _frozen(text_proj, self._averaged("decoder", "text_proj")),
            "super_res_first": _frozen(new_upsampler(PRESET), self._averaged("upsampler", "upsampler")),
        }
        for name, model in models.items():
            model.half().save_pretrained(folder / name)
        others = {
            "tokenizer": self.tokenizer,
            "feature_extractor": new_feature_extractor(),
            "prior_scheduler": new_scheduler(clip_sample_range=5.0),
            "decoder_scheduler": new_scheduler(clip_sample_range=1.0),
            "super_res_scheduler": new_scheduler(clip_sample_range=1.0),
        }
        for name, part in others.items():
            part.save_pretrained(folder / name)
        write_index(
            folder,
            "UnCLIPPipeline",
            components={
                name: (type(part).__module__.partition(".")[0], type(part).__name__)
                for name, part in (models | others).items()
            },
            config={"sampling_defaults": recipe.sampling_defaults},
        )

    # what later stages read of earlier ones

    def text_encoder(self) -> CLIPTextModelWithProjection:
        """The trained text encoder, frozen."""
        encoder = new_text_encoder(PRESET, vocab_size=len(self.tokenizer))
        return _frozen(encoder, self._averaged("clip", "text_encoder"))

    def image_encoder(self) -> CLIPVisionModelWithProjection:
        """The trained image encoder, frozen."""
        return _frozen(new_image_encoder(PRESET), self._averaged("clip", "image_encoder"))

    @torch.no_grad()
    def image_embeds(self) -> Tensor:
        """The CLIP image embedding of every picture, computed once."""
        path = self.output / "clip" / "image_embeds.npy"
        if not path.exists():
            encoder, chunks = (
                self.image_encoder(),
                np.array_split(np.arange(len(self.world)), len(self.world) // 256 + 1),
            )
            embeds = torch.cat([encoder(self.world.pixels(indices)).image_embeds for indices in chunks])
            np.save(path, embeds.numpy())
        return torch.from_numpy(np.load(path))

    @torch.no_grad()
    def _encode(self, encoder: CLIPTextModelWithProjection, captions: list[str]) -> Conditioning:
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        output = encoder(tokens.input_ids)
        return Conditioning(output.text_embeds, output.last_hidden_state, tokens.attention_mask.bool())

    def _tokenizer(self) -> CLIPTokenizer:
        folder = self.output / "tokenizer"
        if not (folder / "tokenizer.json").exists():
            captions = (caption for several in self.world.captions[:20_000] for caption in several)
            train_tokenizer(captions, context_length=context_length(PRESET)).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)

    def _averaged(self, stage: str, module: str) -> dict[str, Tensor]:
        path = self.output / stage / "ema.pt"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the stage {stage!r} first")
        prefix = module + "."
        state = torch.load(path, weights_only=True)
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def new_feature_extractor() -> CLIPImageProcessorPil:
    """Pictures of any size to the image encoder's 64 px in [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def new_scheduler(*, clip_sample_range: float) -> UnCLIPScheduler:
    """The ancestral sampler for networks that predict x_0."""
    return UnCLIPScheduler(prediction_type="sample", clip_sample_range=clip_sample_range)


def _frozen(module, state: dict[str, Tensor]):
    module.load_state_dict(state)
    return module.eval().requires_grad_(False)


@click.command(help=__doc__)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="Folder of the build; runs resume in it."
)
@click.option("--icons", type=click.Path(path_type=Path, exists=True), help="icons.json of Noto Emoji.")
@click.option("--stage", type=click.Choice(STAGES), multiple=True, help="Only these stages.")
def main(output: Path, icons: Path | None, stage: tuple[str, ...]) -> None:
    build = Build(Recipe(), output=output, icons=icons)
    for name in stage or STAGES:
        getattr(build, name)()


if __name__ == "__main__":
    main()
