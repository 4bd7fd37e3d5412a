"""The baseline: no attention. With it the network is plain EDSR."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import Attention, Cost
from .registry import register_attention


@register_attention("none")
class Baseline(Attention):
    """``y = x``, exactly: no parameters, no cost. The backbone leaves the module out."""

    label_format: ClassVar[str] = "Baseline"
    source: ClassVar[str] = "EDSR, Lim et al., CVPRW 2017"
    complexity: ClassVar[str] = "0"

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x, x, x), each ``[B, C, H, W]``."""
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Zeros ``[B, C, H, W]``: nothing is added."""
        return torch.zeros_like(v)

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """x itself."""
        return x

    def cost(self, height: int, width: int) -> Cost:
        """No operation."""
        return Cost(projections=0, core=0, executed=0)
