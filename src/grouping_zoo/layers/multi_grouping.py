"""The multi-grouping operation: every head draws its own group tokens and binds the input tokens to them.

Deng et al., "Perceptual Group Tokenizer: Building Perception with Iterative Grouping" (ICLR 2024), Algorithm 1,
Eq. 2-5 and appendix A.1. Where the paper is silent: the keys serve the way back too, and the GRU cell, the norm and
the MLP of the group tokens are shared by the heads.

Shape legend: B batch, N input tokens, D their width, H grouping heads, M group tokens a head, d their width, K
binding iterations.
"""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

Seeding = Literal["gaussian", "flow"]
SEEDINGS = ("gaussian", "flow")

LAYER_NORM_EPS = 1e-6
# Added to the mass of a group before its mean is taken, so that an empty group gives zeros.
MASS_EPS = 1e-8
# Entries of the assignment held at once: on a CPU so many that they stay in its cache.
CHUNK_ENTRIES = {"cpu": 2**20}
DEFAULT_CHUNK_ENTRIES = 2**25
# A sum of half-precision values over more tokens could overflow; over fewer it is mostly overhead.
LONGEST_CHUNK, SHORTEST_CHUNK = 2048, 32


class Entropies(NamedTuple):
    """Entropies of the assignment p(c|x) and of its mean over an image's tokens p(c), in nats, averaged over images.

    `marginal` near 0: all tokens fall into one group. `conditional` near 0: assignments are hard; near `marginal`:
    they say nothing about the token. Both end at log M.
    """

    marginal: Tensor
    conditional: Tensor


class GaussianSeeds(nn.Module):
    """Group tokens c = mu + sigma * eps, mu and sigma learnable for each head (A.1.1)."""

    def __init__(self, num_heads: int, dim: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(num_heads, 1, dim))
        self.scale = nn.Parameter(torch.ones(num_heads, 1, dim))
        nn.init.trunc_normal_(self.mean, std=0.02)

    def forward(self, noise: Tensor) -> Tensor:
        """Unit Gaussian noise (B, H, M, d) to group tokens of the same shape."""
        return self.mean + self.scale * noise.to(self.mean.dtype)


class FlowSeeds(GaussianSeeds):
    """A Gaussian followed by one affine flow: (log s, t) = MLP(c), c <- s * c + t, an MLP for each head (A.1.2)."""

    def __init__(self, num_heads: int, dim: int) -> None:
        super().__init__(num_heads, dim)
        self.weight1 = nn.Parameter(torch.empty(num_heads, dim, 2 * dim))
        self.bias1 = nn.Parameter(torch.zeros(num_heads, 1, 2 * dim))
        # Zero: the flow starts as the identity.
        self.weight2 = nn.Parameter(torch.zeros(num_heads, 2 * dim, 2 * dim))
        self.bias2 = nn.Parameter(torch.zeros(num_heads, 1, 2 * dim))
        nn.init.trunc_normal_(self.weight1, std=0.02)

    def forward(self, noise: Tensor) -> Tensor:
        """Unit Gaussian noise (B, H, M, d) to group tokens of the same shape."""
        tokens = super().forward(noise)
        hidden = F.gelu(tokens @ self.weight1 + self.bias1)  # (B, H, M, 2d)
        log_scale, shift = (hidden @ self.weight2 + self.bias2).chunk(2, dim=-1)
        return log_scale.exp() * tokens + shift


