"""Fine-tuning by adapters alone: the networks stay as they are, and what is learned fits in a few megabytes."""

from collections.abc import Sequence

from torch import nn

from unclip_hub.models.lora import TARGETS, require_peft


def add_lora(
    modules: nn.ModuleDict,
    *,
    rank: int = 16,
    alpha: float | int | None = None,
    names: Sequence[str] | None = None,
    adapter_name: str = "default",
) -> None:
    """Freeze a task's modules and add adapters, which alone train; at first they change nothing.

    Args:
        alpha: the adapters count ``alpha / rank``; by default 1.
        names: the modules that get adapters; by default all, and each must be a network of ours.

    Raises:
        ValueError: a name that is not among the modules, or a module that takes no adapters (CLIP's encoders).
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    chosen = list(modules) if names is None else list(names)
    for name in chosen:
        if name not in modules or type(modules[name]) not in TARGETS:
            able = [key for key, module in modules.items() if type(module) in TARGETS]
            raise ValueError(f"adapters can be added to {', '.join(able) or 'none of these modules'}, got {name!r}")
    peft = require_peft()
    modules.requires_grad_(False)
    for name in chosen:
        network = modules[name]
        config = peft.LoraConfig(
            r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(TARGETS[type(network)])
        )
        network.add_adapter(config, adapter_name=adapter_name)  # type: ignore[operator]


def merge_lora(modules: nn.ModuleDict) -> None:
    """Add what the adapters learned to the networks' own weights and remove the adapters."""
    for module in modules.values():
        if getattr(module, "peft_config", None):
            module.fuse_lora(safe_fusing=True)  # type: ignore[operator]
            module.unload_lora()  # type: ignore[operator]
