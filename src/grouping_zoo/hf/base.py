"""Base of all transformers classes of the zoo: strict loading and the networks' own initialisation."""

from collections.abc import Set
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from grouping_zoo.models.checkpoint import problems_of_keys


class ZooPreTrainedModel(PreTrainedModel):
    """A transformers model around one network of this package, held as `self.model`.

    Loading is strict: a checkpoint with missing, leftover or misshapen keys is an error that lists them, since a
    model that is partly random still runs and its results look merely bad.
    """

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    accepts_loss_kwargs = False

    model: Any

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
        fresh = model.keys_of_fresh_head(pretrained_model_name_or_path, missing, misshapen, kwargs)
        problems = problems_of_keys(
            missing=missing - fresh, leftover=info["unexpected_keys"], misshapen=misshapen - fresh
        )
        if problems:
            raise ValueError(f"{pretrained_model_name_or_path}: the checkpoint does not fit {cls.__name__}; {problems}")
        return (model, info) if with_info else model

    def make_network(self) -> nn.Module:
        """The network of `self.config`, with weights drawn by its own rules."""
        raise NotImplementedError

    def post_init(self) -> None:
        """Ends every constructor."""
        self._frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        # A network draws its weights when it is made, but nothing can be drawn on the meta device.
        self._drawn = not any(parameter.is_meta for parameter in self.model.parameters())
        super().post_init()

    def keys_of_fresh_head(
        self, source: Any, missing: Set[str], misshapen: Set[str], kwargs: dict[str, Any]
    ) -> set[str]:
        """Keys of a head that the checkpoint was not meant to fill; none where the model has no head.

        Args:
            source: the checkpoint's folder or hub name; None where the weights were given as a `state_dict`.
            missing: keys that the checkpoint does not have.
            misshapen: keys that have another shape there.
            kwargs: of `from_pretrained`.
        """
        return set()

    def _init_weights(self, module: nn.Module) -> None:
        # The network has drawn its weights by rules that its single layers do not know.
        if not any(module is part for part in self.model.modules()):
            super()._init_weights(module)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draws what no checkpoint has filled; tensors of the network are taken from a freshly drawn one."""
        super().initialize_weights()
        if self._drawn:
            return
        tensors = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        # transformers marks the tensors that it has loaded.
        empty = {key: value for key, value in tensors.items() if not getattr(value, "_is_hf_initialized", False)}
        if empty:
            with torch.device("cpu"):
                fresh = self.make_network()
            drawn = {**dict(fresh.named_parameters()), **dict(fresh.named_buffers())}
            for key, value in empty.items():
                value.copy_(drawn[key])

    def _set_gradient_checkpointing(
        self, enable: bool = True, *args: Any, every_n_layers: int = 1, **kwargs: Any
    ) -> None:
        if every_n_layers != 1:
            raise ValueError(
                f"every_n_layers: expected 1, as all blocks are recomputed or none, got {every_n_layers}; leave it out"
            )
        self.gradient_checkpointing = enable  # read by transformers and its Trainer
        self.model.set_grad_checkpointing(enable)


def hub_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those arguments of `from_pretrained` that say how a file is fetched."""
    keys = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {key: kwargs[key] for key in keys if key in kwargs}
