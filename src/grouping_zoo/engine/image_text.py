"""The task "image_text": two towers trained from images and their captions."""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from grouping_zoo.data.captioned import CaptionedImages, CaptionedStream
from grouping_zoo.data.captions import PROMPT_TEMPLATES, NltkNounExtractor, NounExtractor, VocabularyNounExtractor
from grouping_zoo.data.captions import frequent_nouns as find_frequent_nouns
from grouping_zoo.data.image_text import ImageTextDataset, ImageTextStream, SampleMaker, collate
from grouping_zoo.data.sets import find_set, open_captions, set_spec
from grouping_zoo.data.sets.objects import Objects
from grouping_zoo.data.sets.scenes import Scenes
from grouping_zoo.data.tokenization import clip_tokenizer, make_tokenize, train_tokenizer
from grouping_zoo.data.views import train_transform
from grouping_zoo.engine.model_card import image_text_card
from grouping_zoo.engine.recipe import Recipe
from grouping_zoo.engine.validation import EvaluationConfig, Validation, card_metrics
from grouping_zoo.evaluation.evaluated_model import EvaluatedModel, text_model
from grouping_zoo.hf.checkpoint_folder import find_checkpoint, save_checkpoint
from grouping_zoo.hf.image_text import (
    ZooGroupViTConfig,
    ZooGroupViTImageProcessor,
    ZooGroupViTModel,
    ZooGroupViTProcessor,
)
from grouping_zoo.hf.vision import input_cfg
from grouping_zoo.models.groupvit import GroupViT
from grouping_zoo.models.groupvit_checkpoint import convert_state_dict
from grouping_zoo.models.groupvit_stages import adapt_stages
from grouping_zoo.models.image_text import ImageTextModel, load_towers
from grouping_zoo.objectives.image_text import ImageTextConfig, ImageTextObjective

logger = logging.getLogger(__name__)

# Parts that may be tuned (Sharma 2023, section 5.5.1, Table 3), by parameter name; grouping blocks are GroupViT's.
GROUPING_BLOCK = re.compile(r"vision\.stages\.(\d+)\.grouping\.")
PARTS = {
    "all": r"",
    "grouping_blocks": r"vision\.stages\.\d+\.grouping\.",
    "last_grouping_block": r"vision\.stages\.{last}\.grouping\.",
    "image_projector": r"image_projector\.",
    "text_projector": r"text_projector\.",
}
Part = Literal["all", "grouping_blocks", "last_grouping_block", "image_projector", "text_projector"]
CAPTIONS_FOR_VOCABULARY = 2000
Source = Scenes | Objects | CaptionedImages | CaptionedStream


@dataclass(kw_only=True)
class ModelConfig:
    """The two towers."""

    architecture: str = "groupvit_small_patch16_224"
    """timm name of the vision tower."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the vision tower."""
    tokenizer: str = "clip"
    """"clip"; "trained", a small vocabulary made from the first captions; or a folder or hub name of a tokenizer."""
    vocabulary_size: int = 512
    """Of a trained vocabulary."""
    context_length: int = 77
    """Longest text in tokens."""
    text_width: int = 256
    """Width of the text tower."""
    text_depth: int = 12
    """Layers of the text tower."""
    text_heads: int = 4
    """Attention heads of the text tower."""
    projection_dim: int = 256
    """Width of the joint space."""
    projection_hidden_dim: int = 4096
    """Hidden width of both projectors."""
    projection_batch_norm: bool = True
    """Whether the projectors have batch norms."""
    tune: list[Part] = field(default_factory=lambda: ["all"])
    """Parts whose parameters are trained; the others stay as they are."""
    adapt_stages: bool = False
    """Let run.init_from be a checkpoint of a GroupViT with other stages (section 5.13)."""

    def __post_init__(self) -> None:
        if not self.tune:
            raise ValueError(f"model.tune: expected at least one of {', '.join(PARTS)}, got an empty list")


