"""What a stage computes of its captions, once per call instead of at every step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.decoder import UNet2DConditionModel
from unclip_hub.models.prior_transformer import PriorTransformer
from unclip_hub.models.step_cache import StepCache
from unclip_hub.sampling import Condition


def can_keep(network: nn.Module) -> bool:
    """Whether a network takes a ``StepCache``, and may: gradients need every step whole.

    So does offloading in groups: the order in which it fetches them is that of the first step.
    """
    network = unwrap_module(network)
    ours = isinstance(network, PriorTransformer | UNet2DConditionModel)
    return ours and not torch.is_grad_enabled() and not _is_group_offload_enabled(network)


def keeping(
    model: Callable[..., Tensor], condition: Callable[[Conditioning], Condition], given: Sequence[Conditioning]
) -> tuple[Callable[..., Tensor], list[Condition]]:
    """All captions of one call bound to its network; a condition on some of them is then only which ones.

    Each different caption is computed once, of its padding as much as the longest leaves. A network bound in this way
    is for one call: adapters and weights must not change meanwhile.
    """
    real = [place for one in given for place in one.text_mask.any(0).nonzero().flatten().tolist()]
    length = max(real, default=0) + 1
    conditions: list[Condition] = []
    whole: list[Condition] = []
    for one in given:
        captions, rows = one.cut(length).distinct()
        conditions.append({"rows": rows + sum(len(before["attention_mask"]) for before in whole)})
        whole.append(condition(captions))
    bound = {name: torch.cat([one[name] for one in whole]) for name in whole[0]}
    if bound["attention_mask"].all():
        del bound["attention_mask"]
    cache = StepCache()

    def call(x: Tensor, t: Tensor, rows: Tensor, **beside: Any) -> Tensor:
        cache.rows = rows
        return model(x, t, **bound, **beside, cache=cache)

    return call, conditions
