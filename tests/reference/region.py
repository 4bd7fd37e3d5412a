"""Oracle of region-level attention: which region a position lies in is found one by one."""

from __future__ import annotations

import torch
from torch import Tensor

from .nla import non_local_attention


def region_attention(q: Tensor, k: Tensor, v: Tensor, grid: int) -> Tensor:
    """Non-local attention within each cell of a ``grid x grid`` division of the map."""
    height, width = v.shape[2:]
    region = torch.tensor(
        [
            [r // -(-height // grid) * grid + c // -(-width // grid) for c in range(width)]
            for r in range(height)
        ]
    )
    out = torch.zeros_like(v)
    for one in region.unique():
        here = region == one
        parts = (t[:, :, here].unsqueeze(2) for t in (q, k, v))
        out = out.masked_scatter(here, non_local_attention(*parts))
    return out
