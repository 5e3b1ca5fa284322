"""Image variation: picture → CLIP image embedding → 64 px → 256 px (→ 1024 px where the checkpoint has that stage)."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UnCLIPImageVariationPipeline as DiffusersPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up here
from jaxtyping import Float
from torch import Tensor

from unclip_hub.pipelines.base import Pictures, UnCLIPPipelineBase, pictures
from unclip_hub.pipelines.checks import check_count, check_run, check_shape, require
from unclip_hub.pipelines.exchange import exchange
from unclip_hub.pipelines.output import Images, UnCLIPPipelineOutput, as_output
from unclip_hub.pipelines.settings import Interval, settings
from unclip_hub.pipelines.stage import Generator, on_step_end


class UnCLIPImageVariationPipeline(UnCLIPPipelineBase):
    """Pictures with the content of another one (Ramesh et al. 2022, arXiv:2204.06125, section 3.1).

    The decoder is given the picture's own CLIP embedding and no caption, so that what CLIP does not see varies. No
    prior is needed. Weights are shared with a text-to-image pipeline that has an image encoder:

    ```python
    variations = UnCLIPImageVariationPipeline(**pipe.components)
    variations(picture, num_images_per_prompt=4).images
    ```
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Pictures | None = None,
        num_images_per_prompt: int = 1,
        decoder_num_inference_steps: int | None = None,
        super_res_num_inference_steps: int | None = None,
        generator: Generator = None,
        decoder_latents: Float[Tensor, "b c h w"] | None = None,
        super_res_latents: Float[Tensor, "b c h2 w2"] | None = None,
        image_embeddings: Float[Tensor, "i d"] | None = None,
        decoder_guidance_scale: float | int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        decoder_guidance_interval: Interval | None = None,
        decoder_guidance_rescale: float | int | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> UnCLIPPipelineOutput | tuple[Images, Tensor | None, Images]:
        """Make ``num_images_per_prompt`` variations of every picture, those of one picture side by side.

        Steps and guidance scale left at None are the checkpoint's own (Karlo's: 25 and 7 steps; 8.0).

        Args:
            image: pictures as PIL, array or tensor (in [0, 1]), or a list of them in any sizes, see ``encode_image``.
            generator: one for all pictures, or a list of one per picture made.
            decoder_latents: (b, 3, h, w) noise to start the decoder from, unit variance; likewise
                ``super_res_latents`` (b, 3, H, W). b counts pictures times ``num_images_per_prompt``.
            image_embeddings: (i, d) CLIP image embeddings, not normalised, in place of ``image``.
            decoder_guidance_scale: classifier-free guidance, 1 for none; ``decoder_guidance_interval`` and
                ``decoder_guidance_rescale`` as in ``UnCLIPPipeline``.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            callback_on_step_end: called as ``(pipe, step, timestep, {"latents": x})`` after every step of every stage,
                ``pipe.stage`` telling which; a dict with ``"latents"`` that it returns replaces them.

        Raises:
            ValueError: arguments that do not fit each other or the checkpoint; raised before anything is computed.
        """
        chosen = settings(
            self,
            decoder_num_inference_steps=decoder_num_inference_steps,
            super_res_num_inference_steps=super_res_num_inference_steps,
            decoder_guidance_scale=decoder_guidance_scale,
            decoder_guidance_interval=decoder_guidance_interval,
            decoder_guidance_rescale=decoder_guidance_rescale,
        )
        check_count("num_images_per_prompt", num_images_per_prompt)
        if (image is None) == (image_embeddings is None):
            raise ValueError(
                f"give either image or image_embeddings, got {'neither' if image is None else 'both of them'}"
            )
        given = image_embeddings if image is None else pictures(image)
        assert given is not None
        count = len(given)
        if image is not None:
            require(self, "image variation", "image_encoder", "feature_extractor", instead="image_embeddings")
        require(self, "image variation", "text_encoder", "tokenizer")
        check_run(
            self,
            batch=count * num_images_per_prompt,
            settings=chosen,
            generator=generator,
            latents={"decoder": decoder_latents, "super_res": super_res_latents},
            output_type=output_type,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        check_shape("image_embeddings", image_embeddings, (count, self.text_proj.config["clip_embeddings_dim"]))
        on_step = on_step_end(self, callback_on_step_end)

        null = self.encode_text("")
        image_embeds = given if isinstance(given, Tensor) else self.encode_image(given)
        image_embeds = image_embeds.to(null.text_embed.device).repeat_interleave(num_images_per_prompt, dim=0)
        small_images = self.decode(
            null.expand(len(image_embeds)).with_image(image_embeds), null,
            num_inference_steps=chosen.steps["decoder"], **chosen.guidance["decoder"],
            generator=generator, latents=decoder_latents, on_step=on_step,
        )  # fmt: skip
        images = self.enlarge(
            small_images, num_inference_steps=chosen.steps["super_res"],
            generator=generator, latents=super_res_latents, on_step=on_step,
        )  # fmt: skip
        self.maybe_free_model_hooks()
        finished, small = as_output(images, output_type), as_output(small_images, output_type)
        return UnCLIPPipelineOutput(finished, image_embeds, small) if return_dict else (finished, image_embeds, small)


exchange(UnCLIPImageVariationPipeline, DiffusersPipeline)
