"""diffusers' own `UnCLIPPipeline`, unchanged, assembled of diffusers' networks: it opens no repository of ours itself.

What our configurations hold beyond diffusers' is put around its networks, so that they compute the same.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import UnCLIPPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.prior_transformer import PriorTransformer
from diffusers.models.unets.unet_2d import UNet2DModel, UNet2DOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel, UNet2DConditionOutput
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from unclip_hub.models.unet import patchify, unpatchify


DENOISED = ("prior", "decoder", "super_res")
CLASSES = {
    "prior": PriorTransformer,
    "text_proj": UnCLIPTextProjModel,
    "decoder": UNet2DConditionModel,
    "super_res_first": UNet2DModel,
}
OURS_ALONE = ("patch_size", "coordinates", "residual", "_use_default_values")  # keys of configurations


class Ticking(UnCLIPScheduler):
    """diffusers' scheduler, unchanged in what it computes: it notes when a stage begins and when its steps are done.

    ``generator`` is seeded anew where a stage begins, so that each stage draws the noise that it draws alone;
    ``handed_on`` replaces the result that the pipeline's next stage is given.
    """

    generator: torch.Generator | None = None
    handed_on: Tensor | None = None

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        self.began, self.ticks = time.perf_counter(), []
        if self.generator is not None:
            self.generator.manual_seed(self.generator.initial_seed())
        super().set_timesteps(*args, **options)

    def step(self, *args: Any, **options: Any) -> Any:
        made: Any = super().step(*args, **options)
        self.ticks.append(time.perf_counter())
        self.result = made.prev_sample
        if self.handed_on is not None and len(self.ticks) == len(self.timesteps):
            made.prev_sample = self.handed_on
        return made


class Folded(nn.Module):
    """A network of diffusers behind what the bundled model's have around it: pixels folded into channels, a residual.

    diffusers' pipeline also wants the decoder to predict a variance: it is given the one that means "the least", which
    is the variance that the bundled model is sampled with.
    """

    def __init__(self, network: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.network = network
        self.folded, self.coordinates = config["patch_size"], config["coordinates"]
        self.config = type(network.config)(config)  # pyright: ignore[reportCallIssue, reportArgumentType]
        for module in network.modules():
            if isinstance(module, Attention) and module.only_cross_attention:
                _mask_text_alone(module)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, sample: Tensor, timestep: Tensor, **condition: Tensor) -> Any:
        x = patchify(sample, patch_size=self.folded, coordinates=self.coordinates)
        out = unpatchify(self.network(x, timestep, **condition).sample, patch_size=self.folded)
        if self.config.get("residual"):
            out = out + sample[:, -out.shape[1] :]
        if condition:
            return UNet2DConditionOutput(sample=torch.cat([out, torch.full_like(out, -1)], dim=1))
        return UNet2DOutput(sample=out)


def assembled(parts: dict[str, tuple[dict[str, Any], dict[str, Tensor]]], others: dict[str, Any]) -> UnCLIPPipeline:
    """diffusers' pipeline of configurations and tensors, and of the components that are not networks of its own.

    The tensors are taken, not copied. Where there is no network for the upsampler's last step, it is the first's.
    """
    networks: dict[str, Any] = {name: _network(CLASSES[name], *part) for name, part in parts.items()}
    schedulers = {}
    for stage in DENOISED:
        config = dict(others[f"{stage}_scheduler"].config)
        if stage == "decoder" and isinstance(networks["decoder"], Folded):
            config["variance_type"] = "learned_range"
        schedulers[f"{stage}_scheduler"] = Ticking.from_config(config)
    pipe = UnCLIPPipeline(
        **networks,
        **schedulers,
        super_res_last=networks["super_res_first"],
        text_encoder=others["text_encoder"],
        tokenizer=others["tokenizer"],
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def twin(pipe: Any) -> UnCLIPPipeline:
    """diffusers' pipeline of the components of ours, its networks on the same tensors."""
    networks = {name: getattr(pipe, name) for name in CLASSES}
    parts = {name: (dict(network.config), network.state_dict()) for name, network in networks.items()}
    return assembled(parts, pipe.components)


def from_folder(folder: Path) -> UnCLIPPipeline:
    """diffusers' pipeline of a model that we saved, in float32."""
    parts = {}
    for name in CLASSES:
        state = load_file(folder / name / "diffusion_pytorch_model.safetensors")
        config = json.loads((folder / name / "config.json").read_text())
        parts[name] = config, {key: tensor.float() for key, tensor in state.items()}
    others: dict[str, Any] = {
        f"{stage}_scheduler": UnCLIPScheduler.from_pretrained(folder / f"{stage}_scheduler") for stage in DENOISED
    }
    others["tokenizer"] = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    return assembled(parts, {**others, "text_encoder": encoder})


def _network(cls: type, config: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
    own = {key: value for key, value in config.items() if key not in OURS_ALONE}
    fold = config.get("patch_size", 1)
    if fold > 1:
        own["in_channels"] = config["in_channels"] * fold**2 + 2 * config["coordinates"]
        own["out_channels"] = config["out_channels"] * fold**2
    with init_empty_weights():
        network = cls.from_config(own)
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)
    return Folded(network, config) if fold > 1 else network


def _mask_text_alone(attention: Attention) -> None:
    """diffusers makes room for image tokens in every mask (0.42.1), also where only the text is attended to."""
    prepare = attention.prepare_attention_mask

    def prepared(mask: Tensor, target_length: int, *args: Any, **options: Any) -> Tensor:
        return prepare(mask, target_length, *args, **options)[..., : mask.shape[-1]]

    attention.prepare_attention_mask = prepared  # pyright: ignore[reportAttributeAccessIssue]
