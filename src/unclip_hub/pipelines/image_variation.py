"""Image variation: picture → CLIP image embedding → 64 px → 256 px (→ 1024 px where the checkpoint has that stage)."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UnCLIPImageVariationPipeline as DiffusersPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up here
from jaxtyping import Float
from torch import Tensor

from unclip_hub.pipelines.base import Pictures, UnCLIPPipelineBase, pictures
from unclip_hub.pipelines.checks import check_count, check_fraction, check_run, check_shape, require
from unclip_hub.pipelines.exchange import exchange
from unclip_hub.pipelines.inversion import BipartiteLatent, latent_of, reconstruct
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
    variations(picture, num_images_per_prompt=4, eta=0.5).images
    ```

    The second call starts from the picture's own noise, found by DDIM inversion: ``eta`` 0 gives the picture as the
    decoder can draw it, 1 adds as much noise in every step as ancestral sampling does.
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
        eta: float | int | None = None,
        latent: BipartiteLatent | None = None,
        negative_prompt: str | None = None,
        weighted: bool = False,
        decoder_guidance_interval: Interval | None = None,
        decoder_guidance_rescale: float | int | None = None,
        output_size: int | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> UnCLIPPipelineOutput | tuple[Images, Tensor | None, Images]:
        """Make ``num_images_per_prompt`` variations of every picture, those of one picture side by side.

        Steps and guidance scale left at None are the checkpoint's own (Karlo's: 25 and 7 steps; 8.0); with ``eta`` or
        ``latent`` the inversion's (25 steps, 1.0).

        Args:
            image: pictures as PIL, array or tensor (in [0, 1]), or a list of them in any sizes, see ``encode_image``.
            generator: one for all pictures, or a list of one per picture made.
            decoder_latents: (b, 3, h, w) noise to start the decoder from, unit variance; likewise
                ``super_res_latents`` (b, 3, H, W). b counts pictures times ``num_images_per_prompt``.
            image_embeddings: (i, d) CLIP image embeddings, not normalised, in place of ``image``.
            eta: 0 to 1, how far from the picture; None starts from fresh noise.
            latent: what ``invert`` returned, in place of ``image``; ``eta`` is then 0 if not given.
            negative_prompt: what to guide away from, by default the empty caption.
            weighted: read ``(red:1.4)`` in captions as "red", 1.4 times as strong; otherwise brackets are text.
            decoder_guidance_scale: classifier-free guidance, 1 for none; ``decoder_guidance_interval`` and
                ``decoder_guidance_rescale`` as in ``UnCLIPPipeline``.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            output_size: side of the pictures in px, one that the checkpoint's stages make (64, 256, 1024); by default
                what the checkpoint prefers, or the largest.
            callback_on_step_end: called as ``(pipe, step, timestep, {"latents": x})`` after every step of every stage,
                ``pipe.stage`` telling which; a dict with ``"latents"`` that it returns replaces them.

        Raises:
            ValueError: arguments that do not fit each other or the checkpoint; raised before anything is computed.
        """
        chosen = settings(
            self,
            decoder_num_inference_steps=decoder_num_inference_steps,
            super_res_num_inference_steps=super_res_num_inference_steps,
            output_size=output_size,
            decoder_guidance_scale=decoder_guidance_scale,
            decoder_guidance_interval=decoder_guidance_interval,
            decoder_guidance_rescale=decoder_guidance_rescale,
        )
        check_count("num_images_per_prompt", num_images_per_prompt)
        inverted = eta is not None or latent is not None
        given = [form for form in (image, image_embeddings, latent) if form is not None]
        if len(given) != 1:
            came = ("neither", "", "both of them", "all of them")[len(given)]
            raise ValueError(f"give either image or image_embeddings, got {came}; or a latent alone")
        if inverted and (image_embeddings is not None or decoder_latents is not None):
            raise ValueError("eta varies a picture's own noise: give image or latent alone, or leave eta out")
        if eta is not None:
            check_fraction("eta", eta)
        shown = None if image is None else pictures(image)
        count = next(len(form) for form in (shown, image_embeddings, latent) if form is not None)
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

        if inverted:
            latent = latent_of(
                self, shown, latent,
                num_inference_steps=decoder_num_inference_steps,
                negative_prompt=negative_prompt,
                guidance={
                    "guidance_scale": decoder_guidance_scale,
                    "guidance_interval": decoder_guidance_interval,
                    "guidance_rescale": decoder_guidance_rescale,
                },
                on_step=on_step,
            ).repeat(num_images_per_prompt)  # fmt: skip
            image_embeds = latent.image_embeds
            small_images = reconstruct(self, latent, eta=eta or 0, generator=generator, on_step=on_step)
        else:
            nothing = self.encode_text("")
            null = nothing if negative_prompt is None else self.encode_text(negative_prompt, weighted=weighted)
            image_embeds = image_embeddings if shown is None else self.encode_image(shown)
            assert image_embeds is not None
            image_embeds = image_embeds.to(null.text_embed.device).repeat_interleave(num_images_per_prompt, dim=0)
            small_images = self.decode(
                nothing.expand(len(image_embeds)).with_image(image_embeds), null,
                num_inference_steps=chosen.steps["decoder"], **chosen.guidance["decoder"],
                generator=generator, latents=decoder_latents, on_step=on_step,
            )  # fmt: skip
        images = self.enlarge(
            small_images, num_inference_steps=chosen.steps["super_res"], stages=chosen.upsamplers,
            generator=generator, latents=super_res_latents, on_step=on_step,
        )  # fmt: skip
        self.maybe_free_model_hooks()
        finished, small = as_output(images, output_type), as_output(small_images, output_type)
        return UnCLIPPipelineOutput(finished, image_embeds, small) if return_dict else (finished, image_embeds, small)


exchange(UnCLIPImageVariationPipeline, DiffusersPipeline)
