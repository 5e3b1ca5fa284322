"""Where CLIP's embeddings enter the decoders of DALLE2-pytorch."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.models.checks import check_shape
from unclip_hub.models.loading import ModelMixin


class DALLE2PytorchProjection(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """CLIP's embeddings to the two inputs of `DALLE2PytorchUNet`, called as `UnCLIPTextProjModel` is.

    The image embedding becomes `clip_extra_context_tokens` tokens before the text's, and an addition to the timestep
    embedding; no image is learned, in both places. The pooled text embedding is not seen by these decoders.

    Args:
        clip_extra_context_tokens: 0 for a network that is given text alone; it has then no addition to the timestep.
        text_embed_dim: width of the text encoder's states; None for a decoder without text.
    """

    _no_split_modules = []

    @register_to_config
    def __init__(
        self,
        *,
        clip_extra_context_tokens: int = 4,
        clip_embeddings_dim: int = 768,
        text_embed_dim: int | None = 768,
        time_embed_dim: int = 1280,
        cross_attention_dim: int = 512,
    ):
        super().__init__()
        if clip_extra_context_tokens:
            self.image_to_tokens = nn.Linear(clip_embeddings_dim, clip_extra_context_tokens * cross_attention_dim)
            self.image_to_time = nn.Linear(clip_embeddings_dim, time_embed_dim)
            self.null_image_tokens = nn.Parameter(torch.randn(1, clip_extra_context_tokens, cross_attention_dim))
            self.null_image_time = nn.Parameter(torch.randn(1, time_embed_dim))
        self.text_to_tokens = None if text_embed_dim is None else nn.Linear(text_embed_dim, cross_attention_dim)

    def forward(
        self,
        *,
        image_embeddings: Float[Tensor, "i d"],
        prompt_embeds: Float[Tensor, "b p"],
        text_encoder_hidden_states: Float[Tensor, "b l w"],
        do_classifier_free_guidance: bool,
    ) -> tuple[Float[Tensor, "b m e"], Float[Tensor, "b t"] | None]:
        """The decoder's `encoder_hidden_states` (image tokens first) and its `class_labels`.

        Args:
            image_embeddings: CLIP image embeddings of unit length, as these decoders were trained with: as many as
                prompts, or half as many with guidance.
            prompt_embeds: CLIP text embeddings, of which only the number is looked at.
            text_encoder_hidden_states: the text encoder's last hidden states; with guidance the unconditional half
                comes first. For a decoder without text they become as many tokens, of zeros.
            do_classifier_free_guidance: put the learned "no image" before the given ones.

        Raises:
            ValueError: batch sizes or widths that do not fit.
        """
        config, given, length = self.config, len(image_embeddings), text_encoder_hidden_states.shape[1]
        batch_size = 2 * given if do_classifier_free_guidance else given
        clip_width, text_width = config["clip_embeddings_dim"], config["text_embed_dim"]
        check_shape("image_embeddings", image_embeddings, (given, clip_width))
        check_shape("prompt_embeds", prompt_embeds, (batch_size, prompt_embeds.shape[1]))
        if self.text_to_tokens is None:
            text = image_embeddings.new_zeros(batch_size, length, config["cross_attention_dim"])
        else:
            check_shape("text_encoder_hidden_states", text_encoder_hidden_states, (batch_size, length, text_width))
            text = self.text_to_tokens(text_encoder_hidden_states)
        if not config["clip_extra_context_tokens"]:
            return text, None
        tokens = self.image_to_tokens(image_embeddings).unflatten(1, (-1, config["cross_attention_dim"]))  # (i, n, e)
        time = F.gelu(self.image_to_time(image_embeddings))  # (i, t)
        if do_classifier_free_guidance:
            tokens = torch.cat([self.null_image_tokens.to(tokens.dtype).expand_as(tokens), tokens])
            time = torch.cat([self.null_image_time.to(time.dtype).expand_as(time), time])
        return torch.cat([tokens, text], dim=1), time  # (b, n + l, e), (b, t)
