"""Inpainting and outpainting: a picture, a mask and a prompt → the picture with what is white repainted."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.images import paste, resize, shrink_known, to_mask, window
from unclip_hub.pipelines.base import Picture, Pictures, UnCLIPPipelineBase
from unclip_hub.pipelines.checks import check_count, check_shape
from unclip_hub.pipelines.known import Known
from unclip_hub.pipelines.output import Images, UnCLIPPipelineOutput, as_output
from unclip_hub.pipelines.prompted import check_prompted, mixed, same_sized
from unclip_hub.pipelines.settings import Interval, settings
from unclip_hub.pipelines.stage import Generator, OnStep, guided, on_step_end, run
from unclip_hub.pipelines.tiling import enlarge_tiled, tiled, upsampler_sizes, windows_over


class UnCLIPInpaintPipeline(UnCLIPPipelineBase):
    """Repaint a part of a picture, or make room around it and paint that (GLIDE, arXiv:2112.10741, section 4).

    Any decoder does it, by RePaint's resampling (arXiv:2201.09865). One that was trained for it, with 7 input channels
    (x_t, the masked picture, the mask), is shown what is known as well. White is repainted, as in diffusers.

    ```python
    inpaint = UnCLIPInpaintPipeline(**pipe.components)
    inpaint(picture, mask, "a red star on a beach").images
    canvas, room = outpainting_canvas(to_tensor(picture), left=64)
    inpaint((canvas + 1) / 2, room, "a beach").images
    ```
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Pictures | None = None,
        mask: Picture | list[Any] | None = None,
        prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        *,
        resampling: int = 1,
        jump_length: int = 1,
        image_weight: float | int = 0.0,
        short_side: int | None = None,
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
        negative_prompt: str | list[str] | None = None,
        weighted: bool = False,
        prompt_embeds: Conditioning | None = None,
        negative_prompt_embeds: Conditioning | None = None,
        image_embeds: Float[Tensor, "b d"] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> UnCLIPPipelineOutput | tuple[Images, Tensor | None, Images]:
        """Repaint every picture where its mask is white; pictures and prompts may be one of either, or as many.

        The pictures come back in their own size, and where the mask is black in their own pixels: to the bit as
        ``"pil"``, within float32's rounding otherwise. Between, they are blended. Steps and guidance left at None
        are the checkpoint's own.

        Args:
            image: pictures of one size, any size: PIL, array or tensor (in [0, 1]), or a list of them.
            mask: one or one per picture, of the pictures' size, see ``images.to_mask``: white is repainted.
            prompt: what the whole picture shall show, not only the part that is repainted.
            resampling: how often every ``jump_length`` steps of the decoder are run: what is made settles with what
                is known (RePaint, section 4.2). The decoder's time grows with it; the bundled model gains nothing.
            image_weight: from 0, the prior's embedding of the prompt, to 1, the picture's own, hidden part included.
            short_side: the picture's shorter side as the model sees it, by default that of the pictures it makes.
                The longer side, and a greater ``short_side``, are covered by overlapping windows.
            generator: one for all pictures, or a list of one per picture made.
            weighted: read ``(red:1.4)`` in captions as "red", 1.4 times as strong; otherwise brackets are text.
            decoder_latents: (b, 3, h, w) noise for the decoder's whole canvas.

        The other arguments, and the errors, are those of ``UnCLIPPipeline``.
        """
        chosen = settings(
            self,
            prior_num_inference_steps=prior_num_inference_steps,
            decoder_num_inference_steps=decoder_num_inference_steps,
            super_res_num_inference_steps=super_res_num_inference_steps,
            prior_guidance_scale=prior_guidance_scale,
            decoder_guidance_scale=decoder_guidance_scale,
            prior_guidance_interval=prior_guidance_interval,
            decoder_guidance_interval=decoder_guidance_interval,
            prior_guidance_rescale=prior_guidance_rescale,
            decoder_guidance_rescale=decoder_guidance_rescale,
            prior_options=prior_options,
        )
        check_count("resampling", resampling)
        check_count("jump_length", jump_length)
        originals = same_sized(image)
        masks = _masks(mask, originals)
        small_size, working_size = self._canvas(*originals.shape[-2:], stages=chosen.upsamplers, short_side=short_side)
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
            latents={"prior": prior_latents},
            output_type=output_type,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        batch = rows * num_images_per_prompt
        check_shape("decoder_latents", decoder_latents, (batch, 3, *small_size))
        on_step = on_step_end(self, callback_on_step_end)

        cond = self.encode_text(prompt or "", weighted=weighted) if prompt_embeds is None else prompt_embeds
        null = negative_prompt_embeds
        if null is None and chosen.guided:
            null = self.encode_text("" if negative_prompt is None else negative_prompt, weighted=weighted)
        cond = cond.expand(rows).repeat(num_images_per_prompt)
        if null is not None and len(null) > 1:
            null = null.repeat(num_images_per_prompt)
        device = cond.text_embed.device
        originals, masks = (x.to(device).repeat_interleave(batch // len(x), dim=0) for x in (originals, masks))
        if image_embeds is None:
            own = self.encode_image((originals + 1) / 2) if image_weight else None
            drawn = None if image_weight == 1 else self.sample_prior(
                cond, null, generator=generator, latents=prior_latents, on_step=on_step, **chosen.prior
            )  # fmt: skip
            image_embeds = mixed(drawn, own, image_weight=image_weight)
        small_images = self.repaint(
            cond.with_image(image_embeds.to(device)), null,
            known=Known(*shrink_known(originals, masks, small_size)), resampling=resampling, jump_length=jump_length,
            num_inference_steps=chosen.steps["decoder"], **chosen.guidance["decoder"],
            generator=generator, latents=decoder_latents, on_step=on_step,
        )  # fmt: skip
        images = enlarge_tiled(
            self,
            small_images,
            num_inference_steps=chosen.steps["super_res"],
            stages=chosen.upsamplers,
            generator=generator,
            on_step=on_step,
        )
        self.maybe_free_model_hooks()
        images = images if working_size == tuple(originals.shape[-2:]) else resize(images, originals.shape[-2:])
        images = paste(images.clamp(-1, 1), originals.to(images), mask=masks)
        finished, small = as_output(images, output_type), as_output(small_images, output_type)
        return UnCLIPPipelineOutput(finished, image_embeds, small) if return_dict else (finished, image_embeds, small)

    def repaint(
        self,
        cond: Conditioning,
        null: Conditioning | None = None,
        *,
        known: Known,
        num_inference_steps: int,
        resampling: int = 1,
        jump_length: int = 1,
        guidance_scale: float | int = 1.0,
        guidance_interval: Interval | None = None,
        guidance_rescale: float | int = 0.0,
        generator: Generator = None,
        latents: Float[Tensor, "b 3 h w"] | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """``decode`` around what is known of its picture, which is at least as large as a picture of the decoder's."""
        size, shape = self.decoder.config["sample_size"], tuple(known.pixels.shape)
        at = windows_over(*shape[-2:], size=size)
        predicts = [
            guided(
                self,
                "decoder",
                cond=cond,
                null=null,
                guidance_scale=guidance_scale,
                guidance_interval=guidance_interval,
                guidance_rescale=guidance_rescale,
                context=_context(self.decoder, Known(*(window(x, place, size=size) for x in vars(known).values()))),
            )
            for place in at
        ]
        x = run(
            self,
            "decoder",
            tiled(predicts, at, size=size),
            num_inference_steps=num_inference_steps,
            shape=shape,
            dtype=self.decoder.dtype,
            generator=generator,
            latents=latents,
            on_step=on_step,
            known=known,
            resampling=resampling,
            jump_length=jump_length,
        )
        return paste(x.clamp(-1, 1), known.pixels.to(x), mask=known.mask.to(x))

    def _canvas(
        self, height: int, width: int, *, stages: tuple[str, ...], short_side: int | None
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size of the decoder's canvas, and of what the upsamplers make of it."""
        small = self.decoder.config["sample_size"]
        factor = upsampler_sizes(self, stages[-1])[1] // small if stages else 1
        short = small * factor if short_side is None else short_side
        if not isinstance(short, int) or short < small * factor:
            raise ValueError(f"short_side must be at least {small * factor} for this checkpoint, got {short_side!r}")
        scale = short / factor / min(height, width)
        size = max(small, round(height * scale)), max(small, round(width * scale))
        windows_over(*size, size=small)  # refuses a canvas of too many
        return size, (size[0] * factor, size[1] * factor)


def _masks(mask: Any, originals: Tensor) -> Tensor:
    if mask is None:
        raise ValueError("mask must be a picture of the image's size, white where it is to be repainted, got None")
    masks = to_mask(mask)
    if masks.shape[-2:] != originals.shape[-2:] or len(masks) not in (1, len(originals)):
        raise ValueError(
            f"mask must be one, or one per picture, of the pictures' size: expected (b, 1, h, w) of "
            f"{(len(originals), 1, *originals.shape[-2:])}, got {tuple(masks.shape)}"
        )
    return masks


def _context(decoder: Any, known: Known) -> Tensor | None:
    """What a decoder that was trained to inpaint gets beside x_t: the masked picture, then the mask."""
    channels = decoder.config["in_channels"]
    if channels == 3:
        return None
    if channels != 7:
        raise ValueError(f"a decoder that inpaints must have 3 or 7 input channels, got {channels}")
    pixels, mask = known.pixels.to(decoder.dtype), known.mask.to(decoder.dtype)
    return torch.cat([pixels * (mask == 0), mask], dim=1)
