"""High-similarity-pass attention: a soft threshold of the scores passes the most similar positions.

Paper: High-Similarity-Pass Attention for Single Image Super-Resolution, Su et al., IEEE TIP 2024
(arXiv 2305.15768).
Equation: ``y_i = sum_j max(q_i·k_j - t_i, 0) v_j`` over the k largest scores j of row i, with the
threshold t_i at which the weights sum to 1: the sparsemax of these scores.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..base import check_qkv, require_at_least
from ..cores.largest import Rule, attend_to_largest
from ..implementations import outside_graphs
from ..registry import register_attention
from .top_k import TopKAttention


@outside_graphs
def high_similarity_attention(q: Tensor, k: Tensor, v: Tensor, count: int = 128) -> Tensor:
    """Sparsemax attention of every position to at most ``count`` positions.

    The threshold is found among the ``count`` largest scores. Where fewer than ``count`` weights
    are above 0, no other score reaches the threshold: the result is the sparsemax of the whole row.
    Which of equal scores are taken is open.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        count: positions that each attends to at most.

    Returns:
        ``[B, c_out, H, W]``. Scores are not scaled by 1/sqrt(c).

    Raises:
        AttentionError: the shapes do not fit together, or count is below 1.
    """
    check_qkv(q, k, v)
    require_at_least("count", count, 1)
    return attend_to_largest(q, k, v, count, _SPARSEMAX)


def sparsemax(scores: Tensor) -> Tensor:
    """``max(s - t, 0)`` of each row, with the t for which that sums to 1.

    Args:
        scores: ``[..., M]``, descending.
    """
    # Scores that lie 1 below the largest have no weight; so far down, sums would overflow.
    scores = (scores - scores[..., :1]).clamp_min_(-2)
    excess = scores.cumsum(-1) - 1
    ranks = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    # With the r-th score as the last one above it, the threshold would be excess / r.
    passing = (ranks * scores > excess).sum(-1, keepdim=True).clamp_min_(1)  # none of NaN
    return (scores - excess.gather(-1, passing - 1) / passing).clamp_min_(0)


def _sparsemax_gradient(weights: Tensor, grad: Tensor) -> Tensor:
    """Minus its mean over the positions that pass; zero at all others."""
    passes = (weights > 0).to(weights.dtype)
    mean = (passes * grad).sum(-1, keepdim=True) / passes.sum(-1, keepdim=True)
    return (grad - mean).mul_(passes)


_SPARSEMAX = Rule(sparsemax, _sparsemax_gradient)


@register_attention("hspa")
class HighSimilarityPassAttention(TopKAttention):
    """HSPA with 1x1 embeddings: NLA with the soft threshold (sparsemax) in place of the softmax.

    The released code doubles k for rows in which k positions pass, so that its result is the
    sparsemax of the row. Here k bounds the positions that pass, and with them the memory, which is
    O(N k): such rows, whose scores hardly differ, have the sparsemax of their k largest. The PReLU
    after each embedding is left out, as in ``nla``.

    Args:
        channels: channels C of input and output.
        k: positions that pass at most (128 in the released code).
        reduction: query and key have C / reduction channels (2 in the released code).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
        shared: as in ``top-k``.
    """

    rule: ClassVar[Rule] = _SPARSEMAX
    label_format: ClassVar[str] = "HSPA-k{k}"
    source: ClassVar[str] = "High-Similarity-Pass Attention, Su et al., IEEE TIP 2024"

    later_options: ClassVar[frozenset[str]] = frozenset({"shared"})

    def __init__(
        self,
        channels: int,
        *,
        k: int = 128,
        reduction: int = 4,
        res_scale: float = 0.1,
        shared: bool = False,
    ) -> None:
        super().__init__(channels, k=k, reduction=reduction, res_scale=res_scale, shared=shared)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`high_similarity_attention`."""
        return high_similarity_attention(q, k, v, self.k)
