"""Makes the models known to timm (by importing their files) and to transformers' Auto classes and pipelines."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES

from grouping_zoo.hf.groupvit import (
    ZooGroupViTConfig,
    ZooGroupViTImageProcessor,
    ZooGroupViTModel,
    ZooGroupViTProcessor,
)
from grouping_zoo.models import cast  # noqa: F401 - has no transformers classes yet, timm alone knows it


def register() -> None:
    """Registers every family with transformers; calling it again changes nothing."""
    model_type = ZooGroupViTConfig.model_type
    AutoConfig.register(model_type, ZooGroupViTConfig, exist_ok=True)
    AutoModel.register(ZooGroupViTConfig, ZooGroupViTModel, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(ZooGroupViTConfig, ZooGroupViTModel, exist_ok=True)
    AutoImageProcessor.register(
        ZooGroupViTConfig, image_processor_classes={"torchvision": ZooGroupViTImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(ZooGroupViTConfig, ZooGroupViTProcessor, exist_ok=True)
    # The pipeline looks class names up here and would otherwise log that the model is not supported.
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES[model_type] = ZooGroupViTModel.__name__
