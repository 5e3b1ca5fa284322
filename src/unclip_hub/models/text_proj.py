"""Where CLIP's embeddings enter the decoder: diffusers' `UnCLIPTextProjModel`, which diffusers itself has retired."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from jaxtyping import Float
from torch import Tensor, nn

from unclip_hub.models.checks import check_shape
from unclip_hub.models.loading import ModelMixin


class UnCLIPTextProjModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """CLIP's embeddings to the decoder's two inputs (Ramesh et al. 2022, arXiv:2204.06125, section 2.1).

    Image and text embedding are projected and summed into a vector that joins the timestep embedding, and the image
    embedding becomes `clip_extra_context_tokens` tokens before the text tokens. No image is a learned embedding.
    """

    _no_split_modules = []
    _skip_layerwise_casting_patterns = ["norm"]

    @register_to_config
    def __init__(
        self,
        *,
        clip_extra_context_tokens: int = 4,
        clip_embeddings_dim: int = 768,
        time_embed_dim: int,
        cross_attention_dim: int,
    ):
        super().__init__()
        self.clip_extra_context_tokens = clip_extra_context_tokens
        self.clip_embeddings_dim = clip_embeddings_dim
        self.learned_classifier_free_guidance_embeddings = nn.Parameter(torch.zeros(clip_embeddings_dim))
        self.embedding_proj = nn.Linear(clip_embeddings_dim, time_embed_dim)
        self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(clip_embeddings_dim, time_embed_dim)
        self.clip_extra_context_tokens_proj = nn.Linear(
            clip_embeddings_dim, clip_extra_context_tokens * cross_attention_dim
        )
        self.encoder_hidden_states_proj = nn.Linear(clip_embeddings_dim, cross_attention_dim)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(cross_attention_dim)

    def forward(
        self,
        *,
        image_embeddings: Float[Tensor, "i d"],
        prompt_embeds: Float[Tensor, "b d"],
        text_encoder_hidden_states: Float[Tensor, "b l d"],
        do_classifier_free_guidance: bool,
    ) -> tuple[Float[Tensor, "b m e"], Float[Tensor, "b t"]]:
        """The decoder's `encoder_hidden_states` (image tokens first) and its `class_labels`.

        Args:
            image_embeddings: CLIP image embeddings, not normalised: as many as prompts, or half as many with guidance.
            prompt_embeds: CLIP text embeddings; with guidance the unconditional half comes first.
            text_encoder_hidden_states: the text encoder's last hidden states, one per token.
            do_classifier_free_guidance: put the learned "no image" embedding before the given ones.

        Raises:
            ValueError: batch sizes or widths that do not fit.
        """
        given, length = image_embeddings.shape[0], text_encoder_hidden_states.shape[1]
        batch_size = 2 * given if do_classifier_free_guidance else given
        check_shape("image_embeddings", image_embeddings, (given, self.clip_embeddings_dim))
        check_shape("prompt_embeds", prompt_embeds, (batch_size, self.clip_embeddings_dim))
        check_shape(
            "text_encoder_hidden_states", text_encoder_hidden_states, (batch_size, length, self.clip_embeddings_dim)
        )
        if do_classifier_free_guidance:
            no_image = self.learned_classifier_free_guidance_embeddings.to(image_embeddings.dtype)
            image_embeddings = torch.cat([no_image.expand(given, -1), image_embeddings])  # (b, d)

        time = self.embedding_proj(prompt_embeds) + self.clip_image_embeddings_project_to_time_embeddings(
            image_embeddings
        )
        image_tokens = self.clip_extra_context_tokens_proj(image_embeddings)  # (b, e * n)
        image_tokens = image_tokens.unflatten(1, (-1, self.clip_extra_context_tokens)).transpose(1, 2)  # (b, n, e)
        text_tokens = self.text_encoder_hidden_states_norm(self.encoder_hidden_states_proj(text_encoder_hidden_states))
        return torch.cat([image_tokens, text_tokens], dim=1), time  # (b, n + l, e), (b, t)
