"""Grouping vision models for timm and transformers.

Importing the package registers its models with both libraries.
"""

from grouping_zoo import registration
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
    ZooGroupViTConfig,
    ZooGroupViTImageProcessor,
    ZooGroupViTModel,
    ZooGroupViTModelOutput,
    ZooGroupViTProcessor,
)
from grouping_zoo.models.cast import CAST
from grouping_zoo.models.groupvit import GroupViT
from grouping_zoo.version import __version__

__all__ = [
    "CAST",
    "CASTBackbone",
    "CASTConfig",
    "CASTForImageClassification",
    "CASTForSemanticSegmentation",
    "CASTImageProcessor",
    "CASTModel",
    "GroupViT",
    "Grouping",
    "ZooGroupViTConfig",
    "ZooGroupViTImageProcessor",
    "ZooGroupViTModel",
    "ZooGroupViTModelOutput",
    "ZooGroupViTProcessor",
    "__version__",
    "open_checkpoint",
    "packaged_checkpoints",
]

registration.register()
