"""VT-ResNet as a timm model: a ResNet whose last stage works on a few visual tokens in the place of pixels.

Wu et al., "Visual Transformers: Token-based Image Representation and Processing for Computer Vision" (2020), sections
3 and 4, tables 1 to 8 and 11. No official code or weights exist. What the paper leaves open, and what was chosen, by
its counts of parameters and multiply-adds:

- Table 7 counts one projector fewer than modules, for nothing follows the last one but the mean of its tokens.
- The first projector raises the 256 channels of ResNet-18/34 to the 512 of Table 11, through ResNet's shortcut.
- All tables agree on 1.1 M parameters and 17 M multiply-adds that no equation names, in ResNet-18 as in ResNet-34,
  without projectors, token relation or recurrence too: `final_proj`, a layer of that size on the last tokens.
- Tokens are normalised once, where they are made (`visual_tokenizer`).

| | parameters, M | paper | multiply-adds at 224x224, M | paper |
|---|---|---|---|---|
| vt_resnet18 | 11.29 | 11.7 | 1555 | 1569-1586 |
| vt_resnet34 | 21.40 | 19.2, 21.9 | 3255 | 3236-3299 |
| vt_resnet50 | 21.65 | 21.4 | 3505 | 3412 |
| vt_resnet101 | 40.64 | 41.5 | 7217 | 7129 |

timm's ResNets come to the paper's multiply-adds (1814, 3664, 4089, 7802 M), so that both count alike. One sign differs:
a recurrent tokenizer adds 8.4 M here, those of T_in W_{T->R}, while Table 4 counts more without it.

Shape legend: B batch, (h, w) the map that the modules work on, L tokens, C_T their width.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.models import checkpoint, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping
from grouping_zoo.layers.token_projector import TokenProjector
from grouping_zoo.layers.token_relation import TokenRelation, make_token_relation
from grouping_zoo.layers.visual_tokenizer import (
    Projection,
    RecurrentTokenizer,
    TokenizerMethod,
    make_tokenizer,
)
from grouping_zoo.models.builder import COMMON_CFG, build_network, packaged_weights
from grouping_zoo.models.checkpoint import BackboneSource, asked_for, load_backbone
from grouping_zoo.models.family import GroupedFeatures, GroupingNetwork, check_choice, check_sizes, register_family

__all__ = ["VTResNet"]

BLOCKS: dict[str, Any] = {"basic": BasicBlock, "bottleneck": Bottleneck}
POOLS = ("avg", "")
STEM = ("conv1", "bn1", "act1", "maxpool")


class VTOutput(NamedTuple):
    """What one module makes.

    Attributes:
        features: (B, C', h, w) map with the tokens put back; the input's where there is no projector.
        tokens: (B, L, C_T).
        attention: (B, L, h * w) the tokenizer's, rows sum to 1.
        assignment: (B, h * w, L) the projector's, rows sum to 1, or None.
    """

    features: Tensor
    tokens: Tensor
    attention: Tensor
    assignment: Tensor | None


class VTModule(nn.Module):
    """Visual transformer: tokenizer, token relation, projector (Figure 1).

    Args:
        dim: channels of the map.
        out_dim: channels of the map that the projector makes; None for no projector.
        token_dim: C_T.
        num_tokens: L.
        tokenizer: how tokens are made; None for recurrent, of the tokens of the module before.
        token_relation: what relates the tokens.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int | None,
        token_dim: int,
        num_tokens: int,
        tokenizer: TokenizerMethod | None,
        token_relation: TokenRelation,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokenizer = (
            RecurrentTokenizer(dim, token_dim, num_tokens)
            if tokenizer is None
            else make_tokenizer(tokenizer, dim, token_dim, num_tokens)
        )
        self.relation = make_token_relation(token_relation, num_tokens, token_dim, drop_path)
        self.projector = None if out_dim is None else TokenProjector(dim, out_dim, token_dim, token_dim, drop_path)

    def forward(self, x: Tensor, previous: Tensor | None) -> VTOutput:
        """(B, C, h, w) and the tokens of the module before, if any."""
        tokens, attention = self.tokenizer(x, previous)
        tokens = self.relation(tokens)
        assignment = None
        if self.projector is not None:
            x, assignment = self.projector(x, tokens)
        return VTOutput(x, tokens, attention, assignment)


@register_family
class VTResNet(GroupingNetwork):
    """ResNet's stem and first stages, then visual transformer modules; the mean of the last tokens is classified.

    Stem and stages are timm's `ResNet`, under its names. Any image size from 32 up.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks of each convolution stage.
        channels: width of each stage's blocks.
        stem_type: timm's: "" or "deep".
        stem_width: timm's.
        num_modules: visual transformer modules.
        map_dim: channels of the map from the first projector on.
        num_tokens: L.
        token_dim: C_T.
        tokenizer: of the first module: "filter", "clustering" or "pooling".
        recurrent: later modules make their tokens from those before; else with a `tokenizer` of their own.
        token_relation: "transformer", "graph" or "none".
        projector: put tokens back onto the map, after all modules but the last.
        in_chans: input channels.
        num_classes: classes of the linear head; 0 for none.
        global_pool: "avg", the mean over the tokens, or "" for none.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last module, rising linearly from 0 in the first block.

    Raises:
        ValueError: on settings that do not fit together.
    """

    maxpool: nn.Module

    has_token_attention = True

    def __init__(
        self,
        block: Literal["basic", "bottleneck"] = "basic",
        layers: Sequence[int] = (2, 2, 2),
        channels: Sequence[int] = (64, 128, 256),
        stem_type: str = "",
        stem_width: int = 64,
        num_modules: int = 2,
        map_dim: int = 512,
        num_tokens: int = 16,
        token_dim: int = 1024,
        tokenizer: TokenizerMethod = "filter",
        recurrent: bool = True,
        token_relation: TokenRelation = "transformer",
        projector: bool = True,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("global_pool", global_pool, POOLS)
        _check_block(block, layers, channels)
        check_sizes(num_modules=num_modules, num_tokens=num_tokens, token_dim=token_dim, map_dim=map_dim)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = token_dim
        self.grad_checkpointing = False
        num_blocks = sum(layers)
        rates = [drop_path_rate * i / (num_blocks + num_modules - 1) for i in range(num_blocks + num_modules)]
        trunk = ResNet(
            BLOCKS[block],
            tuple(layers),
            num_classes=0,
            in_chans=in_chans,
            channels=tuple(channels),
            stem_type=stem_type,
            stem_width=stem_width,
            drop_path_rate=rates[num_blocks - 1],
        )
        self.stage_names = [f"layer{i + 1}" for i in range(len(layers))]
        for name in (*STEM, *self.stage_names):
            self.add_module(name, trunk.get_submodule(name))

        dims = [trunk.num_features] + [map_dim if projector else trunk.num_features] * (num_modules - 1)
        self.vt_modules = nn.ModuleList(
            VTModule(
                dims[i],
                map_dim if projector and i + 1 < num_modules else None,
                token_dim,
                num_tokens,
                None if recurrent and i else tokenizer,
                token_relation,
                rates[num_blocks + i],
            )
            for i in range(num_modules)
        )
        self.final_proj: nn.Module = Projection(token_dim, token_dim, gain=2**0.5)
        self.norm: nn.Module = nn.LayerNorm(token_dim)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(token_dim, num_classes) if num_classes else nn.Identity()
        self.feature_info = list(trunk.feature_info)
        if projector and num_modules > 1:
            reduction = trunk.feature_info[-1]["reduction"]
            self.feature_info.append(dict(num_chs=map_dim, reduction=reduction, module=f"vt_modules.{num_modules - 2}"))

    # --- the timm surface -------------------------------------------------------------------------------------------

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates."""
        return dict(
            stem=r"^conv1|^bn1",
            blocks=r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)",
            modules=r"^vt_modules" if coarse else r"^vt_modules\.(\d+)",
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades compute for memory: blocks and modules are recomputed in the backward pass."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The linear head, or Identity."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Puts a new head of `num_classes` (0: none) in place, and another pooling if given."""
        if global_pool is not None:
            check_choice("global_pool", global_pool, POOLS)
            self.global_pool = global_pool
        self.num_classes = num_classes
        parameter = next(self.parameters())
        self.fc = nn.Linear(self.num_features, num_classes).to(parameter) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to the features of the last tokens, (B, L, C_T)."""
        return self._final_tokens(self._run_modules(self._stages(x)[-1])[-1])

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Averages (B, L, C_T) over the tokens and, unless `pre_logits`, classifies: (B, num_classes)."""
        if self.global_pool == "avg":
            x = x.mean(dim=1)
        x = self.head_drop(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_classes), or the feature (B, C_T) without a head."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps: of the stem, of each stage, and the last one that tokens were put back onto, if there is any.

        Args:
            x: images (B, in_chans, H, W).
            indices: maps to take: the last n, or a list; all if omitted.
            norm: without effect, as in timm's ResNet: the maps have no norm that follows.
            stop_early: leave out what comes after the last map taken (only with `intermediates_only`).
            output_fmt: "NCHW".
            intermediates_only: return the list alone.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: expected 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.feature_info), indices)
        stop = last if stop_early and intermediates_only else None
        maps = self._stages(x, stop)
        outputs: list[VTOutput] = []
        if not intermediates_only or last > len(self.stage_names):
            outputs = self._run_modules(maps[-1], self._num_projectors if intermediates_only else None)
            maps.append(outputs[-1].features)
        taken = [maps[index] for index in take]
        return taken if intermediates_only else (self._final_tokens(outputs[-1]), taken)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the parts that the feature maps `indices` do not need; returns the indices that stay."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        for name in self.stage_names[last:]:
            self.add_module(name, nn.Sequential())
        self.vt_modules = self.vt_modules[: self._num_projectors if last > len(self.stage_names) else 0]
        if prune_norm or prune_head:
            self.final_proj = self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return take

    # --- grouping ---------------------------------------------------------------------------------------------------

    def forward_grouping(self, x: Tensor) -> Grouping:
        """Groups an image batch (B, in_chans, H, W): the cells of the modules' map into the tokens of one module.

        The assignment is that of the last projector. Without projectors it is the last tokenizer's attention,
        normalised over the tokens of each cell.
        """
        return _grouping(self._run_modules(self._stages(x)[-1]))

    @property
    def grouping_levels(self) -> int:
        """The cells of the map and the tokens."""
        return 2

    def forward_grouped(self, x: Tensor) -> GroupedFeatures:
        """Features, all maps of `forward_intermediates`, and `forward_grouping`, in one pass."""
        maps = self._stages(x)
        outputs = self._run_modules(maps[-1])
        if self._num_projectors:
            maps.append(outputs[-1].features)
        return GroupedFeatures(self._final_tokens(outputs[-1]), maps, _grouping(outputs))

    def token_attention(self, x: Tensor, module: int = 0, size: tuple[int, int] | None = None) -> Tensor:
        """Where the tokens of one module look (Figures 5, 7).

        Args:
            x: images (B, in_chans, H, W).
            module: which module; 0 is the first, whose tokenizer the paper shows.
            size: (H, W) of the maps, interpolated bilinearly; the modules' own (h, w) if omitted.

        Returns:
            (B, L, h, w), each token's map sums to 1; (B, L, H, W) where a size is given.
        """
        if not -len(self.vt_modules) <= module < len(self.vt_modules):
            raise ValueError(f"module: expected -{len(self.vt_modules)} to {len(self.vt_modules) - 1}, got {module}")
        maps = _attention_maps(self._run_modules(self._stages(x)[-1])[module])
        return maps if size is None else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)

    def forward_grouping_with_attention(self, x: Tensor) -> tuple[Grouping, Tensor]:
        """`forward_grouping`, and `token_attention` of the first module, from one pass."""
        outputs = self._run_modules(self._stages(x)[-1])
        return _grouping(outputs), _attention_maps(outputs[0])

    def _stages(self, x: Tensor, stop: int | None = None) -> list[Tensor]:
        """Maps of the stem and of the first `stop` stages."""
        self.check_images(x)
        x = self.act1(self.bn1(self.conv1(x)))
        maps = [x]
        for i, name in enumerate(self.stage_names[:stop]):
            stage: Any = self.get_submodule(name)
            x = self.maxpool(x) if i == 0 else x
            x = checkpoint_seq(stage, x) if self._recomputes and len(stage) else stage(x)
            maps.append(x)
        return maps

    def _run_modules(self, x: Tensor, stop: int | None = None) -> list[VTOutput]:
        outputs: list[VTOutput] = []
        tokens = None
        for module in self.vt_modules[:stop]:
            output = checkpoint(module, x, tokens) if self._recomputes else module(x, tokens)
            x, tokens = output.features, output.tokens
            outputs.append(output)
        return outputs

    @property
    def _num_projectors(self) -> int:
        """Modules that make a map: all but the last, or none."""
        return sum(module.projector is not None for module in self.vt_modules)

    @property
    def _recomputes(self) -> bool:
        return self.grad_checkpointing and torch.is_grad_enabled()

    def _final_tokens(self, output: VTOutput) -> Tensor:
        return F.relu(self.norm(self.final_proj(output.tokens)))


