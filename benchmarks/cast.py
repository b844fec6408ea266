"""Speed of this package's CAST against timm's ViT of the same width, and of its farthest point sampling.

The networks take turns (A B, B A, ...), so that whatever else the machine does falls on both, and each round gives
one ratio. CAST gets its superpixels with the images; making them is timed apart.

    python benchmarks/cast.py
    python benchmarks/cast.py --device cuda --dtype bf16
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import skimage.data
import timm
import torch
from skimage.transform import resize
from torch import Tensor, nn
from tqdm import tqdm

import grouping_zoo.models.cast  # noqa: F401  registers the timm models
from grouping_zoo.layers.sampling import farthest_point_sampling
from grouping_zoo.layers.superpixels import make_superpixels

OURS, PEER = "cast_small", "vit_small_patch16_224"
SIZE = 224
NUM_SUPERPIXELS = 196
FPS_BATCH, FPS_POINTS, FPS_SAMPLES, FPS_WIDTH = 64, 196, 64, 384


def synchronize(device: str) -> None:
    """Waits until the accelerator is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call, the accelerator's work included."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def interleaved(calls: Sequence[Callable[[], object]], args: argparse.Namespace, title: str) -> list[list[float]]:
    """Seconds of each call, in turns whose order alternates, after `args.warmup` unmeasured ones."""
    seconds: list[list[float]] = [[] for _ in calls]
    for i in tqdm(range(args.warmup + args.rounds), desc=title, disable=None):
        order = range(len(calls)) if i % 2 == 0 else range(len(calls) - 1, -1, -1)
        for side in order:
            spent = timed(calls[side], args.device)
            if i >= args.warmup:
                seconds[side].append(spent)
    return seconds


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def report(title: str, ours: Sequence[float], peer: Sequence[float]) -> None:
    """One row of the table: medians in milliseconds and the ratio peer / ours with its quartiles."""
    low, middle, high = quartiles(b / a for a, b in zip(ours, peer, strict=True))
    print(
        f"| {title} | {statistics.median(ours) * 1000:.1f} | {statistics.median(peer) * 1000:.1f} "
        f"| **{middle:.2f}x** ({low:.2f}-{high:.2f}) |",
        flush=True,
    )


def photos(batch_size: int) -> Tensor:
    """Crops of a photo, uint8 (B, 3, SIZE, SIZE)."""
    photo = resize(skimage.data.astronaut(), (SIZE + batch_size, SIZE + batch_size), preserve_range=True)
    crops = [photo[i : i + SIZE, i : i + SIZE] for i in range(batch_size)]
    return torch.from_numpy(np.stack(crops)).round().to(torch.uint8).permute(0, 3, 1, 2)


def network_call(model: nn.Module, inputs: Sequence[Tensor], training: bool, args: argparse.Namespace) -> Callable:
    """What is timed: a forward pass in evaluation mode, or forward, backward and an AdamW step."""
    model.train(training)
    autocast = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.dtype == "bf16")

    def forward() -> Tensor:
        with torch.set_grad_enabled(training), autocast:
            return model(*inputs)

    if not training:
        return forward
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-4)

    def step() -> None:
        forward().float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare_networks(args: argparse.Namespace) -> None:
    images = photos(args.batch_size)
    superpixels = make_superpixels(images, NUM_SUPERPIXELS).labels.to(args.device)
    x = (images.float() / 255 - 0.5).div(0.25).to(args.device)
    for training in (False, True):
        ours = timm.create_model(OURS).to(args.device)
        peer = timm.create_model(PEER).to(args.device)
        calls = [
            network_call(ours, (x, superpixels), training, args),
            network_call(peer, (x,), training, args),
        ]
        title = f"{'training step' if training else 'forward'}, batch {args.batch_size}: {OURS} / {PEER}"
        report(title, *interleaved(calls, args, title))


def sample_one_by_one(points: Tensor, num_samples: int) -> Tensor:
    """Farthest point sampling as it is defined, a Python loop over images and samples."""
    sampled = []
    for image in points.double():
        indices = [0]
        distances = torch.full((len(image),), torch.inf, dtype=torch.float64, device=points.device)
        for _ in range(num_samples - 1):
            distances = torch.minimum(distances, ((image - image[indices[-1]]) ** 2).sum(dim=-1))
            indices.append(int((distances == distances.max()).nonzero()[0]))  # ties: the lowest index
        sampled.append(indices)
    return torch.tensor(sampled)


def compare_sampling(args: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(FPS_BATCH, FPS_POINTS, FPS_WIDTH, generator=generator).to(args.device)
    if not torch.equal(
        farthest_point_sampling(points, FPS_SAMPLES).indices.cpu(), sample_one_by_one(points, FPS_SAMPLES)
    ):
        raise RuntimeError("farthest point sampling: differs from the loop over images")
    calls = [
        lambda: farthest_point_sampling(points, FPS_SAMPLES),
        lambda: sample_one_by_one(points, FPS_SAMPLES),
    ]
    title = f"farthest points, batch {FPS_BATCH}, {FPS_POINTS} -> {FPS_SAMPLES}, width {FPS_WIDTH}: batched / loop"
    report(title, *interleaved(calls, args, title))


def compare_seeds(args: argparse.Namespace) -> None:
    """Our SEEDS, labels renumbered and counted, against OpenCV's own call."""
    import cv2

    from grouping_zoo.layers.seeds import seeds

    image = np.ascontiguousarray(photos(1)[0].permute(1, 2, 0).numpy())

    def opencv() -> None:
        lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
        algorithm = cv2.ximgproc.createSuperpixelSEEDS(SIZE, SIZE, 3, NUM_SUPERPIXELS, 1, 2, 15, False)
        algorithm.iterate(lab, 20)
        algorithm.getLabels()

    title = f"SEEDS, one {SIZE}x{SIZE} image: ours / OpenCV's call"
    report(title, *interleaved([lambda: seeds(image, NUM_SUPERPIXELS), opencv], args, title))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bf16"), help="bf16 means autocast")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each side")
    parser.add_argument("--warmup", type=int, default=2, help="calls of each side before")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    print(
        f"torch {torch.__version__}, {args.device}, {args.dtype}, {torch.get_num_threads()} threads, "
        f"{args.rounds} rounds\n"
    )
    print("| case | first, ms | second, ms | speed of the first (quartiles) |")
    print("|---|---|---|---|")
    compare_networks(args)
    compare_sampling(args)
    compare_seeds(args)


if __name__ == "__main__":
    main()
