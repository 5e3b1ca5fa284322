"""Image to image: a picture and a prompt → the picture as the prompt would have it, `strength` of the way."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.images import centre_square, resize
from unclip_hub.pipelines.base import Pictures, UnCLIPPipelineBase
from unclip_hub.pipelines.output import Images, UnCLIPPipelineOutput, as_output
from unclip_hub.pipelines.prompted import check_prompted, check_strength, mixed, same_sized
from unclip_hub.pipelines.settings import Interval, settings
from unclip_hub.pipelines.stage import Generator, on_step_end


class UnCLIPImageToImagePipeline(UnCLIPPipelineBase):
    """Pictures from a picture and a caption: the decoder starts from the noised picture (SDEdit, arXiv:2108.01073).

    ```python
    painted = UnCLIPImageToImagePipeline(**pipe.components)
    painted(picture, "a blue star on a beach", strength=0.6).images
    ```
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Pictures | None = None,
        prompt: str | list[str] | None = None,
        strength: float | int = 0.7,
        num_images_per_prompt: int = 1,
        *,
        image_weight: float | int = 0.0,
        prior_num_inference_steps: int | None = None,
        decoder_num_inference_steps: int | None = None,
        super_res_num_inference_steps: int | None = None,
        prior_guidance_scale: float | int | None = None,
        decoder_guidance_scale: float | int | None = None,
        prior_guidance_interval: Interval | None = None,
        decoder_guidance_interval: Interval | None = None,
        prior_guidance_rescale: float | int | None = None,
        decoder_guidance_rescale: float | int | None = None,
        prior_options: dict[str, Any] | None = None,
        generator: Generator = None,
        prior_latents: Float[Tensor, "b d"] | None = None,
        decoder_latents: Float[Tensor, "b c h w"] | None = None,
        super_res_latents: Float[Tensor, "b c h2 w2"] | None = None,
        negative_prompt: str | list[str] | None = None,
        weighted: bool = False,
        prompt_embeds: Conditioning | None = None,
        negative_prompt_embeds: Conditioning | None = None,
        image_embeds: Float[Tensor, "b d"] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        output_size: int | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> UnCLIPPipelineOutput | tuple[Images, Tensor | None, Images]:
        """Make ``num_images_per_prompt`` pictures of every picture and prompt; one of either, or as many of both.

        Steps and guidance left at None are the checkpoint's own.

        Args:
            image: pictures of one size, any size: PIL, array or tensor (in [0, 1]), or a list of them. Like CLIP, the
                decoder sees the square in their middle.
            strength: above 0, which keeps the picture, to 1, which ignores it: the part of the decoder's steps run.
            image_weight: from 0, the prior's embedding of the prompt, to 1, the picture's own (the prior is not run).
            generator: one for all pictures, or a list of one per picture made.
            weighted: read ``(red:1.4)`` in captions as "red", 1.4 times as strong; otherwise brackets are text.

        The other arguments, and the errors, are those of ``UnCLIPPipeline``.
        """
        chosen = settings(
            self,
            prior_num_inference_steps=prior_num_inference_steps,
            decoder_num_inference_steps=decoder_num_inference_steps,
            super_res_num_inference_steps=super_res_num_inference_steps,
            output_size=output_size,
            prior_guidance_scale=prior_guidance_scale,
            decoder_guidance_scale=decoder_guidance_scale,
            prior_guidance_interval=prior_guidance_interval,
            decoder_guidance_interval=decoder_guidance_interval,
            prior_guidance_rescale=prior_guidance_rescale,
            decoder_guidance_rescale=decoder_guidance_rescale,
            prior_options=prior_options,
        )
        check_strength(strength)
        originals = centre_square(same_sized(image))
        rows = check_prompted(
            self,
            images=len(originals),
            image_weight=image_weight,
            prompt=prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt=negative_prompt,
            negative_prompt_embeds=negative_prompt_embeds,
            image_embeds=image_embeds,
            num_images_per_prompt=num_images_per_prompt,
            settings=chosen,
            generator=generator,
            latents={"prior": prior_latents, "decoder": decoder_latents, "super_res": super_res_latents},
            output_type=output_type,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        batch, size = rows * num_images_per_prompt, self.decoder.config["sample_size"]
        on_step = on_step_end(self, callback_on_step_end)

        cond = self.encode_text(prompt or "", weighted=weighted) if prompt_embeds is None else prompt_embeds
        null = negative_prompt_embeds
        if null is None and chosen.guided:
            null = self.encode_text("" if negative_prompt is None else negative_prompt, weighted=weighted)
        cond = cond.expand(rows).repeat(num_images_per_prompt)
        if null is not None and len(null) > 1:
            null = null.repeat(num_images_per_prompt)
        device = cond.text_embed.device
        originals = originals.to(device).repeat_interleave(batch // len(originals), dim=0)
        if image_embeds is None:
            own = self.encode_image((originals + 1) / 2) if image_weight else None
            drawn = None if image_weight == 1 else self.sample_prior(
                cond, null, generator=generator, latents=prior_latents, on_step=on_step, **chosen.prior
            )  # fmt: skip
            image_embeds = mixed(drawn, own, image_weight=image_weight)
        small_images = self.decode(
            cond.with_image(image_embeds.to(device)), null, image=resize(originals, (size, size)), strength=strength,
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
