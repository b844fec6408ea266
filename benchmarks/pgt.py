"""Speed, memory and operations of this package's PGT-B against timm's ViT-B with the same 4x4 patches.

The networks take turns (A B C, C B A, ...), so that whatever else the machine does falls on all, and each round gives
one ratio to the ViT. Memory is the peak of one forward pass above what was held before it, each in a process of its
own; the ViT also with its attention weights in memory, as Table 3 of the paper counts them. It is measured with one
layer of each width: layers leave nothing behind but the tokens, so that more of them need no more.

    python benchmarks/pgt.py
    python benchmarks/pgt.py --parts memory operations
    python benchmarks/pgt.py --device cuda --dtype bf16 --batch-size 32
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import grouping_zoo.models.pgt  # noqa: F401  registers the timm models

OURS = ("pgt_base", "pgt_tiny")
PEER, MATERIALISED = "vit_base, 4x4 patches", "vit_base, 4x4 patches, attention in memory"
ITERS = (3, 2, 1)
PARTS = ("parameters", "operations", "memory", "speed")
# Section A.2.3: images per second of PGT-B with K iterations, over ViT-B/4's.
PAPER_SPEED = {3: 640 / 680, 2: 710 / 680, 1: 820 / 680}
MIB = 2**20


def build(name: str, size: int, device: str = "cpu", shallow: bool = False) -> nn.Module:
    """A network without head for images of `size`, in evaluation mode; `shallow` with one layer of each width."""
    if not name.startswith(PEER):
        extra = dict(depths=(1, 1, 1)) if shallow else {}
        return timm.create_model(name, img_size=size, num_classes=0, **extra).to(device).eval()
    settings = dict(patch_size=4, img_size=size, num_classes=0, dynamic_img_size=True, depth=1 if shallow else 12)
    model = timm.create_model("vit_base_patch16_224", **settings).to(device).eval()
    for block in model.blocks:
        block.attn.fused_attn = name != MATERIALISED
    return model


def images(size: int, batch_size: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, 3, size, size, generator=generator).to(device)


def make_call(model: nn.Module, x: Tensor, args: argparse.Namespace, **kwargs: int) -> Callable[[], Tensor]:
    """A forward pass."""
    device_type = torch.device(args.device).type

    @torch.inference_mode()
    def call() -> Tensor:
        with torch.autocast(device_type, torch.bfloat16, enabled=args.dtype == "bf16"):
            return model(x, **kwargs)

    return call


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds of one call, the accelerator's work included."""
    start = time.perf_counter()
    call()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def print_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    columns = list(header)
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def count_parameters(args: argparse.Namespace) -> None:
    names = timm.list_models("pgt_*")
    with torch.device("meta"):
        counts = [sum(p.numel() for p in timm.create_model(name, num_classes=0).parameters()) for name in names]
    print_table(("network", "parameters, M"), ((n, f"{c / 1e6:.2f}") for n, c in zip(names, counts, strict=True)))


def count_operations(args: argparse.Namespace) -> None:
    """Multiplications and additions of one image, twice as many as "GFLOPs" in papers that count pairs."""
    rows = []
    for size in args.sizes:
        peer = operations(PEER, size)
        for iters in ITERS:
            ours = operations(args.ours, size, num_iters=iters)
            rows.append((f"{size}, K = {iters}", f"{ours / 1e9:.0f}", f"{peer / 1e9:.0f}", f"{ours / peer:.2f}"))
    print_table(("size", "ours, GFLOP", "ViT-B/4, GFLOP", "ratio"), rows)


def operations(name: str, size: int, **kwargs: int) -> int:
    with torch.device("meta"):
        model, x = build(name, size, "meta").requires_grad_(False), torch.empty(1, 3, size, size)
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(x, **kwargs)
    return counter.get_total_flops()


