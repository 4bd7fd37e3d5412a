"""The oracle: a control that is told where to attend."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Attention, AttentionError, Cost, check_qkv
from .registry import register_attention


@register_attention("oracle")
class Oracle(Attention):
    """``y_i = v_r(i)``: every position takes the value of its true reference r(i).

    Only whoever made the image knows r: it sets :attr:`references` before a forward. Without
    them, as in a task that knows none, every position refers to itself.

    Shapes: ``[B, C, H, W]`` to ``[B, C, H, W]``; v is a 1x1 convolution of x.

    Numerics: values are copied, without error.

    Args:
        channels: channels C of input and output.
        res_scale: weight of the value in ``y = x + res_scale · v``.
    """

    label_format: ClassVar[str] = "Oracle"
    source: ClassVar[str] = "control: the true references"
    complexity: ClassVar[str] = "O(N)"

    #: ``[B, N]``, the position r(i) of each position, in row-major order; None: each is its own.
    references: Tensor | None

    def __init__(self, channels: int, *, res_scale: float = 0.1) -> None:
        super().__init__(channels, res_scale=res_scale)
        self.value = nn.Conv2d(channels, channels, 1)
        self.references = None

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(x, x, v): query and key are not looked at."""
        return x, x, self.value(x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The values at the references, ``[B, C, H, W]``.

        Raises:
            AttentionError: the maps do not fit, or the references are of another batch or size.
        """
        check_qkv(q, k, v)
        if self.references is None:
            return v
        found, rows = self.references, v.flatten(2)
        if list(found.shape[:2]) != [rows.shape[0], rows.shape[2]]:
            raise AttentionError(
                f"oracle has references {list(found.shape)} for images of "
                f"{[rows.shape[0], rows.shape[2]]} positions: set them before each forward"
            )
        picked = torch.gather(rows, 2, found.flatten(1)[:, None].expand(-1, rows.shape[1], -1))
        return picked.view(*rows.shape, -1).mean(3).view(v.shape)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """1 at the reference, else 0, ``[B, H, W]``."""
        height, width = q.shape[2:]
        position = row * width + col
        found = torch.full((q.shape[0],), position, device=q.device)
        if self.references is not None:
            found = self.references[:, position]
        weights = q.new_zeros(q.shape[0], height * width)
        return weights.scatter_(1, found[:, None], 1).view(-1, height, width)

    def cost(self, height: int, width: int) -> Cost:
        """N C² MACs of the projection; copying takes none."""
        return Cost(projections=self.channels**2 * height * width, core=0, executed=0)
