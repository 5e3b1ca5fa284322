"""unCLIP (DALL-E 2) as a plugin to diffusers.

Names are imported when they are first used (PEP 562); importing the package loads neither torch nor diffusers. Where
diffusers is loaded already, its plain ``DiffusionPipeline.from_pretrained`` learns to open our checkpoints.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from unclip_hub.conditioning import Conditioning
    from unclip_hub.models.ar_prior import AutoregressivePrior
    from unclip_hub.models.cpu_kernels import keep_freed_memory
    from unclip_hub.models.dalle2_pytorch_prior import DALLE2PytorchPrior
    from unclip_hub.models.dalle2_pytorch_projection import DALLE2PytorchProjection
    from unclip_hub.models.dalle2_pytorch_unet import DALLE2PytorchUNet
    from unclip_hub.models.decoder import UNet2DConditionModel
    from unclip_hub.models.dvae import DVAE
    from unclip_hub.models.gaussian_prior import GaussianPrior
    from unclip_hub.models.glide_text import GlideTextEncoder
    from unclip_hub.models.one_step_prior import OneStepPrior
    from unclip_hub.models.prior_transformer import PriorTransformer
    from unclip_hub.models.text_proj import UnCLIPTextProjModel
    from unclip_hub.models.upsampler import UNet2DModel
    from unclip_hub.pipelines.frames import save_frames
    from unclip_hub.pipelines.image_to_image import UnCLIPImageToImagePipeline
    from unclip_hub.pipelines.image_variation import UnCLIPImageVariationPipeline
    from unclip_hub.pipelines.inpaint import UnCLIPInpaintPipeline
    from unclip_hub.pipelines.interpolation import UnCLIPInterpolationPipeline
    from unclip_hub.pipelines.inversion import BipartiteLatent, invert
    from unclip_hub.pipelines.output import UnCLIPPipelineOutput
    from unclip_hub.pipelines.scoring import score
    from unclip_hub.pipelines.text_diff import UnCLIPTextDiffPipeline
    from unclip_hub.pipelines.text_to_image import UnCLIPPipeline
    from unclip_hub.pipelines.upscale import UnCLIPUpscalePipeline
    from unclip_hub.sampling import denoise, guide
    from unclip_hub.schedulers.dalle2_pytorch import DALLE2PytorchScheduler
    from unclip_hub.schedulers.unclip import UnCLIPScheduler

__all__ = [
    "AutoregressivePrior",
    "BUNDLED_MODEL",
    "BipartiteLatent",
    "Conditioning",
    "DALLE2PytorchPrior",
    "DALLE2PytorchProjection",
    "DALLE2PytorchScheduler",
    "DALLE2PytorchUNet",
    "DVAE",
    "GaussianPrior",
    "GlideTextEncoder",
    "OneStepPrior",
    "PriorTransformer",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UnCLIPImageToImagePipeline",
    "UnCLIPImageVariationPipeline",
    "UnCLIPInpaintPipeline",
    "UnCLIPInterpolationPipeline",
    "UnCLIPPipeline",
    "UnCLIPPipelineOutput",
    "UnCLIPScheduler",
    "UnCLIPTextDiffPipeline",
    "UnCLIPTextProjModel",
    "UnCLIPUpscalePipeline",
    "denoise",
    "guide",
    "invert",
    "keep_freed_memory",
    "save_frames",
    "score",
]

BUNDLED_MODEL = str(Path(__file__).parent / "assets" / "bundled")

_HOMES = {
    "AutoregressivePrior": "unclip_hub.models.ar_prior",
    "BipartiteLatent": "unclip_hub.pipelines.inversion",
    "Conditioning": "unclip_hub.conditioning",
    "DALLE2PytorchPrior": "unclip_hub.models.dalle2_pytorch_prior",
    "DALLE2PytorchProjection": "unclip_hub.models.dalle2_pytorch_projection",
    "DALLE2PytorchScheduler": "unclip_hub.schedulers.dalle2_pytorch",
    "DALLE2PytorchUNet": "unclip_hub.models.dalle2_pytorch_unet",
    "DVAE": "unclip_hub.models.dvae",
    "GaussianPrior": "unclip_hub.models.gaussian_prior",
    "GlideTextEncoder": "unclip_hub.models.glide_text",
    "OneStepPrior": "unclip_hub.models.one_step_prior",
    "PriorTransformer": "unclip_hub.models.prior_transformer",
    "UNet2DConditionModel": "unclip_hub.models.decoder",
    "UNet2DModel": "unclip_hub.models.upsampler",
    "UnCLIPImageToImagePipeline": "unclip_hub.pipelines.image_to_image",
    "UnCLIPImageVariationPipeline": "unclip_hub.pipelines.image_variation",
    "UnCLIPInpaintPipeline": "unclip_hub.pipelines.inpaint",
    "UnCLIPInterpolationPipeline": "unclip_hub.pipelines.interpolation",
    "UnCLIPPipeline": "unclip_hub.pipelines.text_to_image",
    "UnCLIPPipelineOutput": "unclip_hub.pipelines.output",
    "UnCLIPScheduler": "unclip_hub.schedulers.unclip",
    "UnCLIPTextDiffPipeline": "unclip_hub.pipelines.text_diff",
    "UnCLIPTextProjModel": "unclip_hub.models.text_proj",
    "UnCLIPUpscalePipeline": "unclip_hub.pipelines.upscale",
    "denoise": "unclip_hub.sampling",
    "guide": "unclip_hub.sampling",
    "invert": "unclip_hub.pipelines.inversion",
    "keep_freed_memory": "unclip_hub.models.cpu_kernels",
    "save_frames": "unclip_hub.pipelines.frames",
    "score": "unclip_hub.pipelines.scoring",
}
# diffusers' loader takes a component from a library only if the library has the first two of these names; the others
# load transformers' classes, strictly
_LOADER_HOMES = {
    "ModelMixin": "diffusers.models.modeling_utils",
    "SchedulerMixin": "diffusers.schedulers.scheduling_utils",
    "CLIPImageProcessor": "unclip_hub.models.loading",
    "CLIPTextModelWithProjection": "unclip_hub.models.loading",
    "CLIPTokenizer": "unclip_hub.models.loading",
    "CLIPVisionModelWithProjection": "unclip_hub.models.loading",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name) or _LOADER_HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "diffusers" in sys.modules:
    import_module("unclip_hub.pipelines.registration").register()
