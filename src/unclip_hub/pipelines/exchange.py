"""Components handed over between pipelines, ours and diffusers' retired ones."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import nn


NETWORKS = ("prior", "text_proj", "decoder", "super_res_first", "super_res_last")


def exchange(ours: type, theirs: type) -> None:
    """Let ``ours.from_pipe`` and ``theirs.from_pipe`` take the other's networks.

    diffusers hands a network over only if its class is exactly an annotated one; so each annotation gets the other's
    classes as well. Calls and weights agree: either pipeline runs with either class.
    """
    own: dict[str, Any] = ours.__init__.__annotations__
    other: dict[str, Any] = theirs.__init__.__annotations__
    for name in NETWORKS:
        if name in other:
            own[name] = other[name] = own[name] | other[name]


def keep_dtypes(from_pipe: Callable[..., Any], pipeline: Any, **options: Any) -> Any:
    """``from_pipe`` without its conversion to float32 of the networks, which both pipelines share."""
    if {"dtype", "torch_dtype"} & options.keys():
        return from_pipe(pipeline, **options)
    dtypes: dict[Any, Any] = {part: part.dtype for part in pipeline.components.values() if isinstance(part, nn.Module)}
    made = from_pipe(pipeline, dtype=reduce(torch.promote_types, dtypes.values()), **options)
    for network, dtype in dtypes.items():
        if network.dtype != dtype:  # widened above, so nothing was lost
            network.to(dtype)
    return made
