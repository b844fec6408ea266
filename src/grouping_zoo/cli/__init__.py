"""The `grouping-zoo` command."""

import argparse
import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

from grouping_zoo.cli import compare, evaluate, models, segment
from grouping_zoo.cli.parsing import Parser
from grouping_zoo.user_errors import report_user_errors
from grouping_zoo.version import __version__

INTERRUPTED_EXIT_CODE = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command; exit code 2 on a user's mistake, 130 on an interruption."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    with report_user_errors(), _quiet_interruption():
        if words[:1] == ["train"]:  # has a command line of its own
            from grouping_zoo.engine.__main__ import main as train

            return train(words[1:])
        options = _parser().parse_args(words or ["--help"])
        _silence_libraries()
        options.run(options)


@contextlib.contextmanager
def _quiet_interruption() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED_EXIT_CODE) from None


def _silence_libraries() -> None:
    """Leaves the output to the command: no loading bars, advice or warnings of the libraries below."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("timm", "huggingface_hub", "grouping_zoo"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="grouping-zoo", description="Grouping vision models on the command line.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    command("list", models.list_models, "Show the architectures and the checkpoints that come with the package.")
    models.add_info_arguments(command("info", models.info, "Describe a checkpoint or an architecture."))
    segment.add_arguments(command("segment", segment.run, "Group the pixels of photos, and label them by text."))
    commands.add_parser("train", help="Train by a recipe; see `grouping-zoo train --help`.", add_help=False)
    evaluate.add_arguments(command("eval", evaluate.run, "Figures of checkpoints on held-out images."))
    compare.add_arguments(command("compare", compare.run, "The figures of several checkpoints side by side."))
    return parser
