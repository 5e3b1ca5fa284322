"""A checkpoint's files against the classes that load them, without loading them."""

from collections import defaultdict
from typing import Any

from diffusers.utils import logging
from transformers.utils import logging as transformers_logging

from unclip_hub.hub.agreement import absent, agreement, compare, tasks
from unclip_hub.hub.inspect import CONFIG_FILE, Checkpoint, Component, Problem
from unclip_hub.hub.weights import read_tensor
from unclip_hub.models.expected import expected, find_class


def examine(checkpoint: Checkpoint) -> dict[str, str]:
    """Compare every component with the class that loads it, and all with one another; returns what they can do."""
    problems, components = checkpoint.problems, checkpoint.components
    needless = _needless(components)
    problems += absent(checkpoint.pipeline, {*components, *needless})
    shapes, configs = {}, {}
    for name, component in components.items():
        found = _expected(component, problems)
        if found is not None:
            shapes[name], configs[name] = found
    for name, wanted in shapes.items():
        tensors = components[name].tensors
        if components[name].kind == "model" and tensors is not None:
            others = {other: table for other, table in shapes.items() if other != name and table != wanted}
            problems += compare(name, tensors, wanted, others)
    problems += agreement(configs)
    problems += _statistics(components.get("prior"))
    problems += _dtypes(components)
    ill = {problem.where for problem in problems if problem.level == "error"}
    sound = {name: config for name, config in configs.items() if name not in ill}
    return _abilities(tasks(sound | {name: {} for name in needless}), configs, checkpoint)


def _needless(components: dict[str, Component]) -> set[str]:
    """A prior that samples itself has no scheduler."""
    prior = components.get("prior")
    cls = None if prior is None else find_class(*prior.ours)
    return {"prior_scheduler"} if hasattr(cls, "sample") else set()


def _expected(component: Component, problems: list[Problem]) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """What the component's class makes of its configuration, or None where that is a problem, which is noted."""
    name, config = component.name, component.config
    cls = find_class(*component.ours)
    if cls is None:
        what = f"unknown class {'.'.join(component.written)}"
        problems.append(Problem("error", name, what, f"pass your own {name}= to from_pretrained, or use another"))
        return None
    if config is None:
        return None
    if component.kind in ("tokenizer", "processor"):
        return {}, config
    file, written = CONFIG_FILE[component.kind], config.get("_class_name")
    if written not in (None, component.ours[1]):
        level = "error" if component.kind == "model" else "warning"
        what = f"{file} is of {written}, model_index.json says {component.ours[1]}"
        problems.append(Problem(level, name, what, "correct the one that is wrong, or put the right folder here"))
        if level == "error":
            return None
    verbosity = [logger.get_verbosity() for logger in (logging, transformers_logging)]
    for logger in (logging, transformers_logging):
        logger.set_verbosity_error()  # what is wrong is told here, in one line
    try:
        return expected(cls, config)
    except ValueError as error:
        what = f"{file} does not fit {component.ours[1]}: {' '.join(str(error).split())}"
        problems.append(Problem("error", name, what, "correct the value, or take the file from the original"))
        return None
    finally:
        for logger, level in zip((logging, transformers_logging), verbosity, strict=True):
            logger.set_verbosity(level)


def _statistics(prior: Component | None) -> list[Problem]:
    info = ((prior.tensors if prior else None) or {}).get("clip_std")
    if info is None:
        return []
    zeros = int((read_tensor(info, "clip_std") == 0).sum())
    what = f"clip_std is 0 in {zeros} of {info.shape[-1]} places: there the caption has no effect on the embedding"
    return [Problem("error", "prior", what, "write the statistics of its training set, or ones")] if zeros else []


def _dtypes(components: dict[str, Component]) -> list[Problem]:
    problems, halves = [], defaultdict(list)
    for name, component in components.items():
        floats = [dtype for dtype in component.dtypes if "float" in dtype]
        if len(floats) > 1:
            remedy = "load it with dtype=, and save it anew"
            problems.append(Problem("warning", name, f"its weights mix {' and '.join(floats)}", remedy))
        elif floats and floats[0] != "float32":
            halves[floats[0]].append(name)
    for dtype, names in halves.items():
        remedy = f"they load as float32, unless from_pretrained is given dtype=torch.{dtype}"
        problems.append(Problem("note", ", ".join(names), f"stored in {dtype}", remedy))
    return problems


def _abilities(words: dict[str, str], configs: dict[str, Any], checkpoint: Checkpoint) -> dict[str, str]:
    components = checkpoint.components
    if "prior" in components:
        class_name = components["prior"].ours[1]
        words["prior"] = {"PriorTransformer": "diffusion (PriorTransformer)"}.get(class_name, class_name)
    for name, component in components.items():
        config = configs.get(name)
        if component.kind == "scheduler" and config is not None:
            learned = str(config.get("variance_type")).startswith("learned")
            own, others = (" with the learned variance", ", without it") if learned else ("", "")
            predicts = config.get("prediction_type", "epsilon")
            words[name] = f"{component.ours[1]}{own}, predicts {predicts}; or another of diffusers'{others}"
    return words
