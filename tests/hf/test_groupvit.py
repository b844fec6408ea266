"""What is GroupViT's own in its image classes; the rest is tested with all image families."""

from pathlib import Path

import torch
import torch.nn.functional as F

from grouping_zoo import ZooGroupViTForSemanticSegmentation
from grouping_zoo.hf.groupvit import ZooGroupViTVisionConfig
from grouping_zoo.hf.vision import publish
from zoo import SMALL

GROUPVIT = SMALL["groupvit_small"]


@torch.no_grad()
def test_segmentation_is_a_linear_layer_on_the_maps_of_all_stages(tmp_path: Path) -> None:
    publish(GROUPVIT.create(0), tmp_path, "")
    model, x = (
        ZooGroupViTForSemanticSegmentation.from_pretrained(tmp_path, num_labels=5),
        GROUPVIT.images(size=(32, 28)),
    )
    maps = torch.cat(model.model.forward_intermediates(x, intermediates_only=True), dim=1)  # (2, 3 * 32, 4, 4)
    head = model.segmentation_head
    logits = F.conv2d(maps, head.weight[:, :, None, None], head.bias)
    expected = F.interpolate(logits, size=(32, 32), mode="bilinear", align_corners=False)[..., :28]
    assert torch.allclose(model(x).logits, expected, atol=1e-5), "padding up to whole patches is cut off"


def test_the_configuration_knows_the_published_model() -> None:
    config = ZooGroupViTVisionConfig()
    assert config.architecture == "groupvit_small_patch16_224"
    assert config.stage_names == ["stage1", "stage2", "stage3"]
