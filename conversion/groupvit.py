"""Converts an official GroupViT checkpoint (`.pth`) to a checkpoint folder.

    python conversion/groupvit.py group_vit_gcc_yfcc.pth --out groupvit_small_gcc_yfcc

The weights' licence (NVIDIA, non-commercial) is written into the folder's card.
"""

import argparse
from pathlib import Path

import torch
from official_file import read_tensors

from grouping_zoo import ZooGroupViTConfig, ZooGroupViTImageProcessor, ZooGroupViTModel, ZooGroupViTProcessor
from grouping_zoo.data.captions import PROMPT_TEMPLATES
from grouping_zoo.data.tokenization import clip_tokenizer
from grouping_zoo.hf.checkpoint_folder import open_checkpoint, save_checkpoint
from grouping_zoo.models.groupvit_checkpoint import convert_state_dict
from grouping_zoo.user_errors import report_user_errors

CARD = """---
library_name: timm
license: other
license_name: nvidia-source-code-license-non-commercial
license_link: https://github.com/NVlabs/GroupViT/blob/main/LICENSE
pipeline_tag: zero-shot-image-classification
tags: [grouping-zoo, groupvit, zero-shot, image-segmentation]
---

# GroupViT, official weights

Converted by grouping_zoo from `{name}` (Xu et al., "GroupViT: Semantic Segmentation Emerges from Text Supervision",
CVPR 2022). The weights are for non-commercial use only.
"""

TOLERANCE = 1e-5  # of features of norm 1; sums may round differently from run to run


def convert(path: Path, out: Path) -> None:
    state_dict = convert_state_dict(read_tensors(path))
    model = ZooGroupViTModel(ZooGroupViTConfig(prompt_templates=list(PROMPT_TEMPLATES))).eval()
    model.model.load_state_dict(state_dict)
    processor = ZooGroupViTProcessor(ZooGroupViTImageProcessor(), clip_tokenizer())
    save_checkpoint(out, model, processor, CARD.format(name=path.name))
    reopened, _ = open_checkpoint(out)
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (reopened(pixel_values=image).image_embeds - model(pixel_values=image).image_embeds).abs().max()
    if difference > TOLERANCE:
        raise ValueError(f"{out}: the written checkpoint gives other features than the converted one, by {difference}")
    print(f"wrote {out}; open it with grouping-zoo segment photo.jpg --model {out} --classes 'cat, dog'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    with report_user_errors():
        convert(arguments.checkpoint, arguments.out)


if __name__ == "__main__":
    main()
