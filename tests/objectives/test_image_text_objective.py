"""The image-text objective and its regularizers against plain loops, on one process and two."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping
from grouping_zoo.models.groupvit import GroupViT
from grouping_zoo.models.image_text import ImageTextModel
from grouping_zoo.objectives.gather import gather
from grouping_zoo.objectives.image_text import ImageTextConfig, ImageTextObjective
from grouping_zoo.objectives.regularizers import (
    affinity_distillation,
    group_entropy,
    label_entropy,
    segment_entropy,
)
from zoo import with_random_weights

B, K, T = 4, 3, 6
EOS = 19


TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "groupvit": (
        "groupvit_small_patch16_224",
        dict(patch_size=4, depths=(1, 1), num_group_tokens=(6, 4), num_output_groups=(5, 3), assignment="hard"),
    ),
    "cast": ("cast_small", dict(depths=(1, 1), num_clusters=(5, 3), stem_strides=(2, 2), superpixel_size=4)),
    "pgt": ("pgt_tiny", dict(patch_size=4, depths=(1, 1), group_dims=(4, 6), num_groups=3)),
}


def network(batch_norm: bool = True, tower: str = "groupvit") -> ImageTextModel:
    torch.manual_seed(0)
    architecture, model_args = TOWERS[tower]
    model = ImageTextModel(
        architecture,
        dict(img_size=16, embed_dim=16, num_heads=2) | model_args,
        dict(vocab_size=20, context_length=T, width=16, depth=1, num_heads=2, eos_token_id=EOS),
        projection_dim=8,
        projection_hidden_dim=16,
        projection_batch_norm=batch_norm,
    )
    with_random_weights(model)
    with torch.no_grad():
        model.multi_label_logit_scale.fill_(1.5)
    return model


def batch(size: int = B, keys: list[list[int]] | None = None) -> dict[str, Tensor]:
    """Images, captions and nouns; equal keys have equal ids, -1 is padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 18, (size, T), generator=generator)
    ids[:, -1] = EOS
    keys = keys or [[1, 2, -1], [2, 3, 4], [5, -1, -1], [1, 6, 7]][:size]
    noun_keys = torch.tensor(keys)
    noun_ids = torch.zeros(size, noun_keys.shape[1], T, dtype=torch.int64)
    noun_ids[..., 0] = noun_keys + 3
    noun_ids[..., 1] = 2 * noun_keys % 7 + 3
    noun_ids[..., 2] = EOS
    return {
        "pixel_values": torch.randn(size, 3, 16, 16, generator=generator),
        "input_ids": ids,
        "noun_ids": noun_ids,
        "noun_mask": noun_keys != -1,
        "noun_keys": noun_keys,
    }


def objective_of(model: ImageTextModel, teacher: nn.Module | None = None, **settings: Any) -> ImageTextObjective:
    config = ImageTextConfig(teacher=None if teacher is None else "its name", **settings)
    return ImageTextObjective(model, config, teacher)


class Features:
    """What the loss compares, normalised, image by image."""

    def __init__(self, model: ImageTextModel, data: dict[str, Tensor]) -> None:
        def unit(x: Tensor) -> Tensor:
            return x / x.norm(dim=-1, keepdim=True)

        grouped = model.vision.forward_grouped(data["pixel_values"])
        segments = model.vision.segment_grouping(grouped).tokens[-1]
        self.image = unit(model.image_projector(segments.mean(1)))
        self.segments = unit(model.image_projector(segments))
        if isinstance(model.vision, GroupViT):
            self.tokens = unit(model.image_projector(model.vision.tokens_as_segments(grouped.stages)))
        self.caption = unit(model.encode_text(data["input_ids"]))
        self.noun = unit(model.encode_text(data["noun_ids"].flatten(0, 1))).unflatten(0, data["noun_keys"].shape)


def log_softmax_entry(logits: list[float], index: int) -> float:
    largest = max(logits)
    return logits[index] - largest - math.log(sum(math.exp(x - largest) for x in logits))


def plain_caption_loss(features: Features, scale: float) -> float:
    size, total = len(features.image), 0.0
    for i in range(size):
        texts = [scale * float(features.image[i] @ features.caption[j]) for j in range(size)]
        images = [scale * float(features.image[j] @ features.caption[i]) for j in range(size)]
        total -= (log_softmax_entry(texts, i) + log_softmax_entry(images, i)) / (2 * size)
    return total


