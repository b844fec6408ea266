"""What the transformers classes of all image families share, and the checkpoint folder of an image network.

A family adds its configuration and, for each class here, a subclass whose `forward` names the arguments that its
network takes beside the images.

Shape legend: B images, N tokens, C width, K classes, (H, W) image size, (h, w) feature map.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models import get_model_args, get_model_input_config, get_pretrained_cfg, save_for_hf
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
)
from transformers.utils import can_return_tuple

from grouping_zoo.grouping import Grouping
from grouping_zoo.hf.base import ZooPreTrainedModel, hub_arguments
from grouping_zoo.hf.image_processing import ZooImageProcessor
from grouping_zoo.models.builder import WEIGHT_SOURCES, create_from_config
from grouping_zoo.models.checkpoint import NETWORK_PREFIX, SEGMENTATION_PREFIX
from grouping_zoo.models.family import GroupedFeatures, GroupingNetwork

INPUT_KEYS = (
    "input_size",
    "fixed_input_size",
    "interpolation",
    "crop_pct",
    "crop_mode",
    "mean",
    "std",
    "first_conv",
    "classifier",
)


# --- configuration --------------------------------------------------------------------------------------------------


class ZooVisionConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of an image family's classes; `config.json` carries timm's fields beside transformers'.

    Args:
        architecture: timm name of the network.
        model_args: arguments of the network.
        pretrained_cfg: timm's description of the input (size, mean, std, ...).
        num_classes: classes of the head that the checkpoint holds, 0 for none; as many `num_labels` if no labels are
            given.
        num_features: width of the image's feature.
        semantic_loss_ignore_index: label of pixels that a segmentation's loss leaves out.
    """

    # A family sets the class of its networks, the Auto class that opens one with a head, and the image processor.
    network_class: ClassVar[type[GroupingNetwork]]
    head_class: ClassVar[Any] = AutoModelForImageClassification
    image_processor_class: ClassVar[type[ZooImageProcessor]] = ZooImageProcessor

    attribute_map: ClassVar[dict[str, str]] = {"hidden_size": "num_features"}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["grouping", "hidden_states", "attentions"]

    architecture: str = ""
    model_args: dict[str, Any] | None = None
    pretrained_cfg: dict[str, Any] | None = None
    num_classes: int = 0
    num_features: int | None = None
    semantic_loss_ignore_index: int = 255
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("model_args", "pretrained_cfg"):
            if not isinstance(value := getattr(self, name), dict | None):
                raise ValueError(f"{name}: expected a mapping or null, got {value!r}")
        out_features, out_indices = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        if self.id2label is None and self.num_classes:
            kwargs.setdefault("num_labels", self.num_classes)
        super().__post_init__(**kwargs)
        if out_features is not None or out_indices is not None:
            self.set_output_features_output_indices(out_features, out_indices)

    @property
    def stage_names(self) -> list[str]:
        """A name for each stage of the network: "stage1", "stage2", ..."""
        with torch.device("meta"):  # shapes alone, which is quick
            stages = self.create_network(0).feature_info
        return [f"stage{i + 1}" for i in range(len(stages))]

    def create_network(self, num_classes: int) -> Any:
        """The timm network, with a head of `num_classes` (0: none).

        Raises:
            ValueError: for an architecture of another family, or arguments that it does not take.
        """
        pretrained_cfg = {key: value for key, value in (self.pretrained_cfg or {}).items() if key in INPUT_KEYS}
        return create_from_config(
            self.architecture, self.model_args or {}, num_classes, pretrained_cfg, self.network_class
        )

    @property
    def classifier(self) -> str:
        """Name of the network's own head."""
        cfg = get_pretrained_cfg(self.architecture, allow_unregistered=False)
        return str(cfg.classifier if cfg is not None else "")

    @classmethod
    def of_network(cls, network: Any, class_names: Sequence[str] | None = None) -> "ZooVisionConfig | None":
        """The configuration of a timm network, of its own family; None if no family of this package has it.

        Raises:
            ValueError: if timm does not know what the network was made of.
        """
        if not hasattr(network, "pretrained_cfg"):
            raise ValueError(
                f"network: expected one made by timm.create_model, which notes arguments, got {type(network).__name__}"
            )
        family = CONFIGS.get(type(network))
        if family is None:
            return None
        left_out = WEIGHT_SOURCES | {"num_classes"}
        arguments = {key: value for key, value in get_model_args(network).items() if key not in left_out}
        names = None if class_names is None else dict(enumerate(class_names))
        return family(
            architecture=network.pretrained_cfg["architecture"],
            model_args={key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()},
            pretrained_cfg=input_cfg(network),
            num_classes=network.num_classes,
            id2label=names,
            label2id=None if names is None else {name: index for index, name in names.items()},
        )


