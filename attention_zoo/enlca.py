"""Efficient Non-Local Contrastive Attention: ENLA trained with a contrastive loss."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import AttentionError, to_rows
from .enla import EfficientNonLocalAttention, normalise
from .registry import register_attention
from .softmax import no_autocast, refuse_second_derivative

# Elements of the correlation matrix that are alive at once: 32 MB in float32.
_TILE = 2**23


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

    Row i of ``T = amplification · cos(q_i, k_j)`` is sorted descending; the mean of exp over the
    first n1·N entries (relevant) is divided by the mean over as many entries from n2·N on
    (irrelevant); the loss of the row is ``−log(ratio) + margin``.

    Args:
        q: raw query embeddings ``[B, c, H, W]``.
        k: raw key embeddings ``[B, c, H, W]``.
        amplification: the factor k of Eq. 8.
        n1: entries in each group, a share of N below 1, a count from 1 on (released: 15).
        n2: start of the second group, likewise (released: 50).
        margin: b.
        hinge: clamp each row's loss at 0, as the released code does.

    Returns:
        A scalar, float32 at least. Groups hold one entry at least and end within the row, so any
        N >= 1 works. No N x N tensor is kept.

    Raises:
        AttentionError: q and k differ in shape or are not maps.

    Numerics: error up to ``4 (c + 4) 2^-24 · amplification`` in any dtype, T being in float32.
    """
    if q.dim() != 4 or q.shape != k.shape:
        raise AttentionError(
            f"q and k must both be [B, c, H, W], got {list(q.shape)} and {list(k.shape)}"
        )
    n = q.shape[2] * q.shape[3]
    count, start = contrast_groups(n, n1, n2)
    with no_autocast(q):
        rows_q, rows_k = (to_rows(normalise(t, amplification)) for t in (q, k))
        return _ContrastiveLoss.apply(rows_q, rows_k, count, start, margin, hinge)


def contrast_groups(n: int, n1: float, n2: float) -> tuple[int, int]:
    """(entries in each group, start of the second) for rows of n entries."""
    # A share such as 0.29 of 100 is 29 entries, though the product is 28.999… in binary.
    count = min(n, max(1, int(n1 * n + 1e-9) if n1 < 1 else int(n1)))
    start = int(n2 * n + 1e-9) if n2 < 1 else int(n2)
    return count, max(0, min(start, n - count))


class _ContrastiveLoss(torch.autograd.Function):
    """The loss and its gradient in one pass over blocks of rows.

    Only the largest start + count entries of a row enter, and the gradient touches 2·count of
    them, so nothing of the N x N matrix outlives its block.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, count: int, start: int, margin: float, hinge: bool
    ) -> Tensor:
        batch, n, _ = q.shape
        needs_grad = any(ctx.needs_input_grad[:2])
        grad_q, grad_k = torch.zeros_like(q), torch.zeros_like(k)
        total = q.new_zeros(())
        rows = max(1, min(n, _TILE // n))
        group = max(1, _TILE // (n * rows))
        for b in range(0, batch, group):
            k_b = k[b : b + group]
            for i in range(0, n, rows):
                q_i = q[b : b + group, i : i + rows]
                scores = torch.bmm(q_i, k_b.mT)
                top = scores.topk(start + count, dim=-1)
                groups = torch.stack([top.values[..., :count], top.values[..., start:]])
                lse = groups.logsumexp(-1)
                loss = lse[1] - lse[0] + margin
                active = (loss > 0).to(loss.dtype) if hinge else torch.ones_like(loss)
                total += (loss * active).sum()
                if not needs_grad:
                    continue
                # d loss / d T: minus the softmax within the first group, plus that of the second.
                share = (groups - lse.unsqueeze(-1)).exp_().mul_(active.unsqueeze(-1))
                grad = scores.zero_()
                grad.scatter_(-1, top.indices[..., :count], -share[0])
                grad.scatter_add_(-1, top.indices[..., start:], share[1])
                grad_q[b : b + group, i : i + rows] = torch.bmm(grad, k_b)
                grad_k[b : b + group] += torch.bmm(grad.mT, q_i)
        if needs_grad:
            ctx.save_for_backward(grad_q, grad_k)
        ctx.rows = batch * n
        return total / (batch * n)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("contrastive_loss")
        grad_q, grad_k = ctx.saved_tensors
        scale = grads[0] / ctx.rows
        return grad_q * scale, grad_k * scale, None, None, None, None


@register_attention("enlca")
class EfficientNonLocalContrastiveAttention(EfficientNonLocalAttention):
    """ENLCA: ENLA whose training forward leaves the contrastive loss, Eq. 8–10.

    Args:
        channels: channels C of input and output.
        m: random features.
        k: amplification factor (> 0).
        n1: entries in each group of the loss, a share of N below 1, a count from 1 on.
        n2: start of the irrelevant group, likewise.
        margin: b of Eq. 10.
        hinge: clamp each row's loss at 0, as the released code does.
        reduction: query and key have C / reduction channels.
        eps: added to each feature; 0 gives the unbiased estimator.
        redraw_every: training forwards between redraws, 0 for none (released code: 640).
        res_scale: weight of the attention in ``y = x + res_scale · attention``.
    """

    label_format: ClassVar[str] = "ENLCA-m{m}"
    source: ClassVar[str] = "ENLCA, Xia et al., AAAI 2022, Eq. 3–10"

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
    ) -> None:
        super().__init__(
            channels,
            m=m,
            k=k,
            reduction=reduction,
            eps=eps,
            redraw_every=redraw_every,
            res_scale=res_scale,
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