def compare_memory(args: argparse.Namespace) -> None:
    """The ViTs at the first size alone: at twice that, its attention weights take 7 GiB and the pass minutes."""
    first, *larger = args.sizes
    ours = {size: memory_in_subprocess(args.ours, size, args) for size in args.sizes}
    rows = [(f"{args.ours} at {first}", f"{ours[first]:.0f}", "1")]
    for name in (PEER, MATERIALISED):
        found = memory_in_subprocess(name, first, args)
        rows.append((f"{name} at {first}", f"{found:.0f}", f"{ours[first] / found:.2f} for ours"))
    rows += [
        (f"{args.ours} at {size}", f"{ours[size]:.0f}", f"{ours[size] / ours[first]:.2f} of {first}") for size in larger
    ]
    print_table(("network", "peak above the weights, MiB", "ratio"), rows)


def measure_memory(name: str, size: int, args: argparse.Namespace) -> float:
    """Peak MiB of one forward pass of one image above what was held before it; run in a process of its own."""
    model = build(name, size, args.device, shallow=True)
    x = images(size, 1, args.device)
    call = make_call(model, x, args)
    make_call(model, x[..., :64, :64], args)()  # makes what stays: the libraries' own buffers
    if torch.device(args.device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        timed(call, args.device)
        return (torch.cuda.max_memory_allocated() - held) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak so far becomes what is held now
    before = resident_mib("VmRSS")
    call()
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """MiB that this process holds in memory ("VmRSS") or has held at most ("VmHWM"), from Linux' own account."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kib) / 1024


def memory_in_subprocess(name: str, size: int, args: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory-of", name, str(size), "--device", args.device, "--dtype", args.dtype]
    # Otherwise tensors reuse the memory that earlier ones left, and the peak above the start comes out too low.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def compare_speed(args: argparse.Namespace) -> None:
    size = args.sizes[0]
    x = images(size, args.batch_size, args.device)
    ours, peer = build(args.ours, size, args.device), build(PEER, size, args.device)
    calls = [make_call(peer, x, args), *(make_call(ours, x, args, num_iters=iters) for iters in ITERS)]
    seconds: list[list[float]] = [[] for _ in calls]
    for i in tqdm(range(args.warmup + args.rounds), desc="speed", disable=None):
        for side in range(len(calls)) if i % 2 == 0 else reversed(range(len(calls))):
            spent = timed(calls[side], args.device)
            if i >= args.warmup:
                seconds[side].append(spent)
    rows = [("ViT-B/4", f"{args.batch_size / statistics.median(seconds[0]):.2f}", "1", "1")]
    for iters, spent in zip(ITERS, seconds[1:], strict=True):
        ratios = [theirs / own for theirs, own in zip(seconds[0], spent, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rate = f"{args.batch_size / statistics.median(spent):.2f}"
        rows.append(
            (
                f"{args.ours}, K = {iters}",
                rate,
                f"**{middle:.2f}x** ({low:.2f}-{high:.2f})",
                f"{PAPER_SPEED[iters]:.2f}",
            )
        )
    print_table((f"forward at {size}, batch {args.batch_size}", "images/s", "speed-up (quartiles)", "paper"), rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--ours", choices=OURS, default=OURS[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bf16"), help="bf16 means autocast")
    parser.add_argument("--batch-size", type=int, default=1, help="of the speed")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448], help="the first one for the speed")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each side")
    parser.add_argument("--warmup", type=int, default=1, help="calls of each side before")
    parser.add_argument("--memory-of", nargs=2, metavar=("NETWORK", "SIZE"), help="print one network's memory, MiB")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.memory_of:
        name, size = args.memory_of
        print(measure_memory(name, int(size), args))
        return
    print(
        f"torch {torch.__version__}, {args.device}, {args.dtype}, {torch.get_num_threads()} threads, {args.rounds} "
        f"rounds, load average {os.getloadavg()[0]:.1f} at the start"
    )
    runs = dict(zip(PARTS, (count_parameters, count_operations, compare_memory, compare_speed), strict=True))
    for part in args.parts:
        runs[part](args)


if __name__ == "__main__":
    main()
