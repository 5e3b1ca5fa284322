"""The transformer of the guided-diffusion family: GLIDE encodes captions with it, Karlo and Kandinsky predict."""

import re
from collections.abc import Iterable
from functools import partial

from attention_rows import per_head
from ledger import Converted


_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm3",
    "attn.c_proj": "attn1.to_out.0",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}


def move_blocks(converted: Converted, component: str, *, prefix: str, head_dim: int) -> None:
    """Move the blocks ``transformer.resblocks`` to ``transformer_blocks``; ``head_dim`` is one head's width."""
    for i in range(count_blocks(converted.left(), name=f"{prefix}transformer.resblocks")):
        source, target = f"{prefix}transformer.resblocks.{i}", f"transformer_blocks.{i}"
        for kind in ("weight", "bias"):
            for theirs, ours in _BLOCK.items():
                converted.move(f"{source}.{theirs}.{kind}", component, f"{target}.{ours}.{kind}")
            targets = [f"{target}.attn1.to_{name}.{kind}" for name in "qkv"]
            converted.split(
                f"{source}.attn.c_qkv.{kind}", component, targets, change=partial(per_head, head_dim=head_dim)
            )


def count_blocks(keys: Iterable[str], *, name: str) -> int:
    """How many blocks a state dict has under ``name``."""
    found = (re.match(rf"{re.escape(name)}\.(\d+)\.", key) for key in keys)
    return max((int(number[1]) + 1 for number in found if number), default=0)
