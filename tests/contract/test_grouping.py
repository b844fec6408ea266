"""What the package expects of the grouping of every registered architecture; see `grouping_zoo.models.family`."""

import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from grouping_zoo.grouping import Grouping
from grouping_zoo.models.family import as_grouping_network, extra_inputs
from invariants import assert_invariants, assert_same_image
from zoo import MODELS, SmallModel, each, every_model, loss_of

ODD = (33, 49)
# Values of `grouping_args` that differ from every small model's own.
CHANGES: dict[str, list[Any]] = dict(
    num_clusters=[(6, 4, 3, 2)], layer=[0, 1, -2], head=[0, -1], num_groups=[9, (4, 1, 7)], num_iters=[1], seed=[3],
    level=[1, -1],
)  # fmt: skip

groups = [small for small in MODELS if not small.case.startswith("semantic_fpn")]
every_grouping_model = each(groups)
one_without_groups = each([small for small in MODELS if small not in groups])


def tensors(grouping: Grouping) -> list[Tensor]:
    return [*grouping.assignments, *grouping.tokens]


def assert_same(a: Grouping, b: Grouping) -> None:
    assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    assert torch.equal(a.labels(0), b.labels(0))


def differ(a: Grouping, b: Grouping) -> bool:
    return any(x.shape != y.shape or not torch.allclose(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


# --- invariants -----------------------------------------------------------------------------------------------------


@every_grouping_model
@pytest.mark.parametrize("size", [None, ODD], ids=str)
@torch.no_grad()
def test_invariants(size: tuple[int, int] | None, small: SmallModel) -> None:
    model, x = small.create(), small.images(size=size)
    grouping = model.forward_grouping(x)
    assert grouping.num_levels == model.grouping_levels >= 2
    assert {a.shape[1] for a in grouping.assignments} == {model.grouping_heads}
    pixels = (x.shape[-2], x.shape[-1])
    assert_invariants(grouping, [None, pixels, (61, 18)])
    for head in range(model.grouping_heads):
        assert_invariants(grouping.head(head), [pixels])


@every_grouping_model
@torch.no_grad()
def test_a_batch_gives_what_its_images_give_one_by_one(small: SmallModel) -> None:
    model, x = small.create(), small.images(4, ODD)
    joint = model.forward_grouping(x)
    for index in range(4):
        assert_same_image(joint[index], model.forward_grouping(x[index : index + 1]))


@every_grouping_model
@torch.no_grad()
def test_every_pixel_of_a_padded_image_has_the_token_of_its_own_patch(small: SmallModel) -> None:
    model, (height, width) = small.create(), ODD
    patch = model.feature_info[0]["reduction"]
    columns = math.ceil(width / patch)
    expected = [[r // patch * columns + c // patch for c in range(width)] for r in range(height)]
    assert model.forward_grouping(small.images(size=ODD)).labels(0, ODD)[0].tolist() == expected


@every_grouping_model
@torch.no_grad()
def test_a_models_grouping_can_be_cast_and_indexed(small: SmallModel) -> None:
    grouping = small.create().forward_grouping(small.images(3))
    wide = grouping.to(torch.float64)
    assert {t.dtype for t in tensors(wide)} == {torch.float64}
    assert torch.equal(wide.labels(), grouping.labels())
    assert torch.equal(grouping[1:].labels(size=(20, 20)), grouping.labels(size=(20, 20))[1:])
    assert len(grouping.entropy()) == grouping.num_levels - 1


@every_grouping_model
@torch.no_grad()
def test_no_images_give_an_empty_grouping(small: SmallModel) -> None:
    model = small.create()
    grouping = model.forward_grouping(small.images()[:0])
    assert grouping.batch_size == 0
    assert grouping.num_levels == model.grouping_levels
    assert len(grouping.labels()) == 0


# --- one pass -------------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("size", [None, ODD], ids=str)
@torch.no_grad()
def test_one_pass_gives_features_stages_and_grouping(size: tuple[int, int] | None, small: SmallModel) -> None:
    model, x = small.create(), small.images(size=size)
    assert as_grouping_network(model) is model
    found = model.forward_grouped(x)
    assert torch.equal(found.features, model.forward_features(x))
    output_fmt = "NLC" if found.stages[0].ndim == 3 else "NCHW"
    stages = model.forward_intermediates(x, output_fmt=output_fmt, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(found.stages, stages, strict=True))
    if found.grouping is not None:
        assert_same(found.grouping, model.forward_grouping(x))


@one_without_groups
@torch.no_grad()
def test_a_network_without_groups_says_so(small: SmallModel) -> None:
    model = small.create()
    assert model.grouping_heads == model.grouping_levels == 0
    assert not model.grouping_args
    grouped = model.forward_grouped(small.images())
    assert grouped.grouping is None
    for ask in (lambda: model.forward_grouping(small.images()), lambda: model.segment_grouping(grouped)):
        with pytest.raises(ValueError, match="no groups"):
            ask()


@every_grouping_model
def test_soft_assignments_take_part_in_the_gradient(small: SmallModel) -> None:
    model = small.create().train()
    loss = sum(assignment.square().sum() for assignment in model.forward_grouping(small.images()).assignments)
    loss.backward()
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).weight.grad.abs().max() > 0


@every_grouping_model
@torch.no_grad()
def test_segments_are_what_texts_are_compared_with(small: SmallModel) -> None:
    model = small.create()
    segments = model.segment_grouping(model.forward_grouped(small.images(size=ODD)))
    assert segments.tokens[-1].shape[2] == model.segment_width
    assert {a.shape[1] for a in segments.assignments} == {1}
    assert_invariants(segments, [ODD])


@every_grouping_model
def test_features_teach_every_segment(small: SmallModel) -> None:
    """Texts are compared with the mean of the segments: its gradient reaches the image."""
    model = small.create().train()
    loss_of(model.segment_grouping(model.forward_grouped(small.images())).tokens[-1].mean(dim=1)).backward()
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).weight.grad.abs().max() > 0


# --- arguments and inputs -------------------------------------------------------------------------------------------


@every_grouping_model
@torch.no_grad()
def test_own_values_of_the_grouping_args_change_nothing(small: SmallModel) -> None:
    model, x = small.create(), small.images()
    own, plain = model.grouping_args, model.forward_grouping(x)
    assert_same(model.forward_grouping(x, **own), plain)
    found = model.forward_grouped(x, **own)
    assert_same(found.grouping, plain)
    assert torch.equal(found.features, model.forward_features(x))
    with pytest.raises(TypeError, match="nonsense"):
        model.forward_grouping(x, nonsense=1)


@every_grouping_model
@torch.no_grad()
def test_every_grouping_arg_changes_the_grouping(small: SmallModel) -> None:
    model, x = small.create(), small.images()
    plain = model.forward_grouping(x)
    for name in model.grouping_args:
        for value in CHANGES[name]:
            changed = model.forward_grouping(x, **{name: value})
            if model.grouping_heads > 1 or name != "head":
                assert differ(changed, plain), (name, value)
            assert_same(model.forward_grouped(x, **{name: value}).grouping, changed)
            assert_invariants(changed, [None])


@every_model
@torch.no_grad()
def test_made_inputs_are_those_that_the_network_makes_itself(small: SmallModel) -> None:
    model = small.create()
    makers = pickle.loads(pickle.dumps(model.input_makers()))
    assert tuple(makers) == model.input_names == extra_inputs(model)
    views = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    x = (views / 255 - mean) / std
    inputs = {name: torch.stack([make(view) for view in views]) for name, make in makers.items()}
    assert torch.equal(model(x, **inputs), model(x))
    assert torch.equal(model.forward_grouped(x, **inputs).features, model.forward_features(x, **inputs))
    for name, value in inputs.items():
        other = model.forward_features(x, **{name: torch.zeros_like(value)})
        assert other.shape != model.forward_features(x).shape or not torch.allclose(other, model.forward_features(x))


# --- what some networks can show ------------------------------------------------------------------------------------


@every_model
@torch.no_grad()
def test_capabilities_are_those_that_are_stated(small: SmallModel) -> None:
    model, x = small.create(), small.images()
    if model.has_token_attention:
        attention = model.token_attention(x, size=ODD)
        assert attention.shape[2:] == ODD
        assert torch.allclose(model.token_attention(x).sum((2, 3)), torch.ones(()), atol=1e-5)
    if model.has_class_attention:
        assert model.class_attention(x, 0).maps().shape[2:] == x.shape[2:]
    if model.has_assignment_entropies:
        marginal, conditional = model.assignment_entropies(x)
        assert (conditional <= marginal + 1e-5).all()
    if model.grouping_heads:
        grouping, attention = model.forward_grouping_with_attention(x)
        assert_same(grouping, model.forward_grouping(x))
        assert (attention is not None) == model.has_token_attention
    stated = (model.has_token_attention, model.has_class_attention, model.has_assignment_entropies)
    assert sum(stated) == (not small.case.startswith(("groupvit", "semantic_fpn")))