def _attention_maps(output: VTOutput) -> Tensor:
    """(B, L, h * w) attention as maps (B, L, h, w)."""
    return output.attention.unflatten(2, output.features.shape[-2:])


def _grouping(outputs: Sequence[VTOutput]) -> Grouping:
    """See `VTResNet.forward_grouping`."""
    last = next((output for output in reversed(outputs) if output.assignment is not None), outputs[-1])
    assignment = last.assignment
    if assignment is None:
        attention = last.attention.transpose(1, 2)
        # A cell that every token leaves out, to the last bit, belongs to all alike.
        attention = attention.clamp_min(torch.finfo(attention.dtype).tiny)
        assignment = attention / attention.sum(dim=2, keepdim=True)
    rows, columns = last.features.shape[-2:]
    return Grouping(assignments=[assignment[:, None]], tokens=[last.tokens], grid=(rows, columns))


def _check_block(block: str, layers: Sequence[int], channels: Sequence[int]) -> None:
    if block not in BLOCKS:
        raise ValueError(f"block: expected one of {tuple(BLOCKS)}, got {block!r}")
    if not layers or len(layers) != len(channels) or min(layers) < 1:
        raise ValueError(
            f"layers and channels: expected one entry a stage, layers of at least 1 block, got {tuple(layers)} and "
            f"{tuple(channels)}"
        )


