"""The approximations that `approximations.py` measures, each a pipeline that shares the bundled model's networks."""

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import nn

from unclip_hub import UnCLIPPipeline


DEFAULT = "the bundled model's defaults"
STEPS = (4, 6, 8, 20)
SOLVERS: dict[str, Any] = {"ancestral": None, "DDIM": DDIMScheduler, "DPM++ 2M": DPMSolverMultistepScheduler}


@dataclass(frozen=True)
class Variant:
    """Options of the call; another scheduler of decoder or prior; networks in int8; every how many steps the deep
    half of the decoder is computed."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    solvers: dict[str, Any] = field(default_factory=dict)  # by stage
    int8: tuple[str, ...] = ()
    reuse: int = 1

    def on(self, pipe: UnCLIPPipeline) -> UnCLIPPipeline:
        """The pipeline with the variant's schedulers and networks.

        Raises:
            ImportError: torchao is not installed, and the variant needs it.
        """
        parts = dict(pipe.components)
        for stage, solver in self.solvers.items():
            parts[f"{stage}_scheduler"] = solver.from_config(parts[f"{stage}_scheduler"].config)
        for name in self.int8:
            parts[name] = in_int8(parts[name])
        made = UnCLIPPipeline(**parts)
        made.set_progress_bar_config(disable=True)
        return made


def variants() -> list[Variant]:
    """All of them, the defaults first."""
    found = [Variant(DEFAULT)]
    for name, solver in SOLVERS.items():
        for steps in STEPS:
            found.append(
                Variant(
                    f"decoder: {name}, {steps} steps",
                    {"decoder_num_inference_steps": steps},
                    {} if solver is None else {"decoder": solver},
                )
            )
    for low, high in ((0.5, 20), (1, math.inf)):
        found.append(Variant(f"decoder: guided at {low} to {high}", {"decoder_guidance_interval": (low, high)}))
    found += [
        Variant("prior: without guidance", {"prior_guidance_scale": 1.0}),
        Variant("prior: DPM++ 2M, 6 steps", {"prior_num_inference_steps": 6}, {"prior": SOLVERS["DPM++ 2M"]}),
        Variant("upsampler: 6 steps", {"super_res_num_inference_steps": 6}),
        Variant("upsampler: 1 step", {"super_res_num_inference_steps": 1}),
        Variant("int8: prior and text encoder", int8=("prior", "text_encoder")),
        Variant("deep features of every 2nd step", reuse=2),
        Variant("deep features of every 3rd step", reuse=3),
    ]
    few = {"prior_guidance_scale": 1.0, "prior_num_inference_steps": 6}
    both = {stage: SOLVERS["DPM++ 2M"] for stage in ("prior", "decoder")}
    for decoder, upsampler in ((8, 2), (6, 2), (4, 2), (4, 1)):
        own = {"decoder_num_inference_steps": decoder, "super_res_num_inference_steps": upsampler}
        found.append(Variant(f"together: DPM++ 2M, 6 + {decoder} + {upsampler} steps", {**few, **own}, both))
    return found


def in_int8(network: nn.Module) -> nn.Module:
    """A copy whose linear layers hold int8 weights and round their inputs to int8, row by row (torchao)."""
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('int8 needs torchao: pip install "unclip_hub[quant]"') from error
    made = copy.deepcopy(network)
    quantize_(made, Int8DynamicActivationInt8WeightConfig())
    return made


@contextmanager
def reused(decoder: Any, *, every: int) -> Iterator[None]:
    """Compute the blocks below the highest resolution in every ``every``-th pass only (Ma et al. 2024, DeepCache).

    In between their last outputs stand in, and only the way down to them and up from them is run.
    """
    blocks: list[nn.Module] = [*decoder.down_blocks[1:], decoder.mid_block, *decoder.up_blocks[:-1]]
    passes = itertools.count()
    fresh = [True]

    def at_pass(*_: Any) -> None:
        fresh[0] = next(passes) % every == 0

    hook = decoder.register_forward_pre_hook(at_pass)
    for block in blocks:
        block.forward = _keeping(block, fresh, up=block in list(decoder.up_blocks))
    try:
        yield
    finally:
        hook.remove()
        for block in blocks:
            del block.forward


def _keeping(block: Any, fresh: list[bool], *, up: bool) -> Any:
    forward, kept = block.forward, []

    def kept_or_computed(*args: Any) -> Any:
        if fresh[0] or not kept:
            kept[:] = [forward(*args)]
        else:
            for contexts in (arg for arg in args if isinstance(arg, Iterator)):
                for _ in block.attentions:  # each would have taken what it attends to
                    next(contexts)
        if not up:
            return kept[0]
        hidden_states, rest = kept[0]
        return hidden_states, args[1][: len(rest)]  # what the way down hands on is this pass's

    return kept_or_computed
