"""What the transformers classes of every image family promise. A new family joins by one line in `FAMILIES`."""

import json
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

from grouping_zoo import CAST
from grouping_zoo.hf import vision
from grouping_zoo.hf.vision import publish
from zoo import SmallModel

_CAST = dict(img_size=64, embed_dim=32, num_heads=2, depths=(2, 1, 1, 1), num_clusters=(12, 8, 5, 3), superpixel_size=8)
_VT = dict(layers=(1, 1, 1), channels=(8, 12, 16), stem_type="deep", stem_width=4, map_dim=24, token_dim=32)
_PGT = dict(embed_dim=24, depths=(1, 2, 1), group_dims=(6, 8, 12), num_groups=5, feature_dim=16, feature_heads=2)

FAMILIES = [
    SmallModel("cast", "cast_small", _CAST, 64, 5),
    SmallModel("cast_dense", "cast_seg_small", _CAST, 64, 5),
    SmallModel("vt_resnet", "vt_resnet_nano", _VT, 64, 2),
    SmallModel("pgt", "pgt_nano", _PGT, 64, 2),
]
CLASSES = ["cat", "cup", "rocket", "seven", "moon"]
HEADS = {
    "model": AutoModel,
    "classifier": AutoModelForImageClassification,
    "segmenter": AutoModelForSemanticSegmentation,
}
every_head = pytest.mark.parametrize("head", HEADS)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.case)
def family(request: pytest.FixtureRequest) -> SmallModel:
    return request.param


@pytest.fixture(scope="module")
def folders(family: SmallModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint folder without head, with a classifier, with a segmentation head. Read-only."""
    root = tmp_path_factory.mktemp(family.case)
    publish(family.create(num_classes=0), root / "model", "# without head\n")
    publish(family.create(num_classes=5), root / "classifier", "# with head\n", class_names=CLASSES)
    names = dict(enumerate(CLASSES[:3]))
    segmenter = AutoModelForSemanticSegmentation.from_pretrained(root / "model", id2label=names)
    segmenter.save_pretrained(root / "segmenter")
    processor = type(AutoImageProcessor.from_pretrained(root / "model")).of_network(segmenter.model, whole=True)
    processor.save_pretrained(root / "segmenter")
    return {name: root / name for name in ("model", "classifier", "segmenter")}


@pytest.fixture
def copied(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the classifier's folder to be tampered with."""
    return Path(shutil.copytree(folders["classifier"], tmp_path / "copied"))


def photo(height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8))


