"""What transformers and timm expect of a text encoder beside every family's vision model."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, AutoTokenizer, pipeline

from grouping_zoo import ZooGroupViTImageProcessor, ZooGroupViTModel, ZooGroupViTProcessor
from grouping_zoo.data.tokenization import train_tokenizer
from grouping_zoo.hf.checkpoint_folder import save_checkpoint
from grouping_zoo.models.image_text import ImageTextModel
from invariants import assert_invariants
from two_towers import CAPTIONS, tiny_config
from zoo import SMALL, SmallModel, with_random_weights

TOWERS = ("groupvit_small", "groupvit_nano", "cast_small", "cast_seg_small", "pgt_nano", "vt_resnet18", "vt_fpn_nano")


@pytest.fixture(scope="module", params=TOWERS)
def small(request: pytest.FixtureRequest) -> SmallModel:
    return SMALL[request.param]


@pytest.fixture(scope="module")
def folder(small: SmallModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a tokenizer. Read-only."""
    torch.manual_seed(0)
    config = tiny_config(architecture=small.name, model_args=small.kwargs)
    model = with_random_weights(ZooGroupViTModel(config).eval())
    side = {"height": small.size, "width": small.size}
    tokenizer = train_tokenizer(CAPTIONS, vocab_size=300, context_length=16)
    processor = ZooGroupViTProcessor(ZooGroupViTImageProcessor(size=side), tokenizer)
    path = tmp_path_factory.mktemp("text") / small.case
    save_checkpoint(path, model, processor, "# card\n")
    return path


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModel.from_pretrained(folder)


@pytest.fixture
def texts(folder: Path) -> dict[str, Tensor]:
    return dict(AutoTokenizer.from_pretrained(folder)(CAPTIONS, padding=True, return_tensors="pt"))


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8))


@torch.no_grad()
def test_both_doors_give_the_same_numbers(model: Any, small: SmallModel, folder: Path) -> None:
    assert type(model) is ZooGroupViTModel
    assert type(AutoModelForZeroShotImageClassification.from_pretrained(folder)) is ZooGroupViTModel
    vision = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    assert vision.pretrained_cfg["architecture"] == small.name
    for size in (None, (small.size + 8, small.size - 8)):
        x = small.images(size=size)
        assert torch.equal(vision(x), model.model.vision(x))
        theirs, ours = vision.segment_grouping(vision.forward_grouped(x)), model(pixel_values=x).grouping
        assert all(torch.equal(a, b) for a, b in zip(theirs.tokens, ours.tokens, strict=True))
        assert torch.equal(model.forward_grouping(x).labels(), vision.forward_grouping(x).labels())


