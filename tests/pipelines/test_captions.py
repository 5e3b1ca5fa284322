"""Token ids as OpenAI's CLIP makes them: entities, typographic quotes, and a padding token that captions contain."""

import pytest
import torch
from transformers import CLIPTokenizer

from unclip_hub.pipelines.captions import clean, tokenize
from unclip_hub.training.tokenizer import train_tokenizer


LENGTH = 9


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer(["hello!! a cat & a dog's hat"] * 4, context_length=LENGTH)


@pytest.fixture(scope="module")
def karlos(trained, tmp_path_factory):
    """Karlo's kind: padded with "!", which diffusers' conversion script made a special token; as loaded from disk."""
    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(folder)
    CLIPTokenizer.from_pretrained(folder, pad_token="!").save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def ids(tokenizer, caption):
    tokens, mask, _ = tokenize(tokenizer, [caption], length=LENGTH)
    return tokens[0][mask[0]].tolist()


def test_the_padding_token_is_padding_only_where_it_pads(trained, karlos):
    padding = trained.convert_tokens_to_ids("!")
    assert karlos.pad_token_id == padding
    assert karlos("hello!!").input_ids != trained("hello!!").input_ids  # why this is needed
    for caption in ("hello!!", "a cat!", "! ! !", "!!!!"):
        assert ids(karlos, caption) == trained(caption).input_ids
    tokens, mask, _ = tokenize(karlos, ["a cat", "hello!! a dog"], length=LENGTH)
    assert mask.sum(1).tolist() == [len(trained(text).input_ids) for text in ("a cat", "hello!! a dog")]
    assert (tokens[~mask] == padding).all()


def test_what_the_tokenizer_pads_with_itself_is_left_alone(trained):
    expected = trained(["a cat", ""], padding="max_length", max_length=LENGTH, return_tensors="pt")
    tokens, mask, lost = tokenize(trained, ["a cat", ""], length=LENGTH)
    assert torch.equal(tokens, expected.input_ids) and torch.equal(mask.long(), expected.attention_mask)
    assert lost == []


@pytest.mark.parametrize("which", ["trained", "karlos"])
def test_long_captions_keep_their_end_token_and_the_loss_is_told(which, request):
    tokenizer = request.getfixturevalue(which)
    tokens, mask, lost = tokenize(tokenizer, ["hello a cat a dog a cat a dog a hat", "a cat"], length=LENGTH)
    assert mask[0].all() and tokens[0, -1] == tokenizer.eos_token_id and tokens[0, 0] == tokenizer.bos_token_id
    assert len(lost) == 1 and lost[0].endswith("hat")


# pairs of a caption and one which OpenAI's cleaning (ftfy 6.3, html.unescape twice) leaves as it is and maps it to
SAME = [
    ("&amp; html &lt;b&gt;", "& html <b>"),
    ("&amp;amp;", "&"),
    ("it’s the ‘artist’s’ “best”", "it's the 'artist's' \"best\""),
    ("\ufb01ne \ufb02owers", "fine flowers"),
    ("\uff21\uff22\uff01", "AB!"),
    ("  spaces\n\t ", "spaces"),
    ("café — naïve façade 🦊 日本語", "café — naïve façade 🦊 日本語"),
]


@pytest.mark.parametrize(("caption", "cleaned"), SAME)
def test_cleaning(caption, cleaned):
    assert clean(caption) == cleaned


def test_the_cleaned_caption_is_what_is_tokenised(trained, karlos):
    for tokenizer in (trained, karlos):
        assert ids(tokenizer, "a cat &amp; a dog’s") == ids(tokenizer, "a cat & a dog's")
