"""One of two processes that train a one-step prior; ``python one_step_in_processes.py RANK FOLDER`` runs it."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unclip_hub.conditioning import Conditioning
from unclip_hub.models.one_step_prior import OneStepPrior
from unclip_hub.training.one_step_prior import OneStepPriorTask
from unclip_hub.training.prior import PriorBatch


PROCESSES, EACH, D, L = 2, 3, 8, 4


def batch(rank: int | None) -> PriorBatch:
    """All captions, of which one occurs in both halves, or those of one process."""
    g = torch.Generator().manual_seed(1)
    count = PROCESSES * EACH
    image, text = torch.randn(2, count, D, generator=g)
    text[4] = text[2]
    states, mask = torch.randn(count, L, D, generator=g), torch.ones(count, L, dtype=torch.bool)
    own = slice(None) if rank is None else slice(rank * EACH, (rank + 1) * EACH)
    return PriorBatch(image[own], Conditioning(text[own], states[own], mask[own]))


class Loss(nn.Module):
    """A task as the one module that DistributedDataParallel wraps; its noise, drawn by each, has no effect."""

    def __init__(self, task: OneStepPriorTask) -> None:
        super().__init__()
        self.trained, self.task = task.modules, task
        with torch.no_grad():
            self.trained["prior"].proj_in.weight.zero_()  # type: ignore[union-attr]

    def forward(self, batch: PriorBatch) -> Tensor:
        return self.task.loss(batch, torch.Generator())[0]


def gradients(rank: int | None) -> dict[str, Tensor]:
    """The loss, and its gradient for each parameter but the noise's, averaged over processes if there are several."""
    torch.manual_seed(0)
    prior = OneStepPrior(num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=D, num_embeddings=L)
    module = Loss(OneStepPriorTask(prior, contrastive=3.0))
    wrapped = module if rank is None else nn.parallel.DistributedDataParallel(module)
    loss = wrapped(batch(rank))
    loss.backward()
    found = {name: p.grad for name, p in prior.named_parameters() if name != "proj_in.weight"}
    assert None not in found.values()
    return {"loss": loss.detach()} | found  # type: ignore[operator]


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    torch.save(gradients(rank), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
