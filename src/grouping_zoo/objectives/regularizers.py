"""Penalties on the grouping itself, from Sharma (2023), sections 4.5 and 5.14.

Shape legend: B batch, N patch tokens, G final groups, K nouns of an image, V valid entries.
"""

import torch
from torch import Tensor

from grouping_zoo.grouping import Grouping
from grouping_zoo.objectives.gather import mean_over_processes


def group_entropy(grouping: Grouping) -> Tensor:
    """Mean entropy of the patch tokens over the final groups (GE, Eq. 38-39), in nats."""
    return _entropy(grouping.compose(), dim=-1).mean()


def label_entropy(grouping: Grouping, affinity: Tensor, noun_mask: Tensor) -> Tensor:
    """Mean entropy of the patch tokens over the image's own nouns (LE, Eq. 40-43), in nats.

    Args:
        grouping: of B images; its coarsest groups are the affinity's rows.
        affinity: (B, G, K) scaled similarity of groups and nouns.
        noun_mask: (B, K), False where a noun is padding; images without nouns count as zero.
    """
    labels = _masked_softmax(affinity, noun_mask[:, None], dim=2)  # (B, G, K)
    return _entropy(grouping.compose() @ labels, dim=-1).mean()


def segment_entropy(affinity: Tensor, noun_mask: Tensor) -> Tensor:
    """Entropy of groups over nouns and of nouns over groups (SE, Eq. 44-46), weighted 0.2 and 0.1.

    Args:
        affinity: (B, G, K) scaled similarity of groups and nouns.
        noun_mask: (B, K), False where a noun is padding.
    """
    over_nouns = _entropy(_masked_softmax(affinity, noun_mask[:, None], dim=2), dim=2).mean()
    per_noun = _entropy(affinity.softmax(dim=1), dim=1)  # (B, K)
    over_groups = mean_over_processes((per_noun * noun_mask).sum(), noun_mask.sum())
    return 0.2 * over_nouns + 0.1 * over_groups


def affinity_distillation(grouping: Grouping, teacher_tokens: Tensor) -> Tensor:
    """Cross-entropy between a teacher's patch affinities and the grouping's (Eq. 54), averaged over patches.

    The target row i is the softmax over patches j of the cosine of teacher tokens i and j; the student's affinity of
    i and j is the probability that both fall into one group.

    Args:
        grouping: of B images with N patch tokens.
        teacher_tokens: (B, N, any width), DINO's patch features on the same grid.

    Raises:
        ValueError: if the teacher has another number of tokens.
    """
    assignment = grouping.compose()  # (B, N, G)
    if teacher_tokens.shape[1] != assignment.shape[1]:
        raise ValueError(
            f"affinity distillation: the teacher has {teacher_tokens.shape[1]} patch tokens and the student "
            f"{assignment.shape[1]}; choose the teacher's image size so that the grids agree"
        )
    teacher_tokens = torch.nn.functional.normalize(teacher_tokens.float(), dim=-1)
    target = (teacher_tokens @ teacher_tokens.transpose(1, 2)).softmax(dim=-1)
    student = assignment @ assignment.transpose(1, 2)  # (B, N, N)
    return -(target * student.clamp_min(1e-8).log()).sum(-1).mean()


def _entropy(probability: Tensor, dim: int) -> Tensor:
    """-sum p log p, with a finite gradient where p is 0."""
    return -(probability * probability.clamp_min(1e-12).log()).sum(dim)


def _masked_softmax(x: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax over the entries where `mask`; zeros everywhere in rows without any."""
    x = x.masked_fill(~mask, -torch.inf)
    return torch.where(mask.any(dim=dim, keepdim=True), x, 0.0).softmax(dim=dim) * mask
