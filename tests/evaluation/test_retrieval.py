import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from grouping_zoo.evaluation.retrieval import SegmentRetrieval, Segments

VOID = 255


def random_segments(images: Tensor) -> Segments:
    """Segments that depend on the images' numbers alone; the last of seven has no pixel."""
    labels, features = [], []
    for image in images:
        generator = torch.Generator().manual_seed(int(image.flatten()[0]))
        labels.append(torch.randint(6, image.shape[-2:], generator=generator))
        features.append(torch.randn(7, 5, generator=generator))
    return Segments(torch.stack(labels), torch.stack(features))


def labelled_images(numbers: list[int], classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + numbers[0])
    truth = torch.randint(classes, (len(numbers), 8, 6), generator=generator)
    truth[:, 0] = VOID
    return torch.tensor(numbers)[:, None, None, None].expand(-1, 1, 8, 6).float(), truth


@pytest.mark.parametrize("soft", [False, True])
def test_retrieval_is_that_of_a_plain_loop(soft: bool) -> None:
    train, test = labelled_images([0, 1, 2, 3, 4, 5], 3), labelled_images([6, 7], 3)
    bank, classes = [], []
    for image, truth in zip(*train, strict=True):
        segments = random_segments(image[None])
        for number in range(6):
            pixels = truth[(segments.labels[0] == number) & (truth != VOID)].tolist()
            shares = [pixels.count(label) / len(pixels) for label in range(3)]
            bank.append(segments.features[0, number].numpy())
            classes.append(shares if soft else np.eye(3)[int(np.argmax(shares))])
    neighbours = NearestNeighbors(n_neighbors=5, metric="cosine").fit(np.stack(bank))
    found = random_segments(test[0])
    expected = torch.empty(2, 8, 6, dtype=torch.int64)
    for image in range(2):
        for number in range(7):
            nearest = neighbours.kneighbors(found.features[image, number : number + 1].numpy())[1][0]
            winner = int(np.argmax(np.mean([classes[i] for i in nearest], axis=0)))
            expected[image][found.labels[image] == number] = winner
    retrieval = SegmentRetrieval(3, neighbours=5, soft=soft, ignore_index=VOID)
    for rows in (slice(0, 4), slice(4, 6)):
        retrieval.update(random_segments(train[0][rows]), train[1][rows])
    assert torch.equal(retrieval.classify(found), expected)


def test_segments_that_are_the_classes_are_labelled_without_a_mistake() -> None:
    truth = torch.tensor([[0, 0, 1], [2, 2, 1]]).repeat(4, 1, 1)
    segments = Segments(truth, torch.eye(3).repeat(4, 1, 1))
    retrieval = SegmentRetrieval(3)
    retrieval.update(segments, truth)
    assert not torch.equal(retrieval.classify(segments), truth), "20 of 12 vote: a draw for all"
    assert torch.equal(retrieval.classify(segments, 4), truth)


def test_bank_leaves_out_segments_without_label_and_beyond_the_limit() -> None:
    images, truth = labelled_images(list(range(8)), 3)
    everything = SegmentRetrieval(3, ignore_index=VOID)
    everything.update(random_segments(images), truth)
    features, classes = everything.bank()
    assert len(features) == 8 * 6
    assert int(classes.sum(dim=0).min()) > 5
    limited = SegmentRetrieval(3, ignore_index=VOID, max_per_class=5)
    for some, labels in zip(images.split(3), truth.split(3), strict=True):
        limited.update(random_segments(some), labels)
    kept, kept_classes = limited.bank()
    assert kept_classes.sum(dim=0).tolist() == [5, 5, 5]
    for label in range(3):
        assert torch.equal(kept[kept_classes[:, label] == 1], features[classes[:, label] == 1][:5])


def test_retrieval_mistakes_are_errors() -> None:
    images, truth = labelled_images([0], 3)
    segments, retrieval = random_segments(images), SegmentRetrieval(3, ignore_index=VOID)
    retrieval.update(segments, torch.full_like(truth, VOID))
    with pytest.raises(ValueError, match="at least one labelled segment"):
        retrieval.classify(segments)
    with pytest.raises(ValueError, match="is ignore_index set"):
        SegmentRetrieval(3).update(segments, truth)
    with pytest.raises(ValueError, match="labels of the truth's shape"):
        SegmentRetrieval(3).update(segments, truth[:, :4])
    for setting in ({"neighbours": 0}, {"max_per_class": 0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            SegmentRetrieval(3, **setting)
