"""Region covering of held-out built-in scenes: CAST's hierarchy beside what groups without it.

    python benchmarks/cast_scenes.py                                 # the packaged nano
    python benchmarks/cast_scenes.py --vit runs/vit_nano_scenes/checkpoint

Compared are the checkpoint, the same network untrained, superpixels merged by colour alone (Ward's criterion on CIELAB)
and, where a plain vision transformer's folder is given, K-means on its features, resized to a quarter of the image.
All get the same numbers of segments at each level; the objects of the scenes are the regions to cover.
"""

import argparse
from collections.abc import Callable, Sequence

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import grouping_zoo
from grouping_zoo.data.scenes import Scenes
from grouping_zoo.evaluation.clustering import dense_features, kmeans_segments, merge_by_colour
from grouping_zoo.evaluation.hierarchy import evaluate_hierarchy, hierarchy_labels
from grouping_zoo.evaluation.scenes import scene_batches

SIZE = 64
Levels = Callable[[Tensor], Sequence[Tensor]]


def colour_levels(network: torch.nn.Module, clusters: Sequence[int], mean: Tensor, std: Tensor) -> Levels:
    """Superpixels as the network makes them, merged to as many segments."""

    def predict(images: Tensor) -> list[Tensor]:
        pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        superpixels = network.make_superpixels(images)
        return [superpixels, *merge_by_colour(pixels, superpixels, clusters)]

    return predict


def kmeans_levels(vit: torch.nn.Module, clusters: Sequence[int]) -> Levels:
    """Clusters of a vision transformer's features, at a quarter of the image's size."""

    def predict(images: Tensor) -> list[Tensor]:
        features = F.interpolate(dense_features(vit, images), size=(SIZE // 4, SIZE // 4), mode="bilinear")
        return [kmeans_segments(features, number, (SIZE, SIZE)).labels for number in clusters]

    return predict


@torch.no_grad()
def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cast_nano_scenes", help="packaged checkpoint or folder (%(default)s)")
    parser.add_argument("--vit", help="checkpoint folder of a plain vision transformer")
    parser.add_argument("--images", type=int, default=500, help="scenes (%(default)s)")
    args = parser.parse_args()
    model, _ = grouping_zoo.open_checkpoint(args.model)
    torch.manual_seed(0)
    untrained = type(model)(model.config).eval()
    network, clusters = model.model, tuple(model.model.num_clusters)
    description = network.pretrained_cfg
    mean, std = (torch.tensor(description[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    rows: dict[str, Levels] = {
        "CAST": lambda images: hierarchy_labels(network.forward_grouping(images), (SIZE, SIZE)),
        "CAST, untrained": lambda images: hierarchy_labels(untrained.model.forward_grouping(images), (SIZE, SIZE)),
        "superpixels merged by colour": colour_levels(network, clusters, mean, std),
    }
    if args.vit:
        vit = timm.create_model(f"local-dir:{args.vit}", pretrained=True).eval()
        rows["ViT with K-means"] = kmeans_levels(vit, clusters)
    scenes = Scenes("validation", args.images, SIZE)
    print(f"region covering, %, of {args.images} scenes: {'best of all':>12}", *(f"{n:>6}" for n in clusters))
    for name, predict in rows.items():
        batches = ((b["images"], b["instances"]) for b in scene_batches(scenes, mean.flatten(), std.flatten()))
        found = evaluate_hierarchy(predict, batches, background=0)
        last = [found[f"covering/{level}"] for level in range(len(clusters) + 1) if f"covering/{level}" in found]
        print(f"{name:>36} {found['covering']:>12.1f}", *(f"{value:6.1f}" for value in last[-len(clusters) :]))


if __name__ == "__main__":
    main()
