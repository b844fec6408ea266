"""Every registered architecture in a small size. A new one joins the conformance suite by one line in `MODELS`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import grouping_zoo  # noqa: F401 - registers the models


@dataclass(frozen=True)
class SmallModel:
    """A registered model with the arguments that make it small.

    Args:
        case: name in the test report.
        name: timm name.
        size: side of its images in pixels.
        kwargs: arguments that make it small.
        repeats: the same code as another case in other sizes; its tests are marked slow.
    """

    case: str
    name: str
    size: int
    kwargs: dict[str, Any]
    repeats: bool = False

    def build(self, num_classes: int = 5, **kwargs: Any) -> Any:
        """The model as timm creates it, in evaluation mode."""
        return timm.create_model(self.name, num_classes=num_classes, **{**self.kwargs, **kwargs}).eval()

    def create(self, num_classes: int = 5, **kwargs: Any) -> Any:
        """The model in evaluation mode, always with the same weights, none of them zero."""
        torch.manual_seed(0)
        return with_random_weights(self.build(num_classes, **kwargs))

    def images(self, batch_size: int = 2, size: tuple[int, int] | None = None, channels: int = 3) -> Tensor:
        """Random images, always the same."""
        height, width = size or (self.size, self.size)
        return torch.randn(batch_size, channels, height, width, generator=torch.Generator().manual_seed(1))


_GROUPVIT: dict[str, Any] = dict(
    img_size=64,
    patch_size=8,
    embed_dim=32,
    num_heads=2,
    depths=(2, 1, 1),
    num_group_tokens=(9, 5, 0),
    num_output_groups=(7, 4, 0),
)
_SOFT_GROUPVIT = _GROUPVIT | dict(num_group_tokens=(9, 5, 3), num_output_groups=(7, 4, 2), assignment="soft")
_NANO_GROUPVIT: dict[str, Any] = dict(img_size=32, embed_dim=32, stem_depth=1, depths=(2, 0))
_CAST: dict[str, Any] = dict(
    img_size=64, embed_dim=32, num_heads=2, depths=(2, 1, 1, 1), num_clusters=(12, 8, 5, 3), superpixel_size=8
)
_PGT: dict[str, Any] = dict(
    img_size=32,
    patch_size=4,
    embed_dim=24,
    depths=(1, 2, 1),
    group_dims=(6, 8, 12),
    num_heads=3,
    num_groups=5,
    feature_dim=16,
    feature_heads=2,
)
_VT_RESNET: dict[str, Any] = dict(
    layers=(1, 1, 1), channels=(8, 12, 16), num_modules=3, map_dim=24, num_tokens=6, token_dim=32
)
_DEEP_STEM: dict[str, Any] = dict(stem_type="deep", stem_width=4)
_CLUSTERING = _VT_RESNET | dict(tokenizer="clustering", recurrent=False, token_relation="none")
_BOTTLENECK = _VT_RESNET | dict(channels=(8, 8, 8))
_POOLING = _VT_RESNET | dict(tokenizer="pooling", token_relation="graph", projector=False)
_FPN: dict[str, Any] = dict(
    backbone="resnet18",
    backbone_args=dict(layers=(1, 1, 1, 1), channels=(4, 8, 12, 16)),
    dim=8,
    num_tokens=3,
    token_dim=16,
    head_dim=12,
)
_NANO_FPN = _FPN | dict(backbone_args=_FPN["backbone_args"] | _DEEP_STEM)

MODELS = [
    SmallModel("groupvit_small", "groupvit_small_patch16_224", 64, _GROUPVIT),
    SmallModel("groupvit_soft", "groupvit_small_patch16_224", 64, _SOFT_GROUPVIT),
    SmallModel("groupvit_nano", "groupvit_nano_patch4_64", 32, _NANO_GROUPVIT),
    SmallModel("cast_small", "cast_small", 64, _CAST),
    SmallModel("cast_base", "cast_base", 64, _CAST | dict(embed_dim=48), repeats=True),
    SmallModel("cast_small_deep", "cast_small_deep", 64, _CAST | dict(depths=(2, 2, 1, 1)), repeats=True),
    SmallModel("cast_base_deep", "cast_base_deep", 64, _CAST | dict(depths=(1, 2, 1, 2)), repeats=True),
    SmallModel("cast_seg_small", "cast_seg_small", 64, _CAST),
    SmallModel("cast_seg_base", "cast_seg_base", 64, _CAST | dict(embed_dim=48), repeats=True),
    SmallModel("cast_nano", "cast_nano", 64, _CAST, repeats=True),
    SmallModel("pgt_base", "pgt_base", 32, _PGT),
    SmallModel("pgt_base_flow", "pgt_base_flow", 32, _PGT),
    SmallModel("pgt_descending", "pgt_base", 32, _PGT | dict(num_groups=(8, 5, 3), group_dims=(12, 8, 6))),
    SmallModel("pgt_one_head", "pgt_small", 32, _PGT | dict(num_heads=1, num_groups=15)),
    SmallModel("pgt_tiny", "pgt_tiny", 32, _PGT, repeats=True),
    SmallModel("pgt_nano", "pgt_nano", 64, _PGT | dict(img_size=64, patch_size=8), repeats=True),
    SmallModel("vt_resnet18", "vt_resnet18", 64, _VT_RESNET),
    SmallModel("vt_resnet34", "vt_resnet34", 64, _CLUSTERING),
    SmallModel("vt_resnet50", "vt_resnet50", 64, _BOTTLENECK),
    SmallModel("vt_resnet101", "vt_resnet101", 64, _BOTTLENECK, repeats=True),
    SmallModel("vt_resnet_pooling", "vt_resnet18", 64, _POOLING),
    SmallModel("vt_resnet_one_module", "vt_resnet18", 64, _VT_RESNET | dict(num_modules=1)),
    SmallModel("vt_resnet_nano", "vt_resnet_nano", 64, _VT_RESNET | _DEEP_STEM | dict(num_modules=2), repeats=True),
    SmallModel("vt_fpn_resnet50", "vt_fpn_resnet50", 64, _FPN),
    SmallModel("vt_fpn_resnet101", "vt_fpn_resnet101", 64, _FPN, repeats=True),
    SmallModel("vt_fpn_nano", "vt_fpn_nano", 64, _NANO_FPN, repeats=True),
    SmallModel("semantic_fpn_resnet50", "semantic_fpn_resnet50", 64, _FPN),
    SmallModel("semantic_fpn_resnet101", "semantic_fpn_resnet101", 64, _FPN, repeats=True),
    SmallModel("semantic_fpn_nano", "semantic_fpn_nano", 64, _NANO_FPN, repeats=True),
]
SMALL = {small.case: small for small in MODELS}


def each(models: Iterable[SmallModel]) -> pytest.MarkDecorator:
    """Parametrizes a test by `small`; the cases that repeat another in other sizes are marked slow."""
    marks = {True: [pytest.mark.slow], False: []}
    return pytest.mark.parametrize("small", [pytest.param(m, id=m.case, marks=marks[m.repeats]) for m in models])


every_model = each(MODELS)


@torch.no_grad()
def with_random_weights(model: nn.Module) -> nn.Module:
    """Perturbs every floating-point parameter and statistic, so that no zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(2)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator).to(value)
            value.add_(0.1 * noise.abs() if name.endswith("running_var") else 0.1 * noise)
    return model


def loss_of(output: Tensor) -> Tensor:
    """A loss whose gradient differs between channels (B, C, ...); a plain sum is constant behind a LayerNorm."""
    weights = torch.linspace(-1, 1, output.shape[1]).view(-1, *[1] * (output.ndim - 2))
    return (output * weights).square().sum()
