"""What a pipeline refuses before it computes anything; every message says what was expected and what came."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unclip_hub.conditioning import Conditioning
from unclip_hub.pipelines.schedulers import check_scheduler
from unclip_hub.pipelines.settings import Settings, samples_itself


OUTPUT_TYPES = ("pil", "np", "pt")


def check_call(
    pipe: Any,
    *,
    prompt: str | list[str] | None,
    prompt_embeds: Conditioning | None,
    text_model_output: Any,
    text_attention_mask: Tensor | None,
    negative_prompt: str | list[str] | None,
    negative_prompt_embeds: Conditioning | None,
    image_embeds: Tensor | None,
    small_images: Tensor | None,
    num_images_per_prompt: int,
    settings: Settings,
    **options: Any,
) -> int:
    """Check the arguments of a text-to-image call and return the number of pictures that it makes."""
    check_count("num_images_per_prompt", num_images_per_prompt)
    prompts = count_prompts(prompt, prompt_embeds, text_model_output, text_attention_mask)
    check_negative(negative_prompt, negative_prompt_embeds, prompts=prompts)
    batch = prompts * num_images_per_prompt
    check_run(pipe, batch=batch, settings=settings, image_embeds=image_embeds, small_images=small_images, **options)
    if small_images is not None:
        return batch
    if prompt is not None:
        require(pipe, "a prompt", "text_encoder", "tokenizer", instead="prompt_embeds")
    if negative_prompt_embeds is None and settings.guided:
        require(pipe, "guidance", "text_encoder", "tokenizer", instead="negative_prompt_embeds")
    if image_embeds is None:
        require_prior(pipe, "text to image", instead="image_embeds")
    return batch


def check_run(
    pipe: Any,
    *,
    batch: int,
    settings: Settings,
    generator: Any,
    latents: Mapping[str, Tensor | None],
    output_type: str,
    callback_inputs: Sequence[str],
    image_embeds: Tensor | None = None,
    small_images: Tensor | None = None,
) -> None:
    """Check what every task's call takes."""
    for stage, value in settings.steps.items():
        check_count(f"{stage}_num_inference_steps", value)
    for stage, options in {**settings.guidance, "prior": settings.prior}.items():
        for part, check in _GUIDANCE.items():
            if part in options:
                check(f"{stage}_{part}", options[part])
    if isinstance(generator, list) and len(generator) != batch:
        raise ValueError(
            f"generator must be one generator or a list of {batch}, one per picture, got {len(generator)}"
        )
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {OUTPUT_TYPES}, got {output_type!r}")
    allowed = pipe._callback_tensor_inputs
    if not set(callback_inputs) <= set(allowed):
        raise ValueError(f"callback_on_step_end_tensor_inputs may hold {allowed}, got {list(callback_inputs)}")
    check_prior_latents(pipe, latents.get("prior"))
    shapes = stage_shapes(pipe, batch)
    for stage, given in latents.items():
        if given is not None and stage not in shapes:
            raise ValueError(f"{stage}_latents were given, but this checkpoint has no stage {stage!r}")
        check_shape(f"{stage}_latents", given, shapes.get(stage))
    check_shape("image_embeds", image_embeds, (batch, pipe.text_proj.config["clip_embeddings_dim"]))
    check_shape("small_images", small_images, shapes["decoder"])
    needless = ("prior", "decoder") if small_images is not None else ("prior",) if image_embeds is not None else ()
    for stage in shapes:
        if stage not in needless:
            check_scheduler(pipe, stage, num_inference_steps=settings.steps[stage])


def require(pipe: Any, purpose: str, *names: str, instead: str | None = None) -> None:
    """Refuse what needs components that this pipeline was opened without."""
    missing = [name for name in names if getattr(pipe, name) is None]
    if missing:
        way_out = f", or give {instead}" if instead else ""
        raise ValueError(
            f"{purpose} needs {' and '.join(missing)}, which {type(pipe).__name__} was opened without: pass "
            f"{'it' if len(missing) == 1 else 'them'} to from_pretrained{way_out}"
        )


def require_prior(pipe: Any, purpose: str, *, instead: str | None = None) -> None:
    """Refuse what needs a prior, and a scheduler where it is a diffusion."""
    schedulers = [] if samples_itself(pipe.prior) else ["prior_scheduler"]
    require(pipe, purpose, "prior", *schedulers, instead=instead)