def plain_similarity(features: Features, image: int, noun: Tensor, kind: str, scale: float) -> float:
    if kind == "multi_label":
        return scale * float(features.image[image] @ noun)
    return math.log(sum(math.exp(scale * float(token @ noun)) for token in features.tokens[image]))


def plain_multi_label_loss(
    features: Features,
    keys: list[list[int]],
    scale: float,
    positives: str,
    kind: str,
    bank: list[tuple[int, Tensor]] | None = None,
) -> float:
    """Over all images with a noun, and all nouns: cross-entropy to the uniform distribution over the positives."""
    nouns = [(i, key, features.noun[i, k]) for i, row in enumerate(keys) for k, key in enumerate(row) if key != -1]

    def is_positive(image: int, owner: int, key: int) -> bool:
        return owner == image or (positives == "equal" and key in keys[image])

    to_text, to_image = [], []
    for i in range(len(keys)):
        logits = [plain_similarity(features, i, noun, kind, scale) for _, _, noun in nouns]
        wanted = [n for n, (owner, key, _) in enumerate(nouns) if is_positive(i, owner, key)]
        negatives = [noun for key, noun in bank or [] if key not in keys[i]]
        logits += [plain_similarity(features, i, noun, kind, scale) for noun in negatives]
        if wanted:
            to_text.append(-sum(log_softmax_entry(logits, n) for n in wanted) / len(wanted))
    for owner, key, noun in nouns:
        logits = [plain_similarity(features, i, noun, kind, scale) for i in range(len(keys))]
        wanted = [i for i in range(len(keys)) if is_positive(i, owner, key)]
        to_image.append(-sum(log_softmax_entry(logits, i) for i in wanted) / len(wanted))
    return (sum(to_text) / len(to_text) + sum(to_image) / len(to_image)) / 2


def plain_segment_loss(features: Features, keys: list[list[int]], scale: float) -> float:
    """Every segment chooses a noun or none; means of -log P(shown) over own nouns and of -log P(not) over others."""
    named: dict[int, list[Tensor]] = {}
    for i, row in enumerate(keys):
        for k, key in enumerate(row):
            if key != -1:
                named.setdefault(key, []).append(features.noun[i, k])
    texts = {key: sum(nouns) / sum(nouns).norm() for key, nouns in named.items()}
    own, other = [], []
    for i, segments in enumerate(features.segments):
        absent = dict.fromkeys(texts, 1.0)
        for segment in segments:
            choice = plain_softmax([*(scale * float(segment @ text) for text in texts.values()), 0.0])
            for key, probability in zip(texts, choice, strict=False):  # the last choice is none
                absent[key] *= 1 - probability
        for key, probability in absent.items():
            (own if key in keys[i] else other).append(-math.log(1 - probability if key in keys[i] else probability))
    return sum(own) / len(own) + sum(other) / len(other)


# --- the losses as plain loops --------------------------------------------------------------------------------------


@pytest.mark.parametrize("positives", ["own", "equal"])
def test_losses_equal_plain_loops(positives: str) -> None:
    model, data = network().eval(), batch()
    weights = dict(caption_weight=0.7, multi_label_weight=0.3, token_weight=0.2, segment_weight=0.4)
    objective = objective_of(model, positives=positives, **weights).eval()
    with torch.no_grad():
        found, features = objective(data), Features(model, data)
    caption = plain_caption_loss(features, math.exp(float(model.logit_scale)))
    keys = data["noun_keys"].tolist()
    pooled, tokens = (
        plain_multi_label_loss(features, keys, math.exp(1.5), positives, kind) for kind in ("multi_label", "token")
    )
    segment = plain_segment_loss(features, keys, math.exp(1.5))
    assert float(found["caption_loss"]) == pytest.approx(caption, rel=1e-5)
    assert float(found["multi_label_loss"]) == pytest.approx(pooled, rel=1e-5)
    assert float(found["token_loss"]) == pytest.approx(tokens, rel=1e-5)
    assert float(found["segment_loss"]) == pytest.approx(segment, rel=1e-5)
    assert float(found["loss"]) == pytest.approx(0.7 * caption + 0.3 * pooled + 0.2 * tokens + 0.4 * segment, rel=1e-5)


