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
    from unclip_hub.models.decoder import UNet2DConditionModel
    from unclip_hub.models.prior_transformer import PriorTransformer
    from unclip_hub.models.text_proj import UnCLIPTextProjModel
    from unclip_hub.models.upsampler import UNet2DModel
    from unclip_hub.pipelines.image_variation import UnCLIPImageVariationPipeline
    from unclip_hub.pipelines.output import UnCLIPPipelineOutput
    from unclip_hub.pipelines.text_to_image import UnCLIPPipeline
    from unclip_hub.sampling import denoise, guide
    from unclip_hub.schedulers.unclip import UnCLIPScheduler

__all__ = [
    "BUNDLED_MODEL",
    "Conditioning",
    "PriorTransformer",
    "UNet2DConditionModel",
    "UNet2DModel",
    "UnCLIPImageVariationPipeline",
    "UnCLIPPipeline",
    "UnCLIPPipelineOutput",
    "UnCLIPScheduler",
    "UnCLIPTextProjModel",
    "denoise",
    "guide",
]

BUNDLED_MODEL = str(Path(__file__).parent / "assets" / "bundled")

_HOMES = {
    "Conditioning": "unclip_hub.conditioning",
    "PriorTransformer": "unclip_hub.models.prior_transformer",
    "UNet2DConditionModel": "unclip_hub.models.decoder",
    "UNet2DModel": "unclip_hub.models.upsampler",
    "UnCLIPImageVariationPipeline": "unclip_hub.pipelines.image_variation",
    "UnCLIPPipeline": "unclip_hub.pipelines.text_to_image",
    "UnCLIPPipelineOutput": "unclip_hub.pipelines.output",
    "UnCLIPScheduler": "unclip_hub.schedulers.unclip",
    "UnCLIPTextProjModel": "unclip_hub.models.text_proj",
    "denoise": "unclip_hub.sampling",
    "guide": "unclip_hub.sampling",
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
