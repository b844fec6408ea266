"""Contrastive losses of images and their groups with captions and the nouns in them, as GroupViT is trained.

Sharma (2023), section 4.3, Eq. 23-28; equal nouns of other images as positives: section 5.10; memory bank: 6.1.2.

Shape legend: B images of this process, W processes, D joint width, S segments, K nouns an image (some padded),
Q entries of the memory bank.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from grouping_zoo.grouping import Grouping
from grouping_zoo.models.groupvit import GroupViT
from grouping_zoo.models.image_text import ImageTextModel
from grouping_zoo.objectives.gather import gather, mean_over_processes
from grouping_zoo.objectives.regularizers import affinity_distillation, group_entropy, label_entropy, segment_entropy
from grouping_zoo.settings import require

PADDED = -1


@dataclass(kw_only=True)
class ImageTextConfig:
    """Settings of `ImageTextObjective`."""

    caption_weight: float = 1.0
    """Weight of the caption loss."""
    multi_label_weight: float = 1.0
    """Weight of the multi-label loss with the pooled image feature (as published)."""
    positives: Literal["own", "equal"] = "own"
    """own: an image's positives are its own nouns alone (as published); equal: the same noun of other images is
    positive too (section 5.10)."""
    segment_weight: float = 0.0
    """Weight of the segment loss: each segment s chooses one of the batch's nouns or none, p_s = softmax over nouns of
    its scaled similarities and 0; an image shows noun n with probability 1 - prod_s (1 - p_s(n)). The loss is the mean
    of -log of that over the image's own nouns, plus the mean of -log of the opposite over the others. A segment that
    holds two things can choose neither for sure."""
    token_weight: float = 0.0
    """Weight of the multi-label loss with the tokens that enter GroupViT's last grouping, each as a segment of its own,
    in the place of the pooled feature; an image's similarity to a noun is the smooth maximum (log-sum-exp) over its
    tokens. The tokens' values learn the nouns before the groups have a shape."""
    token_keep: float = 1.0
    """Fraction of the tokens, drawn anew in each step of training, that this loss sees: the smaller, the more of an
    object's tokens have to show its noun."""
    memory_bank: int = 0
    """Number Q of earlier nouns kept as further negatives; equal nouns never count as negatives."""
    group_entropy: float = 0.0
    """Weight of GE."""
    label_entropy: float = 0.0
    """Weight of LE."""
    segment_entropy: float = 0.0
    """Weight of SE."""
    regularize_from: float = 0.0
    """Fraction of the training, 0 to 1, after which the entropy terms set in."""
    distillation_weight: float = 0.0
    """Weight of the affinity distillation from the teacher."""
    teacher: str | None = None
    """timm vision transformer whose patch affinities are distilled (section 5.14), e.g. vit_small_patch16_224.dino."""
    teacher_layer: int = 9
    """Block of the teacher whose patch tokens are compared, counted from 0."""

    def __post_init__(self) -> None:
        require(self, "objective.positives", self.positives in ("own", "equal"), "own or equal")
        require(self, "objective.token_keep", 0 < self.token_keep <= 1, "a fraction above 0, at most 1")
        require(self, "objective.regularize_from", 0 <= self.regularize_from <= 1, "0 to 1")
        require(self, "objective.memory_bank", self.memory_bank >= 0, "0 or more")
        both_or_neither = bool(self.distillation_weight) == (self.teacher is not None)
        require(
            self, "objective.teacher", both_or_neither, "null where objective.distillation_weight is 0, and only there"
        )
        for name in ("label_entropy", "segment_entropy", "memory_bank"):
            allowed = bool(self.noun_weights) or not getattr(self, name)
            require(
                self, f"objective.{name}", allowed, "0 where multi_label_weight, segment_weight and token_weight are 0"
            )

    @property
    def noun_weights(self) -> dict[str, float]:
        """Weights of the losses that compare nouns, of those that are used."""
        weights = {"multi_label": self.multi_label_weight, "segment": self.segment_weight, "token": self.token_weight}
        return {name: weight for name, weight in weights.items() if weight}


