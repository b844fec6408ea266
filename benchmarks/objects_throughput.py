"""Scenes of the data set `objects` that one process makes in a second.

    OMP_NUM_THREADS=1 python benchmarks/objects_throughput.py

Each size is timed in rounds that take turns, in CPU time of the process, so that a busy machine counts little.
"""

import argparse
import statistics
import time

from grouping_zoo.data.sampling import SampleKey
from grouping_zoo.data.sets.objects import Objects


def cpu_seconds(scenes: Objects, epoch: int) -> float:
    start = time.process_time()
    for index in range(len(scenes)):
        scenes[SampleKey(epoch, index)]
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--scenes", type=int, default=300, help="scenes a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    start = time.process_time()
    Objects()[0]
    print(f"first scene, pictures and photos read: {time.process_time() - start:.2f} CPU seconds")
    for name, most in (("1 to 5 objects", 5), ("single objects", 1)):
        sets = {size: Objects("train", arguments.scenes, size, max_objects=most) for size in arguments.sizes}
        seconds: dict[int, list[float]] = {size: [] for size in sets}
        for number in range(arguments.rounds):
            for size, scenes in sets.items():
                seconds[size].append(cpu_seconds(scenes, number))
        for size, taken in seconds.items():
            speeds = sorted(arguments.scenes / value for value in taken)
            print(
                f"{name}, {size} pixels: {statistics.median(speeds):.0f} scenes per CPU second "
                f"({speeds[0]:.0f}-{speeds[-1]:.0f})"
            )


if __name__ == "__main__":
    main()
