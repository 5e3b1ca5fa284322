"""Interpolation: pictures between pictures and captions, by their CLIP image embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks it up here
from jaxtyping import Float
from torch import Tensor

from unclip_hub.embeddings import slerp, spherical_mean
from unclip_hub.pipelines.base import Picture, UnCLIPPipelineBase, pictures
from unclip_hub.pipelines.checks import check_count, check_run, check_shape, require, require_prior
from unclip_hub.pipelines.frames import same_noise
from unclip_hub.pipelines.inversion import BipartiteLatent, latent_of, reconstruct
from unclip_hub.pipelines.output import Images, UnCLIPPipelineOutput, as_output
from unclip_hub.pipelines.settings import Interval, Settings, settings
from unclip_hub.pipelines.stage import Generator, OnStep, on_step_end


NOISES = ("inverted", "fixed")
FRAMES = 8


class UnCLIPInterpolationPipeline(UnCLIPPipelineBase):
    """The way from one picture to the next, and the mean of several (Ramesh et al. 2022, section 3.2).

    ```python
    between = UnCLIPInterpolationPipeline(**pipe.components)
    save_frames(between([picture, "a green house"], 12).images, "between.gif")
    between([picture, other, third], weights=[0.5, 0.3, 0.2]).images[0]
    ```

    The embeddings are interpolated on the sphere. So is the noise that the pictures were inverted to, and the first
    and last frames are the pictures as the decoder reconstructs them; or all frames are made from one fresh noise.
    """

    @torch.no_grad()
    def __call__(
        self,
        sources: Sequence[str | Picture] | None = None,
        num_frames: int | None = None,
        *,
        weights: Sequence[float | int] | None = None,
        noise: str | None = None,
        exact: bool = False,
        latent: BipartiteLatent | None = None,
        image_embeds: Float[Tensor, "n d"] | None = None,
        num_images_per_prompt: int = 1,
        negative_prompt: str | None = None,
        weighted: bool = False,
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
        output_type: str = "pil",
        return_dict: bool = True,
        output_size: int | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] | list[str] = ("latents",),
    ) -> UnCLIPPipelineOutput | tuple[Images, Tensor | None, Images]:
        """Make ``num_frames`` pictures from the first source over every other one to the last, both included.

        Args:
            sources: two or more pictures and captions; a string is a caption, and goes through the prior.
            num_frames: 8 by default.
            weights: one per source, at least 0: a single picture of their weighted mean instead of frames.
            noise: ``"inverted"``, the default if no source is a caption: between the noises that the pictures were
                inverted to, in 25 steps and unguided unless told; ``"fixed"``: one fresh noise, with the checkpoint's
                own steps and guidance.
            exact: invert exactly, see ``invert``: the ends are the pictures themselves (at the decoder's size).
            latent: what ``invert`` returned for two or more pictures, in place of ``sources``.
            image_embeds: (n, d) CLIP image embeddings, not normalised, in place of ``sources``; the noise is fixed.
            num_images_per_prompt: whole ways, each with a noise of its own, one after the other.
            negative_prompt: what to guide away from, in the prior and the decoder; the empty caption by default.
            weighted: read ``(red:1.4)`` in captions as "red", 1.4 times as strong; otherwise brackets are text.
            generator: frames of one way share their noise, also the upsampler's; a list has one per picture made.
            output_size: side of the pictures in px, one that the checkpoint's stages make (64, 256, 1024); by default
                what the checkpoint prefers, or the largest.
            callback_on_step_end: as in ``UnCLIPPipeline``; ``pipe.stage`` is ``"inversion"`` while pictures are
                inverted.

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
        )
        noise = self._check(sources, latent, image_embeds, weights=weights, noise=noise, exact=exact)
        frames = (1 if weights is not None else FRAMES) if num_frames is None else num_frames
        check_count("num_frames", frames)
        check_count("num_images_per_prompt", num_images_per_prompt)
        if weights is not None and frames != 1:
            raise ValueError(f"weights make a single picture: leave num_frames out, got {frames}")
        check_run(
            self,
            batch=frames * num_images_per_prompt,
            settings=chosen,
            generator=generator,
            latents={},
            output_type=output_type,
            callback_inputs=callback_on_step_end_tensor_inputs,
        )
        on_step = on_step_end(self, callback_on_step_end)
        generators = same_noise(generator, groups=num_images_per_prompt, each=frames)

        if noise == "inverted":
            ends = latent_of(
                self, None if sources is None else list(sources), latent,  # type: ignore[arg-type]
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
            latent = _mixed_latent(ends, frames, weights)
            image_embeds = latent.image_embeds
            small_images = reconstruct(self, latent, on_step=on_step).repeat(num_images_per_prompt, 1, 1, 1)
            image_embeds = image_embeds.repeat(num_images_per_prompt, 1)
        else:
            nothing = self.encode_text("")
            null = nothing if negative_prompt is None else self.encode_text(negative_prompt, weighted=weighted)
            if image_embeds is None:
                assert sources is not None
                image_embeds = self._embeds(
                    sources, chosen, generators[0], negative_prompt, on_step, weighted=weighted
                )
            embeds = _mixed(image_embeds.to(null.text_embed.device), frames, weights)
            image_embeds = embeds.repeat(num_images_per_prompt, 1)
            small_images = self.decode(
                nothing.expand(len(image_embeds)).with_image(image_embeds), null,
                num_inference_steps=chosen.steps["decoder"], **chosen.guidance["decoder"],
                generator=generators, on_step=on_step,
            )  # fmt: skip
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

    def _check(
        self,
        sources: Sequence[str | Picture] | None,
        latent: BipartiteLatent | None,
        image_embeds: Tensor | None,
        *,
        weights: Sequence[float | int] | None,
        noise: str | None,
        exact: bool,
    ) -> str:
        """Refuse sources that are none, and decide on the noise."""
        options = {"sources": sources, "latent": latent, "image_embeds": image_embeds}
        forms = [name for name, value in options.items() if value is not None]
        if len(forms) != 1:
            raise ValueError(f"give exactly one of {', '.join(options)}, got {' and '.join(forms) or 'none'}")
        if isinstance(sources, str):
            raise ValueError(f"sources must be a list of pictures and captions, got the string {sources[:80]!r}")
        count = len(next(value for value in options.values() if value is not None))
        if count < 2:
            raise ValueError(f"interpolation needs at least 2 sources, got {count}")
        if weights is not None and len(weights) != count:
            raise ValueError(f"expected {count} weights, one per source, got {len(weights)}")
        if weights is not None and (min(weights) < 0 or sum(weights) <= 0):
            raise ValueError(f"weights must be at least 0, and one above it, got {list(weights)}")
        if latent is not None and len(set(latent.prompts)) > 1:
            raise ValueError(f"the pictures must have been inverted with one caption, got {latent.prompts}")
        texts = [source for source in sources or () if isinstance(source, str)]
        invertible = not texts and image_embeds is None
        noise = noise or ("inverted" if invertible else "fixed")
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {NOISES}, got {noise!r}")
        if noise == "inverted" and not invertible:
            raise ValueError("noise='inverted' needs pictures or their latent as sources: use noise='fixed'")
        if noise == "fixed" and (exact or latent is not None):
            raise ValueError("noise='fixed' inverts nothing: leave exact and latent out")
        require(self, "interpolation", "text_encoder", "tokenizer")
        if texts:
            require_prior(self, "a caption", instead="image_embeds")
        if len(texts) < len(sources or ()):
            require(self, "a picture", "image_encoder", "feature_extractor", instead="image_embeds")
            pictures([source for source in sources or () if not isinstance(source, str)])
        width = self.text_proj.config["clip_embeddings_dim"]
        check_shape("image_embeds", image_embeds, (count, width))
        return noise

    def _embeds(
        self,
        sources: Sequence[str | Picture],
        chosen: Settings,
        generator: torch.Generator,
        negative_prompt: str | None,
        on_step: OnStep | None,
        *,
        weighted: bool,
    ) -> Float[Tensor, "n d"]:
        """The embedding of each source, those of captions all from the same noise."""
        embeds = []
        for source in sources:
            if not isinstance(source, str):
                embeds.append(self.encode_image(source))
                continue
            same = torch.Generator(generator.device)
            same.set_state(generator.get_state())
            embeds.append(
                self.sample_prior(
                    self.encode_text(source, weighted=weighted),
                    self.encode_text(negative_prompt or "", weighted=weighted),
                    generator=same,
                    on_step=on_step,
                    **chosen.prior,
                )
            )
        return torch.cat([embed.to(embeds[0]) for embed in embeds])


def _mixed(embeds: Float[Tensor, "n d"], frames: int, weights: Sequence[float | int] | None) -> Float[Tensor, "f d"]:
    """One row per frame, evenly on the way; or the weighted mean."""
    if weights is not None:
        return spherical_mean(embeds, torch.tensor(weights, dtype=torch.float64, device=embeds.device))[None]
    at = torch.linspace(0, len(embeds) - 1, frames, dtype=torch.float64, device=embeds.device)
    before = at.floor().long().clamp(max=len(embeds) - 2)
    return slerp(embeds[before], embeds[before + 1], theta=at - before)


def _mixed_latent(ends: BipartiteLatent, frames: int, weights: Sequence[float | int] | None) -> BipartiteLatent:
    shape = ends.states.shape[2:]
    states = [_mixed(state.flatten(1), frames, weights).view(-1, *shape) for state in ends.states]
    return BipartiteLatent(
        image_embeds=_mixed(ends.image_embeds, frames, weights),
        states=torch.stack(states),
        prompts=ends.prompts[:1] * len(states[0]),
        negative_prompt=ends.negative_prompt,
        guidance=ends.guidance,
        num_inference_steps=ends.num_inference_steps,
        errors=(),
    )
