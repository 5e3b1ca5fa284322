"""What a training command can be told: a dataclass per network, read from YAML and overridden key by key.

The files in ``configs/`` are such YAML, each headed by its command; their names are what ``--config`` takes.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from unclip_hub.training.loop import TrainConfig
from unclip_hub.training.objective import Objective


SHIPPED = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Clip:
    """A CLIP of one's own: both encoders, and a tokenizer learned from the captions."""

    preset: str = "tiny"
    batch: int = 128
    vocabulary: int = 1024
    pairwise: bool = False  # SigLIP's loss instead of CLIP's
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1_000, lr=1e-3, weight_decay=0.05, ema=0.99))


@dataclass(frozen=True)
class Prior:
    """The diffusion prior. ``start`` is ``"scratch"`` (a new network of ``preset``) or ``"base"`` (the base's own)."""

    preset: str = "tiny"
    start: str = "scratch"
    batch: int = 256
    drop_caption: float = 0.1
    lora_rank: int = 0  # above 0 the base's network stays as it is and adapters of this rank are trained
    objective: Objective = field(default_factory=lambda: Objective(weighting="simple"))
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1_000, lr=1e-3, ema=0.995))


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
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=12_000, lr=8e-4))


@dataclass(frozen=True)
class Upsampler:
    """An upsampler to ``size`` px from a quarter of it."""

    preset: str = "tiny"
    start: str = "scratch"
    size: int = 256
    batch: int = 16
    crop: int = 128  # side of the crops that it is trained on
    degradation: str = "blur_noise"  # of the small picture; or "blur" (the paper's to 256 px), "bsr" (to 1024 px)
    lora_rank: int = 0
    objective: Objective = field(default_factory=Objective)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=1_500, lr=1e-3, ema=0.995))


NETWORKS: dict[str, type] = {"clip": Clip, "prior": Prior, "decoder": Decoder, "upsampler": Upsampler}


def read_settings(network: str, *, config: str | None = None, changes: Sequence[str] = ()) -> Any:
    """The settings of a network's training.

    Args:
        config: a YAML file, or the name of a shipped one such as ``tiny``; the defaults without.
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
    given: dict[str, Any] = asdict(NETWORKS[network]())
    if config is not None:
        _update(given, yaml.safe_load(_file(network, config).read_text(encoding="utf-8")) or {}, where=config)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"--set takes key=value, for example train.lr=1e-4, got {change!r}")
        nested: Any = _value(value)
        for name in reversed(key.split(".")):
            nested = {name: nested}
        _update(given, nested, where=f"--set {change}")
    try:
        return draccus.decode(NETWORKS[network], given)
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
