"""What timm is told of every network of this package, unless it says otherwise."""

from typing import Any

COMMON_CFG: dict[str, Any] = dict(
    num_classes=0,
    input_size=(3, 224, 224),
    pool_size=None,
    crop_pct=0.875,
    interpolation="bicubic",
    fixed_input_size=False,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    first_conv="patch_embed.proj",
    classifier="head",
    license="apache-2.0",
)
