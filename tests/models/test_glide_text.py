import pytest
import torch
from models.configs import BY_NAME, refuses, text_mask


CASE = BY_NAME["glide-text"]


def test_padding_is_a_place_of_its_own_whatever_stands_on_it():
    model, inputs = CASE.model(), CASE.inputs()
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    before = model(**inputs)
    torch.testing.assert_close(model(torch.where(mask, ids, (ids + 1) % 19), mask), before, rtol=0, atol=0)
    for part, other in zip(before, model(torch.where(mask, (ids + 1) % 19, ids), mask), strict=True):
        assert (part - other).abs().flatten(1).amax(dim=1).min() > 1e-3
    with torch.no_grad():
        model.padding_embedding[5] += torch.randn(24)
    for part, other in zip(before, model(**inputs), strict=True):  # the first caption is padded, the second is not
        assert (part[0] - other[0]).abs().max() > 1e-3
        torch.testing.assert_close(part[1], other[1], rtol=1e-5, atol=1e-5)


def test_every_place_sees_every_other():
    model, inputs = CASE.model(), CASE.inputs()
    for place in range(7):
        ids = inputs["input_ids"].clone()
        ids[:, place] = (ids[:, place] + 1) % 19
        states, before = model(ids, torch.ones_like(ids))[0], model(inputs["input_ids"], torch.ones_like(ids))[0]
        assert (states - before).abs().amax(dim=2).min() > 1e-6


def test_the_time_embedding_is_read_at_the_last_place():
    model, inputs = CASE.model(), CASE.inputs()
    states, time = model(**inputs)
    assert states.shape == (2, 7, 24) and time.shape == (2, 20)
    torch.testing.assert_close(time, model.time_proj(states[:, -1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "ids, mask, message",
    [
        (torch.ones(2, 6, dtype=torch.long), text_mask(6), "input_ids must be (b, 7), got (2, 6)"),
        (torch.ones(2, 7, dtype=torch.long), text_mask(6), "the text mask must be (2, 7)"),
    ],
)
def test_refuses_inputs_that_do_not_fit(ids, mask, message: str):
    with refuses(message):
        CASE.model()(ids, mask)
