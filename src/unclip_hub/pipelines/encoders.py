"""The CLIP half of a checkpoint: opened alone, its decoder and upsamplers are not even read."""

from typing import Any

from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up here
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from unclip_hub.pipelines.base import UnCLIPPipelineBase


class CLIPEncoders(UnCLIPPipelineBase):
    """The verbs ``encode_text`` and ``encode_image`` of any checkpoint that holds both encoders."""

    _optional_components: list[str] = []

    def __init__(
        self,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        image_encoder: CLIPVisionModelWithProjection,
        feature_extractor: CLIPImageProcessorPil,
        sampling_defaults: dict[str, Any] | None = None,  # of the checkpoint, for those who sample
    ) -> None:
        DiffusionPipeline.__init__(self)
        self.register_to_config(sampling_defaults=sampling_defaults)
        self.register_modules(
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
