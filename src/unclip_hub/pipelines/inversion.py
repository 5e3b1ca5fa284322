"""A picture as the two things that make it: its CLIP embedding z_i and the decoder's noise x_T, and back.

```python
latent = invert(pipe, picture)
latent.save("picture.safetensors")
UnCLIPImageVariationPipeline(**pipe.components)(latent=latent, eta=0.4).images
```
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.images import resize, to_tensor
from unclip_hub.pipelines.base import Pictures, UnCLIPPipelineBase, pictures
from unclip_hub.pipelines.checks import check_count, check_fraction, check_interval, check_scale, check_shape, require
from unclip_hub.pipelines.settings import Interval
from unclip_hub.pipelines.stage import Generator, OnStep, guided
from unclip_hub.sampling import denoise
from unclip_hub.schedulers.bdia import BDIA, BDIAInverse
from unclip_hub.schedulers.ddim import DDIM, SPACING, DDIMInverse, NoiseLevels


STEPS = 25
METHODS = {1: "ddim", 2: "bdia"}  # by the number of states
FORMAT = "unclip_hub.BipartiteLatent/1"


@dataclass(frozen=True)
class BipartiteLatent:
    """(z_i, x_T) of one picture or more (Ramesh et al. 2022, section 3), and how they were found.

    Attributes:
        image_embeds: z_i, not normalised.
        states: x_T; of an exact inversion also x at the level below it. In float64.
        prompts: the caption that each was inverted with; ``negative_prompt`` and ``guidance`` (the keyword arguments
            ``guidance_scale guidance_interval guidance_rescale`` of ``decode``) likewise.
        num_inference_steps: of the walk, evenly spaced ("trailing").
        errors: how far each reconstruction is from its picture, root mean square, pixels in [-1, 1].
    """

    image_embeds: Float[Tensor, "b d"]
    states: Float[Tensor, "k b c h w"]
    prompts: tuple[str, ...]
    negative_prompt: str
    guidance: dict[str, Any]
    num_inference_steps: int
    errors: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.image_embeds)

    def __getitem__(self, rows: slice) -> "BipartiteLatent":
        """Some of the pictures."""
        return replace(
            self,
            image_embeds=self.image_embeds[rows],
            states=self.states[:, rows],
            prompts=self.prompts[rows],
            errors=self.errors[rows],
        )

    @property
    def method(self) -> str:
        """``"ddim"``, or ``"bdia"`` if the inversion is exact."""
        return METHODS[len(self.states)]

    def repeat(self, times: int) -> "BipartiteLatent":
        """Each picture ``times`` times, copies side by side."""
        return replace(
            self,
            image_embeds=self.image_embeds.repeat_interleave(times, dim=0),
            states=self.states.repeat_interleave(times, dim=1),
            prompts=tuple(prompt for prompt in self.prompts for _ in range(times)),
            errors=tuple(error for error in self.errors for _ in range(times)),
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        path = Path(path)
        facts = {
            "method": self.method,
            "spacing": SPACING,
            "num_inference_steps": self.num_inference_steps,
            "prompts": self.prompts,
            "negative_prompt": self.negative_prompt,
            "guidance": self.guidance,
            "errors": self.errors,
        }
        tensors = {"image_embeds": self.image_embeds.contiguous(), "states": self.states.contiguous()}
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata={"format": FORMAT, "facts": json.dumps(facts)})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "BipartiteLatent":
        """Read what ``save`` wrote.

        Raises:
            ValueError: no such file, or not a latent.
        """
        if not Path(path).is_file():
            raise ValueError(f"cannot read {path} as a latent: no such file")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        except Exception as error:  # safetensors has an exception of its own
            raise ValueError(f"cannot read {path} as a latent: {error}") from error
        if metadata.get("format") != FORMAT or set(tensors) != {"image_embeds", "states"}:
            raise ValueError(f"cannot read {path} as a latent: expected {FORMAT}, got {metadata.get('format')}")
        facts = json.loads(metadata["facts"])
        interval = facts["guidance"]["guidance_interval"]
        return cls(
            **tensors,
            prompts=tuple(facts["prompts"]),
            negative_prompt=facts["negative_prompt"],
            guidance=facts["guidance"] | {"guidance_interval": interval and tuple(interval)},
            num_inference_steps=facts["num_inference_steps"],
            errors=tuple(facts["errors"]),
        )


@torch.no_grad()
def invert(
    pipe: UnCLIPPipelineBase,
    image: Pictures,
    *,
    exact: bool = False,
    prompt: str | list[str] = "",
    negative_prompt: str = "",
    image_embeds: Float[Tensor, "b d"] | None = None,
    num_inference_steps: int | None = None,
    iterations: int = 1,
    guidance_scale: float | int = 1.0,
    guidance_interval: Interval | None = None,
    guidance_rescale: float | int = 0.0,
    dtype: torch.dtype = torch.float64,
    on_step: OnStep | None = None,
) -> BipartiteLatent:
    """Find the noise from which the decoder, given the picture's embedding, makes the picture (section 3).

    DDIM inversion reconstructs as well as the decoder can draw; exact inversion to rounding, for it keeps two states.
    The network's x_0 is clamped if the checkpoint's scheduler says so (``clip_sample``): exact inversion does not
    mind; DDIM's cannot see through it, but a decoder of noise (Karlo's) needs it, or x_0 is noise times 20,000.
    Guidance makes DDIM's error larger, hence none by default.

    Args:
        image: pictures of any size, see ``encode_image``; the middle square is taken, at the decoder's size.
        prompt: a caption for the decoder, one or one per picture.
        image_embeds: in place of the pictures' own, for a checkpoint without an image encoder.
        num_inference_steps: by default 25.
        iterations: network calls per step of DDIM inversion, see ``DDIMInverse``.
        dtype: of the states; float32 where the device has no float64, then exact is to 1e-4.
        on_step: as for ``decode``; ``pipe.stage`` is ``"inversion"``, then ``"decoder"`` for the round trip.

    Raises:
        ValueError: arguments that do not fit each other or the checkpoint; raised before anything is computed.
    """
    steps = STEPS if num_inference_steps is None else num_inference_steps
    check_count("num_inference_steps", steps)
    check_count("iterations", iterations)
    if exact and iterations > 1:
        raise ValueError(f"exact inversion has nothing to iterate: expected iterations=1, got {iterations}")
    check_scale("guidance_scale", guidance_scale)
    check_interval("guidance_interval", guidance_interval)
    check_fraction("guidance_rescale", guidance_rescale)
    require(pipe, "inversion", "text_encoder", "tokenizer")
    if image_embeds is None:
        require(pipe, "inversion", "image_encoder", "feature_extractor", instead="image_embeds")
    shown = pictures(image)
    prompts = (prompt,) * len(shown) if isinstance(prompt, str) else tuple(prompt)
    if len(prompts) != len(shown):
        raise ValueError(f"expected one prompt or {len(shown)}, one per picture, got {len(prompts)}")
    check_shape("image_embeds", image_embeds, (len(shown), pipe.text_proj.config["clip_embeddings_dim"]))
    levels = _levels(pipe, steps)
    scheduler = BDIAInverse(levels) if exact else DDIMInverse(levels, iterations=iterations)

    size = pipe.decoder.config["sample_size"]
    small = torch.cat([resize(to_tensor(one), (size, size)).clamp(-1, 1) for one in map(_square, shown)])
    small = small.contiguous()  # of 1 px it is not, and convolutions round otherwise in another memory layout
    embeds = pipe.encode_image(shown) if image_embeds is None else image_embeds
    guidance = {
        "guidance_scale": guidance_scale,
        "guidance_interval": guidance_interval,
        "guidance_rescale": guidance_rescale,
    }
    device = pipe._execution_device
    made = BipartiteLatent(
        embeds.to(device), torch.empty(0, *small.shape), prompts, negative_prompt, guidance, steps, ()
    )
    x = _walk(pipe, "inversion", made, small.to(device, dtype), scheduler, on_step=on_step)
    states = [x] if scheduler.before_last is None else [x, scheduler.before_last]
    made = replace(made, states=torch.stack(states))
    again = reconstruct(pipe, made, on_step=on_step, clamp=False)
    errors = ((again - small.to(again)) ** 2).mean((1, 2, 3)).sqrt()
    pipe.maybe_free_model_hooks()
    return replace(made, errors=tuple(errors.tolist()))


def latent_of(
    pipe: UnCLIPPipelineBase,
    image: Pictures | None,
    latent: BipartiteLatent | None,
    *,
    num_inference_steps: int | None,
    negative_prompt: str | None,
    guidance: dict[str, Any],
    exact: bool = False,
    on_step: OnStep | None = None,
) -> BipartiteLatent:
    """What an edit starts from: the latent it was given, or the picture's; guided as asked where that is not None.

    Raises:
        ValueError: both or neither, other steps than the latent's, or where ``invert`` does.
    """
    if (image is None) == (latent is None):
        raise ValueError(f"give either image or latent, got {'neither' if image is None else 'both of them'}")
    asked = {name: value for name, value in guidance.items() if value is not None}
    if latent is None:
        assert image is not None
        return invert(
            pipe,
            image,
            exact=exact,
            num_inference_steps=num_inference_steps,
            negative_prompt=negative_prompt or "",
            on_step=on_step,
            **asked,
        )
    if exact and latent.method != "bdia":
        raise ValueError("exact=True needs a latent that invert(..., exact=True) made, got one of DDIM")
    if num_inference_steps not in (None, latent.num_inference_steps):
        raise ValueError(
            f"the latent was inverted in {latent.num_inference_steps} steps, got {num_inference_steps}: leave them out"
        )
    check_shape("latent.states", latent.states, (len(latent.states), *_small_shape(pipe, len(latent))))
    negative = latent.negative_prompt if negative_prompt is None else negative_prompt
    return replace(latent, guidance=latent.guidance | asked, negative_prompt=negative)


@torch.no_grad()
def reconstruct(
    pipe: UnCLIPPipelineBase,
    latent: BipartiteLatent,
    *,
    image_embeds: Float[Tensor, "b d"] | None = None,
    eta: float | int = 0.0,
    generator: Generator = None,
    on_step: OnStep | None = None,
    clamp: bool = True,
) -> Float[Tensor, "b 3 h w"]:
    """The decoder's pictures, in [-1, 1] unless not to ``clamp``: the inverted ones or, given other ``image_embeds``
    or noise of strength ``eta``, edited ones. Without gradients, as ``invert``: with them networks round otherwise.

    Raises:
        ValueError: ``eta`` above 0 with an exact latent, which leaves no room for noise.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be a number from 0 to 1, got {eta}")
    if eta > 0 and latent.method == "bdia":
        raise ValueError(f"an exact latent can only be reconstructed: expected eta=0 or a DDIM latent, got eta={eta}")
    latent = latent if image_embeds is None else replace(latent, image_embeds=image_embeds)
    levels = _levels(pipe, latent.num_inference_steps)
    states = latent.states.to(pipe._execution_device)
    if latent.method == "ddim":
        scheduler, x = DDIM(levels, eta=eta), states[0]
    else:
        scheduler, x = BDIA(levels, last=states[0]), states[1]
    x = _walk(pipe, "decoder", latent, x, scheduler, generator=generator, on_step=on_step)
    return x.clamp(-1, 1).to(torch.promote_types(pipe.decoder.dtype, torch.float32)) if clamp else x


