"""Counts of VT-ResNet and VT-FPN beside the paper's, and VT-ResNet's speed beside timm's ResNets.

Parameters and multiply-adds need neither weights nor time. With --speed the networks take turns (A B, B A, ...), so
that whatever else the machine does falls on both, and each round gives one ratio.

    python benchmarks/vt.py
    python benchmarks/vt.py --speed
    python benchmarks/vt.py --speed --device cuda --dtype bf16 --channels-last --compile
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import grouping_zoo.models.vt_fpn  # registers the timm models
import grouping_zoo.models.vt_resnet  # noqa: F401

SIZE = 224
DEPTHS = (18, 34, 50, 101)
NANO_PLAIN: dict[str, Any] = dict(
    layers=(1, 1, 1, 1), channels=(32, 64, 128, 256), stem_type="deep", stem_width=16, num_classes=8
)

# (millions of parameters, millions of multiply-adds); the paper's tables disagree by a few per cent.
PAPER = {18: ("11.7", "1569-1586"), 34: ("19.2, 21.9", "3236-3299"), 50: ("21.4", "3412"), 101: ("41.5", "7129")}

# What the paper's tables say that a change adds, in the same units, for ResNet-18 and ResNet-34.
ABLATIONS: list[tuple[str, dict[str, Any], tuple[str, str], tuple[str, str]]] = [
    ("Table 3: pooling alone", dict(tokenizer="pooling", recurrent=False), ("-0.7", "-31"), ("-1.3", "-34")),
    ("Table 3: first tokenizer by clustering", dict(tokenizer="clustering"), ("-0.1", "-1"), ("-0.1", "+19")),
    ("Table 4: no recurrent tokenizer", dict(recurrent=False), ("-0.6", "+17"), ("-1.0", "+89")),
    ("Table 5: no token relation", dict(token_relation="none"), ("-3.2", "-52"), ("-4.7", "-77")),
    ("Table 5: graph convolution", dict(token_relation="graph"), ("-3.2", "-52"), ("-4.7", "-76")),
    ("Table 6: 32 tokens", dict(num_tokens=32), ("0", "+132"), ("0", "+215")),
    ("Table 6: 64 tokens", dict(num_tokens=64), ("0", "+400"), ("0", "+653")),
    ("Table 7: no projector", dict(projector=False), ("-2.3", "-71"), ("-4.5", "-121")),
]


def multiply_adds(call: Callable[[], object]) -> float:
    """Millions of multiply-adds of a call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops() / 2e6


def counts(name: str, size: int = SIZE, **kwargs: Any) -> tuple[float, float]:
    """Millions of parameters and of multiply-adds of a timm model for one image."""
    with torch.device("meta"):
        model, x = timm.create_model(name, **kwargs).eval(), torch.empty(1, 3, size, size)
    return sum(p.numel() for p in model.parameters()) / 1e6, multiply_adds(lambda: model(x))


def print_models() -> None:
    print("| model | parameters, M | paper | multiply-adds, M | paper | ResNet's parameters | multiply-adds |")
    print("|---|---|---|---|---|---|---|")
    for depth in DEPTHS:
        ours, plain = counts(f"vt_resnet{depth}"), counts(f"resnet{depth}")
        parameters, products = PAPER[depth]
        print(
            f"| vt_resnet{depth} | {ours[0]:.2f} | {parameters} | {ours[1]:.0f} | {products} "
            f"| {plain[0]:.2f} | {plain[1]:.0f} |"
        )
    ours, plain = counts("vt_resnet_nano", 64, num_classes=8), counts("resnet18", 64, **NANO_PLAIN)
    print(f"| vt_resnet_nano at 64 | {ours[0]:.2f} | | {ours[1]:.1f} | | {plain[0]:.2f} | {plain[1]:.1f} |\n")


def print_ablations() -> None:
    defaults = {depth: counts(f"vt_resnet{depth}") for depth in (18, 34)}
    print("| change | ResNet-18: parameters, M (paper) | multiply-adds, M (paper) | ResNet-34: the same | |")
    print("|---|---|---|---|---|")
    for title, arguments, *papers in ABLATIONS:
        cells = []
        for depth, paper in zip(defaults, papers, strict=True):
            changed = counts(f"vt_resnet{depth}", **arguments)
            parameters, products = (a - b for a, b in zip(changed, defaults[depth], strict=True))
            cells.append(f"{parameters:+.2f} ({paper[0]}) | {products:+.0f} ({paper[1]})")
        print(f"| {title} | {' | '.join(cells)} |")
    print()


def print_pyramids() -> None:
    print("| ResNet-50 and | image | neck, G multiply-adds | paper | whole network, G |")
    print("|---|---|---|---|---|")
    published = {"vt_fpn_resnet50": ("8.5", "2.0"), "semantic_fpn_resnet50": ("55.1", "12.8")}
    for name, papers in published.items():
        for (height, width), paper in zip(((800, 1216), (473, 473)), papers, strict=True):
            with torch.device("meta"), torch.no_grad():
                model, x = timm.create_model(name).eval(), torch.empty(1, 3, height, width)
                maps = model.backbone(x)
            neck, whole = (multiply_adds(call) / 1e3 for call in (lambda: model.neck(maps), lambda: model(x)))  # noqa: B023
            print(f"| {name} | {height}x{width} | {neck:.2f} | {paper} | {whole:.1f} |")
    print()


# --- speed ----------------------------------------------------------------------------------------------------------


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


def network_call(name: str, x: Tensor, args: argparse.Namespace) -> Callable[[], Tensor]:
    """A forward pass in evaluation mode."""
    model: nn.Module = timm.create_model(name).eval().to(args.device)
    if args.channels_last:
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    if args.compile:
        model.compile()
    autocast = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.dtype == "bf16")

    def forward() -> Tensor:
        with torch.no_grad(), autocast:
            return model(x)

    return forward


def print_speed(args: argparse.Namespace) -> None:
    print(
        f"torch {torch.__version__}, {args.device}, {args.dtype}, {torch.get_num_threads()} threads, batch "
        f"{args.batch_size}, {args.rounds} rounds\n"
    )
    print("| depth | VT-ResNet, images/s | ResNet, images/s | speed of VT-ResNet (quartiles) |")
    print("|---|---|---|---|")
    x = torch.randn(args.batch_size, 3, SIZE, SIZE).to(args.device)
    for depth in DEPTHS:
        calls = [network_call(name, x, args) for name in (f"vt_resnet{depth}", f"resnet{depth}")]
        seconds: list[list[float]] = [[], []]
        for i in tqdm(range(args.warmup + args.rounds), desc=f"depth {depth}", disable=None):
            for side in (0, 1) if i % 2 == 0 else (1, 0):
                spent = timed(calls[side], args.device)
                if i >= args.warmup:
                    seconds[side].append(spent)
        ratios = [plain / ours for ours, plain in zip(*seconds, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        ours, plain = (args.batch_size / statistics.median(side) for side in seconds)
        print(f"| {depth} | {ours:.1f} | {plain:.1f} | **{middle:.2f}x** ({low:.2f}-{high:.2f}) |", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true", help="measure the networks too")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bf16"), help="bf16 means autocast")
    parser.add_argument("--channels-last", action="store_true", help="channels-last layout on both sides")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9, help="timed calls of each side")
    parser.add_argument("--warmup", type=int, default=2, help="calls of each side before")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    print_models()
    print_ablations()
    print_pyramids()
    if args.speed:
        print_speed(args)


if __name__ == "__main__":
    main()
