"""Speed and memory of this package's GroupViT vision tower against transformers' `GroupViTModel`.

Both towers hold the same random weights and give the same outputs, which is checked first. Then they take turns
(A B, B A, ...), so that whatever else the machine does falls on both, and each round gives one ratio. On a CPU that
others use too, set OMP_NUM_THREADS=1 and read the ratio of CPU times; several threads would spin for one another.

    python benchmarks/groupvit.py
    OMP_NUM_THREADS=1 python benchmarks/groupvit.py
    python benchmarks/groupvit.py --device cuda --dtype bf16 --compile
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import GroupViTConfig, GroupViTModel

import grouping_zoo  # noqa: F401  registers the timm models
from grouping_zoo.models.groupvit_checkpoint import checkpoint_filter_fn

ARCHITECTURE = "groupvit_small_patch16_224"
SIDES = ("ours", "transformers")
CASES = ("forward", "training")
COLUMNS = (
    "case",
    "size",
    "outputs differ by",
    "ours, fastest ms",
    "transformers, fastest ms",
    "speed-up, wall time (quartiles)",
    "speed-up, CPU time (quartiles)",
    "ours, MiB",
    "transformers, MiB",
    "memory ratio",
)
TOLERANCE = 1e-4
MIB = 2**20


class Duration(NamedTuple):
    """Seconds of one call: on the clock, and of processor time summed over the threads of this process."""

    wall: float
    cpu: float


class TransformersTower(nn.Module):
    """transformers' vision tower with the interface of the timm model: images to pooled features."""

    def __init__(self, vision_model: nn.Module) -> None:
        super().__init__()
        self.vision_model = vision_model

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C)."""
        return self.vision_model(x).pooler_output


@cache
def random_weights() -> dict[str, Tensor]:
    """A transformers `GroupViTModel` state dict at 224 without the symmetries of a fresh one.

    Fresh biases, position embeddings and group tokens are zero; every group would then win every token by a tie.
    """
    torch.manual_seed(0)
    model = GroupViTModel(GroupViTConfig())
    for name, parameter in model.named_parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=1.0 if name.endswith("group_token") else 0.02)
    return model.state_dict()


def build(side: str, size: int) -> nn.Module:
    """One side's tower, made for images of `size`, with the position embedding resized from 224."""
    weights = dict(random_weights())
    if side == "ours":
        tower = timm.create_model(ARCHITECTURE, img_size=size)
        tower.load_state_dict(checkpoint_filter_fn(weights, tower))
        return tower
    config = GroupViTConfig()
    config.vision_config.image_size = size
    key = "vision_model.embeddings.position_embeddings"
    grid = size // config.vision_config.patch_size
    old_grid = round(weights[key].shape[1] ** 0.5)
    square = weights[key].unflatten(1, (old_grid, old_grid)).permute(0, 3, 1, 2)  # (1, C, h, w)
    weights[key] = F.interpolate(square, (grid, grid), mode="bicubic").flatten(2).transpose(1, 2)
    model = GroupViTModel(config)
    model.load_state_dict(weights)
    return TransformersTower(model.vision_model)


