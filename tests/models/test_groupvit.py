"""GroupViT as a timm model, beyond what every architecture promises: stages, features, initialisation."""

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from zoo import SMALL, SmallModel, each

every_model = each(small for small in SMALL.values() if small.case.startswith("groupvit"))


@every_model
@torch.no_grad()
def test_features_are_the_coarsest_groups_and_the_images_feature_is_their_mean(small: SmallModel) -> None:
    model, x = small.create(0), small.images()
    features = model.forward_features(x)
    assert torch.equal(model.forward_grouping(x).tokens[-1], features)
    assert torch.equal(model(x), features.mean(dim=1))


@every_model
def test_features_only_of_other_numbers_of_stages(small: SmallModel) -> None:
    stages = dict(depths=(1, 1), num_group_tokens=(5, 3), num_output_groups=(4, 2))
    model = small.create(features_only=True, **stages)
    with torch.no_grad():
        assert len(model(small.images())) == 2


@every_model
def test_intermediates_spread_each_stages_tokens_over_the_grid_by_the_soft_assignments(small: SmallModel) -> None:
    model, images = small.create(), small.images(size=(29, 43))
    with torch.no_grad():
        _, maps = model.forward_intermediates(images)
        _, tokens = model.forward_intermediates(images, output_fmt="NLC")
        grouping = model.forward_grouping(images)
    for level, (spread, own) in enumerate(zip(maps, tokens, strict=True)):
        assert own.shape[1] == grouping.num_groups(level), "group tokens are not among a stage's tokens"
        expected = grouping.compose(level) @ own  # (B, N_0, C)
        assert torch.allclose(spread.flatten(2).transpose(1, 2), expected, atol=1e-5)


@every_model
def test_later_stages_are_later_layers(small: SmallModel) -> None:
    model = small.build()
    groups = group_parameters(model, model.group_matcher())
    layer = {name: index for index, names in groups.items() for name in names}
    order = [layer[f"stages.{i}.blocks.0.norm1.weight"] for i, stage in enumerate(model.stages) if len(stage.blocks)]
    assert order == sorted(set(order))
    assert layer["pos_embed"] < layer["stages.0.group_tokens"] == order[0]
    assert order[0] < layer["stages.0.grouping.assignment.q_proj.weight"]
    assert {"pos_embed", "stages.0.group_tokens"} <= model.no_weight_decay()


@every_model
def test_initialisation(small: SmallModel) -> None:
    torch.manual_seed(0)
    model = timm.create_model(small.name, **small.kwargs, num_classes=3).requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            expected = module.in_features**-0.5 if model.unit_init else 0.02
            if model.unit_init and name.endswith(("assignment.q_proj", "assignment.k_proj")):
                expected /= 2
            assert module.weight.std() == pytest.approx(expected, rel=0.35), name
            assert not module.bias.any(), name
    assert model.stages[0].group_tokens.std() == pytest.approx(1.0 if model.unit_init else 0.02, rel=0.3)
    for stage in model.stages[1:]:
        assert stage.group_tokens is None or not stage.group_tokens.any(), "later group tokens start at zero"


def test_published_model_has_the_published_size() -> None:
    model = timm.create_model("groupvit_small_patch16_224")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(28.8e6, rel=0.005)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(depths=(1, 1)), "depths, num_group_tokens and num_output_groups: expected one entry a stage"),
        (dict(num_group_tokens=(0, 8, 0)), "num_group_tokens: expected at least 1 in every stage but the last"),
        (dict(num_group_tokens=(8, 0, 8)), "num_group_tokens"),
        (dict(num_output_groups=(0, 8, 0)), "num_output_groups"),
        (dict(global_pool="token"), "global_pool: expected 'avg' or ''"),
        (dict(stem="resnet"), "stem: expected 'patch' or 'conv', got 'resnet'"),
        (dict(stem="conv", patch_size=12), "patch_size: a convolution stem needs a power of two"),
        (dict(assignment="argmax"), "assignment: expected one of"),
        (dict(embed_dim=50), "embed_dim|num_heads"),
        (dict(depths=()), "depths|num_group_tokens"),
    ],
)
def test_wrong_arguments_are_an_error_that_names_them(kwargs: dict[str, object], message: str) -> None:
    small = dict(img_size=32, patch_size=8, embed_dim=48, num_heads=4, depths=(1, 1, 1))
    if kwargs == dict(depths=()):
        kwargs = dict(depths=(), num_group_tokens=(), num_output_groups=())
    with pytest.raises(ValueError, match=message):
        timm.create_model("groupvit_small_patch16_224", **{**small, **kwargs})
