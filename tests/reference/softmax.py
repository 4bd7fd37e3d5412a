"""Oracle of softmax attention on rows, with the log-sum-exp of its scores."""

from __future__ import annotations

import torch
from torch import Tensor

from .maps import weighted_mean


def softmax_attention_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``[B, N, c]``, ``[B, M, c]``, ``[B, M, c_out]`` to out ``[B, N, c_out]``, lse ``[B, N]``."""
    q, k, v = q.double(), k.double(), v.double()
    images, sums = [], []
    for b in range(q.shape[0]):
        outs, lses = [], []
        for i in range(q.shape[1]):
            weights = [torch.exp(torch.dot(q[b, i], k[b, j])) for j in range(k.shape[1])]
            outs.append(weighted_mean(weights, [v[b, j] for j in range(k.shape[1])]))
            lses.append(torch.log(torch.stack(weights).sum()))
        images.append(torch.stack(outs))
        sums.append(torch.stack(lses))
    return torch.stack(images), torch.stack(sums)
