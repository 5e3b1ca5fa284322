import pytest
import torch
from models.configs import BY_NAME, refuses


CASE = BY_NAME["text-proj"]


def test_shapes_with_and_without_guidance():
    model, inputs = CASE.model(), CASE.inputs()
    states, time = model(**inputs)
    assert states.shape == (2, 4 + 7, 20) and time.shape == (2, 36)
    inputs |= {"image_embeddings": torch.randn(2, 32), "do_classifier_free_guidance": False}
    assert model(**inputs)[0].shape == (2, 4 + 7, 20)


def test_guidance_puts_the_learned_embedding_first():
    model, inputs = CASE.model(), CASE.inputs()
    learned = model.learned_classifier_free_guidance_embeddings[None]
    both = {"image_embeddings": torch.cat([learned, inputs["image_embeddings"]]), "do_classifier_free_guidance": False}
    torch.testing.assert_close(model(**inputs), model(**(inputs | both)))


@pytest.mark.parametrize("name", ["image_embeddings", "prompt_embeds", "text_encoder_hidden_states"])
def test_every_input_changes_the_output(name: str):
    model, inputs = CASE.model(), CASE.inputs()
    before, after = model(**inputs), model(**(inputs | {name: torch.zeros_like(inputs[name])}))
    assert any((x[1] - y[1]).abs().max() > 1e-3 for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_embeddings": torch.randn(2, 32)}, "prompt_embeds must be (4, 32), got (2, 32)"),
        ({"image_embeddings": torch.randn(1, 31)}, "image_embeddings must be (1, 32), got (1, 31)"),
        ({"prompt_embeds": torch.randn(2, 33)}, "prompt_embeds must be (2, 32), got (2, 33)"),
        ({"prompt_embeds": torch.randn(3, 32)}, "prompt_embeds must be (2, 32), got (3, 32)"),
        (
            {"text_encoder_hidden_states": torch.randn(2, 7, 20)},
            "text_encoder_hidden_states must be (2, 7, 32), got (2, 7, 20)",
        ),
    ],
)
def test_refuses_inputs_that_do_not_fit(change, message: str):
    with refuses(message):
        CASE.model()(**(CASE.inputs() | change))
