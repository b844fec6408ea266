import numpy as np
import pytest

from grouping_zoo.data.captions import (
    PROMPT_TEMPLATES,
    NltkNounExtractor,
    VocabularyNounExtractor,
    frequent_nouns,
    prompt,
    sample_labels,
)
from grouping_zoo.data.sets.scenes import CLASSES, Scenes


@pytest.mark.parametrize(
    ("caption", "nouns"),
    [
        ("A dog and a cat", ("dog", "cat")),
        ("cats chase DOGS; the dog runs", ("cat", "dog")),
        ("hot dogs on a table", ("hot dog",)),
        ("a hot day for dogs", ("dog",)),
        ("concatenate dogma", ()),
        ("leaves, knives, boxes, ponies and toys", ("leaf", "knife", "box", "pony", "toy")),
        ("people and children", ("person", "child")),
        ("an ice-cream truck", ("ice cream",)),
        ("the dog's T-shirt", ("dog", "T-shirt")),
        ("glass, glasses", ("glass", "glasses")),
        ("", ()),
    ],
)
def test_vocabulary_nouns(caption, nouns):
    plain = ["dog", "cat", "leaf", "knife", "box", "pony", "toy", "person", "child", "glass", "glasses"]
    assert VocabularyNounExtractor([*plain, "T-shirt", "hot dog", "ice cream"])(caption) == nouns


def test_vocabulary_finds_the_nouns_of_the_scenes():
    extractor = VocabularyNounExtractor(CLASSES)
    for scene in Scenes(length=100, image_size=16):
        assert sorted(extractor(scene.caption)) == sorted(scene.nouns)


def test_wrong_vocabulary():
    with pytest.raises(ValueError, match="at least one noun"):
        VocabularyNounExtractor([])
    with pytest.raises(ValueError, match="'!'"):
        VocabularyNounExtractor(["dog", "!"])


TAGS = {"The": "DT", "big": "JJ", "red": "JJ", "is": "VBZ", "on": "IN", "and": "CC", "old": "JJ", ".": "."}
TAGS |= {"Paris": "NNP", "boats": "NNS", "dog": "NN", "house": "NN", "%": "NN"}


@pytest.fixture
def tagger(monkeypatch):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk, "pos_tag", lambda words: [(word, TAGS.get(word, "XX")) for word in words])


@pytest.mark.usefixtures("tagger")
@pytest.mark.parametrize(
    ("caption", "nouns", "phrases"),
    [
        ("The big red dog is on boats.", ("dog", "boats"), ("big red dog", "boats")),
        ("old Paris and dog house", ("paris", "dog", "house"), ("old paris", "dog house")),
        ("The dog and dog", ("dog",), ("dog",)),
        ("red is big dog old house", ("dog", "house"), ("big dog", "old house")),
        ("100 %", (), ()),
    ],
)
def test_tagged_nouns_and_phrases(caption, nouns, phrases):
    assert NltkNounExtractor()(caption) == nouns
    assert NltkNounExtractor(phrases=True)(caption) == phrases


def test_missing_tagger_data_tells_the_command(monkeypatch):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(ValueError, match=r"python -m nltk.downloader averaged_perceptron_tagger_eng"):
        NltkNounExtractor()


def test_frequent_nouns():
    extractor = VocabularyNounExtractor(["dog", "cat", "bird"])
    captions = ["a dog and a dog", "dogs and cats", "a cat", "a bird", "dog"]
    assert frequent_nouns(captions, extractor, 2) == ("dog", "cat")
    assert frequent_nouns(captions, extractor, 1) == ("dog", "cat", "bird")
    with pytest.raises(ValueError, match=r"minimum_count.*4 times.*3 nouns.*3 times"):
        frequent_nouns(captions, extractor, 4)


def test_sample_labels_fills_and_chooses():
    rng = np.random.default_rng(0)
    labels, valid = sample_labels(("dog",), "a dog", 3, "pad", rng)
    assert (labels, valid) == (["dog", "", ""], [True, False, False])
    labels, valid = sample_labels(("dog",), "a dog", 3, "caption", rng)
    assert (labels, valid) == (["dog", "a dog", "a dog"], [True, True, True])
    drawn = [sample_labels("abcde", "", 2, "pad", rng) for _ in range(300)]
    assert all(len(set(labels)) == 2 and all(valid) for labels, valid in drawn)
    counts = np.unique([label for labels, _ in drawn for label in labels], return_counts=True)[1]
    assert len(counts) == 5
    assert counts.min() > 80  # each of the five nouns 120 times, were it even
    with pytest.raises(ValueError, match=r"fill.*'zeros'"):
        sample_labels((), "", 2, "zeros", rng)


def test_prompts_are_the_seven_templates():
    rng = np.random.default_rng(0)
    prompts = {prompt("dog", rng) for _ in range(200)}
    assert prompts == {template.format("dog") for template in PROMPT_TEMPLATES}
    assert len(prompts) == 7
