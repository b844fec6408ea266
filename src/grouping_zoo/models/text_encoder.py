"""The causal text transformer of CLIP and GroupViT.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021), section 2.4.

Shape legend: B batch, T tokens, C width.
"""

from functools import partial
from typing import Any

import torch
from timm.layers.activations import QuickGELU
from timm.models import checkpoint
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """Token ids to one feature: the final state at the end-of-text token.

    Args:
        vocab_size: entries of the vocabulary.
        context_length: longest text in tokens.
        width: C.
        depth: transformer layers.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLPs over C.
        eos_token_id: id of the end-of-text token, whose first occurrence is read; None reads the position of the
            highest id, as the first CLIP checkpoints do.
    """

    blocks: Any
    width: int

    def __init__(
        self,
        vocab_size: int = 49408,
        context_length: int = 77,
        width: int = 256,
        depth: int = 12,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        eos_token_id: int | None = 49407,
    ) -> None:
        super().__init__()
        self.context_length = context_length
        self.width = width
        self.eos_token_id = eos_token_id
        self.grad_checkpointing = False
        norm_layer: Any = partial(nn.LayerNorm, eps=1e-5)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.pos_embed = nn.Parameter(torch.zeros(context_length, width))
        self.blocks = nn.ModuleList(
            Block(width, num_heads, mlp_ratio, qkv_bias=True, act_layer=QuickGELU, norm_layer=norm_layer)
            for _ in range(depth)
        )
        self.norm = norm_layer(width)
        self.init_weights()

    def init_weights(self) -> None:
        """CLIP's scaled normal initialisation (its released code's figures)."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.01)
        residual_std = self.width**-0.5 * (2 * max(len(self.blocks), 1)) ** -0.5
        for block in self.blocks:
            for linear, std in (
                (block.attn.qkv, self.width**-0.5),
                (block.attn.proj, residual_std),
                (block.mlp.fc1, (2 * self.width) ** -0.5),
                (block.mlp.fc2, residual_std),
            ):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Parameters that weight decay leaves alone."""
        return {"pos_embed", "token_embedding.weight"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trades compute for memory: blocks are recomputed in the backward pass."""
        self.grad_checkpointing = enable

    def forward_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """States of all tokens.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T), 0 where a token is padding. Not needed for padding at the end, which causal
                attention never looks at.

        Returns:
            (B, T, C), normalised.

        Raises:
            ValueError: if the text is longer than the context.
        """
        length = input_ids.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"input_ids: expected at most {self.context_length} tokens, got {length}; truncate the text "
                f"(tokenizer argument truncation=True, max_length={self.context_length})"
            )
        x = self.token_embedding(input_ids) + self.pos_embed[:length]
        mask = None
        if attention_mask is not None and not attention_mask.all():
            causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
            # Every token may look at itself: a row with nothing to attend to would be NaN.
            mask = (causal & attention_mask.bool()[:, None]) | torch.eye(length, dtype=torch.bool, device=x.device)
            mask = mask[:, None]  # (B, 1, T, T)
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, attn_mask=mask, is_causal=mask is None)
            else:
                x = block(x, attn_mask=mask, is_causal=mask is None)
        return self.norm(x)

    def pool(self, x: Tensor, input_ids: Tensor) -> Tensor:
        """The state at the end-of-text token: (B, T, C) -> (B, C)."""
        keys = input_ids if self.eos_token_id is None else (input_ids == self.eos_token_id).int()
        return x[torch.arange(x.shape[0], device=x.device), keys.argmax(dim=1)]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Feature of each text: (B, T) int64 -> (B, C)."""
        return self.pool(self.forward_features(input_ids, attention_mask), input_ids)
