"""Criss-Cross Attention: every position attends to its own column and row."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Attention, Cost, check_qkv, embedding_channels, require_at_least
from .nla import position_scores
from .registry import register_attention
from .softmax import softmax_attention_lse


def criss_cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over the H + W − 1 positions of the own column and row under one softmax.

    The whole column and the whole row are attended to, without a mask; the own position, which
    both hold, is then taken out of the merged sums once (the row still holds it, so the
    normaliser stays at least as large as the row's).

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together.

    Numerics: error up to ``(4 u + 4 min(1, g)) max|v|``, see :mod:`.softmax`.
    """
    check_qkv(q, k, v)
    column, column_lse = _attend_lines(q.mT, k.mT, v.mT)
    column, column_lse = column.mT, column_lse.mT
    row, row_lse = _attend_lines(q, k, v)
    own = (q.to(row_lse.dtype) * k.to(row_lse.dtype)).sum(1)
    # Its score is in both sums; rounding of a huge one must not lift it above them.
    own = torch.minimum(own, torch.minimum(column_lse, row_lse))
    top = torch.maximum(column_lse, row_lse).detach()
    column_mass, row_mass, own_mass = (
        (t - top).exp().unsqueeze(1) for t in (column_lse, row_lse, own)
    )
    out = column_mass * column + row_mass * row - own_mass * v
    return (out / (column_mass + row_mass - own_mass)).to(v.dtype)


def _attend_lines(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attention within each line (last dimension): (``[B, c_out, H, W]``, lse ``[B, H, W]``)."""
    batch, _, lines, _ = q.shape
    rows = (t.permute(0, 2, 3, 1).flatten(0, 1) for t in (q, k, v))
    out, lse = softmax_attention_lse(*rows)
    return out.unflatten(0, (batch, lines)).permute(0, 3, 1, 2), lse.unflatten(0, (batch, lines))


@register_attention("criss-cross")
class CrissCrossAttention(Attention):
    """Criss-Cross Attention with 1x1 embeddings: ``y = x + gamma · out``, gamma learned from 0.

    Args:
        channels: channels C of input and output.
        reduction: query and key have C / reduction channels.
        recurrence: how often the same module is applied in a row (2 in CCNet).
    """

    label_format: ClassVar[str] = "Criss-Cross"
    source: ClassVar[str] = "CCNet: Criss-Cross Attention, Huang et al., ICCV 2019"
    complexity: ClassVar[str] = "O(N√N)"

    def __init__(self, channels: int, *, reduction: int = 8, recurrence: int = 1) -> None:
        super().__init__(channels)
        require_at_least("recurrence", recurrence, 1)
        self.recurrence = recurrence
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    @classmethod
    def label(cls, **options: Any) -> str:
        """Criss-Cross, with -R2 and so on for a recurrence above 1."""
        recurrence = options.get("recurrence", 1)
        return "Criss-Cross" if recurrence == 1 else f"Criss-Cross-R{recurrence}"

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``, ``recurrence`` passes with the same weights."""
        for _ in range(self.recurrence):
            x = super().forward(x)
        return x

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`criss_cross_attention`, one pass."""
        return criss_cross_attention(q, k, v)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """``x + gamma · y``."""
        return x + self.gamma * y

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]`` of one pass, zero off the column and row of (row, col)."""
        scores = position_scores(q, k, row, col)
        on_path = torch.zeros_like(scores, dtype=torch.bool)
        on_path[:, row, :] = True
        on_path[:, :, col] = True
        scores = scores.masked_fill(~on_path, -torch.inf)
        return scores.flatten(1).softmax(1).view_as(scores)

    def cost(self, height: int, width: int) -> Cost:
        """Core N (H + W) (c + c_out) MACs a pass; projections N C (2c + C)."""
        n, c = height * width, self.embedding
        core = n * (height + width) * (c + self.channels)
        projections = n * self.channels * (2 * c + self.channels)
        return Cost(
            projections=self.recurrence * projections,
            core=self.recurrence * core,
            executed=self.recurrence * core,
        )
