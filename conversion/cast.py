"""Converts an official CAST checkpoint to a checkpoint folder.

    python conversion/cast.py cast_small_imagenet1k.pth.tar --out cast_small_in1k
    python conversion/cast.py cast_small_supervised.pth --out cast_small_in1k_supervised

A `.pth.tar` is a snapshot of MoCo-v3 training: one of its two encoders is taken, without projector and predictor. A
DeiT-style `.pth` is the network with its classifier.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from official_file import read_tensors
from timm.data import ImageNetInfo
from torch import Tensor, nn

from grouping_zoo.hf.checkpoint_folder import open_checkpoint
from grouping_zoo.hf.vision import publish
from grouping_zoo.models.cast_checkpoint import MOCO_ENCODERS, MoCoEncoder, checkpoint_filter_fn, convert_state_dict
from grouping_zoo.user_errors import report_user_errors

CARD = """---
library_name: timm
license: mit
pipeline_tag: {task}
tags: [grouping-zoo, cast, image-segmentation]
---

# CAST, official weights

Converted by grouping_zoo from `{name}` (Ke et al., "CAST: Concurrent Recognition and Segmentation with Adaptive Segment
Tokens", 2022) as `{architecture}`.
"""

IMAGENET_CLASSES = 1000
TOLERANCE = 1e-5  # sums may round differently from run to run


def fitting_architecture(state_dict: Mapping[str, Tensor]) -> str:
    """The timm name of the CAST whose parameters have these names and shapes.

    Args:
        state_dict: as `convert_state_dict` gives it.

    Raises:
        ValueError: if there is none.
    """
    found = {key: value.shape for key, value in state_dict.items() if not key.startswith("head.")}
    names = timm.list_models(module="cast")
    for name in names:
        with torch.device("meta"):  # shapes alone, which is quick
            network = timm.create_model(name, num_classes=0)
        if {key: value.shape for key, value in network.state_dict().items()} == found:
            return name
    raise ValueError(f"checkpoint: its tensors fit none of {', '.join(names)}; is it another variant?")


def create_network(state_dict: Mapping[str, Tensor]) -> nn.Module:
    """The network that holds the tensors, in evaluation mode."""
    classifier = state_dict.get("head.bias")
    num_classes = 0 if classifier is None else len(classifier)
    network = timm.create_model(fitting_architecture(state_dict), num_classes=num_classes)
    network.load_state_dict(checkpoint_filter_fn(state_dict, network))
    return network.eval()


def convert(path: Path, out: Path, encoder: MoCoEncoder = "base") -> None:
    network: Any = create_network(convert_state_dict(read_tensors(path), encoder))
    names = None
    if network.num_classes == IMAGENET_CLASSES:
        imagenet = ImageNetInfo("imagenet-1k")
        names = [imagenet.index_to_description(index) for index in range(IMAGENET_CLASSES)]
    task = "image-classification" if network.num_classes else "image-feature-extraction"
    architecture = network.pretrained_cfg["architecture"]
    publish(network, out, CARD.format(name=path.name, architecture=architecture, task=task), class_names=names)
    reopened: Any = open_checkpoint(out)[0]
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (reopened(pixel_values=image)[0] - _first_output(network, image)).abs().max()
    if difference > TOLERANCE:
        raise ValueError(f"{out}: the written checkpoint gives other features than the converted one, by {difference}")
    print(f"wrote {out} ({architecture}); open it with grouping-zoo segment photo.jpg --model {out}")


def _first_output(network: Any, image: Tensor) -> Tensor:
    """What the transformers class of the network returns first."""
    return network(image) if network.num_classes else network.forward_features(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", choices=MOCO_ENCODERS, default="base", help="which network of a MoCo snapshot")
    arguments = parser.parse_args()
    with report_user_errors():
        convert(arguments.checkpoint, arguments.out, arguments.encoder)


if __name__ == "__main__":
    main()