def check_prior_latents(pipe: Any, latents: Tensor | None) -> None:
    """Refuse noise for a prior that draws its own."""
    if latents is not None and samples_itself(pipe.prior):
        raise ValueError(f"{type(pipe.prior).__name__} samples by itself: it cannot be told prior_latents")


def stage_shapes(pipe: Any, batch: int) -> dict[str, tuple[int, ...]]:
    """The shape of the latents of every stage that is a diffusion, by the configurations of the networks."""
    size = pipe.decoder.config["sample_size"]
    shapes: dict[str, tuple[int, ...]] = {"decoder": (batch, 3, size, size)}
    if pipe.prior is not None and not samples_itself(pipe.prior):
        shapes["prior"] = (batch, pipe.prior.config["embedding_dim"])
    if pipe.super_res_first is not None:
        size = pipe.super_res_first.config["sample_size"]
        shapes["super_res"] = (batch, pipe.super_res_first.config["in_channels"] // 2, size, size)
    return shapes


def count_prompts(
    prompt: str | list[str] | None,
    prompt_embeds: Conditioning | None,
    text_model_output: Any,
    text_attention_mask: Tensor | None,
) -> int:
    """The number of captions in whichever of the three forms they came; exactly one must be given."""
    given = [
        name
        for name, value in {
            "prompt": prompt,
            "prompt_embeds": prompt_embeds,
            "text_model_output": text_model_output,
        }.items()
        if value is not None
    ]
    if len(given) != 1:
        raise ValueError(f"give exactly one of prompt, prompt_embeds and text_model_output, got {given or 'none'}")
    if text_model_output is not None:
        if text_attention_mask is None:
            raise ValueError("text_model_output needs text_attention_mask (b, l) beside it, got None")
        return len(text_model_output[0])
    if prompt_embeds is not None:
        return len(_conditioning("prompt_embeds", prompt_embeds))
    return 1 if isinstance(prompt, str) else len(_captions("prompt", prompt))


def check_negative(
    negative_prompt: str | list[str] | None, negative_prompt_embeds: Conditioning | None, *, prompts: int
) -> None:
    """One negative caption, or one per prompt."""
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise ValueError("give negative_prompt or negative_prompt_embeds, got both")
    if negative_prompt_embeds is not None:
        count = len(_conditioning("negative_prompt_embeds", negative_prompt_embeds))
    elif negative_prompt is None or isinstance(negative_prompt, str):
        count = 1
    else:
        count = len(_captions("negative_prompt", negative_prompt))
    if count not in (1, prompts):
        raise ValueError(f"expected one negative prompt or {prompts}, one per prompt, got {count}")


def check_count(name: str, value: Any) -> None:
    """A whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")


def check_scale(name: str, value: Any) -> None:
    """A finite guidance scale of at least 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number of at least 0 (1 is no guidance), got {value!r}")


def check_fraction(name: str, value: Any) -> None:
    """A number from 0 to 1."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{name} must be a number from 0 to 1, got {value!r}")


def check_interval(name: str, value: Any) -> None:
    """Two noise levels, the lower one first; or None."""
    if value is None:
        return
    numbers = isinstance(value, tuple | list) and [isinstance(one, int | float) for one in value] == [True, True]
    if not numbers or not 0 <= value[0] < value[1]:
        raise ValueError(f"{name} must be two noise levels (low, high) with 0 <= low < high, got {value!r}")


def check_shape(name: str, tensor: Tensor | None, expected: tuple[int, ...] | None) -> None:
    """A tensor of exactly this shape, where one was given."""
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor {expected}, got {type(tensor).__name__}")
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)}")


_GUIDANCE = {
    "guidance_scale": check_scale,
    "guidance_interval": check_interval,
    "guidance_rescale": check_fraction,
}


def _captions(name: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        shown = f"{type(value).__name__} {value!r}"
        raise ValueError(f"{name} must be a string or a non-empty list of strings, got {shown[:120]}")
    return value


def _conditioning(name: str, value: Any) -> Conditioning:
    if not isinstance(value, Conditioning):
        raise ValueError(f"{name} must be a Conditioning as encode_text returns it, got {type(value).__name__}")
    return value