# --- variants -------------------------------------------------------------------------------------------------------


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return COMMON_CFG | dict(num_classes=1000, interpolation="bilinear", first_conv="conv1", classifier="fc") | kwargs


default_cfgs = generate_default_cfgs(
    {
        "vt_resnet18.untrained": _cfg(),
        "vt_resnet34.untrained": _cfg(),
        "vt_resnet50.untrained": _cfg(),
        "vt_resnet101.untrained": _cfg(),
        "vt_resnet_nano.scenes": _cfg(
            **packaged_weights("vt_resnet_nano_scenes"),
            num_classes=8,
            input_size=(3, 64, 64),
            crop_pct=1.0,
            interpolation="bicubic",
            first_conv="conv1.0",
        ),
    }
)


def _create(
    variant: str, pretrained: bool, pretrained_backbone: BackboneSource | None = None, **kwargs: Any
) -> nn.Module:
    """Builds a variant; stem and stages start from `pretrained_backbone` (see `load_backbone`), if not `pretrained`."""
    source = asked_for(pretrained_backbone, pretrained, kwargs)
    has_last_map = kwargs.get("projector", True) and kwargs.get("num_modules", 2) > 1
    maps = tuple(range(1 + len(kwargs.get("layers", (2, 2, 2))) + has_last_map))
    network = build_network(VTResNet, variant, pretrained, maps, **kwargs)
    if source is not None:
        inner = network.model if kwargs.get("features_only") else network
        load_backbone(inner, source, ("conv1.", "bn1.", "layer"), in_chans=inner.in_chans)
    return network


