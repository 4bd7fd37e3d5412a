"""Nyström attention (Nyströmformer): softmax attention through landmarks and a pseudo-inverse.

Paper: Nyströmformer, Xiong et al., AAAI 2021.
Equation: ``y = softmax(Q K̃ᵀ / sqrt(c)) Z softmax(Q̃ Kᵀ / sqrt(c)) V + D(V)``. Landmarks Q̃, K̃ are
means of queries and keys over regions of the map; Z is nearly the pseudo-inverse of
``softmax(Q̃ K̃ᵀ / sqrt(c))``; D is a depthwise 3x3 convolution.
Shapes: q, k ``[B, c, H, W]``, v and y ``[B, C, H, W]``, Q̃, K̃ ``[B, n, c]``, Z ``[B, n, n]``.
Numerics, see :mod:`attention_zoo.base`: error up to ``(3 u + 8 min(1, g)) max|v| (ζ + max_o
sum|weight|)``, with the weight of D. ζ is the largest sum of absolute values in a row of Z. It is
below ``(13/4)^(steps / 2) sqrt(n)``, so outputs can leave the range of the values. In g, c grows by
the positions of a region, and ``(13/4)^steps n S`` stands in place of S, because the pseudo-inverse
magnifies errors. S is the largest norm of a query times that of a key, over sqrt(c).
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
from .agent import regions


def nystrom_attention(q: Tensor, k: Tensor, v: Tensor, grid: int = 8, steps: int = 6) -> Tensor:
    """``softmax(Q K̃ᵀ / sqrt(c)) Z softmax(Q̃ Kᵀ / sqrt(c)) V``, Z from :func:`landmark_inverse`.

    Landmarks Q̃, K̃ are the means of queries and keys over the regions of a ``grid x grid`` division
    of the map, those of :func:`.agent.agent_attention`. The paper's are means of segments of a
    sequence.

    Args:
        q: queries ``[B, c, H, W]``.
        k: keys ``[B, c, H, W]``.
        v: values ``[B, c_out, H, W]``.
        grid: landmarks along each side.
        steps: of the iteration for Z.

    Returns:
        ``[B, c_out, H, W]``. The weights of a position may be negative, and need not add up to 1.

    Raises:
        AttentionError: the shapes do not fit together, or grid or steps is below 1.
    """
    check_qkv(q, k, v)
    require_at_least("grid", grid, 1)
    require_at_least("steps", steps, 1)
    dtype = sum_dtype(v)
    with no_autocast(v):
        q, k = (t.to(dtype) for t in (q, k))
        landmarks_q, landmarks_k = landmarks(q, grid), landmarks(k, grid)
        # Apple's MPS has no float64.
        of_q, of_k = (t.cpu() if t.is_mps else t for t in (landmarks_q, landmarks_k))
        inverse = landmark_inverse(of_q, of_k, steps).to(v.device, dtype)
        scale = 1 / math.sqrt(q.shape[1])
        gather = torch.matmul(landmarks_q * scale, k.flatten(2)).softmax(2)
        gathered = torch.matmul(v.to(dtype).flatten(2), gather.mT)  # [B, c_out, n]
        gathered = torch.matmul(gathered, inverse.mT)
        hand_on = torch.matmul(landmarks_k * scale, q.flatten(2)).softmax(1)
        return torch.matmul(gathered, hand_on).view(v.shape).to(v.dtype)


def landmarks(x: Tensor, grid: int) -> Tensor:
    """Means over regions, ``[B, c, H, W]`` to ``[B, n, c]``."""
    return F.adaptive_avg_pool2d(x, regions(grid, *x.shape[2:])).flatten(2).mT


def landmark_inverse(landmarks_q: Tensor, landmarks_k: Tensor, steps: int) -> Tensor:
    """Nearly the Moore-Penrose inverse of ``A = softmax(Q̃ K̃ᵀ / sqrt(c))``, in float64.

    ``Z ← Z (13 I − A Z (15 I − A Z (7 I − A Z))) / 4``, starting at ``Aᵀ`` over its largest row and
    column sums. Singular values of A below ``(13/4)^(-steps / 2)`` are damped, not inverted.

    The iteration is in float64 because it is cheap and magnifies rounding by up to
    ``(13/4)^steps``.

    Args:
        landmarks_q: ``[B, n, c]``.
        landmarks_k: ``[B, n, c]``.
        steps: iterations.
    """
    landmarks_q = landmarks_q.double() * (1 / math.sqrt(landmarks_q.shape[2]))
    a = torch.bmm(landmarks_q, landmarks_k.double().mT).softmax(2)  # rows add up to 1
    z = a.mT / a.sum(1, keepdim=True).amax(2, keepdim=True)
    for _ in range(steps):
        x = torch.bmm(a, z)
        inner = torch.baddbmm(x, x, x, beta=7, alpha=-1)
        inner = torch.baddbmm(x, x, inner, beta=15, alpha=-1)
        z = torch.baddbmm(z, z, inner, beta=13 / 4, alpha=-1 / 4)
    return z


@register_attention("nystrom")
class NystromAttention(Attention):
    """Nyström attention with 1x1 embeddings, and a depthwise convolution of the values beside it.

    It has one head. The convolution is 3x3 with separate weights for each channel; the paper's runs
    along the sequence with weights for each head. Z starts from each image's own sums; the released
    code divides by the largest sum of the batch. LayerNorm and MLP are left out.

    Args:
        channels: channels C of input and output.
        grid: landmarks along each side (64 landmarks in the paper).
        steps: iterations for the pseudo-inverse (6 in the paper).
        skip: whether the module has the convolution.
        reduction: query and key have C / reduction channels (1 in the paper).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "Nyström-{grid}x{grid}"
    source: ClassVar[str] = "Nyströmformer, Xiong et al., AAAI 2021"
    complexity: ClassVar[str] = "O(N)"

    def __init__(
        self,
        channels: int,
        *,
        grid: int = 8,
        steps: int = 6,
        skip: bool = True,
        reduction: int = 4,
        res_scale: float = 0.1,
    ) -> None:
        super().__init__(channels, res_scale=res_scale)
        require_at_least("grid", grid, 1)
        require_at_least("steps", steps, 1)
        self.grid, self.steps = grid, steps
        self.embedding = embedding_channels(channels, reduction)
        self.query = nn.Conv2d(channels, self.embedding, 1)
        self.key = nn.Conv2d(channels, self.embedding, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.local = (
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            if skip
            else None
        )

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, C, H, W]`` to q, k ``[B, C/reduction, H, W]`` and v ``[B, C, H, W]``."""
        return self.query(x), self.key(x), self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """:func:`nystrom_attention` plus the convolution of v."""
        out = nystrom_attention(q, k, v, self.grid, self.steps)
        return out if self.local is None else out + self.local(v)

    def cost(self, height: int, width: int) -> Cost:
        """2 N n (c + C) MACs for n landmarks, those among landmarks, and 9 N C to convolve."""
        positions, c = height * width, self.embedding
        n = math.prod(regions(self.grid, height, width))
        core = 2 * positions * n * (c + self.channels) + self.landmark_macs(n)
        if self.local is not None:
            core += 9 * positions * self.channels
        return Cost(
            projections=positions * self.channels * (2 * c + self.channels),
            core=core,
            executed=core,
        )

    def landmark_macs(self, n: int) -> int:
        """MACs that do not depend on N: scores of landmarks, Z, and its product."""
        return n**2 * (self.embedding + self.channels) + 4 * self.steps * n**3
