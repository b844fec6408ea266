"""Grouping vision models for timm and transformers.

Importing the package registers its models with both libraries.
"""

import importlib
from typing import Any

from grouping_zoo import start_up  # noqa: F401  # isort: skip  # before the imports that take long
from grouping_zoo.grouping import Grouping
from grouping_zoo.hf.cast import (
    CASTBackbone,
    CASTConfig,
    CASTForImageClassification,
    CASTForSemanticSegmentation,
    CASTImageProcessor,
    CASTModel,
)
from grouping_zoo.hf.checkpoint_folder import open_checkpoint, packaged_checkpoints
from grouping_zoo.hf.groupvit import (
    ZooGroupViTBackbone,
    ZooGroupViTForImageClassification,
    ZooGroupViTForSemanticSegmentation,
    ZooGroupViTVisionConfig,
    ZooGroupViTVisionModel,
)
from grouping_zoo.hf.image_text import (
    ZooGroupViTConfig,
    ZooGroupViTImageProcessor,
    ZooGroupViTModel,
    ZooGroupViTModelOutput,
    ZooGroupViTProcessor,
)
from grouping_zoo.hf.pgt import (
    PGTBackbone,
    PGTConfig,
    PGTForImageClassification,
    PGTForSemanticSegmentation,
    PGTModel,
)
from grouping_zoo.hf.vt_fpn import VTFPNConfig, VTFPNForSemanticSegmentation
from grouping_zoo.hf.vt_resnet import (
    VTResNetBackbone,
    VTResNetConfig,
    VTResNetForImageClassification,
    VTResNetForSemanticSegmentation,
    VTResNetModel,
)
from grouping_zoo.models.cast import CAST
from grouping_zoo.models.groupvit import GroupViT
from grouping_zoo.models.pgt import PGT
from grouping_zoo.models.vt_fpn import SemanticFPN
from grouping_zoo.models.vt_resnet import VTResNet
from grouping_zoo.version import __version__

__all__ = [
    "CAST",
    "PGT",
    "CASTBackbone",
    "CASTConfig",
    "CASTForImageClassification",
    "CASTForSemanticSegmentation",
    "CASTImageProcessor",
    "CASTModel",
    "GroupViT",
    "Grouping",
    "PGTBackbone",
    "PGTConfig",
    "PGTForImageClassification",
    "PGTForSemanticSegmentation",
    "PGTModel",
    "Segmentation",
    "Segmenter",
    "SemanticFPN",
    "VTFPNConfig",
    "VTFPNForSemanticSegmentation",
    "VTResNet",
    "VTResNetBackbone",
    "VTResNetConfig",
    "VTResNetForImageClassification",
    "VTResNetForSemanticSegmentation",
    "VTResNetModel",
    "ZooGroupViTBackbone",
    "ZooGroupViTConfig",
    "ZooGroupViTForImageClassification",
    "ZooGroupViTForSemanticSegmentation",
    "ZooGroupViTImageProcessor",
    "ZooGroupViTModel",
    "ZooGroupViTModelOutput",
    "ZooGroupViTProcessor",
    "ZooGroupViTVisionConfig",
    "ZooGroupViTVisionModel",
    "__version__",
    "open_checkpoint",
    "packaged_checkpoints",
    "segment",
]

# Public names of modules that are imported at their first use, because drawing takes libraries that are slow to import.
LAZY = {
    "Segmentation": "grouping_zoo.inference.result",
    "Segmenter": "grouping_zoo.inference.segmenter",
    "segment": "grouping_zoo.inference.segmenter",
}


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(LAZY[name]), name)
