"""Criss-Cross Attention: every position attends to its own column and row, O(N√N) time."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import Attention, Cost, check_qkv, embedding_channels, require_at_least
from .implementations import run
from .layers import call_together
from .nla import position_scores
from .registry import register_attention


def criss_cross_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """CCNet, Section 3.2: ``y_i = sum_j exp(q_i·k_j) v_j / sum_j exp(q_i·k_j)``.

    The sums run over the column and the row of i: H + W − 1 positions under one softmax, i itself
    counted once.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.

    Returns:
        ``[B, c_out, H, W]``. Scores are not scaled by 1/sqrt(c).

    Raises:
        AttentionError: the shapes do not fit together.

    Implementations: ``native``, ``tiled``, ``reference``, ``released``. ``auto`` is native on the
    CPU where it can run (not in float64, nor without a C compiler), else tiled.

    Numerics: error up to ``(4 u + 4 min(1, g)) max|v|``, see :mod:`.base`.
    """
    check_qkv(q, k, v)
    return run("criss-cross", q, k, v)


@register_attention("criss-cross")
class CrissCrossAttention(Attention):
    """Criss-Cross Attention with 1x1 embeddings: ``y = x + gamma · out``, gamma learned from 0.

    Args:
        channels: channels C of input and output.
        reduction: query and key have C / reduction channels.
        recurrence: number of passes with the same weights (2 in CCNet).
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
        """``Criss-Cross``, or ``Criss-Cross-R2`` and so on for a recurrence above 1."""
        recurrence = options.get("recurrence", 1)
        return "Criss-Cross" if recurrence == 1 else f"Criss-Cross-R{recurrence}"

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``, ``recurrence`` passes with the same weights."""
        for _ in range(self.recurrence):
            x = super().forward(x)
        return x

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return call_together(x, self.query, self.key, self.value)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`criss_cross_attention`, one pass."""
        return criss_cross_attention(q, k, v)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """``x + gamma · y``."""
        return x + self.gamma * y

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]`` of one pass, zero outside the column and row of (row, col)."""
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