@pytest.mark.parametrize("tower", ["cast", "pgt"])
def test_losses_of_other_towers_equal_plain_loops(tower: str) -> None:
    model, data = network(tower=tower).eval(), batch()
    objective = objective_of(model, positives="equal", segment_weight=0.5, group_entropy=0.1, segment_entropy=0.1)
    with torch.no_grad():
        found, features = objective.eval()(data), Features(model, data)
    keys, scale = data["noun_keys"].tolist(), math.exp(1.5)
    caption = plain_caption_loss(features, math.exp(float(model.logit_scale)))
    pooled = plain_multi_label_loss(features, keys, scale, "equal", "multi_label")
    segment = plain_segment_loss(features, keys, scale)
    assert float(found["caption_loss"]) == pytest.approx(caption, rel=1e-5)
    assert float(found["multi_label_loss"]) == pytest.approx(pooled, rel=1e-5)
    assert float(found["segment_loss"]) == pytest.approx(segment, rel=1e-5)
    penalties = 0.1 * float(found["group_entropy"] + found["segment_entropy"])
    assert float(found["loss"]) == pytest.approx(caption + pooled + 0.5 * segment + penalties, rel=1e-5)


def test_a_tower_gets_its_extra_inputs_from_the_batch() -> None:
    objective, data = objective_of(network(tower="cast").eval()).eval(), batch()
    made = objective.model.vision.make_superpixels(data["pixel_values"])
    whole = torch.zeros_like(made)
    with torch.no_grad():
        own, same, other = (
            objective(data | extra)["loss"] for extra in ({}, {"superpixels": made}, {"superpixels": whole})
        )
    assert torch.equal(own, same)
    assert not torch.isclose(own, other)


def test_a_token_loss_needs_a_groupvit() -> None:
    with pytest.raises(ValueError, match=r"objective.token_weight: expected 0 with PGT as vision tower, got 1.0"):
        objective_of(network(tower="pgt"), token_weight=1.0)


@pytest.mark.parametrize(("keep", "kept"), [(1.0, 5), (0.5, 2), (0.01, 1)])
def test_token_loss_sees_a_fraction_of_the_tokens_in_training_only(keep: float, kept: int) -> None:
    model, data = network(), batch()
    objective = objective_of(model, token_weight=1.0, token_keep=keep)
    seen: list[int] = []
    model.image_projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    for training in (True, False):
        objective.train(training)(data)
    # One row is the pooled image; the second stage groups the five segments of the first.
    assert seen == [1 + kept, 1 + 5]


def test_content_of_padded_nouns_does_not_matter() -> None:
    settings = dict(positives="equal", token_weight=1.0, segment_weight=1.0)
    objective, data = objective_of(network().eval(), **settings).eval(), batch()
    other = {key: value.clone() for key, value in data.items()}
    other["noun_ids"][~data["noun_mask"]] = 5
    other["noun_ids"][~data["noun_mask"], -1] = EOS
    other["noun_keys"][~data["noun_mask"]] = 2  # the mask rules, whatever the key
    with torch.no_grad():
        assert objective(other)["loss"] == pytest.approx(float(objective(data)["loss"]), rel=1e-6)


def test_memory_bank_holds_the_newest_nouns_as_further_negatives() -> None:
    model = network().eval()
    objective = objective_of(model, memory_bank=8, positives="equal").train()
    model.eval()  # no batch statistics, so that features can be computed again
    first, second = batch(keys=[[1, 2, -1], [2, 3, -1], [8, 9, -1], [1, 4, 10]]), batch()
    with torch.no_grad():
        empty = objective(first)["multi_label_loss"]
        stored = Features(model, first)
        found = objective(second)["multi_label_loss"]
        features = Features(model, second)
    entries = [(k, stored.noun[i, n]) for i, row in enumerate(first["noun_keys"].tolist()) for n, k in enumerate(row)]
    bank = [(key, noun) for key, noun in entries if key != -1][:8]
    scale = math.exp(1.5)
    without = plain_multi_label_loss(stored, first["noun_keys"].tolist(), scale, "equal", "multi_label")
    expected = plain_multi_label_loss(features, second["noun_keys"].tolist(), scale, "equal", "multi_label", bank)
    assert float(empty) == pytest.approx(without, rel=1e-5)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert (objective.bank_keys != -1).all(), "newer nouns push out older ones"
    assert objective.bank_keys[:8].tolist() == [1, 2, 2, 3, 4, 5, 1, 6]


