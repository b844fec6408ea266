import importlib.util

import open_clip
import pytest
import torch

from grouping_zoo.data.tokenization import CLIP_VOCABULARY_SIZE, clip_tokenizer, make_tokenize, train_tokenizer

CAPTIONS = ["a photo of a cat", "a photo of a coffee cup", "the handwritten digit seven, in white", "a rocket"] * 5
STRANGE = [
    "A Photo of a CAT!",
    "naïve café – 東京 🚀",
    "it's   3.14% of\ta&b <tag>",
    "don't we've they'll",
    "x" * 300,
    "",
]


def test_clip_tokenizer_equals_open_clips() -> None:
    ours, theirs = make_tokenize(clip_tokenizer()), open_clip.get_tokenizer("ViT-B-32")
    texts = [*CAPTIONS[:4], *STRANGE]
    for row, text in enumerate(texts):
        end = int((theirs(text)[0] == 49407).nonzero()[0]) + 1
        assert ours(texts)[row, :end].tolist() == theirs(text)[0, :end].tolist(), text


def test_clip_tokenizer_has_the_published_ids() -> None:
    tokenizer = clip_tokenizer()
    assert len(tokenizer) == CLIP_VOCABULARY_SIZE
    assert tokenizer.bos_token_id == 49406
    assert tokenizer.eos_token_id == 49407
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_clip_tokenizer_without_open_clip_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        clip_tokenizer()


def test_trained_tokenizer_puts_texts_between_start_and_end() -> None:
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, context_length=12)
    ids = tokenizer("a photo of a cat").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.eos_token_id) == 1
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert len(tokenizer) <= 300
    assert len(ids) < len("a photo of a cat"), "frequent words are merged"


def test_trained_tokenizer_loses_nothing_but_case() -> None:
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, context_length=400)
    for text in STRANGE:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text.lower().strip()
    assert tokenizer("A CAT").input_ids == tokenizer("a cat").input_ids


def test_training_is_deterministic() -> None:
    vocabularies = [train_tokenizer(CAPTIONS, vocab_size=320).get_vocab() for _ in range(2)]
    assert vocabularies[0] == vocabularies[1]


def test_too_small_a_vocabulary_is_an_error() -> None:
    assert len(train_tokenizer(CAPTIONS, vocab_size=259)) == 259
    with pytest.raises(ValueError, match="vocab_size: expected at least 259"):
        train_tokenizer(CAPTIONS, vocab_size=258)


def test_trained_tokenizer_survives_saving(tmp_path) -> None:
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, context_length=12)
    tokenizer.save_pretrained(tmp_path)
    again = type(tokenizer).from_pretrained(tmp_path)
    assert again.model_max_length == 12
    texts = [*CAPTIONS[:4], *STRANGE]
    assert torch.equal(make_tokenize(tokenizer)(texts), make_tokenize(again)(texts))


@pytest.mark.parametrize("kind", ["trained", "clip"])
def test_tokenize_pads_and_cuts_to_the_context_and_keeps_the_end(kind: str) -> None:
    tokenizer = clip_tokenizer(10) if kind == "clip" else train_tokenizer(CAPTIONS, vocab_size=300, context_length=10)
    ids = make_tokenize(tokenizer)(["a cat", "a photo " * 50, ""])
    assert ids.shape == (3, 10)
    assert ids.dtype == torch.int64
    for row in ids:
        assert row[0] == tokenizer.bos_token_id
        assert (row == tokenizer.eos_token_id).any()
    assert ids[1, -1] == tokenizer.eos_token_id, "a cut text still ends"
    end = int((ids[0] == tokenizer.eos_token_id).nonzero()[0])
    assert (ids[0, end + 1 :] == tokenizer.pad_token_id).all()
    assert make_tokenize(tokenizer)(["a cat"]).tolist() == ids[:1].tolist()
    assert max(ids.flatten().tolist()) < len(tokenizer)