class MultiGrouping(nn.Module):
    """Binds input tokens to group tokens in several heads, and hands the group tokens' content back to them.

    Only the last iteration takes part in the gradient (first-order Neumann series of the implicit one): its group
    tokens start detached. The parameters of the seeds, which a plain detach would cut off, get the gradient with
    respect to the tokens that the last iteration starts from; all other gradients are as if there were no such path.

    Args:
        dim: width D of the input tokens.
        group_dim: width d of the group tokens.
        num_heads: heads H, each with groups of its own.
        num_groups: group tokens M a head; changeable per call.
        num_iters: iterations K; changeable per call.
        mlp_ratio: hidden width of the group tokens' MLP over d.
        seeding: distribution that the group tokens are drawn from, "gaussian" or "flow".
        learn_seeds: train that distribution; without, it stays at its start, which is the plain detach.

    Raises:
        ValueError: on an unknown seeding.
    """

    def __init__(
        self,
        dim: int,
        group_dim: int,
        num_heads: int = 6,
        num_groups: int = 256,
        num_iters: int = 3,
        mlp_ratio: float = 1.0,
        seeding: Seeding = "gaussian",
        learn_seeds: bool = True,
    ) -> None:
        super().__init__()
        if seeding not in SEEDINGS:
            raise ValueError(f"seeding: expected one of {SEEDINGS}, got {seeding!r}")
        self.num_heads = num_heads
        self.group_dim = group_dim
        self.num_groups = num_groups
        self.num_iters = num_iters
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.key = nn.Linear(dim, num_heads * group_dim)
        self.value = nn.Linear(dim, num_heads * group_dim)
        self.seeds = (FlowSeeds if seeding == "flow" else GaussianSeeds)(num_heads, group_dim)
        self.seeds.requires_grad_(learn_seeds)
        self.gru = nn.GRUCell(group_dim, group_dim)
        self.group_norm = nn.LayerNorm(group_dim, eps=LAYER_NORM_EPS)
        self.group_mlp = Mlp(group_dim, int(mlp_ratio * group_dim))
        self.proj = nn.Linear(num_heads * group_dim, dim)

    def forward(
        self, x: Tensor, noise: Tensor | None = None, num_groups: int | None = None, num_iters: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Groups the tokens.

        Args:
            x: input tokens (B, N, D).
            noise: unit Gaussian (H, M', d') or (B, H, M', d'), with at least M groups and d channels, that the seeds
                are made of; drawn for each image from the device's random state if omitted.
            num_groups: M, in place of the layer's own.
            num_iters: K, in place of the layer's own.

        Returns:
            what the input tokens get back (B, N, D), Eq. 3 and 4; the final group tokens (B, H, M, d).
        """
        keys, values = self._keys_and_values(x)
        groups = self._bind(keys, values, self._seed(x, noise, num_groups), num_iters)
        del values  # a third of what is held here
        # Eq. 3: attention from input tokens to group tokens, which are keys and values at once.
        content = groups.to(keys.dtype)
        context = F.scaled_dot_product_attention(keys, content, content)  # (B, H, N, d)
        return self.proj(context.transpose(1, 2).flatten(2)), groups

    def assignment(self, x: Tensor, groups: Tensor, head: int | None = None) -> Tensor:
        """The assignment A of Eq. 3, which `forward` uses without making it.

        Args:
            x: input tokens (B, N, D) as given to `forward`.
            groups: final group tokens (B, H, M, d) as `forward` returns them.
            head: the one head that is wanted; all if omitted.

        Returns:
            (B, H, N, M), or (B, 1, N, M) of one head; float32 or wider, rows sum to 1.
        """
        keys = self._heads(self.key(self.norm(x)))
        if head is not None:
            keys, groups = keys[:, head : head + 1], groups[:, head : head + 1]
        return _assign(keys, _queries(groups))

    def entropies(self, x: Tensor, groups: Tensor) -> Entropies:
        """Entropies of the assignment, for each head: (H,) and (H,); arguments as for `assignment`."""
        keys = self._heads(self.key(self.norm(x)))
        queries = _queries(groups)
        total: Tensor | float = 0.0
        conditional: Tensor | float = 0.0
        for part in keys.split(_chunk_length(keys, groups.shape[2]), dim=2):
            assignment = _assign(part, queries)
            total = total + assignment.sum(dim=2)  # (B, H, M)
            conditional = conditional + torch.special.entr(assignment).sum(dim=(2, 3))  # (B, H)
        marginal = torch.special.entr(total / x.shape[1]).sum(dim=2)
        return Entropies(marginal.mean(dim=0), (conditional / x.shape[1]).mean(dim=0))

    def _keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(x)
        return self._heads(self.key(x)), self._heads(self.value(x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_heads, self.group_dim)).transpose(1, 2)  # (B, H, N, d)

    def _seed(self, x: Tensor, noise: Tensor | None, num_groups: int | None) -> Tensor:
        """Group tokens to start from, (B, H, M, d)."""
        number = self.num_groups if num_groups is None else num_groups
        if noise is None:
            noise = torch.randn(x.shape[0], self.num_heads, number, self.group_dim, device=x.device)
        return self.seeds(noise[..., :number, : self.group_dim]).expand(x.shape[0], -1, -1, -1)

    def _bind(self, keys: Tensor, values: Tensor, seeds: Tensor, num_iters: int | None) -> Tensor:
        """Algorithm 1: final group tokens (B, H, M, d)."""
        groups = seeds
        for _ in range((self.num_iters if num_iters is None else num_iters) - 1):
            # Detached iteration by iteration, which frees each one's graph at once. Not by `no_grad`: autocast would
            # hand the weights it has cast there, without their gradient, to the last iteration.
            groups = self._update(keys, values, groups.detach())
        if torch.is_grad_enabled():
            groups = groups.detach() + (seeds - seeds.detach())
        return self._update(keys, values, groups)

    def _update(self, keys: Tensor, values: Tensor, groups: Tensor) -> Tensor:
        """One iteration: group tokens (B, H, M, d) from (B, H, M, d)."""
        update = weighted_means(keys, values, groups)
        state = self.gru(update.flatten(0, 2), groups.flatten(0, 2)).view(groups.shape)
        return state + self.group_mlp(self.group_norm(state))


class GroupingLayer(nn.Module):
    """One layer of the network: h + MLP(LayerNorm(what multi-grouping gives back)) (Eq. 5).

    Args:
        dim: width D of the input tokens.
        grouping: the operation.
        mlp_ratio: hidden width of the MLP over D.
        drop_path: rate of stochastic depth.
    """

    def __init__(self, dim: int, grouping: MultiGrouping, mlp_ratio: float = 1.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.grouping = grouping
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(
        self, x: Tensor, noise: Tensor | None = None, num_groups: int | None = None, num_iters: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Refined input tokens (B, N, D) and group tokens (B, H, M, d); arguments as for `MultiGrouping`."""
        context, groups = self.grouping(x, noise, num_groups, num_iters)
        return x + self.drop_path(self.mlp(self.norm(context))), groups


def weighted_means(keys: Tensor, values: Tensor, groups: Tensor) -> Tensor:
    """Each group's mean of the values, weighted by the softmax over groups of each token (double normalisation).

    The N x M weights are made a chunk of tokens at a time: sums of weights and of weighted values over chunks give
    the same mean.

    Args:
        keys: (B, H, N, d).
        values: (B, H, N, d).
        groups: (B, H, M, d).

    Returns:
        (B, H, M, d), in the dtype of the groups.
    """
    queries = _queries(groups)
    length = _chunk_length(keys, groups.shape[2])
    wide = torch.promote_types(values.dtype, torch.float32)
    totals = torch.zeros(groups.shape, dtype=wide, device=groups.device)
    mass = torch.zeros(groups.shape[:3], dtype=wide, device=groups.device)
    for key, value in zip(keys.split(length, dim=2), values.split(length, dim=2), strict=True):
        weights = _assign(key, queries)  # (B, H, n, M)
        totals += weights.to(value.dtype).transpose(2, 3) @ value
        mass += weights.sum(dim=2)
    return (totals / (mass + MASS_EPS)[..., None]).to(groups.dtype)


def _queries(groups: Tensor) -> Tensor:
    """Group tokens scaled for attention and transposed, (B, H, d, M): cheaper than scaling the logits."""
    return (groups * groups.shape[3] ** -0.5).transpose(2, 3)


def _assign(keys: Tensor, queries: Tensor) -> Tensor:
    """Softmax over groups of each token, (B, H, n, M); half-precision logits are widened first."""
    logits = keys @ queries.to(keys.dtype)
    return logits.softmax(dim=3, dtype=torch.promote_types(logits.dtype, torch.float32))


def _chunk_length(keys: Tensor, num_groups: int) -> int:
    """Number of tokens whose weights are made at once."""
    if torch.compiler.is_exporting():  # a program for any batch size cannot depend on it
        return LONGEST_CHUNK
    entries = CHUNK_ENTRIES.get(keys.device.type, DEFAULT_CHUNK_ENTRIES)
    per_token = max(1, keys.shape[0] * keys.shape[1] * num_groups)  # of an empty batch none
    return min(max(entries // per_token, SHORTEST_CHUNK), LONGEST_CHUNK)