def test_memory_bank_does_not_change_in_evaluation() -> None:
    objective = objective_of(network(), memory_bank=8).eval()
    with torch.no_grad():
        objective(batch())
    assert (objective.bank_keys == -1).all()


def test_a_batch_without_any_noun_is_finite() -> None:
    settings = dict(memory_bank=4, label_entropy=0.1, segment_entropy=0.1, group_entropy=0.1)
    objective = objective_of(network(), token_weight=1.0, segment_weight=1.0, **settings).train()
    found = objective(batch(keys=[[-1, -1]] * B))
    found["loss"].backward()
    assert found["multi_label_loss"] == found["token_loss"] == found["segment_loss"] == 0
    assert all(value.isfinite() for value in found.values())
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("positives", ["own", "equal"])
def test_every_parameter_gets_a_finite_gradient(positives: str) -> None:
    objective = objective_of(
        network(), positives=positives, token_weight=1.0, segment_weight=1.0, memory_bank=4, segment_entropy=0.1
    ).train()
    for _ in range(2):  # the second time with a filled bank
        objective.zero_grad()
        objective(batch())["loss"].backward()
        assert not [name for name, p in objective.named_parameters() if p.grad is None]
        assert all(p.grad.isfinite().all() for p in objective.parameters())


def test_without_the_multi_label_loss_no_noun_is_needed() -> None:
    objective = objective_of(network(), multi_label_weight=0).eval()
    data = {key: value for key, value in batch().items() if not key.startswith("noun")}
    found = objective(data)
    assert found.keys() == {"loss", "caption_loss"}
    assert torch.equal(found["loss"], found["caption_loss"])


def test_loss_is_float32_under_autocast() -> None:
    objective = objective_of(network(), label_entropy=0.1, segment_entropy=0.1, group_entropy=0.1).train()
    with torch.autocast("cpu", torch.bfloat16):
        found = objective(batch())
    found["loss"].backward()
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(value.isfinite() for value in found.values())


# --- penalties ------------------------------------------------------------------------------------------------------


def soft_grouping(counts: tuple[int, ...] = (6, 4, 3), batch_size: int = 2) -> Grouping:
    generator = torch.Generator().manual_seed(2)
    assignments = [
        torch.randn(batch_size, 1, a, b, generator=generator).mul(2).softmax(-1) for a, b in pairwise(counts)
    ]
    tokens = [torch.zeros(batch_size, b, 1) for b in counts[1:]]
    return Grouping(assignments=assignments, tokens=tokens, grid=(2, 3))


def plain_entropy(probabilities: list[float]) -> float:
    return -sum(p * math.log(p) for p in probabilities if p > 0)


def plain_softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


MASK = torch.tensor([[True, True, False, True], [False, True, False, False]])
AFFINITY = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(3)) * 2


def test_group_entropy_equals_plain_loop() -> None:
    grouping = soft_grouping()
    rows = [plain_entropy(row) for image in grouping.compose().tolist() for row in image]
    assert float(group_entropy(grouping)) == pytest.approx(sum(rows) / len(rows), rel=1e-5)


def test_label_entropy_equals_plain_loop() -> None:
    grouping, entropies = soft_grouping(), []
    for b in range(2):
        valid = [k for k in range(4) if MASK[b, k]]
        labels = [plain_softmax([float(AFFINITY[b, g, k]) for k in valid]) for g in range(3)]
        for row in grouping.compose()[b].tolist():
            mixed = [sum(row[g] * labels[g][n] for g in range(3)) for n in range(len(valid))]
            entropies.append(plain_entropy(mixed))
    expected = sum(entropies) / len(entropies)
    assert float(label_entropy(grouping, AFFINITY, MASK)) == pytest.approx(expected, rel=1e-5)


def test_segment_entropy_equals_plain_loop() -> None:
    over_nouns, over_groups = [], []
    for b in range(2):
        valid = [k for k in range(4) if MASK[b, k]]
        for g in range(3):
            over_nouns.append(plain_entropy(plain_softmax([float(AFFINITY[b, g, k]) for k in valid])))
        for k in valid:
            over_groups.append(plain_entropy(plain_softmax([float(AFFINITY[b, g, k]) for g in range(3)])))
    expected = 0.2 * sum(over_nouns) / len(over_nouns) + 0.1 * sum(over_groups) / len(over_groups)
    assert float(segment_entropy(AFFINITY, MASK)) == pytest.approx(expected, rel=1e-5)


