"""Several processes on the CPU from `accelerate launch --cpu --num_processes N`.

accelerate starts one process then, and leaves the others to MPI. What was asked for stands in the launcher's command
line, so the one process starts the N by torch's own launcher.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence

import psutil
from accelerate.commands.launch import launch_command_parser
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from grouping_zoo.start_up import INTERRUPTED_EXIT_CODE


def started_alone_by_accelerate() -> bool:
    """Return whether `accelerate launch` was asked for several processes on the CPU and started this one only."""
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    return on_cpu and "MASTER_ADDR" in os.environ and "RANK" not in os.environ


def processes_asked_for() -> int | None:
    """N of the `accelerate launch ... --num_processes N` that started this process; None if it cannot be told."""
    parent = psutil.Process().parent()
    command = parent.cmdline() if parent is not None else []
    if "launch" not in command:
        return None
    return launch_command_parser().parse_args(command[command.index("launch") + 1 :]).num_processes


def launch(processes: int, arguments: Sequence[str], module: str = "grouping_zoo.engine") -> None:
    """Run `python -m MODULE ARGUMENTS` in several processes on this machine, which end if accelerate does.

    Raises:
        SystemExit: with the exit code of the first process that failed, or 130 on a signal.
    """
    # accelerate passes no signal on, and would leave the processes behind.
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        torchrun([f"--nproc-per-node={processes}", "-m", module, *arguments])
    except ChildFailedError as error:
        raise SystemExit(error.get_first_failure()[1].exitcode) from None
    except (SignalException, KeyboardInterrupt):
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None


def _end_with(parent: int) -> None:
    """Have this process terminated once its parent is gone; torch's launcher then terminates its own processes."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
