"""A tiny unCLIP with random weights: real classes, every width different from every other."""

import copy

import torch
from diffusers import DiffusionPipeline
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.models.upsampler import UNet2DModel
from unclip_hub.schedulers.unclip import UnCLIPScheduler
from unclip_hub.training.tokenizer import train_tokenizer


WIDTH, CONTEXT = 32, 12
CAPTIONS = ["a red circle on a blue square", "two green cats at night", "a house"]


def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(CAPTIONS * 3, context_length=CONTEXT)


def in_float64(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """A quiet copy: random networks magnify some 10,000 times what float32 rounds in another order."""
    made = type(pipe)(**{name: copy.deepcopy(part) for name, part in pipe.components.items()}).to(torch.float64)
    made.set_progress_bar_config(disable=True)
    return made


def components(*, karlo: bool = True) -> dict:
    """Karlo's layout: learned variance, a last-step upsampler; otherwise the bundled model's: x_0, one upsampler."""
    torch.manual_seed(0)
    tokens = tokenizer()
    text_encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=WIDTH,
            intermediate_size=40,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            bos_token_id=len(tokens) - 2,
            eos_token_id=len(tokens) - 1,
            pad_token_id=len(tokens) - 1,
        )
    )
    image_encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=40,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        )
    )
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=10, num_layers=2, embedding_dim=WIDTH, num_embeddings=CONTEXT
    )
    decoder = UNet2DConditionModel(
        sample_size=16,
        in_channels=3,
        out_channels=6 if karlo else 3,
        patch_size=1 if karlo else 2,
        coordinates=not karlo,
        block_out_channels=(16, 24),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=8,
        cross_attention_dim=20,
        class_embed_type="identity",
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=8,
    )
    text_proj = UnCLIPTextProjModel(
        clip_embeddings_dim=WIDTH, clip_extra_context_tokens=3, time_embed_dim=64, cross_attention_dim=20
    )
    kind = "epsilon" if karlo else "sample"
    models = {
        "text_encoder": text_encoder,
        "prior": prior,
        "decoder": decoder,
        "text_proj": text_proj,
        "super_res_first": upsampler(),
        "super_res_last": upsampler() if karlo else None,
        "image_encoder": None if karlo else image_encoder,
    }
    for model in models.values():
        if model is not None:
            model.eval().requires_grad_(False)
    torch.nn.init.normal_(text_proj.learned_classifier_free_guidance_embeddings)
    return models | {
        "tokenizer": tokens,
        "prior_scheduler": UnCLIPScheduler(prediction_type="sample", clip_sample_range=5.0),
        "decoder_scheduler": UnCLIPScheduler(
            prediction_type=kind, variance_type="learned_range" if karlo else "fixed_small_log"
        ),
        "super_res_scheduler": UnCLIPScheduler(prediction_type=kind),
        "feature_extractor": None
        if karlo
        else CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    }


def upsampler() -> UNet2DModel:
    return UNet2DModel(
        sample_size=32,
        in_channels=6,
        out_channels=3,
        block_out_channels=(16, 24),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D",) * 2,
        up_block_types=("ResnetUpsampleBlock2D",) * 2,
        norm_num_groups=8,
    )