def _walk(
    pipe: Any,
    stage: str,
    latent: BipartiteLatent,
    x: Tensor,
    scheduler: Any,
    *,
    generator: Generator = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """One way or the other, x in its own precision and the network in its."""
    cond = pipe.encode_text(list(latent.prompts)).with_image(latent.image_embeds.to(x.device))
    null: Conditioning | None = None
    if latent.guidance["guidance_scale"] != 1:
        null = pipe.encode_text(latent.negative_prompt)
    network, dtype = guided(pipe, "decoder", cond=cond, null=null, **latent.guidance), pipe.decoder.dtype
    pipe._stage = stage
    with pipe.progress_bar(total=len(scheduler.timesteps)) as bar:
        bar.set_description(stage)

        def after(i: int, t: Tensor, x: Tensor) -> Tensor | None:
            bar.update()
            return None if on_step is None else on_step(i, t, x)

        return denoise(
            lambda x, t: network(x.to(dtype), t).to(x.dtype), x, scheduler, generator=generator, on_step=after
        )


def _levels(pipe: UnCLIPPipelineBase, steps: int) -> NoiseLevels:
    config = pipe.decoder_scheduler.config
    return NoiseLevels(
        pipe.decoder_scheduler.alphas_cumprod,
        steps=steps,
        prediction_type=config["prediction_type"],
        limit=config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None,
        device=pipe._execution_device,
    )


def _small_shape(pipe: UnCLIPPipelineBase, batch: int) -> tuple[int, ...]:
    size = pipe.decoder.config["sample_size"]
    return batch, 3, size, size


def _square(image: Image.Image) -> Image.Image:
    """The middle of a picture, which is what CLIP is shown of it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