@dataclass(kw_only=True)
class DataConfig:
    """Images with captions, and the nouns in them."""

    source: str = "scenes"
    """A data set with captions: "scenes", "digits", "folder:DIR" (images with metadata.csv or metadata.jsonl),
    "hub:NAME", "webdataset:SHARDS"."""
    path: str | None = None
    """The part of the source after the colon, if it is not written there: source: folder, path: DIR."""
    split: str = "train"
    """Split of a hub data set."""
    streaming: bool = False
    """Read a hub data set without downloading it first."""
    length: int = 10_000
    """Scenes an epoch."""
    objects: Literal["shapes", "digits"] = "shapes"
    """Objects of the scenes; "digits" is another way to write source: digits."""
    recolor: float = 0.0
    """Fraction of the scenes with their photo in other colors."""
    image_size: int = 224
    """Side of the training views in pixels."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest fraction of the image that a view shows."""
    flip: bool = True
    """Mirror half of the views."""
    color_jitter: float = 0.4
    """Strength of colour changes."""
    rand_augment: bool = True
    """DeiT's random augmentation."""
    erasing: float = 0.25
    """Probability of an erased rectangle."""
    nouns: Literal["source", "nltk", "nltk_phrases", "vocabulary"] = "nltk"
    """Where labels come from: the source's own, NLTK's nouns, adjective + noun phrases, or a given vocabulary."""
    vocabulary: list[str] = field(default_factory=list)
    """Nouns to look for with nouns=vocabulary."""
    num_nouns: int = 3
    """Labels an image, K."""
    fill: Literal["pad", "caption"] = "caption"
    """Where a caption has fewer nouns: "caption" repeats it (as published), "pad" masks the missing (section 5.7)."""
    prompts: list[str] = field(default_factory=lambda: list(PROMPT_TEMPLATES))
    """Texts with "{}" that a noun is put into, one of them by chance."""
    minimum_noun_count: int = 0
    """Keep only nouns in at least so many captions (section 5.7.1); 0 keeps all. Reads all captions once."""

    def __post_init__(self) -> None:
        find_set(self.spec, ("caption",))
        if (self.nouns == "vocabulary") != bool(self.vocabulary):
            raise ValueError("data.vocabulary: give nouns with data.nouns=vocabulary, and only then")

    @property
    def spec(self) -> str:
        """The data set, as `open_captions` takes it."""
        return set_spec(self.source, self.path, self.objects)


@dataclass(kw_only=True)
class ZeroShotConfig:
    """Settings of zero-shot tasks, which the checkpoint takes for its defaults."""

    class_names: list[str] | None = None
    """Default classes of the checkpoint; null takes those of the scenes, if they are the source."""
    templates: list[str] = field(default_factory=lambda: list(PROMPT_TEMPLATES))
    """Prompts of a class."""
    background_threshold: float = 0.95
    """Affinity below which a pixel counts as background."""
    top_classes: int = 5
    """How many classes an image may have."""
    masks: Literal["hard", "soft"] = "hard"
    """Whether a pixel belongs to its most probable group or to all, by probability."""
    background_similarity: float | None = None
    """Cosine of the class "none of these" in zero-shot segmentation; null for no such class."""
    multi_label_scale: bool = False
    """Take the multi-label loss's temperature instead of the caption loss's."""


