"""The tensors that a component's class expects under a configuration, known without allocating any."""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

import unclip_hub
from unclip_hub.hub.class_names import LIBRARY, LOADERS
from unclip_hub.models import loading


Shapes = dict[str, tuple[int, ...]]


def find_class(library: str, class_name: str) -> type | None:
    """The class that an index names, after `hub.class_names`; None if it is not one that we load."""
    if library == "transformers" and class_name in LOADERS:
        return getattr(loading, LOADERS[class_name]).loads
    found = None
    if library == LIBRARY and class_name in unclip_hub.__all__:
        found = getattr(unclip_hub, class_name)
    elif library == "diffusers" and class_name.endswith("Scheduler"):
        found = getattr(diffusers, class_name, None)
    bases = (torch.nn.Module, SchedulerMixin)
    return found if isinstance(found, type) and issubclass(found, bases) else None


def expected(cls: Any, config: Mapping[str, Any]) -> tuple[Shapes, dict[str, Any]]:
    """Key → shape of every tensor, and the configuration with its defaults filled in.

    Raises:
        ValueError: the configuration is not one of this class.
    """
    try:
        with torch.device("meta"):
            if issubclass(cls, ConfigMixin):
                made: Any = cls.from_config(dict(config))
                full = dict(made.config)
            else:
                inner = config.get("text_config" if "Text" in cls.__name__ else "vision_config")
                made = cls(cls.config_class.from_dict(dict(inner or config)))
                full = made.config.to_dict()
    except Exception as error:  # constructors of three libraries: whatever they make of a foreign configuration
        raise ValueError(f"{type(error).__name__}: {error}" if not str(error) else str(error)) from error
    state = made.state_dict() if isinstance(made, torch.nn.Module) else {}
    return {name: tuple(tensor.shape) for name, tensor in state.items()}, full
