"""The check before a run lets a network pass that learns from its condition, and stops the others."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unclip_hub.conditioning import Conditioning
from unclip_hub.training.proof import mismatched, prove


@dataclass
class Batch:
    picture: Tensor
    condition: Tensor


class Guess:
    """A picture from its condition; or, if ``blind``, from noise alone."""

    def __init__(self, *, blind=False, frozen=False):
        torch.manual_seed(0)
        self.modules = nn.ModuleDict({"net": nn.Sequential(nn.Linear(3, 48), nn.SiLU(), nn.Linear(48, 5))})
        self.modules.requires_grad_(not frozen)
        self.blind = blind

    def loss(self, batch, generator):
        seen = torch.randn(batch.condition.shape, generator=generator) if self.blind else batch.condition
        loss = (self.modules["net"](seen) - batch.picture).square().mean()
        return loss + 0 * sum(p.sum() for p in self.modules.parameters()), {}


def batch():
    generator = torch.Generator().manual_seed(1)
    return Batch(torch.randn(7, 5, generator=generator), torch.randn(7, 3, generator=generator))


def test_a_network_that_learns_passes_and_keeps_its_weights():
    task = Guess()
    before = {name: value.clone() for name, value in task.modules.state_dict().items()}
    proof = prove(task, batch(), lr=1e-2)
    assert proof.after < 0.3 * proof.before and proof.mismatched > 2 * proof.matched
    assert "200 steps" in str(proof)
    assert_close(task.modules.state_dict(), before, rtol=0, atol=0)


def test_a_learning_rate_that_learns_nothing_is_named():
    with pytest.raises(ValueError, match=r"leaves at most 0.7 of the loss: try another learning rate than 1e-09"):
        prove(Guess(), batch(), lr=1e-9, steps=20)


def test_a_loss_that_does_not_see_its_condition_is_refused():
    with pytest.raises(ValueError, match="does not depend on the condition"):
        prove(Guess(blind=True), batch(), lr=1e-2)


def test_one_caption_for_all_pictures_is_refused():
    same = batch()
    same.condition = same.condition[:1].expand(7, 3)
    with pytest.raises(ValueError, match="does not depend on the condition"):
        prove(Guess(), same, lr=1e-2, at_most=1.0)


def test_weights_are_put_back_when_it_fails():
    task = Guess(blind=True)
    before = {name: value.clone() for name, value in task.modules.state_dict().items()}
    with pytest.raises(ValueError):
        prove(task, batch(), lr=1e-2)
    assert_close(task.modules.state_dict(), before, rtol=0, atol=0)


def test_mismatched_keeps_pictures_and_moves_all_else():
    @dataclass
    class Several:
        picture: Tensor
        caption: Conditioning
        twice: Tensor  # two rows for each picture
        nothing: Tensor | None

    rows = torch.arange(4.0)
    caption = Conditioning(rows[:, None], rows[:, None, None], torch.ones(4, 1, dtype=torch.bool), rows[:, None])
    other = mismatched(Several(rows, caption, torch.arange(8), None))
    assert_close(other.picture, rows)
    assert_close(other.caption.text_embed[:, 0], torch.tensor([3.0, 0.0, 1.0, 2.0]))
    assert_close(other.twice, torch.tensor([6, 7, 0, 1, 2, 3, 4, 5]))
    assert other.nothing is None
