"""A prior's training from settings and data to a folder that a pipeline opens: every kind of prior."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from unclip_hub.data.embeddings import Embeddings
from unclip_hub.data.shards import Shards
from unclip_hub.models.ar_prior import AutoregressivePrior
from unclip_hub.models.gaussian_prior import GaussianPrior
from unclip_hub.models.one_step_prior import OneStepPrior
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.training import settings
from unclip_hub.training.ar_prior import AutoregressivePriorTask, count_components, fit_codes
from unclip_hub.training.export import new_scheduler
from unclip_hub.training.gaussian_prior import fit_to_batches
from unclip_hub.training.loop import Stream, moved
from unclip_hub.training.one_step_prior import OneStepPriorTask
from unclip_hub.training.presets import new_ar_prior, new_one_step_prior, new_prior
from unclip_hub.training.prior import PriorBatch, PriorTask, set_statistics
from unclip_hub.training.runs import (
    Frozen,
    Run,
    Source,
    adapted,
    chosen,
    embedded,
    image_embeds,
    raw_batches,
    this_process,
)


# of each kind: its class, also that of what training may start from, and a new network of a preset
CLASSES: dict[str, Any] = {
    "diffusion": PriorTransformer,
    "flow": PriorTransformer,
    "autoregressive": AutoregressivePrior,
    "one_step": OneStepPrior,
    "gaussian": GaussianPrior,
}
FRESH: dict[str, Callable[..., Any]] = {
    "diffusion": new_prior,
    "flow": new_prior,
    "autoregressive": new_ar_prior,
    "one_step": new_one_step_prior,
}
NO_SCHEDULER: dict[str, Any] = {"prior_scheduler": None}  # left out of a model whose prior samples by itself
HELD_OUT = 0.1  # of a Gaussian prior's batches


def prior(config: settings.AnyPrior, source: Source, *, frozen: Frozen, base: Any) -> Run:
    """A prior of ``config.kind``, on pictures with captions or on their cached embeddings.

    Args:
        base: the base model's prior, of the same class; None if it has none.
    """
    if isinstance(config, settings.GaussianPrior):
        return _gaussian(config, source, frozen=frozen)
    torch.manual_seed(config.train.seed)
    size = frozen.image_size
    network = chosen(config.start, lambda: _new(config, source, frozen), base, name="prior")
    task = _task(config, network, frozen)
    adapted(task, config.lora_rank)
    scheduler = NO_SCHEDULER
    if isinstance(config, settings.Prior):
        replaced = config.start == "scratch" or config.kind == "flow"
        own = new_scheduler(config.objective, network, clip_sample_range=5.0)
        scheduler = {"prior_scheduler": own} if replaced else {}
    return Run(
        task,
        raw_batches(source, batch=config.batch, size=size, seed=config.train.seed, workers=config.train.workers),
        _prepared_by(frozen),
        {"prior": network},
        scheduler,
        sampling_defaults=config.sampling_defaults,
    )


def _new(config: Any, source: Source, frozen: Frozen) -> Any:
    """A new network, with what it has to know of the embeddings before it learns."""
    if isinstance(config, settings.OneStepPrior):  # which predicts them as they are
        return new_one_step_prior(config.preset)
    embeds = image_embeds(source, batch=config.batch, size=frozen.image_size, frozen=frozen)
    if isinstance(config, settings.AutoregressivePrior):
        components = count_components(embeds, kept_variance=config.kept_variance)
        network = new_ar_prior(config.preset, num_components=components)
        fit_codes(network, embeds)
        return network
    network = new_prior(config.preset, self_conditioning=config.self_conditioning)
    set_statistics(network, embeds)
    return network


def _task(config: Any, network: Any, frozen: Frozen) -> Any:
    """The loss of a kind that is trained in steps."""
    if isinstance(config, settings.OneStepPrior):
        return OneStepPriorTask(network, contrastive=config.contrastive, temperature=config.temperature)
    empty = frozen.encode_text([""])
    if isinstance(config, settings.AutoregressivePrior):
        return AutoregressivePriorTask(network, empty=empty, drop_caption=config.drop_caption)
    return PriorTask(network, empty=empty, drop_caption=config.drop_caption, objective=config.objective)


def _gaussian(config: settings.GaussianPrior, source: Source, *, frozen: Frozen) -> Run:
    """One pass over the data, or over ``config.batches`` of a stream, of which nobody knows where it ends."""
    if this_process().num_processes > 1:
        raise ValueError("a Gaussian prior is fitted by one process, start it without torchrun")
    if config.batches == 0 and isinstance(source, Shards):
        raise ValueError("a Gaussian prior on shards needs to know how many batches to read: set batches")
    raw = raw_batches(source, batch=config.batch, size=frozen.image_size, seed=config.seed, workers=config.workers)
    count = config.batches or max(1, len(source) // config.batch)  # type: ignore[arg-type]
    prepare = _prepared_by(frozen)
    generator, cpu = torch.Generator(), torch.device("cpu")

    def batches() -> Iterator[PriorBatch]:
        for number in range(count):
            yield moved(prepare(next(raw) if isinstance(raw, Stream) else raw(number), generator), cpu)

    text = frozen.encode_text([""])
    network = GaussianPrior(
        embedding_dim=_width(source, frozen),
        text_embed_dim=text.text_embed.shape[1],
        text_states_dim=text.text_states.shape[2] if config.text_states else None,
    )

    def fit() -> dict[str, str]:
        return fit_to_batches(network, batches(), held_out=int(HELD_OUT * count))

    return Run(None, raw, prepare, {"prior": network}, NO_SCHEDULER, fit=fit)


def _prepared_by(frozen: Frozen) -> Callable[[Any, torch.Generator], PriorBatch]:
    def prepare(raw: Any, generator: torch.Generator) -> PriorBatch:
        return PriorBatch(*embedded(raw, frozen))

    return prepare


def _width(source: Source, frozen: Frozen) -> int:
    """Of the image embeddings."""
    if isinstance(source, Embeddings):
        return source.batch([0]).image_embed.shape[1]
    blank: Tensor = torch.zeros(1, 3, frozen.image_size, frozen.image_size, device=this_process().device)
    return frozen.encode_image(blank).shape[1]
