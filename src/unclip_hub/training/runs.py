"""A training from settings and data to a folder that a pipeline opens: one function per network but priors."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import CLIPImageProcessorPil

from unclip_hub.conditioning import Conditioning
from unclip_hub.data.batches import batches_of
from unclip_hub.data.captioned import Indexed
from unclip_hub.data.embeddings import EmbeddedBatch, Embeddings
from unclip_hub.data.pictures import CaptionedBatch
from unclip_hub.data.shards import Shards
from unclip_hub.data.stream import StreamedBatches
from unclip_hub.images import resize
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.dvae import DVAE
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.models.upsampler import UNet2DModel
from unclip_hub.training import degradations, settings
from unclip_hub.training.bands import filter_losses
from unclip_hub.training.clip import ClipBatch, ClipTask
from unclip_hub.training.decoder import DecoderBatch, DecoderTask, Drops
from unclip_hub.training.dvae import DvaeBatch, DvaeTask
from unclip_hub.training.export import new_scheduler
from unclip_hub.training.inpainting import widened_for_inpainting
from unclip_hub.training.loop import Batches
from unclip_hub.training.lora import add_lora
from unclip_hub.training.presets import new_decoder, new_dvae, new_image_encoder, new_text_encoder, new_upsampler
from unclip_hub.training.samples import decoder_samples, dvae_samples, upsampler_samples
from unclip_hub.training.upsampler import UpsamplerBatch, UpsamplerTask, random_crops


Source = Indexed | Shards | Embeddings
STATISTICS_OF = 100_000  # embeddings that are cached
SEEN_FOR_STATISTICS = 2_000  # pictures, where none are


@dataclass(frozen=True)
class Frozen:
    """What a training takes from its base model and does not train: CLIP, as the pipelines see it."""

    encode_text: Callable[[list[str]], Conditioning]
    encode_image: Callable[[Tensor], Tensor]  # (b, 3, h, w) in [-1, 1] -> (b, d)
    image_size: int  # of CLIP's pictures


@dataclass(frozen=True)
class Run:
    """What the loop needs of a training, and what it leaves: the networks by the names of their components."""

    task: Any
    batches: Batches  # of raw data
    prepare: Callable[[Any, torch.Generator], Any]  # to a batch of the task's, where it is trained
    networks: dict[str, torch.nn.Module]
    others: dict[str, Any] = field(default_factory=dict)  # components that go with them
    draw: Callable[[Any], list[Tensor]] | None = None  # rows of pictures from a batch of the task's
    learnable: float = 0.7  # the share of the first loss that a network which learns leaves in the check before it
    bands: Callable[[Any], dict[str, float]] | None = None  # what the loss's parts must fall below, from such a batch
    fit: Callable[[], dict[str, str]] | None = None  # in place of the loop; returns facts for the report
    sampling_defaults: dict[str, Any] = field(default_factory=dict)  # that the networks need of the exported model


def this_process() -> PartialState:
    """Rank, number of processes and device, also of several on a CPU."""
    return PartialState(cpu=not torch.accelerator.is_available())


def clip(config: settings.Clip, source: Source, *, tokenizer: Any) -> Run:
    """Both encoders of CLIP, for captions that ``tokenizer`` cuts."""
    torch.manual_seed(config.train.seed)
    text_encoder = new_text_encoder(config.preset, vocab_size=len(tokenizer))
    image_encoder = new_image_encoder(config.preset)

    def prepare(raw: CaptionedBatch, generator: torch.Generator) -> ClipBatch:
        ids = tokenizer(raw.captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return ClipBatch(raw.pixels, ids.to(raw.pixels.device))

    size: Any = image_encoder.config.image_size
    batches = raw_batches(source, batch=config.batch, size=size, seed=config.train.seed, workers=config.train.workers)
    networks: dict[str, torch.nn.Module] = {"text_encoder": text_encoder, "image_encoder": image_encoder}
    edges = {"height": size, "width": size}
    extractor = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size=edges, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    others = {"tokenizer": tokenizer, "feature_extractor": extractor}
    return Run(ClipTask(text_encoder, image_encoder, pairwise=config.pairwise), batches, prepare, networks, others)


def decoder(
    config: settings.Decoder,
    source: Source,
    *,
    frozen: Frozen,
    base: tuple[UNet2DConditionModel, UnCLIPTextProjModel] | None,
    embeddings: Embeddings | None = None,
) -> Run:
    """The decoder and text_proj; CLIP sees the pictures at its own size, unless ``embeddings`` holds what it saw."""
    torch.manual_seed(config.train.seed)
    network, text_proj = chosen(config.start, lambda: new_decoder(config.preset), base, name="decoder")
    if config.inpaint:
        network = widened_for_inpainting(network)
    side = network.config["sample_size"]

    def prepare(raw: CaptionedBatch, generator: torch.Generator) -> DecoderBatch:
        embed, text = embedded(raw, frozen, embeddings)
        pixels = raw.pixels if raw.pixels.shape[-1] == side else resize(raw.pixels, (side, side)).clamp(-1, 1)
        return DecoderBatch(pixels, text.with_image(embed))

    batches = raw_batches(
        source,
        batch=config.batch,
        size=side if embeddings else max(side, frozen.image_size),
        crop=config.crop,
        seed=config.train.seed,
        workers=config.train.workers,
    )
    task = DecoderTask(
        network,
        text_proj,
        empty=frozen.encode_text([""]),
        drops=Drops.independent(image=config.drop_image, caption=config.drop_caption),
        objective=config.objective,
    )
    adapted(task, config.lora_rank, names=["decoder"])
    scheduler = new_scheduler(config.objective, network, clip_sample_range=1.0)
    others = {"decoder_scheduler": scheduler} if config.start == "scratch" else {}

    def draw(batch: DecoderBatch) -> list[Tensor]:
        return decoder_samples(task, batch, copy.deepcopy(scheduler))

    networks = {"decoder": network, "text_proj": text_proj}

    def bands(batch: DecoderBatch) -> dict[str, float]:
        return filter_losses(config.objective, batch.pixels)

    return Run(task, batches, prepare, networks, others, draw=None if config.inpaint else draw, bands=bands)


def dvae(config: settings.Dvae, source: Source, *, base: DVAE | None) -> Run:
    """The discrete VAE, which stands alone; the captions are not used."""
    torch.manual_seed(config.train.seed)
    network = chosen(config.start, lambda: new_dvae(config.preset), base, name="dvae")

    def prepare(raw: CaptionedBatch, generator: torch.Generator) -> DvaeBatch:
        return DvaeBatch(raw.pixels)

    def draw(batch: DvaeBatch) -> list[Tensor]:
        return dvae_samples(network, batch)

    batches = raw_batches(
        source,
        batch=config.batch,
        size=config.size,
        crop=config.crop,
        seed=config.train.seed,
        workers=config.train.workers,
    )
    task = DvaeTask(
        network,
        micro_batches=config.train.steps * config.train.accumulate,
        kl_weight=config.kl_weight,
        kl_ramp=config.kl_ramp,
        temperature=config.temperature,
        temperature_ramp=config.temperature_ramp,
        likelihood=config.likelihood,
    )
    # a likelihood, in nats above the best there is, falls by differences rather than by shares
    learnable = 0.7 if config.likelihood == "l2" else 0.9
    return Run(task, batches, prepare, {"dvae": network}, draw=draw, learnable=learnable)


def upsampler(
    config: settings.Upsampler,
    source: Source,
    *,
    base: UNet2DModel | None,
    redraw: Callable[[Tensor, list[str], torch.Generator], Tensor] | None = None,
) -> Run:
    """An upsampler, on crops of pictures of its full size; ``redraw`` is the degradation of that name."""
    torch.manual_seed(config.train.seed)
    fresh, starts = partial(new_upsampler, config.preset, size=config.size), ("scratch", "base", "first")
    network = chosen(config.start, fresh, base, name="upsampler", starts=starts)
    if config.start == "first":
        network.register_to_config(sample_size=config.size)
    size = network.config["sample_size"]
    corruptions = {
        "blur_noise": degradations.blur_and_noise, "blur": degradations.paper_blur, "bsr": None, "redrawn": None
    }  # fmt: skip
    if config.degradation not in corruptions:
        raise ValueError(f"degradation must be one of {', '.join(corruptions)}, got {config.degradation!r}")
    if config.degradation == "redrawn" and config.crop != size:
        raise ValueError(f"a decoder redraws whole pictures: expected a crop of {size}, got {config.crop}")

    def prepare(raw: CaptionedBatch, generator: torch.Generator) -> UpsamplerBatch:
        shrink = degradations.bsr if config.degradation == "bsr" else None
        batch = random_crops(raw.pixels, generator, size=config.crop, shrink=shrink)
        if config.degradation == "redrawn":
            assert redraw is not None
            batch.low = redraw(batch.low, raw.captions, generator)
        return batch

    batches = raw_batches(source, batch=config.batch, size=size, seed=config.train.seed, workers=config.train.workers)
    task = UpsamplerTask(network, corrupt=corruptions[config.degradation], objective=config.objective)
    adapted(task, config.lora_rank)
    name, stage = ("super_res_first", "super_res") if size <= 256 else ("super_res_1024", "super_res_1024")
    scheduler = new_scheduler(config.objective, network, clip_sample_range=1.0)
    others = {} if config.start == "base" else {f"{stage}_scheduler": scheduler}

    def draw(batch: UpsamplerBatch) -> list[Tensor]:
        return upsampler_samples(network, batch, copy.deepcopy(scheduler))

    return Run(task, batches, prepare, {name: network}, others, draw=draw)


def chosen(
    start: str, fresh: Callable[[], Any], base: Any, *, name: str, starts: tuple[str, ...] = ("scratch", "base")
) -> Any:
    """A new network, or the base's."""
    if start not in starts:
        raise ValueError(f"start must be {' or '.join(map(repr, starts))}, got {start!r}")
    if start == "scratch":
        return fresh()
    if base is None:
        raise ValueError(f"start is {start!r}, but the base model has no {name}")
    return base