def test_gradients_are_finite_at_one_hot_assignments() -> None:
    hard = [torch.eye(4)[torch.tensor([0, 1, 1, 2, 3, 3])].expand(2, 1, -1, -1), torch.eye(3)[[0, 0, 1, 2]]]
    leaves = [hard[0].clone().requires_grad_(), hard[1].expand(2, 1, -1, -1).clone().requires_grad_()]
    affinity = (AFFINITY * 1000).requires_grad_()
    grouping = Grouping(assignments=leaves, tokens=[torch.zeros(2, 4, 1), torch.zeros(2, 3, 1)], grid=(2, 3))
    teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(4))
    loss = group_entropy(grouping) + label_entropy(grouping, affinity, MASK) + segment_entropy(affinity, MASK)
    (loss + affinity_distillation(grouping, teacher)).backward()
    assert group_entropy(grouping).abs() < 1e-6
    for tensor in (*leaves, affinity):
        assert tensor.grad.isfinite().all()


def test_distillation_equals_plain_loop() -> None:
    grouping = soft_grouping()
    teacher = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(4))
    assignment, rows = grouping.compose(), []
    for b in range(2):
        for i in range(6):
            cosines = [float(torch.cosine_similarity(teacher[b, i], teacher[b, j], dim=0)) for j in range(6)]
            target = plain_softmax(cosines)
            student = [float(assignment[b, i] @ assignment[b, j]) for j in range(6)]
            rows.append(-sum(t * math.log(s) for t, s in zip(target, student, strict=True)))
    assert float(affinity_distillation(grouping, teacher)) == pytest.approx(sum(rows) / len(rows), rel=1e-5)


def test_teacher_of_another_grid_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"the teacher has 9 patch tokens and the student 6"):
        affinity_distillation(soft_grouping(), torch.zeros(2, 9, 5))


class Teacher(nn.Module):
    """Patch colors, with a dropout that must never act."""

    def __init__(self, patch: int = 4) -> None:
        super().__init__()
        self.pool, self.dropout, self.scale = nn.AvgPool2d(patch), nn.Dropout(0.5), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.scale * self.pool(x)).flatten(2).transpose(1, 2)


def test_teacher_stays_frozen_and_in_evaluation_mode() -> None:
    teacher = Teacher()
    objective = objective_of(network(), distillation_weight=2.0, teacher=teacher).train()
    found = objective(batch())
    found["loss"].backward()
    assert not teacher.training
    assert teacher.scale.grad is None
    total = found["caption_loss"] + found["multi_label_loss"] + 2 * found["distillation_loss"]
    assert torch.allclose(found["loss"], total)
    wrong = objective_of(network(), distillation_weight=2.0, teacher=Teacher(8))
    with pytest.raises(ValueError, match="the teacher has 4 patch tokens and the student 16"):
        wrong(batch())


def test_token_loss_of_a_network_whose_last_stage_mixes_segments_is_an_error() -> None:
    kwargs = dict(depths=(1, 1), num_group_tokens=(4, 0), num_output_groups=(4, 0), img_size=16, patch_size=4)
    text = dict(vocab_size=20, context_length=T, width=16, depth=1, num_heads=2, eos_token_id=EOS)
    model = ImageTextModel("groupvit_small_patch16_224", dict(kwargs, embed_dim=16, num_heads=2), text)
    with pytest.raises(ValueError, match="depths: expected no block after the last grouping"):
        objective_of(model, token_weight=1.0)(batch())