@dataclass(kw_only=True)
class ImageTextRecipe(Recipe):
    """A two-tower training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ImageTextConfig = field(default_factory=ImageTextConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    zero_shot: ZeroShotConfig = field(default_factory=ZeroShotConfig)

    def build(self) -> "ImageTextTask":
        """Build the towers, the objective and the data."""
        return ImageTextTask(self)


class ImageTextTask:
    """See `grouping_zoo.engine.task.Task`."""

    def __init__(self, recipe: ImageTextRecipe) -> None:
        self.recipe = recipe
        self.source = source = _open_source(recipe)
        self.tokenizer = _make_tokenizer(recipe.model, source)
        self.tokenize = make_tokenize(self.tokenizer)
        self.model_settings = _model_settings(recipe.model, self.tokenizer)
        self.model = ImageTextModel(**self.model_settings)
        if recipe.model.adapt_stages and not isinstance(self.model.vision, GroupViT):
            raise ValueError(
                f"model.adapt_stages: expected false with {recipe.model.architecture}, got true; set false"
            )
        freeze_all_but(self.model, recipe.model.tune)
        objective = recipe.objective
        teacher = None if objective.teacher is None else PatchTokens(objective.teacher, objective.teacher_layer)
        self.objective: nn.Module = ImageTextObjective(self.model, objective, teacher)
        self.dataset: Dataset[Any] = _make_dataset(recipe, source, self.tokenize, self.model.vision.pretrained_cfg)
        self.collate: Callable[[list[Any]], Any] = collate
        zero_shot = {**self._segmenter_settings, "templates": recipe.zero_shot.templates}
        data = recipe.data.spec if find_set(recipe.data.spec, ("caption",))[0].has_objects else None
        self.validation = Validation(recipe.evaluation, data, recipe.run.num_workers, zero_shot)
        self.validation.check(self._evaluated(self.model))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Run the recipe's tasks; none if it names none."""
        return self.validation(self._evaluated(model))

    @property
    def _segmenter_settings(self) -> dict[str, Any]:
        settings = asdict(self.recipe.zero_shot)
        del settings["class_names"], settings["templates"]
        return settings

    def _evaluated(self, model: Any) -> EvaluatedModel:
        size = self.recipe.data.image_size
        device = next(model.parameters()).device
        return text_model(self.recipe.model.architecture, model, self.tokenize, device, (size, size))

    def export(self, model: nn.Module, folder: Path, metrics: dict[str, float]) -> None:
        """Write a checkpoint folder that timm and transformers open."""
        assert isinstance(model, ImageTextModel)
        settings, size = self.recipe.zero_shot, self.recipe.data.image_size
        description = input_cfg(model.vision) | {"input_size": [model.vision.in_chans, size, size]}
        class_names = settings.class_names
        if class_names is None and isinstance(self.source, Scenes | Objects):
            class_names = list(self.source.class_names)
        config = ZooGroupViTConfig(
            **self.model_settings,
            class_names=class_names,
            prompt_templates=settings.templates,
            **self._segmenter_settings,
            pretrained_cfg=description,
        )
        published = ZooGroupViTModel(config)
        published.model.load_state_dict(model.state_dict())
        image_processor = ZooGroupViTImageProcessor(
            size={"height": size, "width": size}, image_mean=description["mean"], image_std=description["std"]
        )
        processor = ZooGroupViTProcessor(image_processor, self.tokenizer)
        data = self.recipe.data.spec
        card = image_text_card(self.recipe.run, self.recipe.model.architecture, data, card_metrics(metrics))
        save_checkpoint(folder, published.eval(), processor, card)

    def load_weights(self, source: str) -> None:
        """Start from a checkpoint folder or hub name (this package's or transformers'), or an original `.pth`."""
        if source.endswith((".pth", ".pth.tar", ".pt")):
            loaded = torch.load(source, map_location="cpu", weights_only=True)
            state = convert_state_dict(loaded.get("model", loaded))
        else:
            state = ZooGroupViTModel.from_pretrained(find_checkpoint(source)).model.state_dict()
        if self.recipe.model.adapt_stages:
            state, kept = adapt_stages(state, self.model)
            logger.info("parameters without a counterpart in %s: %s", source, ", ".join(kept) or "none")
        load_towers(self.model, state)


