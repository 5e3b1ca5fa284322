"""What a training command can be told: a dataclass per network, read from YAML and overridden key by key.

The files in ``configs/`` are such YAML, each headed by its command; their names are what ``--config`` takes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from unclip_hub.training.loop import TrainConfig
from unclip_hub.training.objective import Objective


SHIPPED = Path(__file__).parent / "configs"


def _watched(**changes: Any) -> TrainConfig:
    """How a command trains: trackio shows it while it runs, where that is installed."""
    return TrainConfig(tracker="auto", **changes)


@dataclass(frozen=True)
class Clip:
    """A CLIP of one's own: both encoders, and a tokenizer learned from the captions."""

    preset: str = "tiny"
    batch: int = 128
    vocabulary: int = 1024
    pairwise: bool = False  # SigLIP's loss instead of CLIP's
    train: TrainConfig = field(default_factory=lambda: _watched(steps=1_000, lr=1e-3, weight_decay=0.05, ema=0.99))


@dataclass(frozen=True)
class Prior:
    """The diffusion prior. ``start`` is ``"scratch"`` (a new network of ``preset``) or ``"base"`` (the base's own)."""

    kind: ClassVar[str] = "diffusion"
    sampling_defaults: ClassVar[dict[str, Any]] = {}  # of the exported model, where they differ from its base's

    preset: str = "tiny"
    start: str = "scratch"
    batch: int = 256
    drop_caption: float = 0.1
    self_conditioning: bool = False  # of a new network: it sees what it predicted at the step before
    lora_rank: int = 0  # above 0 the base's network stays as it is and adapters of this rank are trained
    objective: Objective = field(default_factory=lambda: Objective(weighting="simple"))
    train: TrainConfig = field(default_factory=lambda: _watched(steps=1_000, lr=1e-3, ema=0.995))

    def __post_init__(self) -> None:
        """A schedule that the exported scheduler and its steps would not fit is refused."""
        if (self.objective.schedule == "flow") != (self.kind == "flow"):
            raise ValueError(f"schedule 'flow' and kind 'flow' need each other, got {self.objective.schedule!r}")


@dataclass(frozen=True)
class FlowPrior(Prior):
    """The diffusion prior on the straight path from noise to embedding, which few steps follow."""

    kind: ClassVar[str] = "flow"
    sampling_defaults: ClassVar[dict[str, Any]] = {"prior_num_inference_steps": 4, "prior_guidance_scale": 1.0}

    objective: Objective = field(default_factory=lambda: Objective(weighting="flow", schedule="flow"))


@dataclass(frozen=True)
class AutoregressivePrior:
    """The paper's other prior: codes of the image embedding's principal components, one after the other."""

    kind: ClassVar[str] = "autoregressive"
    sampling_defaults: ClassVar[dict[str, Any]] = {"prior_guidance_scale": 1.0}

    preset: str = "tiny"
    start: str = "scratch"
    batch: int = 256
    drop_caption: float = 0.1
    kept_variance: float = 0.99  # of the embeddings, by as many components as hold it
    lora_rank: int = 0
    train: TrainConfig = field(default_factory=lambda: _watched(steps=1_000, lr=1e-3, ema=0.995))


@dataclass(frozen=True)
class OneStepPrior:
    """ECLIPSE's prior: squared error, and ``contrastive`` times a contrast with the batch's other captions."""

    kind: ClassVar[str] = "one_step"
    sampling_defaults: ClassVar[dict[str, Any]] = {}

    preset: str = "tiny"
    start: str = "scratch"
    batch: int = 256
    contrastive: float = 0.2
    temperature: float = 0.07
    lora_rank: int = 0
    train: TrainConfig = field(default_factory=lambda: _watched(steps=1_000, lr=1e-3, ema=0.995))


@dataclass(frozen=True)
class GaussianPrior:
    """A linear map with a normal residual, fitted in one pass over the data, or over so many ``batches``."""

    kind: ClassVar[str] = "gaussian"
    sampling_defaults: ClassVar[dict[str, Any]] = {}

    batch: int = 256
    batches: int = 0  # 0 reads every sample once; shards do not say how many that are
    text_states: bool = True  # beside the text embedding, the mean of the text encoder's states
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        """Numbers that no pass can have are refused."""
        if self.batch < 1 or self.batches < 0:
            raise ValueError(f"expected batch at least 1 and batches at least 0, got {self.batch} and {self.batches}")


AnyPrior = Prior | AutoregressivePrior | OneStepPrior | GaussianPrior
PRIORS: dict[str, type] = {
    cls.kind: cls for cls in (Prior, AutoregressivePrior, OneStepPrior, FlowPrior, GaussianPrior)
}


@dataclass(frozen=True)
class Decoder:
    """The decoder and text_proj. Conditions are withheld independently of each other, as in the paper."""

    preset: str = "tiny"
    start: str = "scratch"
    batch: int = 32
    crop: str = "centre"
    drop_image: float = 0.1
    drop_caption: float = 0.5
    inpaint: bool = False  # widen the input by a mask and the masked picture
    lora_rank: int = 0
    objective: Objective = field(default_factory=Objective)
    train: TrainConfig = field(default_factory=lambda: _watched(steps=12_000, lr=8e-4))


