"""`python -m grouping_zoo.engine RECIPE [--resume auto|never] [KEY=VALUE ...]`, also under `accelerate launch -m`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from grouping_zoo.engine.cpu_launch import launch, processes_asked_for, started_alone_by_accelerate
from grouping_zoo.engine.loop import train
from grouping_zoo.engine.recipe import load_recipe
from grouping_zoo.start_up import INTERRUPTED_EXIT_CODE
from grouping_zoo.user_errors import report_user_errors


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train by a recipe; exit code 2 on a user's mistake, 130 on an interruption."""
    parser = _Parser(prog="python -m grouping_zoo.engine", description="Train by a recipe.", allow_abbrev=False)
    parser.add_argument("recipe", help="YAML file, or name of a packaged recipe")
    parser.add_argument("--resume", choices=("auto", "never"), help="short for run.resume")
    parser.epilog = "Any setting can follow as KEY=VALUE, --KEY=VALUE or --KEY VALUE, for example run.steps=100."
    arguments = sys.argv[1:] if arguments is None else arguments
    with report_user_errors():
        if started_alone_by_accelerate() and (processes := processes_asked_for()):
            launch(processes, arguments)
            return
        known, overrides = parser.parse_known_args(arguments)
        if known.resume is not None:
            overrides.append(f"run.resume={known.resume}")
        try:
            metrics = train(load_recipe(known.recipe, overrides))
        except KeyboardInterrupt:
            raise SystemExit(INTERRUPTED_EXIT_CODE) from None
        if os.environ.get("RANK", "0") == "0":
            for name, value in metrics.items():
                print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