class PatchTokens(nn.Module):
    """A frozen timm vision transformer that gives the patch tokens of one block, (B, N, C)."""

    def __init__(self, name: str, layer: int) -> None:
        super().__init__()
        self.network: Any = timm.create_model(name, pretrained=True, num_classes=0, dynamic_img_size=True)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to tokens, without class token."""
        tokens = self.network.forward_intermediates(
            x, indices=[self.layer], output_fmt="NLC", intermediates_only=True, stop_early=True
        )
        return tokens[0]


def freeze_all_but(model: ImageTextModel, parts: Iterable[Part]) -> None:
    """Leave gradients to the parameters of some parts alone.

    Raises:
        ValueError: for a part that the model does not have.
    """
    names = [name for name, _ in model.named_parameters()]
    stages = [int(match[1]) for name in names if (match := GROUPING_BLOCK.match(name))]
    patterns = {part: re.compile(PARTS[part].replace("{last}", str(max(stages, default=0)))) for part in parts}
    for part, pattern in patterns.items():
        if not any(pattern.match(name) for name in names):
            raise ValueError(f"model.tune: expected parts of {type(model.vision).__name__}, got {part}; leave it out")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(pattern.match(name) for pattern in patterns.values()))


def _open_source(recipe: ImageTextRecipe) -> Source:
    data = recipe.data
    return open_captions(
        data.spec,
        data.split,
        length=data.length,
        image_size=data.image_size,
        seed=recipe.run.seed,
        recolor=data.recolor,
        streaming=data.streaming,
    )


def _captions(source: Scenes | Objects | CaptionedImages, count: int) -> Iterator[str]:
    """The first captions, without opening images that lie in files."""
    if isinstance(source, CaptionedImages):
        return islice(source.captions(), count)
    return (source[index].caption for index in range(min(len(source), count)))


def _noun_extractor(data: DataConfig, source: Source) -> NounExtractor | None:
    if data.nouns == "source" or not data.num_nouns:
        return None
    extractor: NounExtractor
    if data.nouns == "vocabulary":
        extractor = VocabularyNounExtractor(data.vocabulary)
    else:
        extractor = NltkNounExtractor(phrases=data.nouns == "nltk_phrases")
    if not data.minimum_noun_count:
        return extractor
    if isinstance(source, CaptionedStream):
        raise ValueError("data.minimum_noun_count: expected 0 with a stream, whose captions cannot be counted first")
    captions = _captions(source, len(source))
    return VocabularyNounExtractor(find_frequent_nouns(captions, extractor, data.minimum_noun_count))


def _make_dataset(
    recipe: ImageTextRecipe,
    source: Source,
    tokenize: Callable[[list[str]], Tensor],
    description: dict[str, Any],
) -> Dataset[Any]:
    data = recipe.data
    transform = train_transform(
        data.image_size,
        description["mean"],
        description["std"],
        scale=data.crop_scale,
        flip=data.flip,
        color_jitter=data.color_jitter,
        rand_augment=data.rand_augment,
        erasing=data.erasing,
    )
    num_nouns = data.num_nouns if recipe.objective.noun_weights else 0
    extractor = _noun_extractor(data, source)
    make = SampleMaker(
        transform=transform,
        tokenize=tokenize,
        noun_extractor=extractor,
        num_nouns=num_nouns,
        fill=data.fill,
        seed=recipe.run.seed,
        templates=data.prompts,
    )
    if isinstance(source, CaptionedStream):
        stream = ImageTextStream(source, make)
        stream.check_shards(max(recipe.run.num_workers, 1))
        return stream
    return ImageTextDataset(source, make)


def _make_tokenizer(config: ModelConfig, source: Source) -> PreTrainedTokenizerBase:
    if config.tokenizer == "clip":
        return clip_tokenizer(config.context_length)
    if config.tokenizer != "trained":
        return AutoTokenizer.from_pretrained(config.tokenizer, model_max_length=config.context_length)
    if isinstance(source, CaptionedStream):
        raise ValueError("model.tokenizer: expected clip or a tokenizer's folder with a stream, got trained")
    captions = _captions(source, CAPTIONS_FOR_VOCABULARY)
    prompts = [template.format("") for template in PROMPT_TEMPLATES]
    return train_tokenizer([*captions, *prompts], config.vocabulary_size, config.context_length)


def _model_settings(config: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Arguments of `ImageTextModel`, which are also fields of `ZooGroupViTConfig`."""
    return dict(
        architecture=config.architecture,
        model_args=config.model_args,
        text_args=dict(
            vocab_size=len(tokenizer),
            context_length=config.context_length,
            width=config.text_width,
            depth=config.text_depth,
            num_heads=config.text_heads,
            eos_token_id=tokenizer.eos_token_id,
        ),
        projection_dim=config.projection_dim,
        projection_hidden_dim=config.projection_hidden_dim,
        projection_batch_norm=config.projection_batch_norm,
    )
