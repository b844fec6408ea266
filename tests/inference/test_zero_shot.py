import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from grouping_zoo import ZooGroupViTConfig
from grouping_zoo.grouping import Grouping
from grouping_zoo.inference.zero_shot import (
    ZeroShotSegmenter,
    class_embeddings,
    classify,
    prompt_templates,
    segmenter_settings,
)

D, S, L, SCALE = 6, 3, 7, 5.0


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class TwoTowers(nn.Module):
    """Stands in for ImageTextModel: what it finds is a simple function of its input."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.words = torch.randn(30, D, generator=generator)
        self.segments = torch.randn(S, D, generator=generator)
        self.windows: list[tuple[int, int]] = []

    def scale(self, multi_label: bool = False) -> Tensor:
        return self.logit_scale.exp() * (2 if multi_label else 1)

    def encode_text(self, ids: Tensor) -> Tensor:
        return 3 * self.words[ids].sum(1)

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.encode_segments(pixels)[0]

    def encode_segments(self, pixels: Tensor) -> tuple[Tensor, Tensor, Grouping]:
        """Three segments whose features shift with the mean colour; tokens of 2 x 2 pixels, assigned by colour."""
        height, width = pixels.shape[-2:]
        self.windows.append((height, width))
        colour = nn.functional.avg_pool2d(pixels, 2, ceil_mode=True)  # (B, 3, h, w)
        grid = (colour.shape[-2], colour.shape[-1])
        assignment = (2 * colour.flatten(2)).softmax(1).transpose(1, 2)[:, None]  # (B, 1, N, 3)
        segments = self.segments + pixels.mean((2, 3))[:, :, None]
        extent = (height / (2 * grid[0]), width / (2 * grid[1]))
        grouping = Grouping(assignments=[assignment], tokens=[segments], grid=grid, extent=extent)
        return 4 * segments.mean(1), 2 * segments, grouping


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([[len(text) % 30, ord(text[0]) % 30, ord(text[-1]) % 30] for text in texts])


def images(batch: int = 2, height: int = 12, width: int = 16) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def class_features(count: int = L) -> Tensor:
    return unit(torch.randn(count, D, generator=torch.Generator().manual_seed(2)))


def segmenter(model: nn.Module | None = None, **settings: Any) -> ZeroShotSegmenter:
    return ZeroShotSegmenter(**{"model": model or TwoTowers(), "text": class_features(), **settings})


def plain_softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def plain_affinity(
    image: Tensor, segments: Tensor, text: Tensor, scale: float, top: int, background: float | None = None
) -> list[list[float]]:
    """One image's (S, L): softmax over all classes times softmax over the classes the image likes best.

    Both softmaxes may have one more entry, the background, of which nothing is kept.
    """
    extra = [] if background is None else [scale * background]
    liking = [float(image @ row) for row in text]
    favourites = sorted(range(len(text)), key=lambda k: -liking[k])[:top]
    rows = []
    for segment in segments:
        logits = [scale * float(segment @ row) for row in text]
        everything = plain_softmax(logits + extra)
        shares = plain_softmax([logits[k] for k in favourites] + extra)
        restricted = dict(zip(favourites, shares, strict=not extra))
        rows.append([everything[k] * restricted.get(k, 0.0) for k in range(len(text))])
    return rows


# --- classes --------------------------------------------------------------------------------------------------------


def test_class_embeddings_equal_plain_loop() -> None:
    model, templates = TwoTowers(), ("a photo of a {}.", "{} in the wild", "many {}")
    found = class_embeddings(model, tokenize, ["cat", "coffee cup; mug ;cup", " dog"], templates)
    for row, names in zip(found, (["cat"], ["coffee cup", "mug", "cup"], ["dog"]), strict=True):
        total = torch.zeros(D)
        for name in names:
            for template in templates:
                total += unit(model.encode_text(tokenize([template.format(name)]))[0])
        assert torch.allclose(row, unit(total), atol=1e-6)
    assert not found.requires_grad
    assert found.dtype == torch.float32


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ("a {}",), "classes: expected at least one class name"),
        (["cat", " "], ("a {}",), "classes: expected no empty name"),
        (["cat", ";"], ("a {}",), "classes: expected no empty name"),
        (["cat"], ("a photo",), r"templates: expected '\{\}' where the class name goes, got 'a photo'"),
        (["cat"], (), "templates"),
    ],
)
def test_wrong_classes_or_templates_are_errors(names: list[str], templates: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_embeddings(TwoTowers(), tokenize, names, templates)


def test_class_names_with_braces_are_taken_literally() -> None:
    found = class_embeddings(TwoTowers(), tokenize, ["a {b} c"], ("{}",))
    assert torch.allclose(found[0], unit(TwoTowers().encode_text(tokenize(["a {b} c"]))[0]))


def test_classify_equals_plain_loop() -> None:
    model, text = TwoTowers(), class_features()
    found = classify(model, images(), text)
    for row, feature in zip(found, model.encode_image(images()), strict=True):
        expected = plain_softmax([SCALE * float(unit(feature) @ t) for t in text])
        assert row.tolist() == pytest.approx(expected, abs=1e-6)


# --- affinity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 3, 5, 7, 20])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("background", [None, 0.3])
def test_affinity_equals_plain_loop(top: int, multi_label: bool, background: float | None) -> None:
    model = TwoTowers()
    segment = segmenter(model, top_classes=top, multi_label_scale=multi_label, background_similarity=background)
    image, segments, _ = model.encode_segments(images())
    image, segments = unit(image), unit(segments)
    with torch.no_grad():
        found = segment.affinity(image, segments)
    scale = SCALE * (2 if multi_label else 1)
    for b in range(2):
        expected = plain_affinity(image[b], segments[b], class_features(), scale, min(top, L), background)
        assert torch.allclose(found[b], torch.tensor(expected), atol=1e-6)
        assert (found[b] > 0).any(0).sum() == min(top, L), "no other class has any affinity"


def test_only_classes_the_image_likes_appear() -> None:
    model = TwoTowers()
    labels = segmenter(model, top_classes=2, background_threshold=0.0)(images(4))
    liking = unit(model.encode_image(images(4))) @ class_features().T
    for row, favourites in zip(labels, liking.topk(2).indices.tolist(), strict=True):
        assert set(row.unique().tolist()) <= {k + 1 for k in favourites}


# --- pixels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(12, 16), (11, 7)])
@pytest.mark.parametrize("masks", ["hard", "soft"])
def test_scores_equal_plain_loop(masks: str, height: int, width: int) -> None:
    model, x = TwoTowers(), images(2, height, width)
    scores = segmenter(model, masks=masks).scores(x)
    image, segments, grouping = model.encode_segments(x)
    groups = grouping.probabilities(-1, (height, width))
    for b in range(2):
        affinity = torch.tensor(plain_affinity(unit(image[b]), unit(segments[b]), class_features(), SCALE, 5))
        for row in range(height):
            for column in range(width):
                share = groups[b, :, row, column]
                expected = affinity[share.argmax()] if masks == "hard" else (share[:, None] * affinity).sum(0)
                assert torch.allclose(scores[b, :, row, column], expected, atol=1e-6)
    assert scores.dtype == torch.float32
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_threshold_zero_turns_the_background_off() -> None:
    labels = segmenter(background_threshold=0.0)(images())
    assert labels.dtype == torch.int64
    assert labels.min() >= 1
    assert labels.max() <= L
    assert torch.equal(labels, segmenter().scores(images()).argmax(1) + 1)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.95, 1.0])
def test_threshold_never_exceeds_the_images_own_largest_affinity(threshold: float) -> None:
    segment = segmenter(background_threshold=threshold)
    scores, labels = segment.scores(images(4)), segment(images(4))
    assert scores.flatten(1).max(1).values.min() < 0.95, "some image must lie below the highest thresholds"
    for b in range(4):
        effective = min(threshold, float(scores[b].max()))
        for row in range(12):
            for column in range(16):
                best = scores[b, :, row, column]
                expected = 0 if float(best.max()) < effective else int(best.argmax()) + 1
                assert labels[b, row, column] == expected
        assert (labels[b] > 0).any(), "an image never is background all over"


def test_threshold_is_each_images_own() -> None:
    segment = segmenter(background_threshold=1.0)
    joint = segment(images(4))
    for b in range(4):
        assert torch.equal(joint[b : b + 1], segment(images(4)[b : b + 1]))


# --- sliding window -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [16, 100])
def test_one_window_is_the_whole_image(window: int) -> None:
    model = TwoTowers()
    assert torch.equal(segmenter(model, window=window).scores(images()), segmenter(model).scores(images()))
    assert model.windows == [(12, 16), (12, 16)]


@pytest.mark.parametrize(("window", "stride"), [(8, None), (8, 8), (8, 3), (5, 1), (14, 7), (12, 12), (1, 1)])
@pytest.mark.parametrize(("height", "width"), [(12, 16), (13, 9), (8, 21)])
def test_windows_are_averaged_and_cover_every_pixel(window: int, stride: int | None, height: int, width: int) -> None:
    model, x = TwoTowers(), images(1, height, width)
    found = segmenter(model, window=window, stride=stride).scores(x)
    whole, step = segmenter(model), stride or max(window // 2, 1)
    total, count = torch.zeros(1, L, height, width), torch.zeros(height, width)
    for top in plain_starts(height, window, step):
        for left in plain_starts(width, window, step):
            area = (slice(top, top + window), slice(left, left + window))
            total[:, :, *area] += whole.scores(x[:, :, *area])
            count[area] += 1
    assert (count > 0).all()
    assert torch.allclose(found, total / count, atol=1e-6)


def plain_starts(length: int, window: int, step: int) -> list[int]:
    """Every step while the window fits; a last one at the border."""
    starts = [0]
    while starts[-1] + window < length:
        starts.append(min(starts[-1] + step, length - window))
    return starts


def test_windows_never_reach_beyond_the_image() -> None:
    model = TwoTowers()
    segmenter(model, window=8, stride=5).scores(images(1, 13, 21))
    assert set(model.windows) == {(8, 8)}


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(background_threshold=-0.1), "background_threshold: expected 0 to 1, got -0.1"),
        (dict(background_threshold=1.1), "background_threshold"),
        (dict(background_threshold=math.nan), "background_threshold"),
        (dict(background_similarity=1.5), "background_similarity: expected None or -1 to 1"),
        (dict(top_classes=0), "top_classes: expected at least 1"),
        (dict(masks="mixed"), "masks: expected 'hard' or 'soft'"),
        (dict(window=0), "window: expected at least 1 pixel"),
        (dict(window=8, stride=0), "stride: expected 1 to the window's 8"),
        (dict(window=8, stride=9), "stride: expected 1 to the window's 8, got 9"),
        (dict(stride=4), "stride|window"),
    ],
)
def test_wrong_settings_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(**settings)


def test_settings_are_the_checkpoints_own_unless_overridden() -> None:
    config = ZooGroupViTConfig(background_threshold=0.3)
    config.top_classes = 2
    settings = segmenter_settings(config)
    assert (settings["background_threshold"], settings["top_classes"], settings["masks"]) == (0.3, 2, "hard")
    settings = segmenter_settings(config, background_threshold=0, masks="soft", window=None)
    assert (settings["background_threshold"], settings["masks"], settings["window"]) == (0, "soft", None)
    names = {entry.name for entry in dataclasses.fields(ZeroShotSegmenter)}
    assert set(settings) == names - {"model", "text"}
    assert prompt_templates(config) == ["a photo of a {}."]
    config.prompt_templates = ["{} here"]
    assert prompt_templates(config) == ["{} here"]
