"""Where a training's numbers go besides ``stats.jsonl``: a tracker that draws them while it runs."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate import Accelerator


TRACKERS = ("auto", "trackio", "tensorboard", "wandb", "none")
PROJECT = "unclip"  # in which trackio and wandb keep all runs side by side


def chosen_tracker(asked: str) -> str | None:
    """The tracker's name for accelerate, or None; ``"auto"`` is trackio where it is installed.

    Raises:
        ImportError: the tracker is not installed.
    """
    if asked == "auto":
        return "trackio" if find_spec("trackio") else None
    if asked == "none":
        return None
    if find_spec(asked) is None:  # accelerate would track nothing, and say nothing
        raise ImportError(f"the tracker {asked} is not installed: pip install {asked}")
    return asked


def start_tracking(accelerator: Accelerator, settings: dict[str, Any], *, output: Path, resumed: bool) -> None:
    """Begin the run that is named after ``output``; trackio and tensorboard continue it when it is ``resumed``.

    ``settings`` are the run's, ``tracker`` among them.
    """
    name = output.as_posix().strip("./").replace("/", "-")
    plain = {key: str(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    accelerator.init_trackers(
        "tensorboard" if settings["tracker"] == "tensorboard" else PROJECT,  # its folder in ``output``
        config=plain,
        init_kwargs={
            "trackio": {"name": name, "resume": "allow" if resumed else "never"},
            # offline it cannot continue a run, which begins another one in its group
            "wandb": {"name": name, "group": name, "dir": str(output)},
        },
    )
