"""A grouping network with a text encoder as a transformers class, with its processor.

Named after GroupViT, whose vision encoder is the default; any grouping network takes its place (`architecture`).

Shape legend: B images, L texts, T text tokens, S segments, C tower width, D joint width, (H, W) image size.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    GroupViTConfig,
    GroupViTModel,
    PreTrainedConfig,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.auto.modeling_auto import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES
from transformers.models.groupvit.modeling_groupvit import GroupViTModelOutput
from transformers.processing_utils import ProcessorMixin
from transformers.utils import can_return_tuple

from grouping_zoo.grouping import Grouping
from grouping_zoo.hf.base import ZooPreTrainedModel, hub_arguments
from grouping_zoo.hf.image_processing import PillowResizing
from grouping_zoo.hf.vision import input_cfg
from grouping_zoo.models.groupvit_checkpoint import convert_state_dict
from grouping_zoo.models.image_text import ImageTextModel

# The first CLIP-like configurations gave 2 as the end-of-text id; their text feature is read at the highest id.
LEGACY_EOS_TOKEN_ID = 2


class ZooGroupViTConfig(PreTrainedConfig):
    """Configuration of `ZooGroupViTModel`; `config.json` carries timm's fields beside transformers'.

    Args:
        architecture: timm name of the vision model.
        model_args: arguments of the vision model.
        text_args: arguments of `grouping_zoo.models.text_encoder.TextEncoder`.
        projection_dim: width of the joint space.
        projection_hidden_dim: hidden width of both projectors.
        projection_batch_norm: whether the projectors have batch norms.
        class_names: classes that zero-shot recognition and segmentation take unless told otherwise.
        prompt_templates: texts with "{}" that a class name is put into; null takes "a photo of a {}." alone.
        background_threshold: share below which a pixel counts as background in zero-shot segmentation; this and the
            next four are settings of `grouping_zoo.inference.zero_shot.ZeroShotSegmenter`.
        top_classes: how many classes an image may have.
        masks: "hard" or "soft".
        background_similarity: cosine of the class "none of these"; null for no such class.
        multi_label_scale: whether the multi-label loss's temperature counts.
        pretrained_cfg: timm's description of the input (size, mean, std, ...).
        num_classes: timm's head; the published checkpoints have none.
    """

    model_type = "zoo_groupvit"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["grouping"]

    architecture: str = "groupvit_small_patch16_224"
    model_args: dict[str, Any] | None = None
    text_args: dict[str, Any] | None = None
    projection_dim: int = 256
    projection_hidden_dim: int = 4096
    projection_batch_norm: bool = True
    class_names: list[str] | None = None
    prompt_templates: list[str] | None = None
    background_threshold: float = 0.95
    top_classes: int = 5
    masks: str = "hard"
    background_similarity: float | None = None
    multi_label_scale: bool = False
    pretrained_cfg: dict[str, Any] | None = None
    num_classes: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        # A configuration may be a stranger's: a wrong type shall be named here, not surface somewhere in a layer.
        for names, kind, expected in (
            (("model_args", "text_args", "pretrained_cfg"), dict | None, "a mapping or null"),
            (("projection_dim", "projection_hidden_dim"), int, "a whole number"),
        ):
            for name in names:
                if not isinstance(value := getattr(self, name), kind):
                    raise ValueError(f"{name}: expected {expected}, got {value!r}")

    @classmethod
    def from_transformers(cls, config: GroupViTConfig) -> "ZooGroupViTConfig":
        """The same network as one of transformers' own GroupViT configurations."""
        vision: Any = config.vision_config
        text: Any = config.text_config
        for name, found, expected in (
            ("vision_config.hidden_act", vision.hidden_act, "gelu"),
            ("text_config.hidden_act", text.hidden_act, "quick_gelu"),
            ("vision_config.assign_eps", vision.assign_eps, 1.0),
            ("vision_config.layer_norm_eps", vision.layer_norm_eps, 1e-5),
            ("text_config.layer_norm_eps", text.layer_norm_eps, 1e-5),
        ):
            if found != expected:
                raise ValueError(f"{name}: only {expected} can be converted, got {found}")
        legacy_eos = text.eos_token_id == LEGACY_EOS_TOKEN_ID
        return cls(
            model_args=dict(
                img_size=vision.image_size,
                patch_size=vision.patch_size,
                in_chans=vision.num_channels,
                embed_dim=vision.hidden_size,
                depths=list(vision.depths),
                num_heads=vision.num_attention_heads,
                num_group_tokens=list(vision.num_group_tokens),
                num_output_groups=list(vision.num_output_groups),
                mlp_ratio=_ratio(vision.intermediate_size, vision.hidden_size),
                assign_mlp_ratio=list(vision.assign_mlp_ratio),
            ),
            text_args=dict(
                vocab_size=text.vocab_size,
                context_length=text.max_position_embeddings,
                width=text.hidden_size,
                depth=text.num_hidden_layers,
                num_heads=text.num_attention_heads,
                mlp_ratio=_ratio(text.intermediate_size, text.hidden_size),
                eos_token_id=None if legacy_eos else text.eos_token_id,
            ),
            projection_dim=config.projection_dim,
            projection_hidden_dim=config.projection_intermediate_dim,
        )


