"""How a trained PGT uses its groups: entropies of each layer, and accuracy against groups and iterations.

Prints a table (Table 4 and appendix A.2.2 of the paper) and writes `entropies.png`, with p(c) and p(c|x) of each layer,
and `accuracy.png`. All settings share the weights; nothing is trained but the linear probes.

    python benchmarks/pgt_groups.py pgt_nano_photos
    python benchmarks/pgt_groups.py FOLDER --data folder:imagenet --groups 32 256 1024
"""

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

import timm
import torch

from grouping_zoo.evaluation.context import EvaluationContext
from grouping_zoo.evaluation.data import EvaluationSet
from grouping_zoo.evaluation.distributed import Ranks
from grouping_zoo.evaluation.evaluated_model import network_model
from grouping_zoo.evaluation.tasks import TASKS
from grouping_zoo.hf.checkpoint_folder import timm_source
from grouping_zoo.viz.charts import curve_plot

ENTROPY_IMAGES = 128


def accuracies(context: EvaluationContext, groups: list[int], iters: list[int]) -> dict[tuple[int, int], float]:
    """Print a Markdown table, and return the linear probe's accuracy by numbers of groups and iterations."""
    print("| groups a head | iterations | kNN, % | linear, % |", "|---|---|---|---|", sep="\n")
    linear = {}
    for num_groups in groups:
        for num_iters in iters:
            call_args = {"num_groups": num_groups, "num_iters": num_iters}
            changed = dataclasses.replace(context, model=dataclasses.replace(context.model, call_args=call_args))
            knn = TASKS["knn"].run(changed)["accuracy"]
            linear[num_groups, num_iters] = TASKS["linear"].run(changed)["top1"]
            print(f"| {num_groups} | {num_iters} | {knn:.1f} | {linear[num_groups, num_iters]:.1f} |")
    return linear


def entropies(context: EvaluationContext) -> dict[str, list[tuple[int, float]]]:
    """Return the mean over images and heads of each layer's entropies, and their upper limit."""
    network = context.model.network
    total, images = torch.zeros(()), 0
    for found, count in context.results(
        lambda batch: (context.model.call(network.assignment_entropies, batch), len(batch["pixel_values"])), "entropies"
    ):
        total, images = total + count * torch.stack(found).cpu(), images + count  # (2, layers, heads)
    marginal, conditional = (total / images).mean(dim=2).tolist()
    limit = math.log(max(network.num_groups))
    return {
        "p(c)": list(enumerate(marginal)),
        "p(c|x)": list(enumerate(conditional)),
        "log M": [(layer, limit) for layer in range(len(marginal))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder, packaged name or hub name")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the plots")
    parser.add_argument("--data", default="photos", help="as of `grouping-zoo eval` (%(default)s)")
    parser.add_argument("--images", nargs=2, type=int, default=(1000, 500), metavar=("TRAIN", "TEST"))
    parser.add_argument("--groups", nargs="+", type=int, default=(1, 2, 4, 8, 16, 32))
    parser.add_argument("--iters", nargs="+", type=int, default=(1, 2, 3))
    parser.add_argument("--image-size", type=int, help="the checkpoint's own if omitted")
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    ranks = Ranks(args.device)
    network: Any = timm.create_model(timm_source(args.checkpoint), pretrained=True).eval().to(ranks.device)
    model = network_model(args.checkpoint, network, ranks.device)
    data = EvaluationSet(spec=args.data, train_images=args.images[0], images=args.images[1], seed=args.seed)
    size = model.image_size if args.image_size is None else (args.image_size, args.image_size)
    context = EvaluationContext(model=model, data=data, ranks=ranks, size=size, workers=args.num_workers)
    linear = accuracies(context, list(args.groups), list(args.iters))
    curves = {
        f"{iters} iteration{'s' if iters > 1 else ''}": [(groups, linear[groups, iters]) for groups in args.groups]
        for iters in args.iters
    }
    args.out.mkdir(parents=True, exist_ok=True)
    curve_plot(curves, "group tokens of each head", "linear probe, top-1 in %", logarithmic=True).save(
        args.out / "accuracy.png"
    )
    few = dataclasses.replace(context, data=dataclasses.replace(data, images=min(args.images[1], ENTROPY_IMAGES)))
    curve_plot(entropies(few), "layer", "entropy in nats").save(args.out / "entropies.png")


if __name__ == "__main__":
    main()