class ImageTextObjective(nn.Module):
    """Image-text contrastive loss plus the multi-label contrastive loss over nouns.

    Caption loss: with z_i, t_j the normalised features of all W B images and captions and s the scale,
        1/2 mean_i -log softmax_j(s z_i . t_j)[i]  +  1/2 mean_j -log softmax_i(s z_i . t_j)[j].
    Multi-label loss: the same with the prompted nouns; image i's target is uniform over its positive nouns, a noun's
    target uniform over its positive images.

    Args:
        model: the two towers.
        config: the settings.
        teacher: frozen network of `config.teacher`, images -> patch tokens (B, N, C) on the student's grid.

    Raises:
        ValueError: if the teacher is missing, or with a token loss of another vision tower than GroupViT.
    """

    def __init__(self, model: ImageTextModel, config: ImageTextConfig, teacher: nn.Module | None = None) -> None:
        super().__init__()
        fits = (teacher is None) == (config.teacher is None)
        require(config, "config.teacher", fits, "the teacher's name with the argument teacher, and null without")
        if config.token_weight and not isinstance(model.vision, GroupViT):
            tower = type(model.vision).__name__
            raise ValueError(
                f"objective.token_weight: expected 0 with {tower} as vision tower, got {config.token_weight}; set 0"
            )
        self.model = model
        self.config = config
        self.noun_weights = config.noun_weights
        self.entropy_weights = {
            "group_entropy": config.group_entropy,
            "label_entropy": config.label_entropy,
            "segment_entropy": config.segment_entropy,
        }
        self.teacher = None if teacher is None else teacher.eval().requires_grad_(False)
        # Buffers, so that a resumed run goes on with them.
        self.progress: Tensor
        self.bank_features: Tensor
        self.bank_keys: Tensor
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("bank_features", torch.zeros(config.memory_bank, model.image_projector.fc2.out_features))
        self.register_buffer("bank_keys", torch.full((config.memory_bank,), PADDED, dtype=torch.int64))

    def after_step(self, progress: float) -> None:
        """Note the trained fraction, 0 to 1."""
        self.progress.fill_(progress)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of a batch.

        Args:
            batch: `pixel_values` (B, 3, H, W), `input_ids` (B, T) and, where nouns count, `noun_ids`
                (B, K, T), `noun_mask` (B, K) bool and `noun_keys` (B, K) int64, equal where the nouns are; and extra
                inputs of the vision tower, which makes those that are missing.

        Returns:
            "loss" and its parts, scalars.
        """
        rows, grouping = self._encode_images(batch)
        captions, nouns = self._encode_texts(batch)
        with torch.autocast(captions.device.type, enabled=False):
            rows = {name: F.normalize(part.float(), dim=-1) for name, part in rows.items()}
            losses = {"caption_loss": self._caption_loss(rows["multi_label"][:, 0], captions.float())}
            total = self.config.caption_weight * losses["caption_loss"]
            if nouns is not None:
                nouns = F.normalize(nouns.float(), dim=-1)
                for name, weight in self.noun_weights.items():
                    compare = self._segment_loss if name == "segment" else self._multi_label_loss
                    losses[f"{name}_loss"] = compare(rows[name], nouns, batch)
                    total = total + weight * losses[f"{name}_loss"]
                self._remember(gather(nouns.flatten(0, 1)), gather(self._own_keys(batch)).flatten())
            penalties = self._entropies(grouping, rows.get("segment"), nouns, batch)
            active = (self.progress >= self.config.regularize_from).float()
            for name, value in penalties.items():
                total = total + active * self.entropy_weights[name] * value
            losses |= penalties
            if self.teacher is not None:
                losses["distillation_loss"] = affinity_distillation(grouping, self._teach(batch["pixel_values"]))
                total = total + self.config.distillation_weight * losses["distillation_loss"]
        return {"loss": total, **losses}

    def _encode_images(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Grouping]:
        """Joint features by which nouns are compared, each (B, R, D), and the grouping.

        "multi_label" is the pooled image (R = 1), "segment" the segments and "token" the tokens, where needed. All are
        projected together, so that batch norm sees one distribution and not several in turn.
        """
        vision = self.model.vision
        extra = {name: batch[name] for name in vision.input_names if name in batch}
        grouped = vision.forward_grouped(batch["pixel_values"], **extra)
        grouping = vision.segment_grouping(grouped)
        segments = grouping.tokens[-1]  # (B, S, C)
        rows = {"multi_label": segments.mean(dim=1)[:, None]}
        weights = self.noun_weights | self.entropy_weights
        if any(weights.get(name) for name in ("segment", "label_entropy", "segment_entropy")):
            rows["segment"] = segments
        if "token" in self.noun_weights:
            tokens = vision.tokens_as_segments(grouped.stages)  # (B, N, C)
            if self.training and self.config.token_keep < 1:
                kept = torch.rand(tokens.shape[:2], device=tokens.device).argsort(dim=1)
                kept = kept[:, : max(round(self.config.token_keep * tokens.shape[1]), 1)]
                tokens = tokens.gather(1, kept[:, :, None].expand(-1, -1, tokens.shape[2]))
            rows["token"] = tokens
        counts = [part.shape[1] for part in rows.values()]
        joint = self.model.image_projector(torch.cat(list(rows.values()), dim=1)).split(counts, dim=1)
        return dict(zip(rows, joint, strict=True)), grouping

    def _encode_texts(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Captions (B, D) and nouns (B, K, D), encoded together so that batch norm sees both."""
        captions = batch["input_ids"]
        if not self.noun_weights:
            return self.model.encode_text(captions), None
        nouns = batch["noun_ids"]
        texts = torch.cat([captions, nouns.flatten(0, 1)])
        first, which = _distinct(texts)
        features = self.model.text_projector(self.model.text(texts[first])[which])
        return features[: len(captions)], features[len(captions) :].unflatten(0, nouns.shape[:2])

    def _caption_loss(self, image: Tensor, captions: Tensor) -> Tensor:
        captions = F.normalize(captions, dim=-1)
        scale = self.model.scale()
        target = torch.arange(len(image), device=image.device) + _rank() * len(image)
        to_text = F.cross_entropy(scale * image @ gather(captions).T, target)
        to_image = F.cross_entropy(scale * captions @ gather(image).T, target)
        return (to_text + to_image) / 2

    def _own_keys(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["noun_keys"].masked_fill(~batch["noun_mask"], PADDED)  # (B, K)

    def _multi_label_loss(self, rows: Tensor, nouns: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The loss of images given as R normalised rows each (B, R, D): the pooled image or its tokens."""
        own_keys = self._own_keys(batch)
        batch_size, num_nouns = own_keys.shape
        all_rows, all_nouns = gather(rows), gather(nouns.flatten(0, 1))  # (WB, R, D), (WBK, D)
        all_keys = gather(own_keys)  # (WB, K)
        # The rank is part of a text: another process's batch norm gives another feature.
        texts = F.pad(batch["noun_ids"].flatten(0, 1), (1, 0), value=_rank())  # (BK, 1 + T)
        scale = self.model.scale(multi_label=True)
        first = _rank() * batch_size

        # Image to nouns: (B, WBK) similarities, then the bank's.
        owner = torch.arange(all_keys.numel(), device=rows.device) // num_nouns  # (WBK,) image of each noun
        own_image = torch.arange(batch_size, device=rows.device) + first
        same_image = owner[None] == own_image[:, None]
        positive = same_image | self._equal_nouns(own_keys, all_keys.flatten())
        valid = all_keys.flatten() != PADDED
        similarity = self._similarity(rows, all_nouns, gather(texts), scale)
        similarity, positive, allowed = self._with_bank(similarity, positive & valid, valid, own_keys, rows)
        to_text = _soft_target_loss(similarity, positive, allowed)

        # Nouns to images: (BK, WB) similarities.
        noun_keys = own_keys.flatten()
        noun_owner = torch.arange(len(noun_keys), device=rows.device) // num_nouns + first
        same_image = noun_owner[:, None] == torch.arange(len(all_rows), device=rows.device)[None]
        positive = same_image | self._equal_nouns(all_keys, noun_keys).T
        similarity = self._similarity(all_rows, nouns.flatten(0, 1), texts, scale).T
        to_image = _soft_target_loss(similarity, positive & (noun_keys != PADDED)[:, None], torch.ones_like(positive))
        return (to_text + to_image) / 2

    def _equal_nouns(self, image_keys: Tensor, noun_keys: Tensor) -> Tensor:
        """(images, nouns) True where the image has an equal noun: keys (images, K) and (nouns,)."""
        if self.config.positives == "own":
            return torch.zeros(len(image_keys), len(noun_keys), dtype=torch.bool, device=noun_keys.device)
        return ((image_keys[:, :, None] == noun_keys) & (image_keys != PADDED)[:, :, None]).any(dim=1)

    def _similarity(self, rows: Tensor, nouns: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
        """(images, R, D) and (nouns, D) to (images, nouns); the smooth maximum over the R rows of an image.

        Of nouns with the same ids, `texts` (nouns, T), only the first is compared: a batch has few different ones.
        """
        first, which = _distinct(texts)
        return self._smooth_maximum(rows, nouns[first], scale)[:, which]

    def _smooth_maximum(self, rows: Tensor, columns: Tensor, scale: Tensor) -> Tensor:
        similarity = scale * rows @ columns.T  # (images, R, columns)
        return similarity.logsumexp(dim=1) if rows.shape[1] > 1 else similarity[:, 0]

    def _segment_loss(self, segments: Tensor, nouns: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Each segment chooses one noun or none; an image shows a noun if some segment chooses it."""
        own_keys = self._own_keys(batch)
        all_keys, all_nouns = gather(own_keys).flatten(), gather(nouns.flatten(0, 1))
        all_keys, all_nouns = all_keys[all_keys != PADDED], all_nouns[all_keys != PADDED]
        keys, owner = all_keys.unique(return_inverse=True)  # U different nouns
        texts = F.normalize(torch.zeros(len(keys), nouns.shape[-1], device=nouns.device).index_add(0, owner, all_nouns))
        logits = self.model.scale(multi_label=True) * segments @ texts.T  # (B, S, U)
        choice = F.pad(logits, (0, 1)).softmax(dim=-1)[..., :-1]  # the padded logit is that of "none", cosine 0
        absent = torch.log1p(-choice.clamp(max=1 - 1e-5)).sum(dim=1)  # (B, U) log-probability that no segment shows it
        shown = (own_keys[:, :, None] == keys).any(dim=1)  # (B, U)
        present = torch.log(-torch.expm1(absent.clamp(max=-1e-6)))
        positive = mean_over_processes(-present[shown].sum(), shown.sum())
        return positive + mean_over_processes(-absent[~shown].sum(), (~shown).sum())

    def _with_bank(
        self, similarity: Tensor, positive: Tensor, valid: Tensor, own_keys: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Append the bank's nouns as columns that are negatives, or ignored where the image has the noun itself."""
        allowed = valid[None].expand_as(positive)
        if not len(self.bank_keys):
            return similarity, positive, allowed
        shared = (own_keys[:, :, None] == self.bank_keys).any(dim=1)  # (B, Q)
        bank_allowed = (self.bank_keys != PADDED) & ~shared
        bank = self.bank_features.clone()  # the backward pass needs it as it is now
        bank_similarity = self._smooth_maximum(rows, bank, self.model.scale(multi_label=True))
        return (
            torch.cat([similarity, bank_similarity], dim=1),
            torch.cat([positive, torch.zeros_like(shared)], dim=1),
            torch.cat([allowed, bank_allowed], dim=1),
        )

    @torch.no_grad()
    def _remember(self, nouns: Tensor, keys: Tensor) -> None:
        """Put the newest nouns at the front of the bank."""
        size = len(self.bank_keys)
        if size and self.training:
            nouns, keys = nouns[keys != PADDED], keys[keys != PADDED]
            self.bank_features.copy_(torch.cat([nouns, self.bank_features])[:size])
            self.bank_keys.copy_(torch.cat([keys, self.bank_keys])[:size])

    def _entropies(
        self, grouping: Grouping, segments: Tensor | None, nouns: Tensor | None, batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        weights = self.entropy_weights
        if weights["group_entropy"]:
            found["group_entropy"] = group_entropy(grouping)
        if weights["label_entropy"] or weights["segment_entropy"]:
            assert segments is not None
            assert nouns is not None
            affinity = self.model.scale(multi_label=True) * segments @ nouns.transpose(1, 2)  # (B, S, K)
            if weights["label_entropy"]:
                found["label_entropy"] = label_entropy(grouping, affinity, batch["noun_mask"])
            if weights["segment_entropy"]:
                found["segment_entropy"] = segment_entropy(affinity, batch["noun_mask"])
        return found

    @torch.no_grad()
    def _teach(self, pixel_values: Tensor) -> Tensor:
        assert self.teacher is not None
        return self.teacher(pixel_values)

    def train(self, mode: bool = True) -> Any:
        """Set the mode; the teacher stays in evaluation mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self


def _soft_target_loss(logits: Tensor, positive: Tensor, allowed: Tensor) -> Tensor:
    """Mean over rows of -sum_j target_j log softmax_j, targets uniform over the row's positives.

    Args:
        logits: (rows, columns).
        positive: (rows, columns) bool; rows without any do not count.
        allowed: (rows, columns) bool; other columns are left out of the softmax.
    """
    log_probability = logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=1).masked_fill(~positive, 0.0)
    counts = positive.sum(dim=1)
    per_row = -(log_probability.sum(dim=1) / counts.clamp(min=1))
    return mean_over_processes(per_row.sum(), (counts > 0).sum())


def _distinct(texts: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first of each different row of ids (n, T), and for each row which of those it equals (n,)."""
    different, which = texts.unique(dim=0, return_inverse=True)
    order = torch.arange(len(texts), device=texts.device)
    first = order.new_full((len(different),), len(texts)).scatter_reduce(0, which, order, "amin")
    return first, which


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
