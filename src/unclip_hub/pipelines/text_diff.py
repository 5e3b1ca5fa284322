"""Text differences: a picture changed as one caption differs from another, or by sums of captions and pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up here
from jaxtyping import Float
from torch import Tensor

from unclip_hub.embeddings import normalize, slerp, text_diff
from unclip_hub.pipelines.base import Picture, Pictures, UnCLIPPipelineBase, pictures
from unclip_hub.pipelines.checks import check_count, check_fraction, check_run, require
from unclip_hub.pipelines.frames import same_noise
from unclip_hub.pipelines.inversion import BipartiteLatent, latent_of, reconstruct
from unclip_hub.pipelines.output import Images, UnCLIPPipelineOutput, as_output
from unclip_hub.pipelines.settings import Interval, settings
from unclip_hub.pipelines.stage import Generator, on_step_end


class UnCLIPTextDiffPipeline(UnCLIPPipelineBase):
    """A picture with something about it changed in words (Ramesh et al. 2022, section 3.3).

    ```python
    edit = UnCLIPTextDiffPipeline(**pipe.components)
    edit(picture, "a photo of a car in winter", "a photo of a car in autumn", theta=0.4).images[0]
    edit(picture, add=["a modern house"], subtract=["a Victorian house"]).images[0]
    ```

    The picture's embedding is turned towards z_d, the difference of the captions' embeddings, by a part ``theta`` of
    the angle between them; its norm stays. The decoder's noise is the picture's own, found by inversion.
    """

    @torch.no_grad()
    def __call__(
        self,
        image: Pictures | None = None,
        target_caption: str | list[str] | None = None,
        source_caption: str | list[str] = "a photo",
        theta: float | int | Sequence[float | int] = 0.35,
        *,
        add: Sequence[str | Picture] = (),
        subtract: Sequence[str | Picture] = (),
        latent: BipartiteLatent | None = None,
        exact: bool = False,
        num_images_per_prompt: int = 1,
        negative_prompt: str | None = None,
        weighted: bool = False,
        decoder_num_inference_steps: int | None = None,
        super_res_num_inference_steps: int | None = None,
        decoder_guidance_scale: float | int | None = None,
        decoder_guidance_interval: Interval | None = None,
        decoder_guidance_rescale: float | int | None = None,
        generator: Generator = None,
        output_type: str = "pil",
        return_dict: bool = True,
        output_size: int | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> UnCLIPPipelineOutput | tuple[Images, Tensor | None, Images]:
        """Make a picture for every picture and ``theta``, those of one picture side by side.

        Args:
            image: pictures of any size, see ``invert``.
            target_caption: what the picture should become, one caption or one per picture; ``source_caption`` what
                it is, in the same words otherwise.
            theta: 0, the picture itself, to 1; the paper stops at 0.25 to 0.5. Several are a trajectory.
            add: captions and pictures whose unit embeddings are added up, those of ``subtract`` subtracted, to z_d;
                in place of ``target_caption``.
            latent: what ``invert`` returned, in place of ``image``.
            exact: invert exactly, see ``invert``.
            num_images_per_prompt: upsampled each with a noise of its own.
            negative_prompt: what to guide away from, if ``decoder_guidance_scale`` is not 1, its default.
            weighted: read ``(red:1.4)`` in captions as "red", 1.4 times as strong; otherwise brackets are text.
            output_size: side of the pictures in px, one that the checkpoint's stages make (64, 256, 1024); by default
                what the checkpoint prefers, or the largest.
            generator: pictures of one trajectory share their noise; a list has one per picture made.

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
        if (image is None) == (latent is None):
            raise ValueError(f"give either image or latent, got {'neither' if image is None else 'both of them'}")
        count = len(latent) if latent is not None else len(pictures(image)) if image is not None else 0
        angles = [theta] if isinstance(theta, int | float) else list(theta)
        if not angles:
            raise ValueError("theta must be a number or a list of them, got an empty list")
        for angle in angles:
            check_fraction("theta", angle)
        check_count("num_images_per_prompt", num_images_per_prompt)
        self._check_captions(target_caption, source_caption, add=add, subtract=subtract, count=count)
        check_run(
            self,
            batch=count * len(angles) * num_images_per_prompt,
            settings=chosen,
            generator=generator,
            latents={},
            output_type=output_type,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        on_step = on_step_end(self, callback_on_step_end)
        generators = same_noise(generator, groups=count * num_images_per_prompt, each=len(angles))

        if target_caption is not None:
            target, source = (
                self.encode_text(caption, weighted=weighted).text_embed.expand(count, -1)
                for caption in (target_caption, source_caption)
            )
            direction = text_diff(target, source)
        else:
            direction = self._direction(add, subtract, weighted=weighted)
        latent = latent_of(
            self, image, latent,
            num_inference_steps=decoder_num_inference_steps,
            negative_prompt=negative_prompt,
            guidance={
                "guidance_scale": decoder_guidance_scale,
                "guidance_interval": decoder_guidance_interval,
                "guidance_rescale": decoder_guidance_rescale,
            },
            exact=exact,
            on_step=on_step,
        )  # fmt: skip
        image_embeds = slerp(
            latent.image_embeds.repeat_interleave(len(angles), dim=0),
            direction.to(latent.image_embeds).expand(count, -1).repeat_interleave(len(angles), dim=0),
            theta=torch.tensor(angles, dtype=torch.float64, device=latent.image_embeds.device).repeat(count),
        )
        norms = latent.image_embeds.norm(dim=-1, keepdim=True).repeat_interleave(len(angles), dim=0)
        image_embeds = normalize(image_embeds) * norms
        latent = latent.repeat(len(angles))
        small_images = reconstruct(self, latent, image_embeds=image_embeds, on_step=on_step)
        image_embeds, small_images = (
            rows.unflatten(0, (count, len(angles))).repeat_interleave(num_images_per_prompt, dim=0).flatten(0, 1)
            for rows in (image_embeds, small_images)
        )
        images = self.enlarge(
            small_images,
            num_inference_steps=chosen.steps["super_res"],
            stages=chosen.upsamplers,
            generator=generators,
            on_step=on_step,
        )
        self.maybe_free_model_hooks()
        finished, small = as_output(images, output_type), as_output(small_images, output_type)
        return UnCLIPPipelineOutput(finished, image_embeds, small) if return_dict else (finished, image_embeds, small)

    def _check_captions(
        self,
        target_caption: str | list[str] | None,
        source_caption: str | list[str],
        *,
        add: Sequence[str | Picture],
        subtract: Sequence[str | Picture],
        count: int,
    ) -> None:
        """Refuse captions that do not say what to change, or not as many as there are pictures."""
        terms = [*add, *subtract]
        if (target_caption is None) == (not terms):
            raise ValueError(
                f"give either target_caption or add and subtract, got {'neither' if not terms else 'both of them'}"
            )
        for name, captions in {"target_caption": target_caption, "source_caption": source_caption}.items():
            if not (captions is None or isinstance(captions, str) or len(captions) in (1, count)):
                raise ValueError(f"expected one {name} or {count}, one per picture, got {len(captions)}")
        if isinstance(add, str) or isinstance(subtract, str):
            raise ValueError("add and subtract must be lists of captions and pictures, got a string")
        require(self, "text differences", "text_encoder", "tokenizer")
        if any(not isinstance(term, str) for term in terms):
            require(self, "a picture", "image_encoder", "feature_extractor")
            pictures([term for term in terms if not isinstance(term, str)])

    def _direction(
        self, add: Sequence[str | Picture], subtract: Sequence[str | Picture], *, weighted: bool
    ) -> Float[Tensor, "1 d"]:
        """The unit vector of a sum of unit embeddings."""

        def embed(term: str | Picture) -> Float[Tensor, "b d"]:
            if isinstance(term, str):
                return normalize(self.encode_text(term, weighted=weighted).text_embed)
            return normalize(self.encode_image(term))

        terms = [embed(term) for term in add] + [-embed(term) for term in subtract]
        total = torch.stack([term.to(terms[0]) for term in terms]).sum(0)
        if total.norm() < 1e-6:
            raise ValueError("what add and subtract name cancels out: there is no direction left")
        return normalize(total)