@torch.no_grad()
def test_save_and_load_are_bit_equal(model: Any, small: SmallModel, texts: dict[str, Tensor], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = AutoModel.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    inputs = dict(pixel_values=small.images(), **texts)
    assert torch.equal(again(**inputs).logits_per_image, model(**inputs).logits_per_image)


@torch.no_grad()
def test_images_or_texts_alone(model: Any, small: SmallModel, texts: dict[str, Tensor]) -> None:
    x = small.images()
    both, image, text = model(pixel_values=x, **texts), model(pixel_values=x), model(**texts)
    assert torch.equal(image.image_embeds, both.image_embeds)
    assert torch.equal(text.text_embeds, both.text_embeds)
    assert image.text_embeds is image.logits_per_image is image.loss is text.image_embeds is text.grouping is None
    assert both.logits_per_image.shape == (2, len(CAPTIONS))
    assert torch.equal(both.logits_per_text, both.logits_per_image.T)
    expected = F.normalize(model.get_image_features(x).pooler_output, dim=-1)
    assert torch.allclose(expected, both.image_embeds, atol=1e-6)
    expected = F.normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    assert torch.allclose(expected, both.text_embeds, atol=1e-6)
    image_feature, segments, grouping = model.model.encode_segments(x)
    assert torch.allclose(F.normalize(image_feature, dim=-1), both.image_embeds, atol=1e-6)
    assert segments.shape[:2] == grouping.tokens[-1].shape[:2]


@torch.no_grad()
def test_hidden_states_and_attentions_are_given_when_asked_for(model: Any, small: SmallModel) -> None:
    x = small.images()
    assert model(pixel_values=x).vision_model_output.attentions is None
    output = model(pixel_values=x, output_attentions=True, output_hidden_states=True)
    vision, stages = output.vision_model_output, model.model.vision.forward_grouped(x).stages
    assert_invariants(output.grouping, [None])
    assert all(
        torch.equal(a, b) for a, b in zip(vision.hidden_states, [*stages, vision.last_hidden_state], strict=True)
    )
    for attention, assignment in zip(vision.attentions, output.grouping.assignments, strict=True):
        assert torch.equal(attention, assignment[:, 0].transpose(1, 2))
    assert torch.equal(vision.last_hidden_state, output.grouping.tokens[-1])
    assert torch.allclose(vision.pooler_output, vision.last_hidden_state.mean(1), atol=1e-6)


@torch.no_grad()
def test_segmentation_is_the_similarity_of_each_pixels_groups_to_each_text(
    model: Any, small: SmallModel, texts: dict[str, Tensor]
) -> None:
    size = (small.size - 3, small.size + 11)
    output = model(pixel_values=small.images(size=size), output_segmentation=True, **texts)
    segments = F.normalize(model.model.image_projector(output.vision_model_output.last_hidden_state), dim=-1)
    groups = output.grouping.probabilities(-1, size)
    for text in range(len(CAPTIONS)):
        similarity = segments @ output.text_embeds[text] * model.model.scale() ** 2
        expected = (groups * similarity[:, :, None, None]).sum(1)
        assert torch.allclose(output.segmentation_logits[:, text], expected, rtol=1e-4, atol=1e-3)


def test_inputs_of_the_vision_model_pass_through(model: Any, small: SmallModel) -> None:
    for name in model.model.vision.input_names:
        given = {name: torch.zeros(2, small.size, small.size, dtype=torch.int64)}
        assert model(pixel_values=small.images(), **given).grouping.num_groups(0) == 1


UNTRAINED = ("multi_label_logit_scale",)  # of another loss
# Parts behind the segments that texts are compared with.
UNUSED = {
    "groupvit": (),
    "cast": (),
    "pgt": ("vision.pool.", "vision.layers.3.grouping.proj.", "vision.layers.3.norm.", "vision.layers.3.mlp."),
    "vt_resnet": ("vision.vt_modules.1.projector.", "vision.vt_modules.2.", "vision.final_proj.", "vision.norm."),
    "vt_fpn": ("vision.neck.projectors.", "vision.neck.norms.", "vision.head."),
}


def test_loss_trains_every_parameter_that_images_and_texts_share(
    model: Any, small: SmallModel, texts: dict[str, Tensor]
) -> None:
    model.train()
    # Of each tied ending one feature would be constant under the batch norm; the captions differ.
    model(pixel_values=small.images(4), return_loss=True, **texts).loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient.isfinite().all() for gradient in grads.values() if gradient is not None)
    without = {name.removeprefix("model.") for name, gradient in grads.items() if gradient is None}
    behind = next(parts for family, parts in UNUSED.items() if small.case.startswith(family))
    assert without == {
        name.removeprefix("model.") for name in grads if name.removeprefix("model.").startswith(UNTRAINED + behind)
    }


def test_gradient_checkpointing_gives_equal_gradients(
    folder: Path, small: SmallModel, texts: dict[str, Tensor]
) -> None:
    gradients = []
    for enable in (False, True):
        model: Any = AutoModel.from_pretrained(folder).train()
        if enable:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == enable
        torch.manual_seed(0)
        model(pixel_values=small.images(4), return_loss=True, **texts).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    for name in plain:
        assert torch.allclose(
            plain[name], recomputed[name], rtol=1e-3, atol=1e-5 * float(plain[name].abs().max()) + 1e-7
        )


