"""What all transformers classes of the zoo share: strict loading and the networks' own initialisation."""

from collections.abc import Set
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


class ZooPreTrainedModel(PreTrainedModel):
    """A transformers model around one network of this package, held as `self.model`.

    Loading is strict: a checkpoint with missing, leftover or misshapen keys is an error that lists them, since a
    model that is partly random still runs and its figures look merely bad.
    """

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    accepts_loss_kwargs = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Opens a checkpoint folder or hub name; the arguments are those of `transformers.PreTrainedModel`.

        Raises:
            ValueError: listing the keys, if the checkpoint does not fill the model exactly.
        """
        with_info = kwargs.pop("output_loading_info", False)
        accept_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        model, info = loaded
        for name in model._frozen:  # transformers makes every parameter that it loads trainable
            model.get_parameter(name).requires_grad_(False)
        missing = set(info["missing_keys"])
        misshapen = set() if accept_shapes else {entry[0] for entry in info["mismatched_keys"]}
        fresh = model.start_fresh_head(pretrained_model_name_or_path, missing, misshapen, kwargs)
        problems = {
            "missing keys": missing - fresh,
            "leftover keys": info["unexpected_keys"],
            "keys of another shape": misshapen - fresh,
        }
        listed = [f"{what}: {', '.join(sorted(keys))}" for what, keys in problems.items() if keys]
        if listed:
            raise ValueError(
                f"{pretrained_model_name_or_path}: the checkpoint does not fit {cls.__name__}; {'; '.join(listed)}"
            )
        return (model, info) if with_info else model

    def post_init(self) -> None:
        """Ends every constructor."""
        self._frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        super().post_init()

    def start_fresh_head(self, source: Any, missing: Set[str], misshapen: Set[str], kwargs: dict[str, Any]) -> set[str]:
        """Initialises a head that the checkpoint was not meant to fill, and names its keys; here there is no head.

        Args:
            source: the checkpoint's folder or hub name.
            missing: keys that the checkpoint lacks.
            misshapen: keys that have another shape there.
            kwargs: of `from_pretrained`.
        """
        return set()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The networks' own initialisation, children first; transformers' defaults would overwrite it."""
        initialise = getattr(module, "init_weights", None) or getattr(module, "reset_parameters", None)
        if initialise is not None and module is not self:
            initialise()

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.model.set_grad_checkpointing(enable)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any block is recomputed in the backward pass."""
        return any(getattr(module, "grad_checkpointing", False) for module in self.modules())


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that say how a file is fetched."""
    keys = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {key: kwargs[key] for key in keys if key in kwargs}