CONFIGS: dict[type[nn.Module], type[ZooVisionConfig]] = {}
"""Configuration class of each family, by the class of its networks."""


def register_family(
    config: type[ZooVisionConfig],
    *,
    segmenter: type[PreTrainedModel],
    model: type[PreTrainedModel] | None = None,
    classifier: type[PreTrainedModel] | None = None,
    backbone: type[PreTrainedModel] | None = None,
) -> None:
    """Makes a family known to transformers' Auto classes and pipelines; every family's file ends with it.

    Args:
        config: configuration class.
        segmenter: for semantic segmentation.
        model: without head.
        classifier: for image classification.
        backbone: feature maps.
    """
    CONFIGS[config.network_class] = config
    AutoConfig.register(config.model_type, config, exist_ok=True)
    processors = {"torchvision": config.image_processor_class}
    AutoImageProcessor.register(config, image_processor_classes=processors, exist_ok=True)
    for auto, model_class in (
        (AutoModel, model),
        (AutoModelForImageClassification, classifier),
        (AutoModelForSemanticSegmentation, segmenter),
        (AutoBackbone, backbone),
    ):
        if model_class is not None:
            auto.register(config, model_class, exist_ok=True)
    # Pipelines look class names up here and otherwise log that the model is not supported.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config.model_type] = segmenter.__name__
    if classifier is not None:
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES[config.model_type] = classifier.__name__


def input_cfg(network: Any) -> dict[str, Any]:
    """The part of a timm network's `pretrained_cfg` that describes its input and head, not where weights lie."""
    known = {key: network.pretrained_cfg[key] for key in INPUT_KEYS if key in network.pretrained_cfg}
    known |= {"input_size": get_model_input_config(network)["input_size"], "num_classes": network.num_classes}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in known.items()}


# --- outputs --------------------------------------------------------------------------------------------------------


@dataclass
class ZooVisionModelOutput(BaseModelOutputWithPooling):
    """`last_hidden_state` as the network's `forward_features`, `pooler_output` (B, C) the image's feature.

    `hidden_states` are each stage's tokens (B, N, C), or its feature map (B, C, h, w) where it has no tokens, and the
    `last_hidden_state`; `attentions` are the soft assignments of the grouping, (B, heads, N_l, N_{l+1}) each, whose
    rows sum to 1.
    """

    grouping: Grouping | None = None


@dataclass
class ZooImageClassifierOutput(ImageClassifierOutput):
    """`logits` (B, K); the other fields as in `ZooVisionModelOutput`."""

    grouping: Grouping | None = None


@dataclass
class ZooSemanticSegmenterOutput(SemanticSegmenterOutput):
    """`logits` (B, K, H, W); the other fields as in `ZooVisionModelOutput`."""

    grouping: Grouping | None = None


# --- models ---------------------------------------------------------------------------------------------------------


