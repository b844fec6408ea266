"""Types of the commands' arguments, and the arguments that several commands have."""

import argparse
import math
from pathlib import Path
from typing import NoReturn

MAX_SEED = 2**32 - 1


class Parser(argparse.ArgumentParser):
    """Parser that raises a `ValueError` on wrong arguments, so that they are reported as every mistake is."""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake, and name the help."""
        raise ValueError(f"{message}; see {self.prog} --help")


def count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def counts(text: str) -> list[int]:
    """Whole numbers of at least 1, with commas between them."""
    try:
        return [count(number.strip()) for number in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers of at least 1 with commas between them, got {text!r}"
        ) from None


def whole(text: str) -> int:
    """A whole number, negative ones too."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None


def seed(text: str) -> int:
    """A whole number that all random generators take."""
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {MAX_SEED}, got {text!r}")
    return int(text)


def process_count(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return int(text)


def name_list(text: str) -> list[str]:
    """Names with commas between them, at least one."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {text!r}")
    return found


def folder(text: str) -> Path:
    """A path that is not empty, as it is of a shell's variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got an empty path; give . for the current folder")
    return Path(text)


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def add_label_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the settings of labelling by text."""
    parser.add_argument(
        "--threshold", type=fraction, metavar="T", help="below this score a pixel is background; default: the model's"
    )
    parser.add_argument(
        "--masks", choices=("hard", "soft"), help="pixels belong to one group or to all; default: the model's, hard"
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add the device to compute on."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps, ... (%(default)s)")
