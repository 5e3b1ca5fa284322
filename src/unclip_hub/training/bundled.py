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
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from unclip_hub.conditioning import Conditioning
from unclip_hub.data.scene_spec import CPU, Scope
from unclip_hub.data.sprites import build_bank
from unclip_hub.embeddings import statistics
from unclip_hub.hub.layout import write_index
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.models.upsampler import UNet2DModel
from unclip_hub.schedulers.unclip import UnCLIPScheduler
from unclip_hub.training.clip import ClipTask
from unclip_hub.training.decoder import DecoderBatch, DecoderTask
from unclip_hub.training.loop import TrainConfig, train
from unclip_hub.training.prior import PriorBatch, PriorTask
from unclip_hub.training.tokenizer import train_tokenizer
from unclip_hub.training.upsampler import UpsamplerTask
from unclip_hub.training.world import clip_batch, draw_world, upsampler_batch


WIDTH = 192  # of CLIP's embeddings and of the text encoder
CONTEXT = 32  # tokens
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
        text_encoder, image_encoder = new_text_encoder(self.tokenizer), new_image_encoder()
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
        decoder, text_proj = new_decoder(self.recipe.decoder_widths)
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
        prior = new_prior()
        prior.set_attention_backend("_native_math")
        mean, std = statistics(embeds)
        prior.clip_mean.copy_(mean[None])
        prior.clip_std.copy_(std[None])

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

        train(UpsamplerTask(new_upsampler()), batch, recipe.upsampler, output=self.output / "upsampler")

    def export(self) -> None:
        """All stages as a folder that ``UnCLIPPipeline.from_pretrained`` opens: ``OUTPUT/model``, fp16 on disk."""
        folder, recipe = self.output / "model", self.recipe
        decoder, text_proj = new_decoder(recipe.decoder_widths)
        models = {
            "text_encoder": self.text_encoder(),
            "image_encoder": self.image_encoder(),
            "prior": _frozen(new_prior(), self._averaged("prior", "prior")),
            "decoder": _frozen(decoder, self._averaged("decoder", "decoder")),
            "text_proj": _frozen(text_proj, self._averaged("decoder", "text_proj")),
            "super_res_first": _frozen(new_upsampler(), self._averaged("upsampler", "upsampler")),
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
        return _frozen(new_text_encoder(self.tokenizer), self._averaged("clip", "text_encoder"))

    def image_encoder(self) -> CLIPVisionModelWithProjection:
        """The trained image encoder, frozen."""
        return _frozen(new_image_encoder(), self._averaged("clip", "image_encoder"))

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
            train_tokenizer(captions, context_length=CONTEXT).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)

    def _averaged(self, stage: str, module: str) -> dict[str, Tensor]:
        path = self.output / stage / "ema.pt"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run the stage {stage!r} first")
        prefix = module + "."
        state = torch.load(path, weights_only=True)
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """Untrained, 3 layers."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),  # as in CLIP the end token comes last and pads
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=CONTEXT,
            bos_token_id=len(tokenizer) - 2,
            eos_token_id=len(tokenizer) - 1,
            pad_token_id=len(tokenizer) - 1,
            hidden_act="gelu",
        )
    )


def new_image_encoder() -> CLIPVisionModelWithProjection:
    """Untrained, 4 layers over 8 × 8 patches of 64 px pictures."""
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
            image_size=64,
            patch_size=8,
            hidden_act="gelu",
        )
    )


def new_feature_extractor() -> CLIPImageProcessorPil:
    """Pictures of any size to the image encoder's 64 px in [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def new_prior() -> PriorTransformer:
    """Untrained, 3 layers."""
    return PriorTransformer(
        num_attention_heads=6,
        attention_head_dim=WIDTH // 6,
        num_layers=3,
        embedding_dim=WIDTH,
        num_embeddings=CONTEXT,
        additional_embeddings=4,
        encoder_hid_proj_type="linear",
        added_emb_type="prd",
    )


def new_decoder(widths: tuple[int, ...]) -> tuple[UNet2DConditionModel, UnCLIPTextProjModel]:
    """Untrained: patches of 4 × 4 px, so 16 × 16 and 8 × 8 positions; self-attention at the latter alone."""
    levels = len(widths)
    decoder = UNet2DConditionModel(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        patch_size=4,
        coordinates=True,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("SimpleCrossAttnDownBlock2D",) * levels,
        up_block_types=("SimpleCrossAttnUpBlock2D",) * levels,
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        only_cross_attention=(True,) + (False,) * (levels - 1),
        attention_head_dim=32,
        cross_attention_dim=WIDTH,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
    )
    text_proj = UnCLIPTextProjModel(clip_embeddings_dim=WIDTH, time_embed_dim=4 * widths[0], cross_attention_dim=WIDTH)
    return decoder, text_proj


def new_upsampler() -> UNet2DModel:
    """Untrained: patches of 4 × 4 px, no attention, so that it trains on crops."""
    return UNet2DModel(
        sample_size=256,
        in_channels=6,
        out_channels=3,
        patch_size=4,
        block_out_channels=(48, 64),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        resnet_time_scale_shift="scale_shift",
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
