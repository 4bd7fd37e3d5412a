"""Efficient Non-Local Contrastive Attention (ENLCA): ENLA trained with a contrastive loss.

Source: ENLCA, Xia et al., AAAI 2022, Eq. 8–10. The attention is that of :mod:`.enla`. In training,
a loss on its queries and keys pulls each position towards those most similar to it, and away from
the others, so that softmax attention, and hence few random features, single them out::

    T_ij = k cos(q_i, k_j)                                                                Eq. 8
    T'_i = T_i, sorted descending                                                         Eq. 9
    loss = mean_i (−log (mean exp T'_i[relevant] / mean exp T'_i[irrelevant]) + b)       Eq. 10

Of the N scores of row i, the relevant are the largest n1·N, the irrelevant as many from rank n2·N
on (2 % and 8 % in the paper); b is the margin. The authors' code clamps each row's loss at 0 (the
hinge) and takes fixed numbers, 15 from rank 0 and from rank 50 on: both are options here.

Shapes: q and k are raw embeddings ``[B, c, H, W]``, N = H·W; the loss is a scalar. Any N >= 1
works. Only the largest (n1 + n2)·N scores of a row matter: no row is sorted whole, and no N x N
matrix is kept.

Numerics: T is computed in float32 at least, exponentials after their largest was subtracted, which
cancels in the ratio. The error of the loss is at most ``4 (c + 4) 2^-24 · k`` in any dtype.

Errors: :func:`contrastive_loss` raises AttentionError where q and k differ in shape or are no maps.
There is no second derivative.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from .base import AttentionError, no_autocast
from .enla import EfficientNonLocalAttention
from .implementations import run
from .registry import register_attention


def contrastive_loss(
    q: Tensor,
    k: Tensor,
    *,
    amplification: float = 6.0,
    n1: float = 0.02,
    n2: float = 0.08,
    margin: float = 1.0,
    hinge: bool = True,
) -> Tensor:
    """Contrastive loss of Eq. 8–10, mean over positions and images.

    Args:
        q: raw query embeddings ``[B, c, H, W]``.
        k: raw key embeddings ``[B, c, H, W]``.
        amplification: the factor k of Eq. 8.
        n1: entries in each group, a share of N below 1, a count from 1 on (released: 15).
        n2: start of the second group, likewise (released: 50).
        margin: b of Eq. 10.
        hinge: clamp each row's loss at 0, as the released code does.

    Returns:
        A scalar, float32 at least.

    Raises:
        AttentionError: q and k differ in shape or are not maps.

    Implementations: ``native``, ``tiled``, ``reference``, ``released``.
    """
    if q.dim() != 4 or q.shape != k.shape:
        raise AttentionError(
            f"q and k must both be [B, c, H, W], got {list(q.shape)} and {list(k.shape)}"
        )
    count, start = contrast_groups(q.shape[2] * q.shape[3], n1, n2)
    with no_autocast(q):
        return run("contrast", q, k, amplification, count, start, margin, hinge)


def contrast_groups(n: int, n1: float, n2: float) -> tuple[int, int]:
    """(entries in each group, start of the second) for rows of n entries.

    A group has one entry at least and ends within the row: the second starts earlier if need be.
    """
    # A share such as 0.29 of 100 is 29 entries, though the product is 28.999… in binary.
    count = min(n, max(1, int(n1 * n + 1e-9) if n1 < 1 else int(n1)))
    start = int(n2 * n + 1e-9) if n2 < 1 else int(n2)
    return count, max(0, min(start, n - count))


@register_attention("enlca")
class EfficientNonLocalContrastiveAttention(EfficientNonLocalAttention):
    """ENLCA: ENLA whose training forward leaves the contrastive loss, Eq. 8–10.

    Projections, attention and cost are ENLA's: in evaluation both are the same function.

    Args:
        channels: channels C of input and output.
        m: random features.
        k: amplification (> 0).
        n1: entries in each group of the loss, a share of N below 1, a count from 1 on.
        n2: start of the irrelevant group, likewise.
        margin: b of Eq. 10.
        hinge: clamp each row's loss at 0, as the released code does.
        reduction: query and key have C / reduction channels.
        eps: added to each exponential; 0 gives the unbiased estimator.
        redraw_every: training forwards between redraws, 0 for none (released code: 640).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
        shared: one 3x3 convolution serves as query and key, as in NLSA.
    """

    label_format: ClassVar[str] = "ENLCA-m{m}"
    source: ClassVar[str] = "ENLCA, Xia et al., AAAI 2022, Eq. 3–10"
    later_options: ClassVar[frozenset[str]] = frozenset({"shared"})

    def __init__(
        self,
        channels: int,
        *,
        m: int = 128,
        k: float = 6.0,
        n1: float = 0.02,
        n2: float = 0.08,
        margin: float = 1.0,
        hinge: bool = True,
        reduction: int = 4,
        eps: float = 1e-4,
        redraw_every: int = 0,
        res_scale: float = 0.1,
        shared: bool = False,
    ) -> None:
        super().__init__(
            channels,
            m=m,
            k=k,
            reduction=reduction,
            eps=eps,
            redraw_every=redraw_every,
            res_scale=res_scale,
            shared=shared,
        )
        if not 0 < n1 < math.inf:
            raise AttentionError(f"n1 must be above 0 (a share of N, or a count), got {n1}")
        if not 0 <= n2 < math.inf:
            raise AttentionError(f"n2 must be at least 0 (a share of N, or a count), got {n2}")
        self.n1, self.n2, self.margin, self.hinge = n1, n2, margin, hinge

    def contrast(self, q: Tensor, k: Tensor) -> Tensor:
        """:func:`contrastive_loss` of this forward's embeddings."""
        return contrastive_loss(
            q,
            k,
            amplification=self.k,
            n1=self.n1,
            n2=self.n2,
            margin=self.margin,
            hinge=self.hinge,
        )