def test_zero_shot_pipeline(folder: Path, model: Any, transformers_log: pytest.LogCaptureFixture) -> None:
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    labels = ["cat", "coffee cup", "rocket"]
    found = classify(photo(), candidate_labels=labels, hypothesis_template="a photo of a {}")
    inputs = AutoProcessor.from_pretrained(folder)(
        images=photo(), text=[f"a photo of a {x}" for x in labels], padding="max_length", return_tensors="pt"
    )
    with torch.no_grad():
        expected = model(**inputs).logits_per_image.softmax(-1)[0]
    scores = {answer["label"]: answer["score"] for answer in found}
    assert [scores[label] for label in labels] == pytest.approx(expected.tolist(), abs=1e-5)
    assert not transformers_log.messages


@torch.no_grad()
def test_loading_in_half_precision(folder: Path, small: SmallModel, texts: dict[str, Tensor]) -> None:
    model: Any = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    output = model(pixel_values=small.images().bfloat16(), output_segmentation=True, **texts)
    assert output.logits_per_image.isfinite().all()
    assert output.segmentation_logits.isfinite().all()
    exact: Any = AutoModel.from_pretrained(folder)(pixel_values=small.images(), **texts)
    assert torch.cosine_similarity(output.text_embeds.float(), exact.text_embeds).min() > 0.99
    assert torch.cosine_similarity(output.image_embeds.float(), exact.image_embeds).min() > 0.9


def test_initialisation_is_the_networks_own(model: Any) -> None:
    config = model.config
    torch.manual_seed(0)
    wrapped = ZooGroupViTModel(config).model.state_dict()
    torch.manual_seed(1)
    plain = ImageTextModel(
        config.architecture, config.model_args, config.text_args, config.projection_dim, config.projection_hidden_dim
    ).state_dict()
    for name, value in plain.items():
        if value.is_floating_point() and value.numel() >= 500 and value.std() > 0:
            assert wrapped[name].std() == pytest.approx(float(value.std()), rel=0.2), name
        elif value.is_floating_point() and value.numel() > 1 and value.std() == 0:
            assert torch.equal(wrapped[name], value), name
    assert wrapped["logit_scale"] == plain["logit_scale"]


def test_keys_that_do_not_fit_are_listed_by_both_doors(folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    tensors = load_file(copied / "model.safetensors")
    key = [key for key, value in sorted(tensors.items()) if key.startswith("model.vision.") and value.ndim == 2][-1]
    name = key.removeprefix("model.vision.").replace(".", r"\.")
    extra = {"model.vision.stages.7.unknown": torch.zeros(2)}
    for changed, message in (
        ({k: v for k, v in tensors.items() if k != key}, f"missing keys: .*{name}"),
        (tensors | extra, r"leftover keys: .*stages\.7\.unknown"),
        (tensors | {key: torch.zeros(3, 3)}, name),
    ):
        save_file(changed, copied / "model.safetensors", metadata={"format": "pt"})
        for door in (AutoModel.from_pretrained, lambda path: timm.create_model(f"local-dir:{path}", pretrained=True)):
            with pytest.raises(ValueError, match=message):
                door(copied)


def test_no_weight_decay_names_exist(model: Any) -> None:
    assert model.model.no_weight_decay() <= {name for name, _ in model.model.named_parameters()}


def test_a_vision_model_without_groups_is_refused() -> None:
    plain = SMALL["semantic_fpn_nano"]
    with pytest.raises(ValueError, match="architecture: expected a network that makes groups, got semantic_fpn_nano"):
        ZooGroupViTModel(tiny_config(architecture=plain.name, model_args=plain.kwargs))
