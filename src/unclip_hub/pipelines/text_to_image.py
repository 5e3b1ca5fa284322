"""Text to image: caption → CLIP image embedding → 64 px → 256 px (→ 1024 px where the checkpoint has that stage)."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UnCLIPPipeline as DiffusersPipeline  # pyright: ignore[reportPrivateImportUsage]
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up here
from jaxtyping import Float
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.pipelines.base import UnCLIPPipelineBase
from unclip_hub.pipelines.checks import check_call
from unclip_hub.pipelines.exchange import exchange
from unclip_hub.pipelines.output import Images, UnCLIPPipelineOutput, as_output
from unclip_hub.pipelines.ranking import best_pictures, best_prior_sample, check_ranking
from unclip_hub.pipelines.settings import Interval, settings
from unclip_hub.pipelines.stage import Generator, on_step_end


class UnCLIPPipeline(UnCLIPPipelineBase):
    """Pictures from captions, as in DALL·E 2 (Ramesh et al. 2022, arXiv:2204.06125).

    ```python
    pipe = UnCLIPPipeline.from_pretrained(BUNDLED_MODEL)
    pipe("a koala above a pumpkin at sunset", generator=torch.Generator().manual_seed(7)).images[0]
    ```

    A repository's schedulers are kept as they were published. Karlo's clips the prior at 5.0, where the code that it
    was trained with clamps at 10; for that code's embeddings

    ```python
    pipe.prior_scheduler = UnCLIPScheduler.from_config(pipe.prior_scheduler.config, clip_sample_range=10.0)
    ```
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        prior_num_inference_steps: int | None = None,
        decoder_num_inference_steps: int | None = None,
        super_res_num_inference_steps: int | None = None,
        generator: Generator = None,
        prior_latents: Float[Tensor, "b d"] | None = None,
        decoder_latents: Float[Tensor, "b c h w"] | None = None,
        super_res_latents: Float[Tensor, "b c h2 w2"] | None = None,
        text_model_output: Any = None,
        text_attention_mask: Tensor | None = None,
        prior_guidance_scale: float | int | None = None,
        decoder_guidance_scale: float | int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        prior_guidance_interval: Interval | None = None,
        decoder_guidance_interval: Interval | None = None,
        prior_guidance_rescale: float | int | None = None,
        decoder_guidance_rescale: float | int | None = None,
        prior_options: dict[str, Any] | None = None,
        negative_prompt: str | list[str] | None = None,
        weighted: bool = False,
        prompt_embeds: Conditioning | None = None,
        negative_prompt_embeds: Conditioning | None = None,
        image_embeds: Float[Tensor, "b d"] | None = None,
        small_images: Float[Tensor, "b 3 h w"] | None = None,
        num_prior_samples: int | None = None,
        num_candidates: int | None = None,
        output_size: int | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> UnCLIPPipelineOutput | tuple[Images, Tensor | None, Images]:
        """Make ``num_images_per_prompt`` pictures of every prompt, those of one prompt side by side.

        Steps, guidance, prior samples left at None are the checkpoint's own (Karlo's: 25, 25, 7 steps; 4.0, 8.0; 1).

        Args:
            prompt: one caption or several; what the text encoder has no room for is cut off with a warning.
            generator: one for all pictures, or a list of one per picture: each is then the same alone and in a batch.
            prior_latents: (b, d) noise to start the prior from, unit variance; likewise ``decoder_latents`` (b, 3, h,
            w)
                and ``super_res_latents`` (b, 3, H, W). b counts prompts times ``num_images_per_prompt``.
            text_model_output: the text encoder's output (or a tuple of text embeds and last hidden states) in place of
                ``prompt``, with ``text_attention_mask``; ``prompt_embeds`` does the same in one value.
            prior_guidance_scale: classifier-free guidance, 1 for none; best near 1 (section 5.1 of the paper).
            decoder_guidance_scale: likewise for the decoder.
            prior_guidance_interval: the noise levels sigma = sqrt(1 / abar - 1) in (low, high] that are guided, by
                default all; likewise ``decoder_guidance_interval``. 0.2 to 5 is a start (arXiv:2404.07724).
            prior_guidance_rescale: 0 to 1, how far guidance's higher contrast is taken back (arXiv:2305.08891,
                section 3.4; 0.7 there); likewise ``decoder_guidance_rescale``.
            prior_options: keyword arguments of the prior's own, such as ``{"temperature": 0.9}`` of an autoregressive
                one. Karlo's steps and guidance, and ``prior_latents``, are for diffusion priors alone.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            negative_prompt: captions to lead away from, one or one per prompt; the empty caption by default.
            weighted: read ``(red:1.4)`` in captions as "red", 1.4 times as strong; otherwise brackets are text.
            prompt_embeds: what ``encode_text`` returned, in place of ``prompt``; likewise ``negative_prompt_embeds``.
            image_embeds: (b, d) CLIP image embeddings; the prior is not run.
            small_images: (b, 3, h, w) pictures in [-1, 1]; only the upsampler is run.
            num_prior_samples: how many embeddings the prior draws for a picture; the one nearest to the caption's is
                decoded (the paper's 2, section 2.2). Its cosine is the picture's score.
            num_candidates: how many pictures to make of every prompt, for CLIP to choose the ``num_images_per_prompt``
                best, which come best first with their cosines as ``scores``. ``generator`` lists and latents then
                have one row per candidate.
            output_size: side of the pictures in px, one that the checkpoint's stages make (64, 256, 1024); by default
                what the checkpoint prefers, or the largest.
            callback_on_step_end: called as ``(pipe, step, timestep, {"latents": x})`` after every step of every stage,
                ``pipe.stage`` telling which; a dict with ``"latents"`` that it returns replaces them.

        Raises:
            ValueError: arguments that do not fit each other or the checkpoint; raised before anything is computed.
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
            num_prior_samples=num_prior_samples,
        )
        check_ranking(
            self,
            num_prior_samples=num_prior_samples,
            num_candidates=num_candidates,
            num_images_per_prompt=num_images_per_prompt,
            prior_latents=prior_latents,
            image_embeds=image_embeds,
            small_images=small_images,
        )
        keep, each = num_images_per_prompt, num_candidates or num_images_per_prompt
        check_call(
            self,
            prompt=prompt,
            prompt_embeds=prompt_embeds,
            text_model_output=text_model_output,
            text_attention_mask=text_attention_mask,
            negative_prompt=negative_prompt,
            negative_prompt_embeds=negative_prompt_embeds,
            image_embeds=image_embeds,
            small_images=small_images,
            num_images_per_prompt=each,
            settings=chosen,
            generator=generator,
            latents={"prior": prior_latents, "decoder": decoder_latents, "super_res": super_res_latents},
            output_type=output_type,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        on_step = on_step_end(self, callback_on_step_end)

        cond = scores = None
        if small_images is None:
            if prompt_embeds is not None:
                cond = prompt_embeds
            elif text_model_output is not None and text_attention_mask is not None:
                cond = Conditioning(text_model_output[0], text_model_output[1], text_attention_mask.bool())
            else:
                cond = self.encode_text(prompt or "", weighted=weighted)
            null = negative_prompt_embeds
            if null is None and chosen.guided:
                null = self.encode_text("" if negative_prompt is None else negative_prompt, weighted=weighted)
            cond = cond.repeat(each)
            if null is not None and len(null) > 1:
                null = null.repeat(each)
            if image_embeds is None:
                if chosen.num_prior_samples > 1 and prior_latents is None:
                    image_embeds, scores = best_prior_sample(
                        self, cond, null, samples=chosen.num_prior_samples,
                        generator=generator, on_step=on_step, **chosen.prior,
                    )  # fmt: skip
                else:
                    image_embeds = self.sample_prior(
                        cond, null, generator=generator, latents=prior_latents, on_step=on_step, **chosen.prior
                    )
            small_images = self.decode(
                cond.with_image(image_embeds.to(cond.text_embed.device)), null,
                num_inference_steps=chosen.steps["decoder"], **chosen.guidance["decoder"],
                generator=generator, latents=decoder_latents, on_step=on_step,
            )  # fmt: skip
        images = self.enlarge(
            small_images, num_inference_steps=chosen.steps["super_res"], stages=chosen.upsamplers,
            generator=generator, latents=super_res_latents, on_step=on_step,
        )  # fmt: skip
        if num_candidates is not None:
            assert cond is not None and image_embeds is not None
            best, scores = best_pictures(self, images, cond.text_embed, candidates=each, keep=keep)
            images, small_images, image_embeds = images[best], small_images[best], image_embeds[best]
        self.maybe_free_model_hooks()
        finished, small = as_output(images, output_type), as_output(small_images, output_type)
        if not return_dict:
            return finished, image_embeds, small
        return UnCLIPPipelineOutput(finished, image_embeds, small, scores)


exchange(UnCLIPPipeline, DiffusersPipeline)