def test_penalties_set_in_after_their_fraction_of_the_training() -> None:
    weights = dict(group_entropy=0.5, label_entropy=0.25, segment_entropy=2.0)
    objective = objective_of(network(), regularize_from=0.5, **weights).eval()
    for progress, active in ((0.0, 0), (0.49, 0), (0.5, 1), (1.0, 1)):
        objective.after_step(progress)
        with torch.no_grad():
            found = objective(batch())
        expected = found["caption_loss"] + found["multi_label_loss"]
        expected = expected + active * sum(weight * found[name] for name, weight in weights.items())
        assert torch.allclose(found["loss"], expected, rtol=1e-6)
    assert "progress" in objective.state_dict(), "a resumed run goes on with it"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(positives="all"), "positives: expected own or equal, got all"),
        (dict(token_keep=0.0), "token_keep: expected a fraction above 0"),
        (dict(token_keep=1.1), "token_keep: expected a fraction above 0"),
        (dict(distillation_weight=1.0), "objective.teacher: expected null where .* only there, got None"),
        (dict(teacher=Teacher()), "objective.teacher: expected null where objective.distillation_weight is 0"),
        (dict(multi_label_weight=0, label_entropy=1.0), "label_entropy: expected 0 where multi_label_weight"),
        (dict(multi_label_weight=0, memory_bank=8), "memory_bank: expected 0 where multi_label_weight"),
        (dict(memory_bank=-1), "memory_bank"),
        (dict(regularize_from=1.5), "regularize_from: expected 0 to 1, got 1.5"),
    ],
)
def test_settings_that_contradict_each_other_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        objective_of(network(), **settings)


# --- two processes --------------------------------------------------------------------------------------------------

SETTINGS = {
    "published": dict(),
    "equal_nouns": dict(positives="equal"),
    "segments_and_tokens": dict(positives="equal", segment_weight=1.0, token_weight=1.0),
    "memory_bank": dict(positives="equal", memory_bank=6),
    "entropies": dict(group_entropy=0.5, label_entropy=0.5, segment_entropy=0.5),
}
STEPS = 2


def plain_objective(settings: dict[str, Any]) -> ImageTextObjective:
    # Batch statistics are each process's own, so the projectors go without.
    return objective_of(network(batch_norm=False), **settings).train()


def run_steps(objective: ImageTextObjective, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Loss and gradients of each part in turn; with processes, their averages."""
    results = {}
    for step, part in enumerate(parts):
        objective.zero_grad()
        losses = objective(part)
        losses["loss"].backward()
        results |= {f"{step}.{name}": value.detach().clone() for name, value in losses.items()}
        results |= {f"{step}.grad.{n}": p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    if dist.is_initialized():
        for value in results.values():
            dist.all_reduce(value)
            value /= dist.get_world_size()
    return results


def worker(rank: int, folder: str, settings: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    joint = batch()
    half = {key: value[rank * B // 2 : (rank + 1) * B // 2] for key, value in joint.items()}
    results = run_steps(plain_objective(settings), [half] * STEPS)
    if rank == 0:
        save_file(results, f"{folder}/results.safetensors")
    dist.destroy_process_group()


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_two_processes_equal_one_on_the_joint_batch(settings: dict[str, Any], tmp_path: Path) -> None:
    valid = batch()["noun_mask"].sum(1)
    assert valid[:2].sum() != valid[2:].sum(), "the processes must have different numbers of nouns"
    # Forked, since a fresh interpreter would spend seconds on imports.
    torch.multiprocessing.start_processes(worker, (str(tmp_path), settings), nprocs=2, start_method="fork")
    found = load_file(tmp_path / "results.safetensors")
    expected = run_steps(plain_objective(settings), [batch()] * STEPS)
    assert found.keys() == expected.keys()
    gradients = [name for name in expected if ".grad." in name]
    for name in expected.keys() - set(gradients):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-6, abs=1e-6), name
    # As one vector: single entries are sums that cancel, of which float32 keeps fewer digits.
    joint, averaged = (
        torch.cat([results[name].flatten().double() for name in gradients]) for results in (expected, found)
    )
    assert (averaged - joint).norm() <= 1e-6 * joint.norm()


def gather_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    x = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    joined = gather(x)
    assert joined.tolist() == [[0, 1], [2, 3], [4, 5], [10, 11], [12, 13], [14, 15]]
    weights = torch.arange(12.0).view(6, 2) * (rank + 1)
    (joined * weights).sum().backward()
    # Both processes' losses reach this process's rows: 1 x and 2 x the weights.
    assert torch.equal(x.grad, 3 * torch.arange(12.0).view(6, 2)[3 * rank : 3 * rank + 3])
    assert gather(torch.tensor([rank])).tolist() == [0, 1]
    dist.destroy_process_group()


def test_gather_joins_in_rank_order_and_sums_gradients(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(gather_worker, (str(tmp_path),), nprocs=2, start_method="fork")
    alone = torch.ones(2, requires_grad=True)
    assert gather(alone) is alone
