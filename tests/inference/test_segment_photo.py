"""Photos of any size to classes, named by text."""

from typing import Any

import pytest
import torch
from PIL import Image

from grouping_zoo import Segmenter, ZooGroupViTConfig, ZooGroupViTImageProcessor, ZooGroupViTModel, ZooGroupViTProcessor
from grouping_zoo.data.tokenization import train_tokenizer
from grouping_zoo.inference.segment_photo import class_list

SMALL: dict[str, dict[str, Any]] = {
    "cast_nano": dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=2, superpixel_method="grid"),
    "pgt_nano": {},
    "vt_resnet_nano": {},
    "vt_fpn_nano": {},
}


@pytest.mark.parametrize("architecture", SMALL)
def test_any_grouping_network_with_text_names_photos_of_any_size(architecture: str) -> None:
    torch.manual_seed(0)
    config = ZooGroupViTConfig(
        architecture=architecture,
        model_args=SMALL[architecture],
        text_args=dict(vocab_size=300, context_length=16, width=16, depth=1, num_heads=2, eos_token_id=2),
        projection_dim=8,
        projection_hidden_dim=16,
    )
    image_processor = ZooGroupViTImageProcessor(size={"height": 64, "width": 64})
    processor = ZooGroupViTProcessor(image_processor, train_tokenizer(["a photo of a cat"], 300, 16))
    model = ZooGroupViTModel(config)
    segmenter = Segmenter((model, processor), classes="cat, cup", threshold=0)
    for size in ((90, 60), (1, 1), (3, 4000), (700, 1)):
        result = segmenter(Image.new("RGB", size))
        assert result.labels.shape == size[::-1]
        assert set(result.masks) <= {"cat", "cup"}
    windows = Segmenter((model, processor), classes="cat, cup", window=64, size=96)
    assert windows(Image.new("RGB", (90, 60))).labels.shape == (60, 90)


def test_class_names_are_read_as_the_command_reads_them() -> None:
    assert class_list(None) == []
    assert class_list(" cat , coffee cup; mug,, ") == ["cat", "coffee cup; mug"]
    assert class_list(["cat ", "a, b"]) == ["cat", "a, b"]
