"""The bundled model from nothing: ``python -m unclip_hub.training.bundled --output runs/bundled --icons icons.json``.

Stages run in order and resume where they stopped; each leaves averaged weights in ``OUTPUT/<stage>/ema.pt``, and so
do the runs of ``unclip train`` that the export reads: both upsamplers, and the decoder's further ones.
``icons.json`` is that of Noto Emoji (npm package @iconify-json/noto), whose pictures are Apache-2.0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
import torch
from jaxtyping import Float
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
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.schedulers.unclip import UnCLIPScheduler
from unclip_hub.training.clip import ClipTask
from unclip_hub.training.decoder import DecoderBatch, DecoderTask, Drops
from unclip_hub.training.loop import Task, TrainConfig, train
from unclip_hub.training.objective import Objective
from unclip_hub.training.presets import (
    context_length,
    new_decoder,
    new_image_encoder,
    new_prior,
    new_text_encoder,
    new_upsampler,
)
from unclip_hub.training.prior import PriorBatch, PriorTask, set_statistics
from unclip_hub.training.report import write_report
from unclip_hub.training.tokenizer import train_tokenizer
from unclip_hub.training.world import clip_batch, draw_world, text_batch


PRESET = "tiny"
CELLS = 8  # of the grid on which CLIP's probes name what stands there, the patches of its image encoder
STAGES = ("clip", "text", "decoder", "decoder_text", "prior", "export")
# the export takes the first that there is
DECODERS = ("decoder_further_3", "decoder_further_2", "decoder_further", "decoder_text")
UPSAMPLERS = ("upsampler", "upsampler_further")


@dataclass(frozen=True)
class Recipe:
    """Sizes, steps and learning rates; by default of a build that goes on from the first bundled model."""

    scope: Scope = CPU
    pictures: int = 100_000
    embedded: int = 60_000  # of them, for the text encoder and the prior
    clip: TrainConfig = TrainConfig(steps=1_400, lr=1e-3, warmup=60, weight_decay=0.05, betas=(0.9, 0.98), ema=0.99)
    clip_batch: int = 128
    text: TrainConfig = TrainConfig(steps=800, lr=1e-3, warmup=60, weight_decay=0.05, betas=(0.9, 0.98), ema=0.99)
    text_batch: int = 96
    decoder: TrainConfig = TrainConfig(steps=700, lr=8e-4, decay_from=1.0, ema=0.999)
    decoder_text: TrainConfig = TrainConfig(steps=2_000, lr=8e-4, decay_from=0.1, ema=0.998)
    decoder_batch: int = 32
    decoder_noisiest: float = 0.5
    decoder_widths: tuple[int, ...] = (96, 160)
    prior: TrainConfig = TrainConfig(steps=1_500, lr=1e-3, ema=0.995)
    prior_batch: int = 128
    sampling_defaults: dict[str, float | int] = field(
        default_factory=lambda: {
            "prior_num_inference_steps": 12,
            "decoder_num_inference_steps": 12,
            "super_res_num_inference_steps": 2,
            "prior_guidance_scale": 1.5,
            "decoder_guidance_scale": 2.0,
            "output_size": 256,
        }
    )


FROM_NOTHING = replace(Recipe(), decoder=TrainConfig(steps=12_000, lr=8e-4, decay_from=1.0, ema=0.999))


class Build:
    """One build of the bundled model in a folder: its data, its stages, its networks as far as they are trained."""

    def __init__(self, recipe: Recipe, *, output: Path, icons: Path | None, start: Path | None = None) -> None:
        self.recipe, self.output, self.start = recipe, output, start
        bank = build_bank(recipe.scope.nouns, icons=icons, cache=output / "emoji.npz")
        self.world = draw_world(recipe.pictures, scope=recipe.scope, bank=bank, cache=output / "world")
        self.tokenizer = self._tokenizer()

    def clip(self) -> None:
        """Both CLIP encoders, and the image embedding of every picture."""
        torch.manual_seed(0)
        recipe, world = self.recipe, self.world
        text_encoder = new_text_encoder(PRESET, vocab_size=len(self.tokenizer))
        image_encoder = self._started(new_image_encoder(PRESET), "image_encoder")
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
                world, step, size=recipe.clip_batch, negatives=0, patches=CELLS, tokenizer=self.tokenizer, seed=1
            )

        self._learn("clip", task, batch, batch_size=recipe.clip_batch)

    def text(self) -> None:
        """The text encoder again, longer, towards the image embeddings as they now are: it is what has to bind."""
        torch.manual_seed(5)
        embeds, text_encoder = self.image_embeds(), self._loaded_text_encoder("clip")
        text_encoder.set_attn_implementation("eager")
        task = ClipTask(text_encoder.requires_grad_(True), self.image_encoder())

        def batch(step: int):
            return text_batch(
                self.world,
                step,
                image_embeds=embeds,
                size=self.recipe.text_batch,
                negatives=3,
                tokenizer=self.tokenizer,
                seed=6,
            )

        self._learn("text", task, batch, batch_size=self.recipe.text_batch)

    def decoder(self) -> None:
        """The 64 px decoder and text_proj from image embeddings alone, which needs no text encoder yet."""
        torch.manual_seed(1)
        decoder, text_proj = new_decoder(PRESET, block_out_channels=self.recipe.decoder_widths)
        pixels = self.world.pixels(range(min(500, len(self.world))))
        with torch.no_grad():
            embeds = self.image_encoder()(pixels).image_embeds
        read_layout(text_proj, self._averaged("clip", "layout_head"), embeds)
        self._train_decoder(self._started(decoder, "decoder"), text_proj, None)

    def decoder_text(self) -> None:
        """Both again, from image embeddings and captions."""
        decoder, text_proj = new_decoder(PRESET, block_out_channels=self.recipe.decoder_widths)
        decoder.load_state_dict(self._averaged("decoder", "decoder"))
        text_proj.load_state_dict(self._averaged("decoder", "text_proj"))
        self._train_decoder(decoder, text_proj, self.text_encoder())

    def _train_decoder(self, decoder, text_proj, encoder: CLIPTextModelWithProjection | None) -> None:
        decoder.set_attention_backend("_native_math")  # likewise: 1.2 times as fast
        recipe, world, image_encoder = self.recipe, self.world, self.image_encoder()
        empty = self._nothing() if encoder is None else self._encode(encoder, [""])

        def batch(step: int) -> DecoderBatch:
            rng = np.random.default_rng([2 if encoder is None else 7, step])
            indices = rng.integers(len(world), size=recipe.decoder_batch)
            pixels, caption = world.pixels(indices), empty.repeat(len(indices))
            if encoder is not None:
                caption = self._encode(encoder, world.captions_of(indices, rng))
            with torch.no_grad():  # 5 % of the step; all pictures beforehand would take minutes
                embeds = image_encoder(pixels).image_embeds
            return DecoderBatch(pixels, caption.with_image(embeds))

        task = DecoderTask(
            decoder,
            text_proj,
            empty=empty,
            drops=Drops.independent(image=0.1, caption=0.5),
            objective=Objective(noisiest=recipe.decoder_noisiest),
        )
        stage = "decoder" if encoder is None else "decoder_text"
        self._learn(stage, task, batch, batch_size=recipe.decoder_batch)

    def prior(self) -> None:
        """The diffusion prior, with the statistics of the image embeddings."""
        torch.manual_seed(2)
        embeds, encoder = self.image_embeds(), self.text_encoder()
        prior = new_prior(PRESET)
        prior.set_attention_backend("_native_math")
        set_statistics(prior, embeds)

        def batch(step: int) -> PriorBatch:
            rng = np.random.default_rng([3, step])
            indices = rng.integers(len(embeds), size=self.recipe.prior_batch)
            return PriorBatch(embeds[indices], self._encode(encoder, self.world.captions_of(indices, rng)))

        task = PriorTask(prior, empty=self._encode(encoder, [""]))
        self._learn("prior", task, batch, batch_size=self.recipe.prior_batch)

    def _learn(self, stage: str, task: Task, batch: Callable[[int], object], *, batch_size: int) -> None:
        """Train a stage, and write its report."""
        config = getattr(self.recipe, stage)
        train(task, batch, config, output=self.output / stage)
        trained = sum(p.numel() for p in task.modules.parameters() if p.requires_grad)
        facts = {
            "data": f"{self.recipe.pictures:,} procedural scenes",
            "batch": batch_size,
            "learning rate": config.lr,
            "trained parameters": f"{trained / 1e6:.2f} million",
            "start": "random weights" if self.start is None else "the weights of an earlier bundled model",
        }
        write_report(self.output / stage, title=f"The bundled model: {stage.replace('_', ' ')}", facts=facts)

    def export(self) -> None:
        """All stages as a folder that ``UnCLIPPipeline.from_pretrained`` opens: ``OUTPUT/model``, fp16 on disk."""
        folder, recipe = self.output / "model", self.recipe
        decoder_stage, upsampler_stage = self._last_of(DECODERS), self._last_of(UPSAMPLERS)
        decoder, text_proj = new_decoder(PRESET, block_out_channels=recipe.decoder_widths)
        models = {
            "text_encoder": self.text_encoder(),
            "image_encoder": self.image_encoder(),
            "prior": _frozen(new_prior(PRESET), self._averaged("prior", "prior")),
            "decoder": _frozen(decoder, self._averaged(decoder_stage, "decoder")),
            "text_proj": _frozen(text_proj, self._averaged(decoder_stage, "text_proj")),
            "super_res_first": _frozen(new_upsampler(PRESET), self._averaged(upsampler_stage, "upsampler")),
        }
        schedulers = {
            "prior_scheduler": new_scheduler(clip_sample_range=5.0),
            "decoder_scheduler": new_scheduler(clip_sample_range=1.0),
            "super_res_scheduler": new_scheduler(clip_sample_range=1.0),
        }
        if (self.output / "upsampler_1024" / "ema.pt").exists():  # a model is complete without it
            large = new_upsampler(PRESET, size=1024)
            models["super_res_1024"] = _frozen(large, self._averaged("upsampler_1024", "upsampler"))
            schedulers["super_res_1024_scheduler"] = new_scheduler(clip_sample_range=1.0)
        for name, model in models.items():
            model.half().save_pretrained(folder / name)
        others = {"tokenizer": self.tokenizer, "feature_extractor": new_feature_extractor(), **schedulers}
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
        return self._loaded_text_encoder("text")

    def image_encoder(self) -> CLIPVisionModelWithProjection:
        """The trained image encoder, frozen."""
        return _frozen(new_image_encoder(PRESET), self._averaged("clip", "image_encoder"))

    @torch.no_grad()
    def image_embeds(self) -> Tensor:
        """The CLIP image embeddings of the first pictures, computed once."""
        path = self.output / "clip" / "image_embeds.npy"
        if not path.exists():
            encoder, count = self.image_encoder(), min(self.recipe.embedded, len(self.world))
            chunks = np.array_split(np.arange(count), count // 256 + 1)
            embeds = torch.cat([encoder(self.world.pixels(indices)).image_embeds for indices in chunks])
            np.save(path, embeds.numpy())
        return torch.from_numpy(np.load(path))

    @torch.no_grad()
    def _encode(self, encoder: CLIPTextModelWithProjection, captions: list[str]) -> Conditioning:
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        output = encoder(tokens.input_ids)
        return Conditioning(output.text_embeds, output.last_hidden_state, tokens.attention_mask.bool())

    def _nothing(self) -> Conditioning:
        """What a decoder sees of captions that no text encoder has read: zeros."""
        width, length = new_text_encoder(PRESET).config.hidden_size, context_length(PRESET)
        return Conditioning(torch.zeros(1, width), torch.zeros(1, length, width), torch.arange(length)[None] == 0)

    def _loaded_text_encoder(self, stage: str) -> CLIPTextModelWithProjection:
        encoder = new_text_encoder(PRESET, vocab_size=len(self.tokenizer))
        return _frozen(encoder, self._averaged(stage, "text_encoder"))

    def _started(self, model, name: str):
        """A network with the weights of the model that the build starts from, if it starts from one."""
        if self.start is not None:
            model.load_state_dict(type(model).from_pretrained(self.start / name, dtype=torch.float32).state_dict())
        return model

    def _tokenizer(self) -> CLIPTokenizer:
        folder = self.output / "tokenizer"
        if not (folder / "tokenizer.json").exists():
            some = range(min(60_000, len(self.world)))
            captions = self.world.captions_of(some, np.random.default_rng(8))
            train_tokenizer(captions, context_length=context_length(PRESET)).save_pretrained(folder)
        return CLIPTokenizer.from_pretrained(folder)

    def _last_of(self, stages: tuple[str, ...]) -> str:
        return next((stage for stage in stages if (self.output / stage / "ema.pt").exists()), stages[-1])

    def _averaged(self, stage: str, module: str) -> dict[str, Tensor]:
        path = self.output / stage / "ema.pt"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: train {stage!r} first")
        prefix = module + "."
        state = torch.load(path, weights_only=True)
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@torch.no_grad()
def read_layout(text_proj: UnCLIPTextProjModel, probe: dict[str, Tensor], embeds: Float[Tensor, "n d"]) -> None:
    """Let each image token begin as what CLIP's probe says of one region of the picture, beside a name of the region.

    All regions are said in one code, so that what the decoder learns of a thing in one place holds in all.

    Args:
        probe: the weights of ``ClipTask``'s ``layout_head``.
        embeds: image embeddings, of which the tokens then have mean 0 and variance 1.
    """
    tokens, width = text_proj.clip_extra_context_tokens, text_proj.config["cross_attention_dim"]
    side, classes = int(tokens**0.5), len(probe["bias"]) // CELLS**2
    of_cells = probe["weight"].view(side, CELLS // side, side, CELLS // side, classes, -1)
    code = torch.randn(width, classes)
    weight = torch.einsum("ec,ncd->end", code, of_cells.mean((1, 3)).flatten(0, 1))  # (e, n, d)
    said = torch.einsum("end,bd->ben", weight, embeds)
    weight /= said.std()
    bias = torch.randn(width, tokens) - said.mean(0) / said.std()
    text_proj.clip_extra_context_tokens_proj.weight.copy_(weight.flatten(0, 1))
    text_proj.clip_extra_context_tokens_proj.bias.copy_(bias.flatten())


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
@click.option(
    "--start", type=click.Path(path_type=Path, exists=True), help="A bundled model whose networks go on learning."
)
@click.option("--stage", type=click.Choice(STAGES), multiple=True, help="Only these stages.")
def main(output: Path, icons: Path | None, start: Path | None, stage: tuple[str, ...]) -> None:
    build = Build(Recipe() if start else FROM_NOTHING, output=output, icons=icons, start=start)
    for name in stage or STAGES:
        getattr(build, name)()


if __name__ == "__main__":
    main()