class ZooVisionPreTrainedModel(ZooPreTrainedModel):
    """A timm network of an image family as `self.model`."""

    config_class = ZooVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]  # noqa: RUF012 - transformers' own convention

    def __init__(self, config: ZooVisionConfig, num_classes: int = 0) -> None:
        super().__init__(config)
        self._num_classes = num_classes
        self.model = self.make_network()
        config.num_features = self.model.num_features
        if config.pretrained_cfg is None:
            config.pretrained_cfg = input_cfg(self.model)
        # Labels may be given one way alone, or replace a checkpoint's.
        config.label2id = {str(name): int(index) for index, name in (config.id2label or {}).items()}
        heads = {f"{NETWORK_PREFIX}{config.classifier}.", SEGMENTATION_PREFIX} - {self._head_prefix}
        self._keys_to_ignore_on_load_unexpected = ["^" + head.replace(".", r"\.") for head in sorted(heads)]

    def make_network(self) -> nn.Module:
        """See `ZooPreTrainedModel.make_network`."""
        # transformers asks for a precision by the default one; a network may hold values made in another.
        return self.config.create_network(self._num_classes).to(torch.get_default_dtype())

    @property
    def _head_prefix(self) -> str | None:
        """What the keys of this class' head start with; those of other heads in a checkpoint are left out."""
        return None

    def forward_grouping(self, pixel_values: Tensor, **network_args: Any) -> Grouping:
        """The grouping of images (B, in_chans, H, W)."""
        return self.model.forward_grouping(pixel_values, **network_args)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes a folder that both doors open; the arguments are those of `transformers.PreTrainedModel`."""
        # A configuration may be shared by models with and without head; timm's door needs this one's.
        config: Any = self.config
        config.num_classes = self.model.num_classes
        config.pretrained_cfg |= {"num_classes": config.num_classes}
        if config.num_classes:
            config.pretrained_cfg["label_names"] = [config.id2label[index] for index in range(config.num_classes)]
        super().save_pretrained(save_directory, *args, **kwargs)

    def keys_of_fresh_head(
        self, source: Any, missing: Set[str], misshapen: Set[str], kwargs: dict[str, Any]
    ) -> set[str]:
        """Keys of a head that the checkpoint misses as a whole, or that has another number of labels there."""
        if self._head_prefix is None:
            return set()
        head = {key for key in self.state_dict() if key.startswith(self._head_prefix)}
        if not head & (missing | misshapen):
            return set()
        if source is None:
            return head if head <= missing else head & misshapen
        found, _ = PreTrainedConfig.get_config_dict(source, **hub_arguments(kwargs))
        if head <= missing and type(self).__name__ not in (found.get("architectures") or []):
            return head
        if type(self.config).from_dict(dict(found)).num_labels != self.config.num_labels:
            return head & misshapen
        return set()

    def _extras(
        self, encoded: GroupedFeatures, output_hidden_states: bool | None, output_attentions: bool | None
    ) -> dict[str, Any]:
        """The fields that all outputs share."""
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = self.config.output_attentions if output_attentions is None else output_attentions
        return dict(
            hidden_states=(*encoded.stages, encoded.features) if states else None,
            attentions=tuple(encoded.grouping.assignments) if attentions and encoded.grouping is not None else None,
            grouping=encoded.grouping,
        )


class ZooVisionModel(ZooVisionPreTrainedModel):
    """An image network without head."""

    def __init__(self, config: ZooVisionConfig) -> None:
        super().__init__(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **network_args: Any,
    ) -> ZooVisionModelOutput:
        """Features and grouping of images.

        Args:
            pixel_values: (B, in_chans, H, W), any size that the network takes.
            output_hidden_states: also return each stage's tokens.
            output_attentions: also return the grouping's soft assignments.
            network_args: the network's own arguments.
        """
        encoded = self.model.forward_grouped(pixel_values, **network_args)
        return ZooVisionModelOutput(
            last_hidden_state=encoded.features,
            pooler_output=self.model.forward_head(encoded.features, pre_logits=True),
            **self._extras(encoded, output_hidden_states, output_attentions),
        )


class ZooOwnHeadModel(ZooVisionPreTrainedModel):
    """An image network with the head that it brings along."""

    def __init__(self, config: ZooVisionConfig) -> None:
        super().__init__(config, config.num_labels or 0)
        self.post_init()

    @property
    def _head_prefix(self) -> str:
        return f"{NETWORK_PREFIX}{self.config.classifier}."


class ZooForImageClassification(ZooOwnHeadModel):
    """An image network with its linear head."""

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        *,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **network_args: Any,
    ) -> ZooImageClassifierOutput:
        """Classifies images.

        Args:
            pixel_values: (B, in_chans, H, W), any size that the network takes.
            labels: (B,) int64 classes, or (B, K) float for several a picture or regression; also returns the loss.
            output_hidden_states: also return each stage's tokens.
            output_attentions: also return the grouping's soft assignments.
            network_args: the network's own arguments.
        """
        encoded = self.model.forward_grouped(pixel_values, **network_args)
        logits = self.model.forward_head(encoded.features)
        return ZooImageClassifierOutput(
            loss=None if labels is None else self.loss_function(labels, logits, self.config),
            logits=logits,
            **self._extras(encoded, output_hidden_states, output_attentions),
        )


class ZooForSemanticSegmentation(ZooVisionPreTrainedModel):
    """An image network with a segmentation head; a family makes it in `make_head` and uses it in `segment`."""

    def __init__(self, config: ZooVisionConfig) -> None:
        super().__init__(config)
        self.segmentation_head = self.make_head(config.num_labels or 0)
        self.post_init()

    @property
    def _head_prefix(self) -> str:
        return SEGMENTATION_PREFIX

    def make_head(self, num_labels: int) -> nn.Module:
        """The head, from the features of `self.model` to `num_labels`."""
        raise NotImplementedError

    def segment(self, encoded: GroupedFeatures, size: tuple[int, int]) -> Tensor:
        """Logits (B, K, H, W) of every pixel of images of a size."""
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        *,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **network_args: Any,
    ) -> ZooSemanticSegmenterOutput:
        """Classifies every pixel.

        Args:
            pixel_values: (B, in_chans, H, W), any size that the network takes.
            labels: (B, H', W') int64, `semantic_loss_ignore_index` where unknown; also returns the cross-entropy.
            output_hidden_states: also return each stage's tokens.
            output_attentions: also return the grouping's soft assignments.
            network_args: the network's own arguments.
        """
        encoded = self.model.forward_grouped(pixel_values, **network_args)
        logits = self.segment(encoded, (pixel_values.shape[-2], pixel_values.shape[-1]))
        return ZooSemanticSegmenterOutput(
            loss=None if labels is None else segmentation_loss(logits, labels, self.config.semantic_loss_ignore_index),
            logits=logits,
            **self._extras(encoded, output_hidden_states, output_attentions),
        )


def segmentation_loss(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Cross-entropy of logits (B, K, H, W) and classes (B, H', W') of every pixel that is not `ignore_index`."""
    if labels.shape[-2:] != logits.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels, ignore_index=ignore_index)


