"""What a training will need in memory, counted on ``meta`` before there is any of it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from unclip_hub.models.ar_prior import AutoregressivePrior
from unclip_hub.models.one_step_prior import OneStepPrior


STATE = {"adamw": 2, "sgd": 0}  # float32 numbers that an optimizer keeps per trained weight
DVAE_SIDE = 256  # px of DALL-E's pictures
TEXT_TOKENS = 77  # of a decoder's captions, which its configuration leaves open


@dataclass(frozen=True)
class Memory:
    """Bytes, of one process that keeps everything itself. Not in it: the framework, data loading, fragmentation."""

    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int  # kept from the forward pass for the backward one

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = {field.name: getattr(self, field.name) for field in fields(self)} | {"total": self.total}
        return "  ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items())


def memory_estimate(
    modules: nn.Module,
    *,
    forward: Callable[[], Tensor] | None = None,
    optimizer: str = "adamw",
    precision: str = "bf16",
    average: bool = True,
) -> Memory:
    """What training ``modules`` takes; gradients, optimizer and average are of those parameters that train.

    Under ``precision="bf16"`` (autocast) weights stay float32, beside copies of the matrices in bfloat16.

    Args:
        forward: one forward pass of one batch, for example ``dry_run(modules, batch_size=8)``; without it activations
            are not counted. They are an upper estimate, of attention that keeps its weights, without checkpointing.

    Raises:
        ValueError: an unknown optimizer or precision.
    """
    if optimizer not in STATE:
        raise ValueError(f"optimizer must be one of {', '.join(STATE)}, got {optimizer!r}")
    if precision not in ("no", "bf16"):
        raise ValueError(f"precision must be 'no' or 'bf16', got {precision!r}")
    parameters = list(modules.parameters())
    everything = sum(p.numel() for p in parameters) + sum(b.numel() for b in modules.buffers())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    matrices = sum(p.numel() for p in parameters if p.ndim >= 2)
    return Memory(
        weights=4 * everything + (2 * matrices if precision == "bf16" else 0),
        gradients=4 * trained,
        optimizer=4 * STATE[optimizer] * trained,
        average=4 * trained if average else 0,
        activations=0 if forward is None else saved_bytes(forward, modules) // (2 if precision == "bf16" else 1),
    )


def saved_bytes(forward: Callable[[], Tensor], modules: nn.Module) -> int:
    """Bytes of what autograd keeps of a forward pass, parameters aside; works on ``meta``."""
    kept: dict[int, torch.UntypedStorage] = {}
    own = {p.untyped_storage()._cdata for p in modules.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def dry_run(modules: nn.ModuleDict, *, batch_size: int, crop: int | None = None) -> Callable[[], Tensor]:
    """A forward pass of a task's networks on empty inputs of a batch, wherever they are: on ``meta``, of no cost.

    Args:
        crop: the side of an upsampler's pictures, by default a quarter of its full size; or of a dVAE's.

    Raises:
        ValueError: modules of no task that is known here.
    """
    m: dict[str, Any] = dict(modules.items())
    b, device = batch_size, next(modules.parameters()).device

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, device=device)

    def clip() -> Tensor:
        text, vision = m["text_encoder"].config, m["image_encoder"].config
        ids = torch.zeros(b, text.max_position_embeddings, dtype=torch.long, device=device)
        pixels = zeros(b, 3, vision.image_size, vision.image_size)
        return m["text_encoder"](ids).text_embeds.sum() + m["image_encoder"](pixels).image_embeds.sum()

    def prior() -> Tensor:
        config = m["prior"].config
        width, length = config["embedding_dim"], config["num_embeddings"]
        caption = {
            "proj_embedding": zeros(b, width),
            "encoder_hidden_states": zeros(b, length, width),
            "attention_mask": torch.ones(b, length, dtype=torch.bool, device=device),
        }
        if isinstance(m["prior"], AutoregressivePrior):
            codes = torch.zeros(b, config["num_components"] - 1, dtype=torch.long, device=device)
            return m["prior"](**caption, similarity=codes[:, 0], codes=codes).logits
        if isinstance(m["prior"], OneStepPrior):
            return m["prior"](zeros(b, width), **caption).predicted_image_embedding
        return m["prior"](zeros(b, width), zeros(b), **caption).predicted_image_embedding

    def decoder() -> Tensor:
        config, proj = m["decoder"].config, m["text_proj"].config
        width, side = proj["clip_embeddings_dim"], config["sample_size"]
        states, time = m["text_proj"](
            image_embeddings=zeros(b, width),
            prompt_embeds=zeros(b, width),
            text_encoder_hidden_states=zeros(b, TEXT_TOKENS, width),
            do_classifier_free_guidance=False,
        )
        sample = zeros(b, config["in_channels"], side, side)
        return m["decoder"](sample, zeros(b), encoder_hidden_states=states, class_labels=time).sample

    def upsampler() -> Tensor:
        config = m["upsampler"].config
        side = crop or config["sample_size"] // 4
        return m["upsampler"](zeros(b, config["in_channels"], side, side), zeros(b)).sample

    def dvae() -> Tensor:
        side = crop or DVAE_SIDE
        return m["dvae"](zeros(b, 3, side, side)).sample

    passes = {"text_encoder": clip, "prior": prior, "decoder": decoder, "upsampler": upsampler, "dvae": dvae}
    for name, run in passes.items():
        if name in modules:
            return run
    raise ValueError(f"expected modules of one of the tasks with {', '.join(passes)}, got {', '.join(modules)}")
