"""How a trained PGT uses its groups: entropies of each layer, and accuracy against groups and iterations.

Prints a table (Table 4 and appendix A.2.2 of the paper) and writes `entropies.png`, with p(c) and p(c|x) of each layer,
and `accuracy.png`. All settings share the weights; nothing is trained but the linear probes.

    python benchmarks/pgt_groups.py pgt_nano_photos
    python benchmarks/pgt_groups.py FOLDER --source folder --path imagenet --splits train val --groups 32 256 1024
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import timm
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from grouping_zoo.data.image_source import open_images
from grouping_zoo.data.multi_view import SingleViews, image_tensors
from grouping_zoo.evaluation.group_analysis import (
    accuracy_by_groups,
    accuracy_picture,
    accuracy_table,
    entropy_picture,
    mean_entropies,
)
from grouping_zoo.hf.checkpoint_folder import timm_source

ENTROPY_BATCHES = 2


def labelled_batches(network: Any, args: argparse.Namespace, split: str, number: int) -> list[dict[str, Tensor]]:
    """So many images of a split, drawn by chance."""
    size = args.image_size or network.pretrained_cfg["input_size"][-1]
    scenes = dict(length=number, image_size=size, objects=args.objects, max_objects=1)
    source = open_images(args.source, args.path, split, **scenes)
    order = np.random.default_rng(args.seed).permutation(len(source))[:number].tolist()
    views = SingleViews(source, size, image_tensors(network))
    return list(DataLoader(Subset(views, order), args.batch_size, num_workers=args.num_workers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder, packaged name or hub name")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the plots")
    parser.add_argument("--source", choices=("photos", "scenes", "folder", "hub"), default="photos")
    parser.add_argument("--path", help="folder or hub name")
    parser.add_argument("--splits", nargs=2, default=("train", "validation"), metavar=("TRAIN", "TEST"))
    parser.add_argument("--objects", choices=("shapes", "digits"), default="shapes", help="of the scenes")
    parser.add_argument("--images", nargs=2, type=int, default=(1000, 500), metavar=("TRAIN", "TEST"))
    parser.add_argument("--groups", nargs="+", type=int, default=(1, 2, 4, 8, 16, 32))
    parser.add_argument("--iters", nargs="+", type=int, default=(1, 2, 3))
    parser.add_argument("--image-size", type=int, help="the checkpoint's own if omitted")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    network: Any = timm.create_model(timm_source(args.checkpoint), pretrained=True).to(args.device)
    train, test = (
        labelled_batches(network, args, split, count) for split, count in zip(args.splits, args.images, strict=True)
    )
    rows = accuracy_by_groups(network, train, test, [(m, k) for m in args.groups for k in args.iters])
    print(accuracy_table(rows))
    args.out.mkdir(parents=True, exist_ok=True)
    accuracy_picture(rows).save(args.out / "accuracy.png")
    entropies = mean_entropies(network, test[:ENTROPY_BATCHES])
    entropy_picture(entropies, max(network.num_groups)).save(args.out / "entropies.png")


if __name__ == "__main__":
    main()
