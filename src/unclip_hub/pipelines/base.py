"""The components of unCLIP and the verbs over them, shared by every task's pipeline."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin  # diffusers looks it up here too
from diffusers.models.transformers.prior_transformer import PriorTransformer as DiffusersPrior
from diffusers.models.unets.unet_2d import UNet2DModel as DiffusersUpsampler
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as DiffusersDecoder
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from unclip_hub.conditioning import Conditioning
from unclip_hub.data.vocabulary import unknown_words
from unclip_hub.hub import class_names
from unclip_hub.images import read_picture, resize, to_pil, to_tensor
from unclip_hub.models.cpu_kernels import fast_kernels
from unclip_hub.models.dalle2_pytorch_prior import DALLE2PytorchPrior
from unclip_hub.models.dalle2_pytorch_unet import DALLE2PytorchUNet
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.models.text_proj import UnCLIPTextProjModel
from unclip_hub.models.upsampler import UNet2DModel
from unclip_hub.pipelines.captions import tokenize
from unclip_hub.pipelines.checks import check_prior_latents, require, require_prior
from unclip_hub.pipelines.exchange import keep_dtypes
from unclip_hub.pipelines.lora import LoraMixin
from unclip_hub.pipelines.offload import offload_groups_to_disk
from unclip_hub.pipelines.priors import diffused, sampled
from unclip_hub.pipelines.publish import publish
from unclip_hub.pipelines.registration import register
from unclip_hub.pipelines.settings import Interval, check_defaults, samples_itself, upsamplers
from unclip_hub.pipelines.stage import Generator, OnStep, guided, quickly, run
from unclip_hub.pipelines.weighting import context_length, encode_weighted
from unclip_hub.sampling import Predict


logger = logging.get_logger(__name__)

register()

Picture = Image.Image | np.ndarray | Tensor | Path
Pictures = Picture | str | Sequence[Picture | str]


class UnCLIPPipelineBase(LoraMixin, DiffusionPipeline):
    """Components under Karlo's names, and the verbs ``encode_text encode_image sample_prior decode upsample``.

    One checkpoint opens in every task's pipeline: a component that only some calls need may be absent (None), and a
    call that needs it says so before it computes anything. The verbs are differentiable, except through
    ``encode_image``'s pictures; only a pipeline's ``__call__`` switches gradients off.

    Args:
        super_res_last: the network of the upsampler's last step, if that is another one (Karlo).
        super_res_1024: the network from 256 to 1024 px.
        sampling_defaults: steps and guidance scales of this checkpoint, under the argument names of ``__call__``;
        Karlo's where absent.
    """

    model_cpu_offload_seq = (
        "text_encoder->image_encoder->prior->text_proj->decoder->super_res_first->super_res_last->super_res_1024"
    )
    _optional_components = [
        "text_encoder",
        "tokenizer",
        "prior",
        "prior_scheduler",
        "image_encoder",
        "feature_extractor",
        "super_res_first",
        "super_res_last",
        "super_res_scheduler",
        "super_res_1024",
        "super_res_1024_scheduler",
    ]
    _callback_tensor_inputs = ["latents"]

    text_encoder: CLIPTextModelWithProjection | None
    tokenizer: CLIPTokenizer | None
    prior: PriorTransformer | DALLE2PytorchPrior | ModelMixin | None
    text_proj: UnCLIPTextProjModel
    decoder: UNet2DConditionModel | DALLE2PytorchUNet
    super_res_first: UNet2DModel | DALLE2PytorchUNet | None
    super_res_last: UNet2DModel | DALLE2PytorchUNet | None
    super_res_1024: UNet2DModel | DALLE2PytorchUNet | None
    image_encoder: CLIPVisionModelWithProjection | None
    feature_extractor: CLIPImageProcessorPil | None

    def __init__(
        self,
        *,
        decoder: UNet2DConditionModel | DALLE2PytorchUNet | DiffusersDecoder,
        text_proj: UnCLIPTextProjModel | ModelMixin,  # the second stands for diffusers' retired class
        decoder_scheduler: Any,
        text_encoder: CLIPTextModelWithProjection | None = None,
        tokenizer: CLIPTokenizer | None = None,
        prior: PriorTransformer | DALLE2PytorchPrior | DiffusersPrior | ModelMixin | None = None,  # see `sample_prior`
        prior_scheduler: Any = None,
        super_res_first: UNet2DModel | DALLE2PytorchUNet | DiffusersUpsampler | None = None,
        super_res_last: UNet2DModel | DALLE2PytorchUNet | DiffusersUpsampler | None = None,
        super_res_scheduler: Any = None,
        super_res_1024: UNet2DModel | DALLE2PytorchUNet | DiffusersUpsampler | None = None,
        super_res_1024_scheduler: Any = None,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        feature_extractor: CLIPImageProcessorPil | None = None,
        sampling_defaults: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            prior=prior,
            text_proj=text_proj,
            decoder=decoder,
            super_res_first=super_res_first,
            super_res_last=super_res_last,
            super_res_1024=super_res_1024,
            prior_scheduler=prior_scheduler,
            decoder_scheduler=decoder_scheduler,
            super_res_scheduler=super_res_scheduler,
            super_res_1024_scheduler=super_res_1024_scheduler,
            image_encoder=image_encoder,
            feature_extractor=feature_extractor,
        )
        check_defaults(sampling_defaults)
        self.register_to_config(sampling_defaults=sampling_defaults)
        self._stage = ""

    @property
    def stage(self) -> str:
        """The running stage, for callbacks: ``"prior"``, ``"decoder"``, ``"super_res"`` or ``"super_res_1024"``."""
        return self._stage

    # the verbs

    def encode_text(self, prompt: str | list[str], *, weighted: bool = False) -> Conditioning:
        """Captions as CLIP sees them; what the context has no room for is cut off, with a warning that quotes it.

        The states of padding are zeros, as no network looks at them.

        A model with a small vocabulary, as the bundled one, warns of words that it was not trained on.

        Args:
            weighted: read ``(red:1.4)`` as "red", 1.4 times as strong, see ``pipelines.weighting``; every pipeline
                takes the result as ``prompt_embeds`` and ``negative_prompt_embeds``. Otherwise brackets are text.
        """
        require(self, "encode_text", "text_encoder", "tokenizer")
        assert self.text_encoder is not None and self.tokenizer is not None
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if weighted:
            return encode_weighted(self, prompts)
        for word, near in unknown_words(self.tokenizer, prompts).items():
            instead = f"; it knows {', '.join(near)}" if near else ""
            _warn_once(f"the model was not trained on the word {word!r}{instead}")
        tokens, mask, lost = tokenize(self.tokenizer, prompts, length=context_length(self))
        for text in lost:
            logger.warning(
                f"the text encoder reads {tokens.shape[1] - 2} tokens; this part of the prompt is ignored: {text!r}"
            )
        longest, mask = int(mask.sum(1).max()), mask.to(self._execution_device)
        tokens = tokens[:, :longest].to(mask.device)  # causal: padding changes nothing before it
        with fast_kernels(self.text_encoder, mask.device):
            output = self.text_encoder(tokens)
        states = torch.nn.functional.pad(output.last_hidden_state, (0, 0, 0, mask.shape[1] - longest))
        states = states.masked_fill(~mask[..., None], 0)
        return Conditioning(text_embed=output.text_embeds, text_states=states, text_mask=mask)

    def encode_image(self, image: Pictures) -> Float[Tensor, "b d"]:
        """CLIP image embeddings, not normalised, of pictures of any size: everything that ``images.to_tensor`` takes.

        The pictures of a list may differ in size. Tensors are pictures too, in [0, 1]; not CLIP's normalised pixels.
        """
        require(self, "encode_image", "image_encoder", "feature_extractor")
        assert self.image_encoder is not None and self.feature_extractor is not None
        pixels = self.feature_extractor(images=pictures(image), return_tensors="pt").pixel_values
        device = self._execution_device
        with fast_kernels(self.image_encoder, device):
            return self.image_encoder(pixels.to(device, self.image_encoder.dtype)).image_embeds

    def sample_prior(
        self,
        cond: Conditioning,
        null: Conditioning | None = None,
        *,
        generator: Generator = None,
        latents: Float[Tensor, "b d"] | None = None,
        on_step: OnStep | None = None,
        **options: Any,
    ) -> Float[Tensor, "b d"]:
        """A CLIP image embedding, not normalised, for each caption (Ramesh et al. 2022, section 2.2).

        ``options`` are the prior's: a diffusion's are ``num_inference_steps``, which it needs, ``guidance_scale``,
        ``guidance_interval``, ``guidance_rescale`` and ``max_norm``, to which longer embeddings are shortened. Of any
        other prior they are the keyword arguments of its ``sample``; it knows neither ``latents`` nor steps.
        """
        require_prior(self, "sample_prior")
        if not samples_itself(self.prior):
            return diffused(self, cond, null, generator=generator, latents=latents, on_step=on_step, **options)
        check_prior_latents(self, latents)
        return sampled(self, cond, null, generator=generator, **options)

    def decode(
        self,
        cond: Conditioning,
        null: Conditioning | None = None,
        *,
        num_inference_steps: int,
        guidance_scale: float | int = 1.0,
        guidance_interval: Interval | None = None,
        guidance_rescale: float | int = 0.0,
        image: Float[Tensor, "b 3 h w"] | None = None,
        strength: float | int = 1.0,
        generator: Generator = None,
        latents: Float[Tensor, "b 3 h w"] | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b 3 h w"]:
        """A small picture in [-1, 1] from each image embedding and its caption (Ramesh et al. 2022, section 2.1).

        Guidance leads away from ``null``: its caption, and text_proj's learned embedding where it has no image
        embedding. Given an ``image`` (in [-1, 1]) and a ``strength`` below 1, only the last ``strength`` of the steps
        are run, from that image with noise on it.
        """
        config = self.decoder.config
        if cond.image_embed is None:
            raise ValueError(
                "decode needs conditioning with an image embedding, got image_embed=None; sample_prior makes one"
            )
        side, shown = config["sample_size"], None
        if config["in_channels"] == 7:  # trained to inpaint: nothing is known, all of the picture is to be painted
            shown = torch.zeros(1, 4, side, side, device=self._execution_device, dtype=self.decoder.dtype)
            shown[:, 3] = 1
        x = run(
            self,
            "decoder",
            guided(
                self,
                "decoder",
                cond=cond,
                null=null,
                guidance_scale=guidance_scale,
                guidance_interval=guidance_interval,
                guidance_rescale=guidance_rescale,
                context=None if shown is None else shown.expand(len(cond), -1, -1, -1),
            ),
            num_inference_steps=num_inference_steps,
            shape=(len(cond), 3, side, side),
            dtype=self.decoder.dtype,
            generator=generator,
            latents=latents,
            on_step=on_step,
            image=image,
            strength=strength,
        )
        return x.clamp(-1, 1)

    def upsample(
        self,
        images: Float[Tensor, "b 3 h w"],
        *,
        num_inference_steps: int,
        stage: str = "super_res",
        generator: Generator = None,
        latents: Float[Tensor, "b 3 H W"] | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b 3 H W"]:
        """Larger pictures in [-1, 1]: ``stage`` is ``"super_res"`` (to 256 px) or ``"super_res_1024"``."""
        if stage == "super_res":
            first, last = self.super_res_first, self.super_res_last
        elif stage == "super_res_1024":
            first, last = self.super_res_1024, None
        else:
            raise ValueError(f"stage must be 'super_res' or 'super_res_1024', got {stage!r}")
        if first is None:
            raise ValueError(f"this checkpoint has no upsampler for stage {stage!r}")
        size = first.config["sample_size"]
        low, device = resize(images, (size, size)), self._execution_device

        def predicting(network: UNet2DModel | DALLE2PytorchUNet | DiffusersUpsampler) -> Predict:
            def predict(x: Tensor, t: Tensor) -> Tensor:
                return network(torch.cat([x, low], dim=1).to(network.dtype), t).sample.to(x.dtype)

            return quickly(predict, network, device)

        x = run(
            self,
            stage,
            predicting(first),
            num_inference_steps=num_inference_steps,
            final=None if last is None else predicting(last),
            shape=(len(images), first.config["in_channels"] // 2, size, size),
            dtype=torch.promote_types(first.dtype, torch.float32),  # the two networks may differ
            generator=generator,
            latents=latents,
            on_step=on_step,
        )
        return x.clamp(-1, 1)

    def enlarge(
        self,
        small_images: Float[Tensor, "b 3 h w"],
        *,
        num_inference_steps: int,
        stages: tuple[str, ...] | None = None,
        generator: Generator = None,
        latents: Float[Tensor, "b 3 H W"] | None = None,
        on_step: OnStep | None = None,
    ) -> Float[Tensor, "b 3 H2 W2"]:
        """The decoder's pictures through ``stages``, by default every upsampler; ``latents`` are the first one's."""
        images = small_images
        for stage in upsamplers(self) if stages is None else stages:
            images = self.upsample(
                images,
                num_inference_steps=num_inference_steps,
                stage=stage,
                generator=generator,
                latents=latents if stage == "super_res" else None,
                on_step=on_step,
            )
        return images

    # diffusers' own, where it does not fit

    @property
    def components(self) -> dict[str, Any]:
        """diffusers' own and ``sampling_defaults``, so that ``Other(**pipe.components)`` samples as this one does."""
        return {**super().components, "sampling_defaults": self.config["sampling_defaults"]}

    @property
    def parameters(self) -> dict[str, Any]:
        """diffusers' own, but for what ``components`` holds."""
        return {name: value for name, value in super().parameters.items() if name != "sampling_defaults"}

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **options: Any) -> Any:
        """diffusers' own, but the networks, which both pipelines share, keep their dtypes unless one is given."""
        return keep_dtypes(super().from_pipe, pipeline, **options)

    def enable_group_offload(
        self,
        onload_device: torch.device,
        offload_device: torch.device = torch.device("cpu"),  # noqa: B008  diffusers' signature
        *,
        offload_to_disk_path: str | None = None,
        exclude_modules: str | list[str] | None = None,
        **options: Any,
    ) -> None:
        """diffusers' own; on disk every component gets a folder of its own below ``offload_to_disk_path``."""
        options |= {"onload_device": onload_device, "offload_device": offload_device}
        if offload_to_disk_path is None:
            super().enable_group_offload(exclude_modules=exclude_modules, **options)
        else:
            exclude = [exclude_modules] if isinstance(exclude_modules, str) else exclude_modules or []
            offload_groups_to_disk(self, Path(offload_to_disk_path), exclude=exclude, **options)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        repo_id: str,
        commit_message: str | None = None,
        *,
        license: str | None = None,
        card: str | Path | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        variant: str | None = None,
        revision: str | None = None,
    ) -> str:
        """Publish the model as `unclip push` does: checked first, in one commit; returns its address.

        A licence, of which a card is written, or a whole ``card`` must be given.

        Raises:
            ValueError: the model or the card is not fit to be published.
            unclip_hub.hub.faults.HubError: the Hub could not take it; the repository is as it was.
        """
        options = {"private": private, "create_pr": create_pr, "revision": revision, "token": token}
        return publish(
            self, repo_id, license=license, card=card, commit_message=commit_message, variant=variant, **options
        )

    # the names in the index: read as our classes and strict loaders, written as Karlo's

    @classmethod
    def _dict_from_json_file(cls, json_file: str) -> dict[str, Any]:
        return class_names.to_loaders(super()._dict_from_json_file(json_file))

    def to_json_string(self) -> str:
        """The index as it is written to disk."""
        index = json.loads(super().to_json_string())
        return (
            json.dumps(class_names.to_disk(index, optional=self._optional_components), indent=2, sort_keys=True) + "\n"
        )


def pictures(image: Pictures) -> list[Image.Image]:
    """Everything that ``images.to_tensor`` takes, or a file's path, or a list of it, as RGB pictures."""
    return [one for item in each(image) for one in to_pil(to_tensor(item))]


def each(image: Pictures) -> list[Image.Image | np.ndarray | Tensor]:
    """The items of a list of pictures, or of one; files are read."""
    several = image if isinstance(image, Sequence) and not isinstance(image, str) else [image]
    return [read_picture(item) if isinstance(item, str | Path) else item for item in several]  # type: ignore[misc]


@lru_cache(maxsize=1 << 16)
def _warn_once(message: str) -> None:
    logger.warning(message)
