"""Steps and guidance of a call: what the caller gave, else what the checkpoint holds, else Karlo's."""

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
}
STEPPED, GUIDED = ("prior", "decoder", "super_res"), ("prior", "decoder")

Interval = tuple[float | int, float | int]


@dataclass(frozen=True)
class Settings:
    """Steps by stage, by guided stage the keyword arguments of its verb, and how many embeddings the prior draws."""

    steps: dict[str, int]
    guidance: dict[str, dict[str, Any]]
    num_prior_samples: int

    @property
    def guided(self) -> bool:
        """Whether any stage needs something to be led away from."""
        return any(options["guidance_scale"] != 1 for options in self.guidance.values())


def check_defaults(sampling_defaults: dict[str, Any] | None) -> None:
    """Refuse defaults under names that no call has."""
    unknown = set(sampling_defaults or {}) - set(SAMPLING_DEFAULTS)
    if unknown:
        raise ValueError(f"sampling_defaults may hold {sorted(SAMPLING_DEFAULTS)}, got also {sorted(unknown)}")


def settings(pipe: Any, **given: Any) -> Settings:
    """The settings of a call, from those of its arguments that are named as in SAMPLING_DEFAULTS and not None."""
    assert set(given) <= set(SAMPLING_DEFAULTS), given
    own = SAMPLING_DEFAULTS | (pipe.config["sampling_defaults"] or {})
    chosen: dict[str, Any] = own | {name: value for name, value in given.items() if value is not None}
    for stage in GUIDED:
        interval = chosen[f"{stage}_guidance_interval"]
        chosen[f"{stage}_guidance_interval"] = tuple(interval) if isinstance(interval, list) else interval  # of JSON
    return Settings(
        steps={stage: chosen[f"{stage}_num_inference_steps"] for stage in STEPPED},
        guidance={
            stage: {
                f"guidance_{part}": chosen[f"{stage}_guidance_{part}"] for part in ("scale", "interval", "rescale")
            }
            for stage in GUIDED
        },
        num_prior_samples=chosen["num_prior_samples"],
    )