@register_model
def vt_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VT-ResNet-18: two modules on 256, then 512 channels."""
    return _create("vt_resnet18", pretrained, **kwargs)


@register_model
def vt_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VT-ResNet-34: three modules on 256, then 512 channels."""
    return _create("vt_resnet34", pretrained, **{"layers": (3, 4, 6), "num_modules": 3, **kwargs})


@register_model
def vt_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VT-ResNet-50: three modules on 1024 channels."""
    model_args: dict[str, Any] = dict(block="bottleneck", layers=(3, 4, 6), num_modules=3, map_dim=1024)
    return _create("vt_resnet50", pretrained, **{**model_args, **kwargs})


@register_model
def vt_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VT-ResNet-101: three modules on 1024 channels."""
    model_args: dict[str, Any] = dict(block="bottleneck", layers=(3, 4, 23), num_modules=3, map_dim=1024)
    return _create("vt_resnet101", pretrained, **{**model_args, **kwargs})


@register_model
def vt_resnet_nano(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A VT-ResNet for a laptop: 64x64 images, two stages of one block, two modules of 8 tokens on an 8x8 map.

    Two stages and not three, since a third one would leave 4x4 cells to 8 tokens; 128x128 images would cost four times
    as much. The plain ResNet that it is compared with has two more stages in the place of the modules: timm's
    `resnet18` with `layers=(1, 1, 1, 1)`, `channels=(32, 64, 128, 256)`, `stem_type="deep"`, `stem_width=16`.
    """
    model_args: dict[str, Any] = dict(
        layers=(1, 1),
        channels=(32, 64),
        stem_type="deep",
        stem_width=16,
        num_modules=2,
        map_dim=128,
        num_tokens=8,
        token_dim=128,
    )
    return _create("vt_resnet_nano", pretrained, **{**model_args, **kwargs})
