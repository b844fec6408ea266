"""What transformers, its pipelines and its Trainer expect of every image family's classes."""

import copy
import json
import shutil
from collections.abc import Callable
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
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    pipeline,
)

from grouping_zoo.hf.vision import CONFIGS, ZooBackbone, ZooOwnHeadModel, ZooVisionConfig, publish
from grouping_zoo.models.builder import zoo_models
from zoo import SMALL, SmallModel

AUTO_CLASSES: dict[str, Any] = {
    "model": AutoModel,
    "classifier": AutoModelForImageClassification,
    "segmenter": AutoModelForSemanticSegmentation,
    "backbone": AutoBackbone,
}
LABELS = ["cat", "cup", "rocket", "seven", "moon"]
CASES = (
    "groupvit_small",
    "cast_small",
    "cast_seg_small",
    "pgt_nano",
    "vt_resnet_nano",
    "vt_fpn_nano",
    "semantic_fpn_nano",
)
REPEATS = ("cast_seg_small", "semantic_fpn_nano")  # the classes of another case: their tests are marked slow


def classes_of(small: SmallModel) -> dict[str, Any]:
    """transformers classes of a model's family, by the Auto class that opens them."""
    with torch.device("meta"):
        config = CONFIGS[type(small.build())]
    return {head: auto._model_mapping[config] for head, auto in AUTO_CLASSES.items() if config in auto._model_mapping}


CLASSES = {case: classes_of(SMALL[case]) for case in CASES}
Folders = Callable[[SmallModel, str], Path]


def each(*heads: str) -> pytest.MarkDecorator:
    """Parametrizes a test by a model and one of the classes of its family, all unless some are named."""
    pairs = [(case, head) for case in CASES for head in CLASSES[case] if not heads or head in heads]
    params = [
        pytest.param(SMALL[case], head, id=f"{case}-{head}", marks=[pytest.mark.slow] if case in REPEATS else [])
        for case, head in pairs
    ]
    return pytest.mark.parametrize(("small", "head"), params)


every_class = each()
every_headed_class = each("classifier", "segmenter")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Checkpoint folder of a model for one of its classes, made once. Read-only."""
    made: dict[tuple[str, str], Path] = {}

    def folder_of(small: SmallModel, head: str) -> Path:
        key = (small.case, "model" if head == "backbone" else head)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("-".join(key))
            own_head = issubclass(CLASSES[small.case][head], ZooOwnHeadModel)
            publish(small.create(5 if own_head else 0), made[key], "# card\n", class_names=LABELS)
            if head == "segmenter" and not own_head:
                add_segmentation_head(made[key])
        return made[key]

    return folder_of


def add_segmentation_head(folder: Path) -> None:
    torch.manual_seed(0)
    segmenter = AutoModelForSemanticSegmentation.from_pretrained(folder, id2label=dict(enumerate(LABELS)))
    processor = type(AutoImageProcessor.from_pretrained(folder)).of_network(segmenter.model, whole=True)
    segmenter.save_pretrained(folder)
    processor.save_pretrained(folder)


def open_model(small: SmallModel, head: str, folder: Path, **kwargs: Any) -> Any:
    return CLASSES[small.case][head].from_pretrained(folder, **kwargs)


def open_timm(folder: Path, **kwargs: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()


def photo(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def answer(output: Any) -> Tensor:
    """The first field of any class' output."""
    return output.feature_maps[-1] if "feature_maps" in output else output[0]


def labels_for(small: SmallModel, head: str) -> Tensor:
    shape = (2,) if head == "classifier" else (2, small.size, small.size)
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(0))


# --- families and folders -------------------------------------------------------------------------------------------


def test_every_family_takes_part() -> None:
    assert {cls.config_class for case in CASES for cls in CLASSES[case].values()} == set(CONFIGS.values())


@pytest.mark.parametrize("name", zoo_models())
def test_every_architecture_has_a_configuration_that_makes_it_again(name: str) -> None:
    network = timm.create_model(name, num_classes=3, device="meta")
    config = ZooVisionConfig.of_network(network, ["a", "b", "c"])
    assert config is not None
    with torch.device("meta"):
        model = config.head_class.from_config(type(config).from_dict(config.to_dict()))
    shapes = {key: value.shape for key, value in model.model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in network.state_dict().items()}
    assert len(config.stage_names) == len(network.feature_info)


