"""Region-level non-local attention: exact attention within each cell of a coarse grid.

Paper: Second-order Attention Network (SAN), Dai et al., CVPR 2019, Section 3.2.
Equation: ``y_i = sum_j exp(q_i·k_j) v_j / sum_j exp(q_i·k_j)``, j in the cell of i.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``; scores are not scaled by 1/sqrt(c).
Numerics: as :func:`attention_zoo.nla.non_local_attention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Cost, check_qkv, require_at_least
from ..nla import NonLocalAttention, non_local_attention, softmax_macs, softmax_weights
from ..registry import register_attention


def region_attention(q: Tensor, k: Tensor, v: Tensor, grid: int = 2) -> Tensor:
    """Non-local attention in each cell of a ``grid x grid`` division of the map.

    Cells have ``ceil(H / grid) x ceil(W / grid)`` positions; those at the lower and right edge may
    have fewer. A map with fewer rows or columns than ``grid`` has fewer cells.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        grid: cells along each side.

    Returns:
        ``[B, c_out, H, W]``. Scores are not scaled.

    Raises:
        AttentionError: the shapes do not fit together, or grid is below 1.
    """
    check_qkv(q, k, v)
    require_at_least("grid", grid, 1)
    rows = [
        torch.cat(
            [
                non_local_attention(*(t[:, :, below, beside] for t in (q, k, v)))
                for beside in _cuts(v.shape[3], grid)
            ],
            dim=3,
        )
        for below in _cuts(v.shape[2], grid)
    ]
    return torch.cat(rows, dim=2)


def _cuts(length: int, grid: int) -> Iterator[slice]:
    step = max(1, -(-length // grid))
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


@register_attention("region")
class RegionAttention(NonLocalAttention):
    """SAN's region-level non-local attention (RL-NL): NLA within each of ``grid²`` regions.

    Only the attention, in this suite's residual form. SAN places it before and after its body.

    Args:
        channels: channels C of input and output.
        grid: regions along each side (SAN: 2).
        reduction: query and key have C / reduction channels.
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Region-{grid}x{grid}"
    source: ClassVar[str] = "Second-order Attention Network, Dai et al., CVPR 2019, Section 3.2"
    complexity: ClassVar[str] = "O(N²)"

    def __init__(
        self, channels: int, *, grid: int = 2, reduction: int = 4, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, reduction=reduction, res_scale=res_scale)
        require_at_least("grid", grid, 1)
        self.grid = grid

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`region_attention`."""
        return region_attention(q, k, v, self.grid)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """Softmax weights ``[B, H, W]`` of the query at (row, col), zero outside its region."""
        below, beside = (
            next(s for s in _cuts(length, self.grid) if s.start <= at < s.stop)
            for length, at in ((q.shape[2], row), (q.shape[3], col))
        )
        within = (q[:, :, below, beside], k[:, :, below, beside])
        found = softmax_weights(*within, row - below.start, col - beside.start)
        weights = found.new_zeros(q.shape[0], *q.shape[2:])
        weights[:, below, beside] = found
        return weights

    def cost(self, height: int, width: int) -> Cost:
        """Core: the sum of n² (c + c_out) MACs over regions of n positions."""
        c, c_out = self.embedding, self.channels
        sizes = [
            (below.stop - below.start) * (beside.stop - beside.start)
            for below in _cuts(height, self.grid)
            for beside in _cuts(width, self.grid)
        ]
        return Cost(
            projections=super().cost(height, width).projections,
            core=sum(n**2 * (c + c_out) for n in sizes),
            executed=sum(softmax_macs(n, n, c, c_out) for n in sizes),
        )
