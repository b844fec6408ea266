"""Output of the libraries below the command."""

import logging
import warnings

from transformers.utils import logging as transformers_logging


def silence() -> None:
    """Leave the output to the command: no loading bars, advice or warnings of the libraries."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("timm", "huggingface_hub", "grouping_zoo"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