@every_class
def test_folder_has_the_files_and_fields_of_both_libraries(small: SmallModel, head: str, folders: Folders) -> None:
    folder = folders(small, head)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"}
    text = (folder / "config.json").read_text()
    config = json.loads(text)
    assert str(folder.parent) not in text
    assert config["architecture"] == small.name
    assert config["pretrained_cfg"]["input_size"] == [3, small.size, small.size]
    network = open_timm(folder)
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == network.num_classes
    assert config["num_features"] == network.num_features
    if network.num_classes:
        assert config["pretrained_cfg"]["label_names"] == list(config["id2label"].values()) == LABELS


@every_class
def test_auto_classes_open_the_folder_without_a_word(
    small: SmallModel, head: str, folders: Folders, transformers_log: pytest.LogCaptureFixture
) -> None:
    folder = folders(small, head)
    transformers_log.clear()  # of making the folder, whose segmentation head is new
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is CLASSES[small.case][head].config_class
    if head == "backbone":
        assert type(AutoBackbone.from_config(config)) is CLASSES[small.case][head]
    else:
        assert type(AUTO_CLASSES[head].from_pretrained(folder)) is CLASSES[small.case][head]
    assert type(AutoImageProcessor.from_pretrained(folder)) is config.image_processor_class
    for model_class in CLASSES[small.case].values():
        if not issubclass(model_class, ZooOwnHeadModel) and "segmentation" not in model_class.__name__.lower():
            assert not model_class.from_pretrained(folder).training  # a head that is not wanted is left out
    assert not transformers_log.messages


