"""Top-k attention: every position attends to the k positions most similar to it.

Papers: Explicit Sparse Transformer, Zhao et al., 2019 (arXiv 1912.11637); Progressive Focused
Transformer (PFT-SR), Long et al., CVPR 2025.
Equation: ``y_i = sum_j exp(q_i·k_j) v_j / sum_j exp(q_i·k_j)``, j the k largest scores of row i.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..base import Cost, check_qkv, require_at_least
from ..cores.largest import Rule, attend_to_largest, weights_of_largest
from ..implementations import outside_graphs
from ..nla import NonLocalAttention, position_scores
from ..registry import register_attention


@outside_graphs
def top_k_attention(q: Tensor, k: Tensor, v: Tensor, count: int = 32) -> Tensor:
    """Softmax attention of every position to the positions of its ``count`` largest scores.

    No gradient flows through the choice. Which of equal scores are taken is open; the released code
    of 2019 takes all that equal the last.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        count: positions that each attends to; all, if there are fewer.

    Returns:
        ``[B, c_out, H, W]``. Scores are not scaled by 1/sqrt(c).

    Raises:
        AttentionError: the shapes do not fit together, or count is below 1.
    """
    check_qkv(q, k, v)
    require_at_least("count", count, 1)
    return attend_to_largest(q, k, v, count, _SOFTMAX)


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _softmax_gradient(weights: Tensor, grad: Tensor) -> Tensor:
    product = weights * grad
    return torch.addcmul(product, weights, product.sum(-1, keepdim=True), value=-1)


_SOFTMAX = Rule(_softmax, _softmax_gradient)


@register_attention("top-k")
class TopKAttention(NonLocalAttention):
    """NLA over the k largest scores of each row: k of all positions makes it NLA.

    The papers divide scores by sqrt(c); here they are those of ``nla``, so that the choice is the
    only difference. PFT-SR multiplies the weights of a layer with those of the layer before, among
    whose positions it chooses, within windows of 32 x 32; that is left out, since modules do not
    see each other. Heads, positions, LayerNorm and MLP are left out too.

    Args:
        channels: channels C of input and output.
        k: positions that each attends to (Zhao et al.: 8; PFT-SR: from 1024 in the first layers
            down to 16 in the last).
        reduction: query and key have C / reduction channels.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
        shared: the embeddings of NLSA, as in ``nla``: one 3x3 convolution serves as query and key.
    """

    #: How the k largest scores become weights.
    rule: ClassVar[Rule] = _SOFTMAX
    label_format: ClassVar[str] = "Top-{k}"
    source: ClassVar[str] = (
        "Explicit Sparse Transformer, Zhao et al., 2019; "
        "Progressive Focused Transformer (PFT-SR), Long et al., CVPR 2025"
    )
    complexity: ClassVar[str] = "O(N²)"
    later_options: ClassVar[frozenset[str]] = frozenset({"shared"})

    def __init__(
        self,
        channels: int,
        *,
        k: int = 32,
        reduction: int = 4,
        res_scale: float = 0.1,
        shared: bool = False,
    ) -> None:
        super().__init__(channels, reduction=reduction, res_scale=res_scale, shared=shared)
        require_at_least("k", k, 1)
        self.k = k

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`top_k_attention`."""
        return top_k_attention(q, k, v, self.k)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Weights ``[B, H, W]`` of the query at (row, col), zero but for the k largest."""
        return weights_of_largest(position_scores(q, k, row, col), self.k, self.rule)

    def cost(self, height: int, width: int) -> Cost:
        """Core N² c + N min(k, N) C MACs; executed: N² (c + C)."""
        n, c, channels = height * width, self.embedding, self.channels
        return Cost(
            projections=super().cost(height, width).projections,
            core=n * (n * c + min(self.k, n) * channels),
            executed=n * n * (c + channels),
        )