@dataclass(frozen=True)
class Upsampler:
    """An upsampler to ``size`` px from a quarter of it."""

    preset: str = "tiny"
    start: str = "scratch"  # or "base"; or "first", from the base's upsampler to 256 px on to a larger ``size``
    size: int = 256
    batch: int = 16
    crop: int = 128  # side of the crops that it is trained on
    # of the small picture; or "blur" (the paper's to 256 px), "bsr" (to 1024 px), "redrawn" (by the base's decoder)
    degradation: str = "blur_noise"
    lora_rank: int = 0
    objective: Objective = field(default_factory=Objective)
    train: TrainConfig = field(default_factory=lambda: _watched(steps=1_500, lr=1e-3, ema=0.995))


@dataclass(frozen=True)
class Dvae:
    """DALL-E's discrete VAE, at ``size`` px; its loss is said in `DvaeTask`."""

    preset: str = "tiny"
    start: str = "scratch"
    size: int = 64
    batch: int = 16
    crop: str = "centre"
    likelihood: str = "logit_laplace"
    kl_weight: float = 6.6
    kl_ramp: float = 0.1  # ramps are parts of the run
    temperature: float = 0.0625
    temperature_ramp: float = 0.5
    train: TrainConfig = field(default_factory=lambda: _watched(steps=3_000, lr=1e-3, ema=0.995))


NETWORKS: dict[str, type] = {"clip": Clip, "prior": Prior, "decoder": Decoder, "upsampler": Upsampler, "dvae": Dvae}


def read_settings(network: str, *, config: str | None = None, changes: Sequence[str] = ()) -> Any:
    """The settings of a network's training.

    Args:
        config: a YAML file, or the name of a shipped one such as ``tiny``; the defaults without. A prior's may say
            its ``kind``, one of ``PRIORS``.
        changes: ``key=value``, the keys with dots: ``train.lr=1e-4``.

    Raises:
        ValueError: a file that is not there, or a key or value that does not fit.
        ImportError: draccus is missing; ``pip install "unclip_hub[train]"``.
    """
    try:
        import draccus
        from draccus.utils import DecodingError, ParsingError
    except ImportError as error:
        raise ImportError('training settings are read by draccus: pip install "unclip_hub[train]"') from error
    layers: list[tuple[str, Any]] = []
    if config is not None:
        layers.append((config, yaml.safe_load(_file(network, config).read_text(encoding="utf-8")) or {}))
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, for example train.lr=1e-4, got {change!r}")
        nested: Any = _value(value)
        for name in reversed(key.split(".")):
            nested = {name: nested}
        layers.append((f"--set {change}", nested))
    cls = _prior_class(layers) if network == "prior" else NETWORKS[network]
    given: dict[str, Any] = asdict(cls())
    for where, layer in layers:
        _update(given, layer, where=where)
    try:
        return draccus.decode(cls, given)
    except (DecodingError, ParsingError) as error:  # the second says what only in its cause
        why = error if isinstance(error, DecodingError) else error.__cause__ or error
        raise ValueError(f"the settings of {network} do not fit: {why}") from error


def shipped(network: str) -> list[str]:
    """The names of a network's shipped settings."""
    return sorted(path.stem.removeprefix(f"{network}-") for path in SHIPPED.glob(f"{network}-*.yaml"))


def _file(network: str, config: str) -> Path:
    for path in (Path(config), SHIPPED / f"{network}-{config}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(shipped(network))
    raise ValueError(f"no settings {config!r}: expected a YAML file or one of {names}")


def _prior_class(layers: list[tuple[str, Any]]) -> type:
    """The settings of the kind that was named last, which is taken out: every kind has keys of its own."""
    kind = "diffusion"
    for _, layer in layers:
        kind = layer.pop("kind", kind) if isinstance(layer, dict) else kind
    if kind not in PRIORS:
        raise ValueError(f"kind must be one of {', '.join(PRIORS)}, got {kind!r}")
    return PRIORS[kind]


def _update(settings: dict[str, Any], changes: Any, *, where: str) -> None:
    """Put ``changes`` into nested settings, of which every key must be there already."""
    if not isinstance(changes, dict):
        raise ValueError(f"{where}: expected keys and values, got {changes!r}")
    for key, value in changes.items():
        if key not in settings:
            raise ValueError(f"{where}: there is no setting {key!r}, expected one of {', '.join(settings)}")
        if isinstance(settings[key], dict):
            _update(settings[key], value, where=where)
        else:
            words = isinstance(settings[key], str) and isinstance(value, bool)  # YAML's no and yes are truth values
            settings[key] = {False: "no", True: "yes"}[value] if words else value


def _value(text: str) -> Any:
    """A value as JSON has it, or else the text itself: in YAML "no" would be a truth value, and 1e-4 a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