@dataclass
class ZooGroupViTModelOutput(GroupViTModelOutput):
    """The fields of transformers' `GroupViTModelOutput`, and the grouping.

    Fields of a tower that got no input are None. `vision_model_output.last_hidden_state` is the normalised segments
    (B, S, C) and its `attentions` the soft assignments (B, M, N) of each grouping block.

    Args:
        grouping: the image tokens' way through the groups; None without images.
    """

    grouping: Grouping | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are set, nested outputs as tuples."""
        values = (getattr(self, key) for key in self.keys())
        return tuple(v.to_tuple() if isinstance(v, BaseModelOutputWithPooling) else v for v in values)


class ZooGroupViTModel(ZooPreTrainedModel):
    """GroupViT's two towers: images and texts in one space, and zero-shot segmentation."""

    config_class = ZooGroupViTConfig
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]  # noqa: RUF012 - transformers' own convention

    def __init__(self, config: ZooGroupViTConfig) -> None:
        super().__init__(config)
        self.model = self.make_network()
        if config.pretrained_cfg is None:
            config.pretrained_cfg = input_cfg(self.model.vision)
        config.num_features = self.model.vision.num_features
        self.post_init()

    def make_network(self) -> ImageTextModel:
        """See `ZooPreTrainedModel.make_network`."""
        config = self.config
        return ImageTextModel(
            config.architecture,
            config.model_args,
            config.text_args,
            config.projection_dim,
            config.projection_hidden_dim,
            config.projection_batch_norm,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Opens a checkpoint folder or hub name of this package, or one saved by transformers' `GroupViTModel`.

        Raises:
            ValueError: listing the keys, if the checkpoint does not fill the model exactly.
        """
        if pretrained_model_name_or_path is None:  # weights given as a `state_dict`
            return super().from_pretrained(None, *args, **kwargs)
        config_dict, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **hub_arguments(kwargs))
        if config_dict.get("model_type") != GroupViTConfig.model_type:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        kwargs.pop("config", None)
        loaded: Any = GroupViTModel.from_pretrained(
            pretrained_model_name_or_path, *args, **{**kwargs, "output_loading_info": True}
        )
        source, info = loaded
        wrong = {*info["missing_keys"], *info["unexpected_keys"]}
        if wrong:
            raise ValueError(
                f"{pretrained_model_name_or_path}: missing or leftover keys of GroupViTModel: "
                f"{', '.join(sorted(wrong))}"
            )
        model = cls(ZooGroupViTConfig.from_transformers(source.config))
        model.model.load_state_dict(convert_state_dict(source.state_dict()))
        return model.to(source.dtype).eval()

    def get_input_embeddings(self) -> nn.Module:
        """Embedding of the text tokens."""
        return self.model.text.token_embedding

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: Tensor,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """The vision tower's output, with `pooler_output` projected to the joint space (B, D); see `forward`."""
        output, _ = self._vision(pixel_values, self._extra_inputs(kwargs), output_attentions, output_hidden_states)
        output.pooler_output = self.model.image_projector(output.pooler_output)
        return output

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """The text tower's output, with `pooler_output` projected to the joint space (L, D)."""
        output = self._text(input_ids, attention_mask)
        output.pooler_output = self.model.text_projector(output.pooler_output)
        return output

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_segmentation: bool | None = None,
        **kwargs: Any,
    ) -> ZooGroupViTModelOutput:
        """Compares images with texts; either may be left out for the other's features alone.

        Args:
            input_ids: (L, T) int64.
            pixel_values: (B, in_chans, H, W), any size.
            attention_mask: (L, T), 0 where a token is padding.
            return_loss: also return the contrastive loss (needs as many texts as images).
            output_attentions: also return the soft assignments in `vision_model_output.attentions`.
            output_hidden_states: also return each stage's tokens after its blocks, and the final segments.
            output_segmentation: also return `segmentation_logits` (B, L, H, W).
            kwargs: what else the vision model takes, such as `superpixels`.

        Raises:
            ValueError: without any input, or where a request needs the input that is missing.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("ZooGroupViTModel: expected input_ids, pixel_values or both, got neither")
        if (input_ids is None or pixel_values is None) and (return_loss or output_segmentation):
            raise ValueError("return_loss and output_segmentation need both input_ids and pixel_values")
        vision: Any = None
        states: Any = None
        image, grouping, text = None, None, None
        if pixel_values is not None:
            inputs = self._extra_inputs(kwargs)
            vision, grouping = self._vision(pixel_values, inputs, output_attentions, output_hidden_states)
            image = F.normalize(self.model.image_projector(vision.pooler_output), dim=-1)
        if input_ids is not None:
            states = self._text(input_ids, attention_mask)
            text = F.normalize(self.model.text_projector(states.pooler_output), dim=-1)
        logits, segmentation, loss = None, None, None
        if image is not None and text is not None:
            logits = self.model.scale() * image @ text.T  # (B, L)
            loss = _contrastive_loss(logits) if return_loss else None
        if output_segmentation:
            assert grouping is not None
            assert text is not None
            assert pixel_values is not None
            segmentation = self._segment(vision.last_hidden_state, grouping, text, pixel_values.shape[-2:])
        # All at once: fields set later would come last, and pipelines read the first.
        return ZooGroupViTModelOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=None if logits is None else logits.T,
            segmentation_logits=segmentation,
            text_embeds=text,
            image_embeds=image,
            text_model_output=states,
            vision_model_output=vision,
            grouping=grouping,
        )

    def forward_grouping(self, pixel_values: Tensor, **inputs: Tensor) -> Grouping:
        """Grouping of images (B, in_chans, H, W); `inputs` are what else the vision model takes."""
        return self.model.forward_grouping(pixel_values, **inputs)

    def _extra_inputs(self, kwargs: dict[str, Any]) -> dict[str, Tensor]:
        return {name: kwargs[name] for name in self.model.vision.input_names if kwargs.get(name) is not None}

    def _vision(
        self,
        pixel_values: Tensor,
        inputs: dict[str, Any],
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> tuple[BaseModelOutputWithPooling, Grouping]:
        grouped = self.model.vision.forward_grouped(pixel_values, **inputs)
        grouping = self.model.vision.segment_grouping(grouped)
        segments = grouping.tokens[-1]  # (B, S, C)
        attentions = None
        if output_attentions if output_attentions is not None else self.config.output_attentions:
            attentions = tuple(a.mean(dim=1).transpose(1, 2) for a in grouping.assignments)  # (B, M, N)
        hidden_states = None
        if output_hidden_states if output_hidden_states is not None else self.config.output_hidden_states:
            hidden_states = (*grouped.stages, segments)
        output = BaseModelOutputWithPooling(
            last_hidden_state=segments,
            pooler_output=segments.mean(dim=1),
            hidden_states=hidden_states,
            attentions=attentions,
        )
        return output, grouping

    def _text(self, input_ids: Tensor, attention_mask: Tensor | None) -> BaseModelOutputWithPooling:
        states = self.model.text.forward_features(input_ids, attention_mask)
        return BaseModelOutputWithPooling(
            last_hidden_state=states, pooler_output=self.model.text.pool(states, input_ids)
        )

    def _segment(self, states: Tensor, grouping: Grouping, text: Tensor, size: torch.Size) -> Tensor:
        """Similarity of each pixel's groups to each text, (B, L, H, W); transformers scales it twice."""
        segments = F.normalize(self.model.image_projector(states), dim=-1)
        scale = self.model.scale()
        affinity = scale * text @ segments.transpose(1, 2)  # (B, L, S)
        groups = grouping.probabilities(-1, (size[0], size[1])).to(affinity.dtype)  # (B, S, H, W)
        return scale * torch.einsum("bls,bshw->blhw", affinity, groups)


