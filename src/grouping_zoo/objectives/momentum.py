"""Slow copies of trained networks: DINO's teacher, MoCo-v3's momentum encoder."""

import math
from collections.abc import Iterator
from copy import deepcopy
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def momentum_copy(network: Network) -> Network:
    """Return an equal network without gradients."""
    return deepcopy(network).requires_grad_(False)


class MomentumObjective(nn.Module):
    """Base of objectives whose targets come from a moving average of the trained networks.

    After an update each copy moves towards its network by 1 - m, m = 1 - (1 - momentum) (1 + cos(pi progress)) / 2
    (Grill et al., "Bootstrap Your Own Latent" (2020), section 3): m rises from `momentum` to 1 by a half cosine.

    Args:
        momentum: fraction of a copy that stays at the first updates.
    """

    averages_statistics: ClassVar[bool]
    """Whether the copies take over the running statistics of batch norms too, or collect their own."""

    def __init__(self, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum

    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """Return each copy with the network that it follows."""
        raise NotImplementedError

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the copies towards their networks.

        Args:
            progress: trained fraction, 0 to 1.
        """
        stay = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * progress)) / 2
        for slow, trained in self._averaged():
            if slow.is_floating_point():
                slow.lerp_(trained, 1 - stay)
            else:
                slow.copy_(trained)

    def restart_momentum(self) -> None:
        """Make the copies equal to their networks, whose weights were replaced."""
        for slow, trained in self.momentum_pairs():
            slow.load_state_dict(trained.state_dict())

    def _averaged(self) -> Iterator[tuple[Tensor, Tensor]]:
        for networks in self.momentum_pairs():
            slow, trained = (
                network.state_dict().values() if self.averages_statistics else network.parameters()
                for network in networks
            )
            yield from zip(slow, trained, strict=True)
