"""The words a small model was trained on, kept with its tokenizer."""

import pytest
from transformers import CLIPTokenizer

from unclip_hub import BUNDLED_MODEL
from unclip_hub.data import vocabulary
from unclip_hub.data.captions import words
from unclip_hub.data.scene_spec import CPU
from unclip_hub.data.vocabulary import unknown_words, words_of
from unclip_hub.training.tokenizer import train_tokenizer


CAPTIONS = ["a large red heart, at sunset", "2 hearts 🐨"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(CAPTIONS, context_length=9).save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def test_words_have_no_case_and_no_punctuation():
    assert words_of("(Two HEARTS,  a cat's: 🐨!") == ["two", "hearts", "a", "cat", "s", "🐨"]
    assert words_of("... ,") == []


def test_known_words_outlive_saving_and_others_are_named_with_their_neighbours(tokenizer):
    found = unknown_words(tokenizer, ["A LARGE Red hart, at sunset; 2 hearts 🐨", "zebra hart"])
    assert list(found) == ["hart", "zebra"]
    assert found["hart"][0] == "heart" and found["zebra"] == []


def test_a_large_vocabulary_knows_every_word(monkeypatch):
    monkeypatch.setattr(vocabulary, "LARGEST", 3)
    assert unknown_words(train_tokenizer(CAPTIONS, context_length=9), ["zebra"]) == {}


def test_the_bundled_model_knows_what_its_scenes_are_described_with():
    tokenizer = CLIPTokenizer.from_pretrained(f"{BUNDLED_MODEL}/tokenizer")
    assert unknown_words(tokenizer, words(CPU)) == {}
    assert list(unknown_words(tokenizer, ["a crescent at sunset"])) == ["crescent"]