def _ratio(hidden: int, width: int) -> float:
    """hidden / width such that int(width * ratio) is `hidden` in spite of rounding."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _contrastive_loss(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of a square similarity."""
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(f"return_loss: expected as many texts as images, got {logits.shape[1]} and {logits.shape[0]}")
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class ZooGroupViTImageProcessor(PillowResizing):
    """Resizes an image (whole, without cropping), scales it to [0, 1] and normalises it with ImageNet's figures."""

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}  # noqa: RUF012 - the backend's own convention
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def post_process_semantic_segmentation(
        self, outputs: ZooGroupViTModelOutput, target_sizes: list[tuple[int, int]] | None = None
    ) -> list[Tensor]:
        """The best text of every pixel.

        Args:
            outputs: of a call with `output_segmentation=True`.
            target_sizes: (height, width) of each map; the logits' own size if omitted.

        Returns:
            for each image an int64 map (height, width) of indices into the texts.
        """
        logits = outputs.segmentation_logits
        if logits is None:
            raise ValueError("segmentation_logits: got None; call the model with output_segmentation=True")
        sizes = target_sizes or [(logits.shape[-2], logits.shape[-1])] * len(logits)
        if len(sizes) != len(logits):
            raise ValueError(f"target_sizes: expected one for each of {len(logits)} images, got {len(sizes)}")
        return [
            F.interpolate(one[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0)
            for one, size in zip(logits, sizes, strict=True)
        ]


class ZooGroupViTProcessor(ProcessorMixin):
    """The image processor and the tokenizer in one."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer)


AutoConfig.register(ZooGroupViTConfig.model_type, ZooGroupViTConfig, exist_ok=True)
AutoModel.register(ZooGroupViTConfig, ZooGroupViTModel, exist_ok=True)
AutoModelForZeroShotImageClassification.register(ZooGroupViTConfig, ZooGroupViTModel, exist_ok=True)
AutoImageProcessor.register(
    ZooGroupViTConfig, image_processor_classes={"torchvision": ZooGroupViTImageProcessor}, exist_ok=True
)
AutoProcessor.register(ZooGroupViTConfig, ZooGroupViTProcessor, exist_ok=True)
# Pipelines look class names up here and otherwise log that the model is not supported.
MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES[ZooGroupViTConfig.model_type] = ZooGroupViTModel.__name__
