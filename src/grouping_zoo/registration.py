"""Makes the models known to timm (by importing their files) and to transformers' Auto classes and pipelines."""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from grouping_zoo.hf import vision
from grouping_zoo.hf.cast import (
    CASTBackbone,
    CASTConfig,
    CASTForImageClassification,
    CASTForSemanticSegmentation,
    CASTModel,
)
from grouping_zoo.hf.groupvit import (
    ZooGroupViTConfig,
    ZooGroupViTImageProcessor,
    ZooGroupViTModel,
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
from grouping_zoo.models import cast, pgt, vt_fpn, vt_resnet  # noqa: F401 - registers their networks with timm


def register() -> None:
    """Registers every family with transformers; calling it again changes nothing."""
    _register_image_family(CASTConfig, CASTModel, CASTForImageClassification, CASTForSemanticSegmentation, CASTBackbone)
    _register_image_family(
        VTResNetConfig,
        VTResNetModel,
        VTResNetForImageClassification,
        VTResNetForSemanticSegmentation,
        VTResNetBackbone,
    )
    _register_image_family(PGTConfig, PGTModel, PGTForImageClassification, PGTForSemanticSegmentation, PGTBackbone)
    _register_vt_fpn()
    _register_groupvit()


def _register_image_family(
    config: type[vision.ZooVisionConfig],
    model: type[vision.ZooVisionModel],
    classifier: type[vision.ZooForImageClassification],
    segmenter: type[vision.ZooForSemanticSegmentation],
    backbone: type[vision.ZooBackbone],
) -> None:
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForImageClassification.register(config, classifier, exist_ok=True)
    AutoModelForSemanticSegmentation.register(config, segmenter, exist_ok=True)
    AutoBackbone.register(config, backbone, exist_ok=True)
    AutoImageProcessor.register(
        config, image_processor_classes={"torchvision": config.image_processor_class}, exist_ok=True
    )
    # The pipelines look class names up here and would otherwise log that the model is not supported.
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[config.model_type] = classifier.__name__
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config.model_type] = segmenter.__name__


def _register_vt_fpn() -> None:
    AutoConfig.register(VTFPNConfig.model_type, VTFPNConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(VTFPNConfig, VTFPNForSemanticSegmentation, exist_ok=True)
    AutoImageProcessor.register(
        VTFPNConfig, image_processor_classes={"torchvision": VTFPNConfig.image_processor_class}, exist_ok=True
    )
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[VTFPNConfig.model_type] = VTFPNForSemanticSegmentation.__name__


def _register_groupvit() -> None:
    model_type = ZooGroupViTConfig.model_type
    AutoConfig.register(model_type, ZooGroupViTConfig, exist_ok=True)
    AutoModel.register(ZooGroupViTConfig, ZooGroupViTModel, exist_ok=True)
    AutoModelForZeroShotImageClassification.register(ZooGroupViTConfig, ZooGroupViTModel, exist_ok=True)
    AutoImageProcessor.register(
        ZooGroupViTConfig, image_processor_classes={"torchvision": ZooGroupViTImageProcessor}, exist_ok=True
    )
    AutoProcessor.register(ZooGroupViTConfig, ZooGroupViTProcessor, exist_ok=True)
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES[model_type] = ZooGroupViTModel.__name__
