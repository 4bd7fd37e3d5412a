"""Agent Attention: a few pooled queries gather from all positions and hand on to all positions.

Paper: Agent Attention, Han et al., ECCV 2024, Section 3.
Equation: ``y = softmax(Q Aᵀ / sqrt(c)) (softmax(A Kᵀ / sqrt(c)) V) + D(V)``. The agents A are mean
queries of regions of the map; D is a depthwise 3x3 convolution.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, A ``[B, n, c]``.
Numerics, see :mod:`attention_zoo.base`: error up to ``(3 u + 4 min(1, g)) (max|v| (1 + max_o
sum|weight|) + max|bias|)``, with the weight and bias of D. In g, c grows by the positions of a
region. S is the largest norm of a query times the largest norm of a query or key, over sqrt(c).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import (
    Attention,
    Cost,
    check_qkv,
    embedding_channels,
    no_autocast,
    require_at_least,
    sum_dtype,
)
from ..registry import register_attention


def agent_attention(q: Tensor, k: Tensor, v: Tensor, grid: int = 7) -> Tensor:
    """``softmax(Q Aᵀ / sqrt(c)) (softmax(A Kᵀ / sqrt(c)) V)``.

    Agents A are the mean queries of a ``grid x grid`` division of the map. Its regions overlap by a
    row or column where the grid does not divide the map. A map with fewer rows or columns than
    ``grid`` has one region for each of them.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        grid: agents along each side.

    Returns:
        ``[B, c_out, H, W]``.

    Raises:
        AttentionError: the shapes do not fit together, or grid is below 1.
    """
    check_qkv(q, k, v)
    require_at_least("grid", grid, 1)
    dtype = sum_dtype(v)
    with no_autocast(v):
        q = q.to(dtype)
        agents = F.adaptive_avg_pool2d(q, regions(grid, *v.shape[2:]))
        agents = agents.flatten(2).mT * (1 / math.sqrt(q.shape[1]))  # [B, n, c]
        gather = torch.matmul(agents, k.to(dtype).flatten(2)).softmax(2)
        gathered = torch.matmul(v.to(dtype).flatten(2), gather.mT)  # [B, c_out, n]
        hand_on = torch.matmul(agents, q.flatten(2)).softmax(1)
        return torch.matmul(gathered, hand_on).view(v.shape).to(v.dtype)


def regions(grid: int, height: int, width: int) -> tuple[int, int]:
    """Regions of a map along each side."""
    return min(grid, height), min(grid, width)


@register_attention("agent")
class AgentAttention(Attention):
    """Agent attention plus a depthwise 3x3 convolution of the values, with 1x1 embeddings.

    It has one head, as in the first stage of the paper's Agent-PVT, and no 1x1 convolution after
    it. The paper's agent bias, learned for one map size, is left out, as are LayerNorm and MLP.

    Args:
        channels: channels C of input and output.
        grid: agents along each side (49 agents in most of the paper's stages).
        reduction: query and key have C / reduction channels (1 in the paper).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Agent-{grid}x{grid}"
    source: ClassVar[str] = "Agent Attention, Han et al., ECCV 2024, Section 3"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self, channels: int, *, grid: int = 7, reduction: int = 4, res_scale: float = 0.1
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("grid", grid, 1)
        self.grid = grid
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`agent_attention` plus the depthwise convolution of v."""
        return agent_attention(q, k, v, self.grid) + self.local(v)

    def cost(self, height: int, width: int) -> Cost:
        """2 N n (c + C) MACs for n agents, plus 9 N C for the convolution."""
        n, c = height * width, self.embedding
        agents = math.prod(regions(self.grid, height, width))
        core = 2 * n * agents * (c + self.channels) + 9 * n * self.channels
        return Cost(
            projections=n * self.channels * (2 * c + self.channels), core=core, executed=core
        )
