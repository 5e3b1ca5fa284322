"""One of two processes that train CLIP: ``python clip_in_processes.py RANK FOLDER`` writes its gradients there."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from unclip_hub.training.clip import ClipBatch, ClipTask


PROCESSES, EACH, LENGTH, END = 2, 3, 9, 29


def task(*, pairwise: bool) -> ClipTask:
    torch.manual_seed(0)
    sizes = dict(intermediate_size=20, projection_dim=12, num_hidden_layers=1, num_attention_heads=2)
    text = CLIPTextConfig(
        vocab_size=END + 1,
        hidden_size=16,
        max_position_embeddings=LENGTH,
        bos_token_id=0,
        eos_token_id=END,
        pad_token_id=END,
        **sizes,
    )
    vision = CLIPVisionConfig(hidden_size=24, image_size=8, patch_size=4, **sizes)
    return ClipTask(CLIPTextModelWithProjection(text), CLIPVisionModelWithProjection(vision), pairwise=pairwise)


def batch(rank: int | None) -> ClipBatch:
    """All pictures, or those of one process, whose captions are then cut to its longest."""
    generator = torch.Generator().manual_seed(1)
    count = PROCESSES * EACH
    pixels = torch.randn(count, 3, 8, 8, generator=generator)
    ids = torch.randint(0, END, (count, LENGTH), generator=generator)
    for row, end in enumerate((4, 5, 3, 8, 2, 6)):
        ids[row, end:] = END
    ids[4] = ids[2]  # a caption that both have is no wrong one
    negatives = (ids + 1).clamp(max=END)
    if rank is None:
        return ClipBatch(pixels, ids, negatives)
    own = slice(rank * EACH, (rank + 1) * EACH)
    longest = 6 if rank == 0 else LENGTH
    return ClipBatch(pixels[own], ids[own, :longest], negatives[own, :longest])


class Loss(nn.Module):
    """A task as the one module that DistributedDataParallel wraps."""

    def __init__(self, task: ClipTask) -> None:
        super().__init__()
        self.trained, self.task = task.modules, task

    def forward(self, batch: ClipBatch) -> Tensor:
        return self.task.loss(batch, torch.Generator())[0]


def gradients(*, pairwise: bool, rank: int | None) -> dict[str, Tensor]:
    """The loss, and its gradient for each parameter, averaged over processes if there are several."""
    module = Loss(task(pairwise=pairwise))
    wrapped = module if rank is None else nn.parallel.DistributedDataParallel(module)
    loss = wrapped(batch(rank))
    loss.backward()
    found = {name: p.grad for name, p in module.trained.named_parameters()}
    assert None not in found.values()
    return {"loss": loss.detach()} | found


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    torch.save([gradients(pairwise=pairwise, rank=rank) for pairwise in (False, True)], folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