def adapted(task: Any, rank: int, names: list[str] | None = None) -> None:
    if rank:
        add_lora(task.modules, rank=rank, names=names)


def raw_batches(source: Source, *, batch: int, size: int, seed: int, workers: int, crop: Any = "centre") -> Batches:
    """Raw batches: by their number, or of shards one after the other."""
    rank, world = this_process().process_index, this_process().num_processes
    return batches_of(source, batch=batch, size=size, crop=crop, seed=seed, rank=rank, world=world, workers=workers)


def embedded(
    raw: CaptionedBatch | EmbeddedBatch, frozen: Frozen, embeddings: Embeddings | None = None
) -> tuple[Tensor, Conditioning]:
    """Image embeddings and captions of a batch, read where they were computed already."""
    if embeddings is not None:
        raw = embeddings.find(raw.keys, raw.captions)
    if isinstance(raw, EmbeddedBatch):
        device = this_process().device
        text = frozen.encode_text(raw.captions) if raw.text is None else raw.text
        return raw.image_embed.to(device), text.to(device)
    with torch.no_grad():
        return frozen.encode_image(raw.pixels), frozen.encode_text(raw.captions)


def image_embeds(source: Source, *, batch: int, size: int, frozen: Frozen) -> Tensor:
    """Embeddings to take statistics of: those that are cached, else those of some pictures."""
    if isinstance(source, Embeddings):
        chunks, count = [], 0
        for chunk in source.image_embeds():
            chunks.append(chunk)
            count += len(chunk)
            if count >= STATISTICS_OF:
                break
        return torch.cat(chunks)
    batches = raw_batches(source, batch=batch, size=size, seed=0, workers=0)
    count = SEEN_FOR_STATISTICS if isinstance(source, Shards) else min(SEEN_FOR_STATISTICS, len(source))
    numbers = range(-(-count // batch))
    taken = (next(batches) if isinstance(batches, StreamedBatches) else batches(n) for n in numbers)  # type: ignore[operator]
    return torch.cat([embedded(raw, frozen)[0].cpu() for raw in taken])
