"""Every architecture in a small size. A new family joins the shared tests by one line in `MODELS`."""

from dataclasses import dataclass
from typing import Any

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
        kwargs: arguments that make it small.
        size: side of its images in pixels.
        num_levels: levels of its grouping, the tokens on the image included.
    """

    case: str
    name: str
    kwargs: dict[str, Any]
    size: int
    num_levels: int

    def create(self, **kwargs: Any) -> Any:
        """The model in evaluation mode, always with the same weights, none of them zero."""
        torch.manual_seed(0)
        model = timm.create_model(self.name, **{**self.kwargs, **kwargs}).eval()
        return with_random_weights(model)

    def images(self, batch_size: int = 2, size: tuple[int, int] | None = None, channels: int = 3) -> Tensor:
        """Random images, always the same."""
        height, width = size or (self.size, self.size)
        return torch.randn(batch_size, channels, height, width, generator=torch.Generator().manual_seed(1))


_GROUPVIT = dict(embed_dim=32, num_heads=2, depths=(2, 1, 1), num_group_tokens=(9, 5, 0), num_output_groups=(7, 4, 0))

MODELS = [
    SmallModel("groupvit_small", "groupvit_small_patch16_224", dict(_GROUPVIT, img_size=64, patch_size=8), 64, 3),
    SmallModel(
        "groupvit_nano", "groupvit_nano_patch4_64", dict(img_size=32, embed_dim=32, stem_depth=1, depths=(1, 0)), 32, 2
    ),
    SmallModel(
        "groupvit_soft_grouping_last",
        "groupvit_small_patch16_224",
        dict(_GROUPVIT, img_size=32, patch_size=8, num_group_tokens=(9, 5, 3), num_output_groups=(7, 4, 2))
        | dict(assignment="soft"),
        32,
        4,
    ),
]


def case_name(model: SmallModel) -> str:
    """For `pytest.mark.parametrize(ids=...)`."""
    return model.case


@torch.no_grad()
def with_random_weights(model: nn.Module) -> nn.Module:
    """Perturbs every floating-point parameter and statistic, so that no zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(2)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=generator).to(value)
            value.add_(0.1 * noise.abs() if name.endswith("running_var") else 0.1 * noise)
    return model