def images(size: int, batch_size: int, device: str) -> Tensor:
    """A random image batch, the same for both sides."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, 3, size, size, generator=generator).to(device)


def make_call(tower: nn.Module, case: str, device: str, dtype: str) -> Callable[[Tensor], object]:
    """What is timed: a forward pass in eval mode, or forward, backward and an AdamW step in training mode."""
    device_type = torch.device(device).type
    tower.train(case == "training")

    def forward(x: Tensor) -> Tensor:
        with torch.autocast(device_type, torch.bfloat16, enabled=dtype == "bf16"):
            return tower(x)

    if case == "forward":
        return torch.no_grad()(forward)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-4)

    def step(x: Tensor) -> None:
        forward(x).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def timed(call: Callable[[Tensor], object], x: Tensor) -> Duration:
    """How long one call takes, the accelerator's work included."""
    wall, cpu = time.perf_counter(), time.process_time()
    call(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return Duration(time.perf_counter() - wall, time.process_time() - cpu)


def compare_outputs(towers: dict[str, nn.Module], x: Tensor) -> float:
    """Largest difference of the pooled features in single precision.

    Raises:
        RuntimeError: where the towers differ by more than `TOLERANCE`.
    """
    with torch.no_grad():
        ours, theirs = (towers[side].eval()(x) for side in SIDES)
    difference = (ours - theirs).abs().max().item()
    if not difference <= TOLERANCE:
        raise RuntimeError(f"outputs at {x.shape[-1]}: expected a difference of at most {TOLERANCE}, got {difference}")
    return difference


def time_case(case: str, size: int, args: argparse.Namespace) -> tuple[dict[str, list[Duration]], float]:
    """How long each side takes in each round, and how far their outputs are apart."""
    x = images(size, args.batch_size, args.device)
    towers = {side: build(side, size).to(args.device) for side in SIDES}
    difference = compare_outputs(towers, x)
    if args.compile:
        for tower in towers.values():
            tower.compile()
    calls = {side: make_call(towers[side], case, args.device, args.dtype) for side in SIDES}
    durations: dict[str, list[Duration]] = {side: [] for side in SIDES}
    for call in calls.values():
        for _ in range(args.warmup):
            timed(call, x)
    for i in tqdm(range(args.rounds), desc=f"{case} {size}", disable=None):
        for side in SIDES if i % 2 == 0 else reversed(SIDES):
            durations[side].append(timed(calls[side], x))
    return durations, difference


def measure_memory(side: str, case: str, size: int, args: argparse.Namespace) -> float:
    """Peak MiB that one call needs above what was held before it; run in a process of its own.

    A first call on one image makes what stays: the optimizer's states and the libraries' own buffers.
    """
    tower = build(side, size).to(args.device)
    if args.compile:
        tower.compile()
    call = make_call(tower, case, args.device, args.dtype)
    x = images(size, args.batch_size, args.device)
    call(x if args.compile else x[:1])  # a compiled network is made for one batch size
    if x.is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        timed(call, x)
        return (torch.cuda.max_memory_allocated() - held) / MIB
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak so far becomes what is held now
    before = resident_mib("VmRSS")
    call(x)
    return resident_mib("VmHWM") - before


def resident_mib(field: str) -> float:
    """MiB that this process holds in memory ("VmRSS") or has held at most ("VmHWM"), from Linux' own account.

    `resource.getrusage` cannot be reset: building the tower would hide the peak of a small call.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kib) / 1024


def memory_in_subprocess(side: str, case: str, size: int, args: argparse.Namespace) -> float:
    """`measure_memory` in a fresh process, whose allocator gives freed tensors back at once."""
    command = [sys.executable, __file__, "--memory-of", side, case, str(size), "--device", args.device]
    command += ["--dtype", args.dtype, "--batch-size", str(args.batch_size), *(["--compile"] if args.compile else [])]
    # Otherwise tensors reuse the memory that earlier ones left, and the peak above the start comes out too low.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    return float(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout)


def speed_up(ours: list[float], theirs: list[float]) -> str:
    """Median of the rounds' ratios and their quartiles."""
    ratios = [slow / fast for fast, slow in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f}x ({low:.2f}-{high:.2f})"


def compare_case(case: str, size: int, args: argparse.Namespace) -> str:
    """One row of the table. The memory comes first, so that timing has this process to itself."""
    memory = {side: memory_in_subprocess(side, case, size, args) for side in SIDES}
    durations, difference = time_case(case, size, args)
    wall, cpu = ({side: [d[i] for d in durations[side]] for side in SIDES} for i in range(2))
    cells = [case, f"{size}", f"{difference:.0e}"]
    cells += [f"{min(wall[side]) * 1000:.0f}" for side in SIDES]
    cells += [speed_up(*wall.values()), speed_up(*cpu.values()) if args.device == "cpu" else "-"]
    cells += [f"{memory[side]:.0f}" for side in SIDES] + [f"{memory['ours'] / memory['transformers']:.2f}"]
    return f"| {' | '.join(cells)} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bf16"), help="bf16 means autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile both sides")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448])
    parser.add_argument("--rounds", type=int, default=11, help="timed calls of each side")
    parser.add_argument("--warmup", type=int, default=2, help="calls of each side before")
    parser.add_argument("--memory-of", nargs=3, metavar=("SIDE", "CASE", "SIZE"), help="print one side's memory, MiB")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    if args.memory_of:
        side, case, size = args.memory_of
        print(measure_memory(side, case, int(size), args))
        return
    print(
        f"torch {torch.__version__}, {args.device}, {args.dtype}, compile {args.compile}, "
        f"{torch.get_num_threads()} threads, batch {args.batch_size}, {args.rounds} rounds, "
        f"load average {os.getloadavg()[0]:.1f} at the start\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for size in args.sizes:
        for case in CASES:
            print(compare_case(case, size, args), flush=True)


if __name__ == "__main__":
    main()