def open_timm(folder: Path, **kwargs: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    tensors = {key: value for key, value in tensors.items() if value is not None}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def body_key(folder: Path, shaped: bool = False) -> str:
    """The first key of the network's body; with `shaped`, of its last matrix."""
    tensors = load_file(folder / "model.safetensors")
    keys = [key for key in sorted(tensors) if "head" not in key and "fc." not in key]
    return [key for key in keys if tensors[key].ndim == 2][-1] if shaped else keys[0]


# --- the folder -----------------------------------------------------------------------------------------------------


def test_folder_holds_the_documented_files(folders: dict[str, Path]) -> None:
    for folder in (folders["model"], folders["classifier"]):
        names = {path.name for path in folder.iterdir()}
        assert names == {"model.safetensors", "config.json", "preprocessor_config.json", "README.md"}


def test_config_has_the_fields_of_both_libraries(family: SmallModel, folders: dict[str, Path]) -> None:
    config = json.loads((folders["classifier"] / "config.json").read_text())
    assert config["architecture"] == family.name
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 5
    assert config["pretrained_cfg"]["input_size"] == [3, family.size, family.size]
    assert config["pretrained_cfg"]["label_names"] == list(config["id2label"].values()) == CLASSES
    assert json.loads((folders["model"] / "config.json").read_text())["num_classes"] == 0
    for folder in folders.values():
        assert str(folder.parent) not in (folder / "config.json").read_text()


def test_auto_classes_open_the_folder(folders: dict[str, Path]) -> None:
    config = AutoConfig.from_pretrained(folders["classifier"])
    assert config.num_labels == 5
    assert config.hidden_size == config.num_features == open_timm(folders["model"]).num_features
    for head, auto in HEADS.items():
        model = auto.from_pretrained(folders[head])
        assert model.config_class is type(config)
        assert not model.training
    assert type(AutoBackbone.from_config(config)).from_pretrained(folders["model"]).config_class is type(config)
    processor = AutoImageProcessor.from_pretrained(folders["classifier"])
    assert type(processor) is config.image_processor_class


def test_opening_says_nothing(folders: dict[str, Path], transformers_log: pytest.LogCaptureFixture) -> None:
    for head, auto in HEADS.items():
        auto.from_pretrained(folders[head])
        AutoModel.from_pretrained(folders[head])  # a head that is not wanted is left out
        AutoImageProcessor.from_pretrained(folders[head])
    assert not transformers_log.messages


@torch.no_grad()
def test_both_doors_give_the_same_numbers(family: SmallModel, folders: dict[str, Path]) -> None:
    network = family.create(num_classes=5)
    for size in ((family.size, family.size), (family.size + 8, family.size - 8)):
        x = family.images(size=size)
        theirs, ours = open_timm(folders["classifier"]), AutoModelForImageClassification
        logits = network(x)
        assert torch.equal(theirs(x), logits)
        assert torch.equal(ours.from_pretrained(folders["classifier"])(x).logits, logits)
        for folder in folders.values():
            network, model = open_timm(folder, num_classes=0), AutoModel.from_pretrained(folder)
            output = model(x)
            assert torch.equal(network.forward_features(x), output.last_hidden_state)
            assert torch.equal(network(x), output.pooler_output)
            for a, b in zip(network.forward_grouping(x).assignments, output.grouping.assignments, strict=True):
                assert torch.equal(a, b)
        network = family.create(num_classes=5)


def test_both_doors_describe_the_same_preprocessing(folders: dict[str, Path]) -> None:
    processor = AutoImageProcessor.from_pretrained(folders["classifier"])
    data = timm.data.resolve_model_data_config(open_timm(folders["classifier"]))
    transform = timm.data.create_transform(**data)
    ours = processor(photo(90, 130), return_tensors="pt", resample=3).pixel_values[0]
    theirs = transform(photo(90, 130))
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().mean() < 0.01  # one resizes by PIL, the other by torchvision


@every_head
@torch.no_grad()
def test_save_and_load_are_bit_equal(head: str, family: SmallModel, folders: dict[str, Path], tmp_path: Path) -> None:
    model = HEADS[head].from_pretrained(folders[head])
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = HEADS[head].from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(again(family.images())[0], model(family.images())[0])
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((folders[head] / "config.json").read_text())


def test_what_a_network_freezes_stays_frozen(family: SmallModel, folders: dict[str, Path]) -> None:
    frozen = {name for name, p in family.create(num_classes=0).named_parameters() if not p.requires_grad}
    model = AutoModel.from_pretrained(folders["model"])
    assert {name for name, p in model.model.named_parameters() if not p.requires_grad} == frozen


def test_models_with_and_without_head_may_share_a_configuration(
    family: SmallModel, folders: dict[str, Path], tmp_path: Path
) -> None:
    config = AutoConfig.from_pretrained(folders["classifier"])
    plain, classifier = AutoModel.from_config(config), AutoModelForImageClassification.from_config(config)
    plain.save_pretrained(tmp_path / "plain")
    classifier.save_pretrained(tmp_path / "classifier")
    assert open_timm(tmp_path / "plain")(family.images()).shape == (2, config.num_features)
    assert open_timm(tmp_path / "classifier")(family.images()).shape == (2, 5)


# --- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["model", "classifier", "segmenter"])
@pytest.mark.parametrize("labels", [dict(num_labels=7), dict(id2label={i: f"class {i}" for i in range(7)})])
def test_another_number_of_labels_makes_a_fresh_head_and_a_warning(
    labels: dict[str, Any],
    start: str,
    family: SmallModel,
    folders: dict[str, Path],
    transformers_log: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    for auto, shape in (
        (AutoModelForImageClassification, (2, 7)),
        (AutoModelForSemanticSegmentation, (2, 7, family.size, family.size)),
    ):
        transformers_log.clear()
        model = auto.from_pretrained(folders[start], **labels)
        assert any(model._head_prefix in message for message in transformers_log.messages)
        assert model(family.images()).logits.shape == shape
        body = AutoModel.from_pretrained(folders[start]).state_dict()
        assert all(torch.equal(model.state_dict()[key], value) for key, value in body.items())
        assert all(p.isfinite().all() for p in model.parameters())
        model.save_pretrained(tmp_path)
        again = auto.from_pretrained(tmp_path)
        assert torch.equal(again(family.images()).logits, model(family.images()).logits)


def test_a_fresh_head_starts_as_the_networks_own(family: SmallModel, folders: dict[str, Path]) -> None:
    fresh = AutoModelForImageClassification.from_pretrained(folders["model"], num_labels=100)
    torch.manual_seed(0)
    network = timm.create_model(family.name, **family.kwargs, num_classes=0)
    network.reset_classifier(100)
    for name, value in network.get_classifier().state_dict().items():
        found = fresh.model.get_classifier().state_dict()[name]
        assert found.std() == pytest.approx(float(value.std()), rel=0.2), name


def test_initialisation_is_the_networks_own(family: SmallModel, folders: dict[str, Path]) -> None:
    config = AutoConfig.from_pretrained(folders["classifier"])
    torch.manual_seed(0)
    wrapped = AutoModelForImageClassification.from_config(config).model.state_dict()
    torch.manual_seed(1)
    for name, value in timm.create_model(family.name, **family.kwargs, num_classes=5).state_dict().items():
        if value.numel() >= 500 and value.std() > 0:
            assert wrapped[name].std() == pytest.approx(float(value.std()), rel=0.2), name
        elif value.is_floating_point() and value.numel() > 1 and value.std() == 0:
            assert torch.equal(wrapped[name], value), name


# --- pipelines ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_classification_pipeline(folders: dict[str, Path], transformers_log: pytest.LogCaptureFixture) -> None:
    answers = pipeline("image-classification", model=str(folders["classifier"]))(photo())
    inputs = AutoImageProcessor.from_pretrained(folders["classifier"])(photo(), return_tensors="pt")
    model = AutoModelForImageClassification.from_pretrained(folders["classifier"])
    expected = model(**inputs).logits.softmax(-1)[0]
    scores = {answer["label"]: answer["score"] for answer in answers}
    assert [scores[label] for label in CLASSES] == pytest.approx(expected.tolist(), abs=1e-5)
    assert not transformers_log.messages


@torch.no_grad()
def test_feature_extraction_pipeline(folders: dict[str, Path], transformers_log: pytest.LogCaptureFixture) -> None:
    extract = pipeline("image-feature-extraction", model=str(folders["model"]), return_tensors=True)
    inputs = AutoImageProcessor.from_pretrained(folders["model"])(photo(), return_tensors="pt")
    output = AutoModel.from_pretrained(folders["model"])(**inputs)
    assert torch.allclose(extract(photo()), output.last_hidden_state, atol=1e-6)
    assert torch.allclose(extract(photo(), pool=True), output.pooler_output, atol=1e-6)
    assert not transformers_log.messages


@torch.no_grad()
def test_segmentation_pipeline(folders: dict[str, Path], transformers_log: pytest.LogCaptureFixture) -> None:
    answers = pipeline("image-segmentation", model=str(folders["segmenter"]))(photo(90, 70))
    processor = AutoImageProcessor.from_pretrained(folders["segmenter"])
    model = AutoModelForSemanticSegmentation.from_pretrained(folders["segmenter"])
    output = model(**processor(photo(90, 70), return_tensors="pt"))
    expected = processor.post_process_semantic_segmentation(output, [(90, 70)])[0]
    covered = np.zeros((90, 70), dtype=int)
    for answer in answers:
        mask = np.asarray(answer["mask"]) > 0
        assert (mask == (expected == CLASSES.index(answer["label"])).numpy()).all()
        covered += mask
    assert (covered == 1).all()
    assert not transformers_log.messages


def test_processor_refuses_sizes_that_do_not_go_with_the_images(folders: dict[str, Path], family: SmallModel) -> None:
    output = AutoModelForSemanticSegmentation.from_pretrained(folders["segmenter"])(family.images())
    with pytest.raises(ValueError, match="target_sizes: expected one for each of 2 images, got 1"):
        AutoImageProcessor.from_pretrained(folders["segmenter"]).post_process_semantic_segmentation(output, [(9, 9)])


# --- outputs and training -------------------------------------------------------------------------------------------


@every_head
@torch.no_grad()
def test_hidden_states_and_assignments_are_given_when_asked_for(
    head: str, family: SmallModel, folders: dict[str, Path]
) -> None:
    model = HEADS[head].from_pretrained(folders[head])
    plain = model(family.images())
    asked = model(family.images(), output_hidden_states=True, output_attentions=True)
    assert plain.hidden_states is plain.attentions is None
    assert plain.grouping.num_levels == family.num_levels
    assert plain.grouping.labels(-1, (family.size, family.size)).shape == (2, family.size, family.size)
    assert all(torch.equal(a, b) for a, b in zip(asked.attentions, plain.grouping.assignments, strict=True))
    assert len(asked.hidden_states) == len(model.model.feature_info) + 1
    assert torch.equal(asked.hidden_states[-1], model.model.forward_features(family.images()))
    listed = model(family.images(), output_hidden_states=True, return_dict=False)
    assert isinstance(listed, tuple)
    assert torch.equal(listed[0], plain[0])
    switches = dict(output_attentions=True, output_hidden_states=True, attn_implementation="eager")
    by_config = HEADS[head].from_pretrained(folders[head], **switches)(family.images())
    assert torch.equal(by_config.hidden_states[-1], asked.hidden_states[-1])
    assert torch.equal(by_config.attentions[0], asked.attentions[0])


@torch.no_grad()
def test_backbone_gives_the_feature_maps_of_the_stages(family: SmallModel, folders: dict[str, Path]) -> None:
    network = open_timm(folders["classifier"])
    maps = network.forward_intermediates(family.images(), intermediates_only=True)
    backbone_class = type(AutoBackbone.from_config(AutoConfig.from_pretrained(folders["model"])))
    for asked, expected in (
        (dict(), [len(maps) - 1]),
        (dict(out_indices=[0, -1]), [0, len(maps) - 1]),
        (dict(out_features=["stage1", "stage2"]), [0, 1]),
    ):
        backbone = backbone_class.from_pretrained(folders["classifier"], **asked)
        output = backbone(family.images(), output_hidden_states=True)
        assert backbone.out_features == [f"stage{i + 1}" for i in expected]
        assert backbone.channels == [feature.shape[1] for feature in output.feature_maps]
        for feature, index in zip(output.feature_maps, expected, strict=True):
            assert torch.equal(feature, maps[index])
        assert all(torch.equal(a, b) for a, b in zip(output.hidden_states, maps, strict=True))
        assert torch.equal(backbone(family.images()).feature_maps[-1], maps[expected[-1]])
    with pytest.raises(ValueError, match="out_features must be a subset of stage_names"):
        backbone_class.from_pretrained(folders["classifier"], out_features=["stage99"])


def test_classification_loss(family: SmallModel, folders: dict[str, Path]) -> None:
    model = AutoModelForImageClassification.from_pretrained(folders["classifier"])
    labels = torch.tensor([3, 0])
    output = model(family.images(), labels=labels)
    assert torch.allclose(output.loss, F.cross_entropy(output.logits, labels))
    assert list(output.keys())[:2] == ["loss", "logits"]
    several = AutoModelForImageClassification.from_pretrained(
        folders["classifier"], problem_type="multi_label_classification"
    )
    targets = torch.rand(2, 5)
    expected = F.binary_cross_entropy_with_logits(output.logits, targets)
    assert torch.allclose(several(family.images(), labels=targets).loss, expected)


def test_segmentation_loss_leaves_unknown_pixels_out(family: SmallModel, folders: dict[str, Path]) -> None:
    model = AutoModelForSemanticSegmentation.from_pretrained(folders["segmenter"])
    labels = torch.randint(0, 3, (2, family.size, family.size), generator=torch.Generator().manual_seed(0))
    labels[:, :20] = 255
    output = model(family.images(), labels=labels)
    known = output.logits.permute(0, 2, 3, 1)[labels != 255]
    assert torch.allclose(output.loss, F.cross_entropy(known, labels[labels != 255]), atol=1e-5)
    halved = model(family.images(), labels=labels[:, ::2, ::2])
    assert halved.loss.isfinite()


@pytest.mark.parametrize("head", ["classifier", "segmenter"])
def test_gradient_checkpointing_gives_equal_gradients(head: str, family: SmallModel, folders: dict[str, Path]) -> None:
    labels = torch.zeros((2,) if head == "classifier" else (2, family.size, family.size), dtype=torch.int64)
    gradients = []
    for enable in (False, True):
        model = HEADS[head].from_pretrained(folders[head]).train()
        if enable:
            model.gradient_checkpointing_enable()
        assert model.is_gradient_checkpointing == enable
        torch.manual_seed(0)
        model(family.images(), labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert any(name.startswith(model._head_prefix) for name in plain)
    for name in plain:
        assert torch.allclose(plain[name], recomputed[name], rtol=1e-4, atol=1e-6), name


@every_head
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_loading_in_half_precision(dtype: torch.dtype, head: str, family: SmallModel, folders: dict[str, Path]) -> None:
    model = HEADS[head].from_pretrained(folders[head], dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    inputs = AutoImageProcessor.from_pretrained(folders[head])(photo(), return_tensors="pt")
    exact = HEADS[head].from_pretrained(folders[head])(**inputs)[0].flatten()
    output = model(**inputs.to(dtype))
    assert output[0].dtype == dtype
    assert torch.cosine_similarity(output[0].flatten().float(), exact, dim=0) > 0.95


def test_trainer_trains_and_evaluates(family: SmallModel, folders: dict[str, Path], tmp_path: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(folders["model"])
    model = AutoModelForImageClassification.from_pretrained(folders["model"], num_labels=2)
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


# --- checkpoints that do not fit ------------------------------------------------------------------------------------

DOORS = {
    "model": lambda folder: AutoModel.from_pretrained(folder),
    "classifier": lambda folder: AutoModelForImageClassification.from_pretrained(folder),
    "fresh head": lambda folder: AutoModelForImageClassification.from_pretrained(folder, num_labels=9),
    "segmenter": lambda folder: AutoModelForSemanticSegmentation.from_pretrained(folder),
    "timm": open_timm,
}
every_door = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


@every_door
def test_missing_keys_are_listed(door: Any, copied: Path) -> None:
    key = body_key(copied)
    edit_weights(copied, **{key: None})
    with pytest.raises(ValueError, match="missing keys: .*" + key.removeprefix("model.").replace(".", r"\.")):
        door(copied)


@every_door
def test_leftover_keys_are_listed(door: Any, copied: Path) -> None:
    edit_weights(copied, **{"model.stages.7.stranger": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"leftover keys: .*stages\.7\.stranger"):
        door(copied)


@every_door
def test_misshapen_keys_are_listed(door: Any, copied: Path) -> None:
    key = body_key(copied, shaped=True)
    edit_weights(copied, **{key: torch.zeros(3, 3)})
    with pytest.raises((ValueError, RuntimeError), match=key.removeprefix("model.").replace(".", r"\.")):
        door(copied)


def test_a_classifier_that_lost_its_head_is_an_error(copied: Path, family: SmallModel) -> None:
    name = f"model.{AutoConfig.from_pretrained(copied).classifier}"
    edit_weights(copied, **{f"{name}.bias": None})
    with pytest.raises(ValueError, match=rf"missing keys: {name}\.bias"):
        AutoModelForImageClassification.from_pretrained(copied)
    edit_weights(copied, **{f"{name}.weight": None})
    with pytest.raises(ValueError, match=rf"missing keys: {name}\.bias, {name}\.weight"):
        AutoModelForImageClassification.from_pretrained(copied)
    edit_weights(copied, **{f"{name}.bias": torch.zeros(6), f"{name}.weight": torch.zeros(6, 32)})
    with pytest.raises(ValueError, match=rf"keys of another shape: {name}\.bias, {name}\.weight"):
        AutoModelForImageClassification.from_pretrained(copied)


@pytest.mark.parametrize("architecture", ["resnet18", "groupvit_nano_patch4_64", "os.system", "local-dir:.", ""])
def test_architectures_of_other_families_are_refused(architecture: str, copied: Path) -> None:
    edit_config(copied, architecture=architecture)
    with pytest.raises(ValueError, match="architecture: expected one of"):
        AutoModel.from_pretrained(copied)


@pytest.mark.parametrize(
    "model_args",
    [
        {"checkpoint_path": "weights.pth"},
        {"pretrained": True},
        {"pretrained_cfg_overlay": {"file": "weights.pth"}},
        {"pretrained_backbone": "resnet18"},
        {"nonsense": 1},
    ],
)
def test_model_arguments_that_reach_beyond_the_network_are_refused(model_args: dict[str, Any], copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    edit_config(copied, model_args=config["model_args"] | model_args)
    with pytest.raises(ValueError, match=f"model_args: .*{next(iter(model_args))}"):
        AutoModel.from_pretrained(copied)


@pytest.mark.parametrize("changes", [dict(model_args="all"), dict(pretrained_cfg=[1]), dict(model_args=[1])])
def test_fields_of_the_wrong_type_are_refused(changes: dict[str, Any], copied: Path) -> None:
    edit_config(copied, **changes)
    with pytest.raises(ValueError, match=next(iter(changes))):
        AutoModel.from_pretrained(copied)


def test_the_weights_of_a_description_are_never_fetched(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    strange = {"url": "http://localhost/weights", "hf_hub_id": "nobody/nothing", "file": "weights.pth"}
    edit_config(copied, pretrained_cfg=config["pretrained_cfg"] | strange)
    network = AutoModel.from_pretrained(copied).model
    assert not {key for key, value in strange.items() if network.pretrained_cfg.get(key) == value}


# --- publishing -----------------------------------------------------------------------------------------------------


def test_card_gets_the_figures(tmp_path: Path) -> None:
    network = FAMILIES[0].create(num_classes=0)
    publish(network, tmp_path, "# card\n", metrics={"kNN accuracy, per cent": 87.654321})
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# card\n")
    assert "\n| kNN accuracy, per cent | 87.65 |\n" in text


def test_class_names_go_with_the_head(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="class_names: expected 5, one for each class of the head, got 2"):
        publish(FAMILIES[0].create(num_classes=5), tmp_path, "", class_names=["a", "b"])
    publish(FAMILIES[0].create(num_classes=0), tmp_path, "", class_names=["a", "b"])
    assert "id2label" not in json.loads((tmp_path / "config.json").read_text())


def test_a_network_whose_arguments_nobody_noted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"network: expected one made by timm\.create_model.*got CAST"):
        publish(CAST(**_CAST), tmp_path, "")


def test_publishing_leaves_the_network_alone(tmp_path: Path) -> None:
    network = FAMILIES[0].create(num_classes=5).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    publish(network, tmp_path, "")
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@torch.no_grad()
def test_other_timm_networks_are_written_as_timm_does(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=2, img_size=64).eval()
    publish(network, tmp_path, "# a vision transformer\n", class_names=["a", "b"])
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(open_timm(tmp_path)(x), network(x))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == ["a", "b"]
    assert vision.ZooVisionConfig.of_network(network) is None