def pixel_logits(logits: Tensor, grid: tuple[int, int], patch_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Interpolates the logits of patches (B, N, K) on a grid to those of an image's pixels (B, K, H, W)."""
    logits = logits.transpose(1, 2).unflatten(2, grid)  # (B, K, h, w)
    # The patches may reach past the image.
    padded = [number * side for number, side in zip(grid, patch_size, strict=True)]
    logits = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)
    return logits[:, :, : size[0], : size[1]]


class ZooBackbone(BackboneMixin, ZooVisionPreTrainedModel):
    """An image network as a detector or segmenter takes it: feature maps (B, C, h, w) of chosen stages."""

    has_attentions = False

    def __init__(self, config: ZooVisionConfig) -> None:
        config.set_output_features_output_indices(config._out_features, config._out_indices)
        super().__init__(config)
        self.num_features = [stage["num_chs"] for stage in self.model.feature_info]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **network_args: Any,
    ) -> BackboneOutput:
        """Feature maps (B, C, h, w) of the stages in `out_features`, as timm's `forward_intermediates` gives them.

        Args:
            pixel_values: (B, in_chans, H, W), any size that the network takes.
            output_hidden_states: also return the maps of all stages.
            output_attentions: has no effect, as in backbones without attention maps.
            network_args: the network's own arguments.
        """
        number = len(self.stage_names)
        wanted = [index % number for index in self.out_indices]
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        taken = list(range(number)) if states else wanted
        maps = self.model.forward_intermediates(
            pixel_values, indices=taken, stop_early=True, intermediates_only=True, **network_args
        )
        return BackboneOutput(
            feature_maps=tuple(maps[taken.index(index)] for index in wanted),
            hidden_states=tuple(maps) if states else None,
        )


# --- checkpoint folders ---------------------------------------------------------------------------------------------


def publish(
    network: nn.Module,
    folder: Path,
    card: str,
    *,
    class_names: Sequence[str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Writes the checkpoint folder of a timm network.

    A network of an image family of this package opens by both doors: with a head as ForImageClassification (VT-FPN:
    ForSemanticSegmentation), without as Model. Any other timm network is written as timm itself does.

    Args:
        network: made by `timm.create_model`.
        folder: made if need be.
        card: the model card, Markdown.
        class_names: of the head's classes; left out where there is no head.
        metrics: figures that are added to the card as a table.

    Raises:
        ValueError: if the names are not as many as the classes.
    """
    number = getattr(network, "num_classes", 0)
    names = list(class_names) if class_names is not None and number else None
    if names is not None and len(names) != number:
        raise ValueError(f"class_names: expected {number}, one for each class of the head, got {len(names)}")
    config = ZooVisionConfig.of_network(network, names)
    if config is None:
        save_for_hf(network, str(folder), {"label_names": names} if names else None, safe_serialization=True)
    else:
        auto_class = config.head_class if number else AutoModel
        model: Any = auto_class.from_config(config)
        model.model.load_state_dict(network.state_dict())
        model.save_pretrained(folder)
        whole = config.head_class is AutoModelForSemanticSegmentation
        config.image_processor_class.of_network(network, whole=whole).save_pretrained(folder)
    Path(folder, "README.md").write_text(card + _figures(metrics or {}), encoding="utf-8")


def _figures(metrics: Mapping[str, float]) -> str:
    """A Markdown table of figures."""
    if not metrics:
        return ""
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return "\n".join(["", "| figure | value |", "|---|---|", *rows, ""])
