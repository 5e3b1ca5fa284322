"""Steps and guidance of a call: what the caller gave, else what the checkpoint holds, else Karlo's."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


# Karlo's, from its published samplers ("fast"); a checkpoint's index may hold its own under the same keys
SAMPLING_DEFAULTS: dict[str, Any] = {
    "num_prior_samples": 1,
    "prior_num_inference_steps": 25,
    "decoder_num_inference_steps": 25,
    "super_res_num_inference_steps": 7,
    "prior_guidance_scale": 4.0,
    "decoder_guidance_scale": 8.0,
    "prior_guidance_interval": None,
    "decoder_guidance_interval": None,
    "prior_guidance_rescale": 0.0,
    "decoder_guidance_rescale": 0.0,
    "prior_options": None,
    "output_size": None,  # the largest
}
GUIDANCE = ("guidance_scale", "guidance_interval", "guidance_rescale")

Interval = tuple[float | int, float | int]


@dataclass(frozen=True)
class Settings:
    """Keyword arguments: the prior's in ``prior``, the other verbs' in ``steps`` and ``guidance`` by stage.

    Those two have an entry for the prior as well if it is a diffusion. ``num_prior_samples`` is how many it draws, and
    ``upsamplers`` are the stages after the decoder.
    """

    prior: dict[str, Any]
    steps: dict[str, int]
    guidance: dict[str, dict[str, Any]]
    num_prior_samples: int
    upsamplers: tuple[str, ...]

    @property
    def guided(self) -> bool:
        """Whether any stage needs something to be led away from."""
        return any(options.get("guidance_scale", 1) != 1 for options in (self.prior, self.guidance["decoder"]))


def check_defaults(sampling_defaults: dict[str, Any] | None) -> None:
    """Refuse defaults under names that no call has."""
    unknown = set(sampling_defaults or {}) - set(SAMPLING_DEFAULTS)
    if unknown:
        raise ValueError(f"sampling_defaults may hold {sorted(SAMPLING_DEFAULTS)}, got also {sorted(unknown)}")


def settings(pipe: Any, **given: Any) -> Settings:
    """The settings of a call, from those of its arguments that are named as in SAMPLING_DEFAULTS and not None.

    Raises:
        ValueError: the caller gave what the prior cannot be told. What the checkpoint holds for another is left out.
    """
    assert set(given) <= set(SAMPLING_DEFAULTS), given
    stored = pipe.config["sampling_defaults"] or {}
    chosen: dict[str, Any] = SAMPLING_DEFAULTS | stored | {name: x for name, x in given.items() if x is not None}
    prior = _prior_settings(pipe.prior, given=given, stored=stored)
    steps = {stage: chosen[f"{stage}_num_inference_steps"] for stage in ("decoder", "super_res")}
    guidance = {"decoder": {part: _parsed(chosen[f"decoder_{part}"]) for part in GUIDANCE}}
    if not samples_itself(pipe.prior):
        steps["prior"] = prior["num_inference_steps"]
        guidance["prior"] = {part: prior[part] for part in GUIDANCE}
    if given.get("output_size") is not None:
        _check_size(pipe, given["output_size"])
    return Settings(prior, steps, guidance, chosen["num_prior_samples"], upsamplers(pipe, chosen["output_size"]))


def upsamplers(pipe: Any, output_size: int | None = None) -> tuple[str, ...]:
    """The stages that make the decoder's pictures larger, at most to ``output_size``, or as large as they can."""
    return tuple(stage for stage, size in _sizes(pipe).items() if output_size is None or size <= output_size)


def _check_size(pipe: Any, output_size: int) -> None:
    made = [pipe.decoder.config["sample_size"], *_sizes(pipe).values()]
    if output_size not in made:
        raise ValueError(f"output_size must be one of {made}, which this checkpoint makes, got {output_size!r}")


def _sizes(pipe: Any) -> dict[str, int]:
    networks = {"super_res": pipe.super_res_first, "super_res_1024": pipe.super_res_1024}
    return {stage: net.config["sample_size"] for stage, net in networks.items() if net is not None}


def samples_itself(prior: Any) -> bool:
    """Whether a prior needs no scheduler: it has a ``sample``, as every kind but the diffusion has."""
    return callable(getattr(prior, "sample", None))


def prior_options(prior: Any) -> tuple[str, ...]:
    """What a prior can be told, by the names of keyword arguments of ``sample_prior``."""
    if not samples_itself(prior):
        return "num_inference_steps", *GUIDANCE, "max_norm"
    parameters = inspect.signature(prior.sample).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "generator")


def _prior_settings(prior: Any, *, given: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Karlo's are for diffusions alone: guidance in particular is another thing to every kind."""
    possible, own = prior_options(prior), _prior_part(stored)
    asked = _prior_part(given)
    unknown = sorted(set(asked) - set(possible))
    if unknown:
        raise ValueError(
            f"{type(prior).__name__} can be told {', '.join(possible) or 'nothing'} (by prior_options, or an argument "
            f"prior_... where there is one), got {', '.join(unknown)}"
        )
    named = () if samples_itself(prior) else possible
    ours = {name: SAMPLING_DEFAULTS[f"prior_{name}"] for name in named if f"prior_{name}" in SAMPLING_DEFAULTS}
    return ours | {name: _parsed(value) for name, value in own.items() if name in possible} | asked


def _prior_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """The prior's, as its keyword arguments: those with a name of their own, and ``prior_options``."""
    options = values.get("prior_options") or {}
    if not isinstance(options, Mapping):
        raise ValueError(f"prior_options must be a dict of the prior's keyword arguments, got {options!r}")
    named = {
        name.removeprefix("prior_"): value
        for name, value in values.items()
        if name.startswith("prior_") and name != "prior_options" and value is not None
    }
    twice = sorted(set(named) & set(options))
    if twice:
        raise ValueError(f"prior_options holds {', '.join(twice)}, which prior_{twice[0]} and the like say too")
    return named | dict(options)


def _parsed(value: Any) -> Any:
    """JSON knows lists for an interval."""
    return tuple(value) if isinstance(value, list) else value