@every_class
@torch.no_grad()
def test_both_doors_give_the_same_numbers(small: SmallModel, head: str, folders: Folders) -> None:
    model, network = open_model(small, head, folders(small, head)), open_timm(folders(small, head))
    for name, parameter in network.named_parameters():
        assert model.model.get_parameter(name).requires_grad == parameter.requires_grad, "what is frozen stays so"
    for size in (None, (small.size + 8, small.size - 8)):
        x = small.images(size=size)
        output = model(x)
        assert torch.equal(model.model(x), network(x))
        if head == "model":
            assert torch.equal(output.last_hidden_state, network.forward_features(x))
            assert torch.equal(output.pooler_output, network(x))
        elif head == "classifier":
            assert torch.equal(output.logits, network(x))
        elif network.num_classes:
            expected = F.interpolate(network(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
            assert torch.equal(output.logits, expected)
        elif head == "segmenter":
            assert output.logits.shape == (2, 5, *x.shape[-2:])


@each("model", "classifier")
def test_both_doors_describe_the_same_preprocessing(small: SmallModel, head: str, folders: Folders) -> None:
    folder = folders(small, head)
    inputs = AutoImageProcessor.from_pretrained(folder)(photo(90, 130), return_tensors="pt", resample=3)
    data = timm.data.resolve_model_data_config(open_timm(folder))
    theirs = timm.data.create_transform(**data)(photo(90, 130))
    assert (inputs.pixel_values[0] - theirs).abs().mean() < 0.01  # one resizes by PIL, the other by torchvision


@every_class
def test_processor_makes_what_the_model_takes(small: SmallModel, head: str, folders: Folders) -> None:
    processor = AutoImageProcessor.from_pretrained(folders(small, head))
    network = open_timm(folders(small, head))
    inputs = processor([photo(), photo(90, 50)], return_tensors="pt")
    assert list(inputs) == processor.model_input_names == ["pixel_values", *network.input_names]
    assert inputs.pixel_values.shape == (2, 3, small.size, small.size)
    assert inputs.pixel_values.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(network(*inputs.values()), network(inputs.pixel_values))


@every_class
@torch.no_grad()
def test_save_and_load_are_bit_equal(small: SmallModel, head: str, folders: Folders, tmp_path: Path) -> None:
    model = open_model(small, head, folders(small, head))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = open_model(small, head, tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    expected = answer(model(small.images()))
    assert torch.equal(answer(again(small.images())), expected)
    if head != "backbone":
        before, after = (json.loads((path / "config.json").read_text()) for path in (folders(small, head), tmp_path))
        assert after == before
    copied = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(answer(copied(small.images())), expected), "a copy shares nothing"


@each("classifier")
def test_models_with_and_without_head_may_share_a_configuration(
    small: SmallModel, head: str, folders: Folders, tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(folders(small, head))
    plain, classifier = AutoModel.from_config(config), AutoModelForImageClassification.from_config(config)
    for name, model in (("plain", plain), ("classifier", classifier)):
        model.save_pretrained(tmp_path / name)
    assert open_timm(tmp_path / "plain")(small.images()).shape == (2, config.num_features)
    assert open_timm(tmp_path / "classifier")(small.images()).shape == (2, 5)


# --- heads ----------------------------------------------------------------------------------------------------------


@every_headed_class
@torch.no_grad()
def test_another_number_of_labels_makes_a_fresh_head_and_a_warning(
    small: SmallModel, head: str, folders: Folders, transformers_log: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    by_number, by_name = dict(num_labels=7), dict(id2label={i: f"class {i}" for i in range(7)})
    starts = [start for start in CLASSES[small.case] if start != "backbone"]
    for start, labels in [(starts[0], by_name), *((start, by_number) for start in starts)]:
        transformers_log.clear()
        model = open_model(small, head, folders(small, start), **labels)
        assert any(model._head_prefix in message for message in transformers_log.messages)
        assert model(small.images()).logits.shape[1] == 7
        body = load_file(folders(small, start) / "model.safetensors")
        kept = [key for key in model.state_dict() if not key.startswith(model._head_prefix)]
        assert all(torch.equal(model.state_dict()[key], body[key]) for key in kept)
        fresh = [p for name, p in model.named_parameters() if name.startswith(model._head_prefix)]
        assert all(p.isfinite().all() for p in fresh)
        assert any(p.std() > 0 for p in fresh)
        model.save_pretrained(tmp_path)
        again = open_model(small, head, tmp_path)
        assert torch.equal(again(small.images()).logits, model(small.images()).logits)


@each("classifier")
def test_a_fresh_head_starts_as_the_networks_own(small: SmallModel, head: str, folders: Folders) -> None:
    fresh = open_model(small, head, folders(small, "model"), num_labels=100).model.get_classifier().state_dict()
    torch.manual_seed(0)
    network = small.build(0)
    network.reset_classifier(100)
    for name, value in network.get_classifier().state_dict().items():
        assert fresh[name].std() == pytest.approx(float(value.std()), rel=0.2), name


@every_headed_class
def test_initialisation_is_the_networks_own(small: SmallModel, head: str, folders: Folders) -> None:
    config = AutoConfig.from_pretrained(folders(small, head))
    torch.manual_seed(0)
    wrapped = CLASSES[small.case][head](config).model
    torch.manual_seed(1)
    for name, value in small.build(wrapped.num_classes).state_dict().items():
        found = wrapped.state_dict()[name]
        if value.is_floating_point() and value.numel() >= 500 and value.std() > 0:
            assert found.std() == pytest.approx(float(value.std()), rel=0.2), name
        elif value.is_floating_point() and value.numel() > 1 and value.std() == 0:
            assert torch.equal(found, value), name


# --- outputs --------------------------------------------------------------------------------------------------------


@each("model", "classifier", "segmenter")
@torch.no_grad()
def test_hidden_states_and_assignments_are_given_when_asked_for(small: SmallModel, head: str, folders: Folders) -> None:
    model, x = open_model(small, head, folders(small, head)), small.images()
    plain, asked = model(x), model(x, output_hidden_states=True, output_attentions=True)
    grouped = model.model.forward_grouped(x)
    assert plain.hidden_states is plain.attentions is None
    assert all(torch.equal(a, b) for a, b in zip(asked.hidden_states, [*grouped.stages, grouped.features], strict=True))
    if grouped.grouping is None:
        assert plain.grouping is asked.attentions is None
    else:
        assert torch.equal(plain.grouping.labels(), model.forward_grouping(x).labels())
        assert all(torch.equal(a, b) for a, b in zip(asked.attentions, grouped.grouping.assignments, strict=True))
    listed = model(x, output_hidden_states=True, return_dict=False)
    assert isinstance(listed, tuple)
    assert torch.equal(listed[0], plain[0])
    # transformers refuses to hold this setting beside fused attention.
    switches = dict(output_attentions=True, output_hidden_states=True, attn_implementation="eager")
    by_config = open_model(small, head, folders(small, head), **switches)(x)
    assert torch.equal(by_config.hidden_states[-1], asked.hidden_states[-1])
    assert (by_config.attentions is None) == (grouped.grouping is None)


@every_class
@torch.no_grad()
def test_the_networks_own_arguments_pass_through(small: SmallModel, head: str, folders: Folders) -> None:
    model, x = open_model(small, head, folders(small, head)), small.images()
    changes = dict(num_clusters=(6, 4, 3, 2), num_groups=3, num_iters=1, seed=7)
    given = {name: value for name, value in changes.items() if name in model.model.grouping_args}
    inputs = {name: torch.zeros(2, *x.shape[-2:], dtype=torch.int64) for name in model.model.input_names}
    for arguments in ({name: value} for name, value in (given | inputs).items()):
        found, expected = model(x, **arguments), model.model.forward_grouped(x, **arguments)
        if head == "backbone":
            maps = model.model.forward_intermediates(x, 1, intermediates_only=True, **arguments)
            assert torch.equal(answer(found), maps[0])
            assert not torch.equal(answer(found), answer(model(x)))
        else:
            assert all(torch.equal(a, b) for a, b in zip(found.grouping.tokens, expected.grouping.tokens, strict=True))
            assert torch.equal(model.forward_grouping(x, **arguments).labels(), expected.grouping.labels())
            assert not torch.equal(found.grouping.assignments[0], model(x).grouping.assignments[0])
    with pytest.raises(TypeError, match="nonsense"):
        model(x, nonsense=1)


@each("backbone")
@torch.no_grad()
def test_backbone_gives_the_feature_maps_of_the_stages(small: SmallModel, head: str, folders: Folders) -> None:
    folder, x = folders(small, head), small.images()
    maps = open_timm(folder).forward_intermediates(x, intermediates_only=True)
    for asked, expected in (
        (dict(), [len(maps) - 1]),
        (dict(out_indices=[0, -1]), [0, len(maps) - 1]),
        (dict(out_features=["stage1", "stage2"]), [0, 1]),
    ):
        backbone = open_model(small, head, folder, **asked)
        assert isinstance(backbone, ZooBackbone)
        output = backbone(x, output_hidden_states=True)
        assert backbone.out_features == [f"stage{i + 1}" for i in expected]
        assert backbone.channels == [feature.shape[1] for feature in output.feature_maps]
        assert all(torch.equal(a, maps[i]) for a, i in zip(output.feature_maps, expected, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(output.hidden_states, maps, strict=True))
        assert torch.equal(backbone(x).feature_maps[-1], maps[expected[-1]])
    with pytest.raises(ValueError, match="out_features must be a subset of stage_names"):
        open_model(small, head, folder, out_features=["stage99"])


@every_class
@torch.no_grad()
def test_no_images_give_no_results(small: SmallModel, head: str, folders: Folders) -> None:
    model, x = open_model(small, head, folders(small, head)), small.images()
    empty, full = answer(model(x[:0])), answer(model(x))
    assert empty.shape[0] == 0
    assert (empty.ndim, empty.shape[-1]) == (full.ndim, full.shape[-1])  # images differ in their number of tokens


@every_class
@torch.no_grad()
def test_loading_in_half_precision(small: SmallModel, head: str, folders: Folders) -> None:
    inputs = AutoImageProcessor.from_pretrained(folders(small, head))(photo(), return_tensors="pt")
    exact = answer(open_model(small, head, folders(small, head))(**inputs)).flatten()
    for dtype in (torch.bfloat16, torch.float16):
        model = open_model(small, head, folders(small, head), dtype=dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        output = answer(model(**inputs.to(dtype)))
        assert output.dtype == dtype
        assert torch.cosine_similarity(output.flatten().float(), exact, dim=0) > 0.95


# --- pipelines ------------------------------------------------------------------------------------------------------


@each("classifier")
@torch.no_grad()
def test_classification_pipeline(
    small: SmallModel, head: str, folders: Folders, transformers_log: pytest.LogCaptureFixture
) -> None:
    answers = pipeline("image-classification", model=str(folders(small, head)))(photo())
    inputs = AutoImageProcessor.from_pretrained(folders(small, head))(photo(), return_tensors="pt")
    expected = open_model(small, head, folders(small, head))(**inputs).logits.softmax(-1)[0]
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert [scores[label] for label in LABELS] == pytest.approx(expected.tolist(), abs=1e-5)
    assert not transformers_log.messages


@each("model")
@torch.no_grad()
def test_feature_extraction_pipeline(
    small: SmallModel, head: str, folders: Folders, transformers_log: pytest.LogCaptureFixture
) -> None:
    extract = pipeline("image-feature-extraction", model=str(folders(small, head)), return_tensors=True)
    inputs = AutoImageProcessor.from_pretrained(folders(small, head))(photo(), return_tensors="pt")
    output = open_model(small, head, folders(small, head))(**inputs)
    assert torch.allclose(extract(photo()), output.last_hidden_state, atol=1e-6)
    assert torch.allclose(extract(photo(), pool=True), output.pooler_output, atol=1e-6)
    assert not transformers_log.messages


@each("segmenter")
@torch.no_grad()
def test_segmentation_pipeline(
    small: SmallModel, head: str, folders: Folders, transformers_log: pytest.LogCaptureFixture
) -> None:
    answers = pipeline("image-segmentation", model=str(folders(small, head)))(photo(90, 70))
    processor = AutoImageProcessor.from_pretrained(folders(small, head))
    output = open_model(small, head, folders(small, head))(**processor(photo(90, 70), return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(output, [(90, 70)])[0]
    covered = np.zeros((90, 70), dtype=int)
    for answer in answers:
        mask = np.asarray(answer["mask"]) > 0
        assert (mask == (expected == LABELS.index(answer["label"])).numpy()).all()
        covered += mask
    assert (covered == 1).all()
    assert not transformers_log.messages
    with pytest.raises(ValueError, match="target_sizes: expected one for each of 1 images, got 2"):
        processor.post_process_semantic_segmentation(output, [(9, 9), (9, 9)])


# --- training -------------------------------------------------------------------------------------------------------


@each("classifier")
def test_classification_loss(small: SmallModel, head: str, folders: Folders) -> None:
    labels = labels_for(small, head)
    output = open_model(small, head, folders(small, head))(small.images(), labels=labels)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, labels))
    assert list(output.keys())[:2] == ["loss", "logits"]
    several = open_model(small, head, folders(small, head), problem_type="multi_label_classification")
    targets = torch.rand(2, 5)
    expected = F.binary_cross_entropy_with_logits(output.logits, targets)
    assert torch.allclose(several(small.images(), labels=targets).loss, expected)


@each("segmenter")
def test_segmentation_loss_leaves_unknown_pixels_out(small: SmallModel, head: str, folders: Folders) -> None:
    model, labels = open_model(small, head, folders(small, head)), labels_for(small, head)
    labels[:, :20] = 255
    output = model(small.images(), labels=labels)
    known = output.logits.permute(0, 2, 3, 1)[labels != 255]
    assert torch.allclose(output.loss, F.cross_entropy(known, labels[labels != 255]), atol=1e-5)
    assert model(small.images(), labels=labels[:, ::2, ::2]).loss.isfinite()


@every_headed_class
def test_gradient_checkpointing_gives_equal_gradients(small: SmallModel, head: str, folders: Folders) -> None:
    gradients = []
    for enable in (False, True):
        model = open_model(small, head, folders(small, head)).train()
        if enable:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == enable
        torch.manual_seed(0)
        model(small.images(), labels=labels_for(small, head)).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert any(name.startswith(model._head_prefix) for name in plain)
    for name in plain:
        assert torch.allclose(plain[name], recomputed[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.slow
@each("classifier")
def test_trainer_trains_and_evaluates(small: SmallModel, head: str, folders: Folders, tmp_path: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(folders(small, "model"))
    model = open_model(small, head, folders(small, "model"), num_labels=2)
    samples = [
        {key: value[0] for key, value in processor(photo(80 + i, 80), return_tensors="pt").items()} | {"labels": i % 2}
        for i in range(4)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        gradient_checkpointing=True,
        disable_tqdm=True,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=samples,
        eval_dataset=samples,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(-1) == found.label_ids).mean())},
    )
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert 0 <= trainer.evaluate()["eval_accuracy"] <= 1
    trainer.save_model(str(tmp_path / "saved"))
    assert open_timm(tmp_path / "saved").num_classes == 2


# --- checkpoints and configurations that do not fit -----------------------------------------------------------------


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    kept = {key: value for key, value in tensors.items() if value is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def copied(small: SmallModel, head: str, folders: Folders, tmp_path: Path) -> Path:
    """A copy of the class' folder to be tampered with."""
    return Path(shutil.copytree(folders(small, head), tmp_path / "copied"))


@each("model", "segmenter")
def test_keys_that_do_not_fit_are_listed_by_both_doors(small: SmallModel, head: str, copied: Path) -> None:
    cfg = small.build().pretrained_cfg
    adapted = ("segmentation_head.", f"model.{cfg['classifier']}.", f"model.{cfg['first_conv']}.")
    tensors = load_file(copied / "model.safetensors")
    key = [key for key, value in sorted(tensors.items()) if value.ndim and not key.startswith(adapted)][-1]
    name = key.removeprefix("model.").replace(".", r"\.")
    for changes, message in (
        ({key: None}, f"missing keys: .*{name}"),
        ({key: tensors[key], "model.stages.7.unknown": torch.zeros(2)}, r"leftover keys: .*stages\.7\.unknown"),
        ({"model.stages.7.unknown": None, key: torch.zeros(3, 3)}, name),
    ):
        edit_weights(copied, **changes)
        for door in (open_timm, lambda folder: open_model(small, head, folder)):
            with pytest.raises(ValueError, match=message):
                door(copied)


@every_headed_class
def test_a_model_that_lost_its_head_is_an_error(small: SmallModel, head: str, copied: Path) -> None:
    prefix = open_model(small, head, copied)._head_prefix
    bias, weight = [key for key in sorted(load_file(copied / "model.safetensors")) if key.startswith(prefix)][-2:]
    edit_weights(copied, **{bias: None})
    with pytest.raises(ValueError, match=rf"missing keys: {bias}"):
        open_model(small, head, copied)
    edit_weights(copied, **{bias: torch.zeros(6), weight: torch.zeros(6, 32)})
    with pytest.raises(ValueError, match=rf"misshapen keys: {bias}, {weight}"):
        open_model(small, head, copied)


NOT_OF_THIS_FAMILY = ("resnet18", "test_vit", "os.system", "local-dir:.", "")


@each("model", "segmenter")
def test_settings_that_no_network_takes_are_refused(small: SmallModel, head: str, copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    for changes, message in (
        (dict(model_args=config["model_args"] | {"nonsense": 1}), "model_args: .*nonsense"),
        (dict(model_args="all"), "model_args: expected a mapping"),
        (dict(model_args=[1]), "model_args: expected a mapping"),
        (dict(pretrained_cfg=[1]), "pretrained_cfg: expected a mapping"),
        *((dict(architecture=name), "architecture: expected one of") for name in NOT_OF_THIS_FAMILY),
    ):
        edit_config(copied, **config | changes)
        with pytest.raises(ValueError, match=message):
            open_model(small, head, copied)


@each("model", "segmenter")
def test_the_weights_of_a_pretrained_cfg_are_never_fetched(small: SmallModel, head: str, copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    strange = {"url": "http://localhost/weights", "hf_hub_id": "nobody/nothing", "file": "weights.pth"}
    edit_config(copied, pretrained_cfg=config["pretrained_cfg"] | strange)
    network = open_model(small, head, copied).model
    assert not {key for key, value in strange.items() if network.pretrained_cfg.get(key) == value}
