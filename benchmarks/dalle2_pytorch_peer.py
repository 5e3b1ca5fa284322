"""DALLE2-pytorch's diffusion prior, and ours with its weights: the same tensors, the same noise, the same steps.

pip install --target FOLDER --no-deps dalle2-pytorch==1.15.6 einops einops-exts rotary-embedding-torch
"""

import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sampling_contenders import Contender, Run, fresh
from torch import Tensor

from unclip_hub import BUNDLED_MODEL, UnCLIPPipeline
from unclip_hub.conditioning import Conditioning
from unclip_hub.models.dalle2_pytorch_prior import DALLE2PytorchPrior
from unclip_hub.schedulers.dalle2_pytorch import DALLE2PytorchScheduler


CONVERSION = Path(__file__).parents[1] / "conversion"
RELEASE = (1, 15, 6)
SIZES = {  # of their network; heads as in Karlo's prior, which is 2048 wide where theirs is as wide as CLIP
    "bundled": dict(dim=192, depth=3, heads=6, dim_head=32, max_text_len=32, num_timesteps=1000),
    "karlo": dict(dim=768, depth=20, heads=32, dim_head=64, max_text_len=77, num_timesteps=1000),
}
SCALE, WORDS = 2.0, 12
# what its modules import and its prior does not use, most of which does not install beside a CPU's PyTorch
_UNUSED = (
    "torchvision", "torchvision.transforms", "kornia", "kornia.filters", "kornia.augmentation", "resize_right",
    "x_clip", "coca_pytorch", "dalle2_pytorch.tokenizer", "dalle2_pytorch.trainer", "dalle2_pytorch.vqgan_vae",
)  # fmt: skip


def contenders(folder: Path, *, size: str, batch: int) -> dict[str, Contender]:
    """DALLE2-pytorch's sampler and ours.

    Raises:
        ImportError: it is not in the folder, or does not import.
    """
    package = _imported(folder)
    net = package.DiffusionPriorNetwork(**SIZES[size])
    width = SIZES[size]["dim"]
    peer = package.DiffusionPrior(net, image_embed_dim=width, timesteps=1000, cond_drop_prob=0.1).eval()
    peer.requires_grad_(False)

    generator = torch.Generator().manual_seed(0)
    text_embed = torch.randn(batch, width, generator=generator)
    text_states = torch.randn(batch, SIZES[size]["max_text_len"], width, generator=generator)
    text_states[:, WORDS:] = 0  # how padding is told to it
    cond = Conditioning(text_embed, text_states, (text_states != 0).any(-1))
    return {"dalle2-pytorch": _theirs(package, peer, cond), "ours": _ours(peer, cond)}


def _theirs(package: Any, peer: Any, cond: Conditioning) -> Contender:
    original, ticks = peer.net.forward_with_cond_scale, []
    text = dict(text_embed=torch.nn.functional.normalize(cond.text_embed, dim=-1), text_encodings=cond.text_states)

    def ticking(*args: Any, **options: Any) -> Tensor:
        made = original(*args, **options)
        ticks.append(time.perf_counter())
        return made

    peer.net.forward_with_cond_scale = ticking
    package.tqdm = lambda steps, **_: steps

    @torch.no_grad()
    def run(stage: str, steps: int) -> Run:
        ticks.clear()
        torch.manual_seed(fresh().initial_seed())
        began = time.perf_counter()
        # it takes one step less than it is told
        output = peer.p_sample_loop(tuple(cond.text_embed.shape), text, cond_scale=SCALE, timesteps=steps + 1)
        return Run(output, time.perf_counter() - began, [tick - began for tick in ticks])

    return run


def _ours(peer: Any, cond: Conditioning) -> Contender:
    sys.path.append(str(CONVERSION))
    from dalle2_pytorch_prior import (  # pyright: ignore[reportMissingImports]
        convert_prior,
        prior_config,
        prior_scheduler_config,
    )

    state = peer.state_dict()
    prior: Any = DALLE2PytorchPrior.from_config(prior_config(state, {}, release=RELEASE))
    prior.load_state_dict(convert_prior(state)["prior"], assign=True)
    prior.eval().requires_grad_(False)
    scheduler = DALLE2PytorchScheduler.from_config(prior_scheduler_config(state, {}, release=RELEASE))
    parts = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL).components  # whose other stages are not run
    pipe = UnCLIPPipeline(**{**parts, "prior": prior, "prior_scheduler": scheduler})
    pipe.set_progress_bar_config(disable=True)
    null = prior.null(cond)

    @torch.no_grad()
    def run(stage: str, steps: int) -> Run:
        ticks: list[float] = []

        def on_step(i: int, t: Tensor, x: Tensor) -> None:
            ticks.append(time.perf_counter())

        began = time.perf_counter()
        options = {"num_inference_steps": steps + 1, "guidance_scale": SCALE, "generator": fresh()}
        output = pipe.sample_prior(cond, null, on_step=on_step, **options)
        return Run(output, time.perf_counter() - began, [tick - began for tick in ticks])

    return run


def _imported(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    try:
        with _standing_in(_UNUSED):
            import dalle2_pytorch.dalle2_pytorch as package  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(folder))
    return package


@contextmanager
def _standing_in(names: tuple[str, ...]) -> Iterator[None]:
    """Empty modules in the place of others."""
    kept = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: _Empty(name) for name in names})
    try:
        yield
    finally:
        for name, module in kept.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


class _Empty(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
