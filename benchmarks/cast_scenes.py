"""Region covering of held-out built-in scenes: CAST's hierarchy beside what groups without it.

    python benchmarks/cast_scenes.py                                 # the packaged nano
    python benchmarks/cast_scenes.py --vit runs/vit_nano_scenes/checkpoint

Compared are the checkpoint, the same network untrained, superpixels merged by color alone (Ward's criterion on CIELAB)
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
from grouping_zoo.evaluation.clustering import dense_features, kmeans_segments, merge_by_color
from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.distributed import Ranks
from grouping_zoo.evaluation.evaluated_model import network_model
from grouping_zoo.evaluation.metrics.grouping import HierarchyMetric
from grouping_zoo.grouping import Grouping

SIZE = 64
Levels = Callable[[Tensor], Sequence[Tensor]]


def group_levels(grouping: Grouping) -> list[Tensor]:
    """All levels of a grouping, the tokens on the image first."""
    return [grouping.labels(level, (SIZE, SIZE)) for level in range(grouping.num_levels)]


def color_levels(network: torch.nn.Module, clusters: Sequence[int], mean: Tensor, std: Tensor) -> Levels:
    """Superpixels as the network makes them, merged to as many segments."""

    def predict(images: Tensor) -> list[Tensor]:
        pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
        superpixels = network.make_superpixels(images)
        return [superpixels, *merge_by_color(pixels, superpixels, clusters)]

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
        "CAST": lambda images: group_levels(network.forward_grouping(images)),
        "CAST, untrained": lambda images: group_levels(untrained.model.forward_grouping(images)),
        "superpixels merged by color": color_levels(network, clusters, mean, std),
    }
    if args.vit:
        vit = timm.create_model(f"local-dir:{args.vit}", pretrained=True).eval()
        rows["ViT with K-means"] = kmeans_levels(vit, clusters)
    data = EvaluationSet(images=args.images)
    evaluated = network_model(args.model, network, torch.device("cpu"))
    context = EvaluationContext(model=evaluated, data=data, ranks=Ranks(), size=(SIZE, SIZE), progress=True)
    print(f"region covering, %, of {args.images} scenes: {'best of all':>12}", *(f"{n:>6}" for n in clusters))
    for name, predict in rows.items():
        metric = HierarchyMetric(background=0)
        for images, regions in context.results(lambda batch: (batch["pixel_values"], batch["instances"]), name):
            metric.update([level.cpu() for level in predict(images)], regions)
        found = metric.compute()
        last = [found[f"covering/{level}"] for level in range(len(clusters) + 1) if f"covering/{level}" in found]
        print(f"{name:>36} {found['covering']:>12.1f}", *(f"{value:6.1f}" for value in last[-len(clusters) :]))


if __name__ == "__main__":
    main()
