"""The oracle: a control that is told where to attend."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import Attention, AttentionError, Cost, check_qkv, no_autocast, sum_dtype
from .registry import register_attention


@register_attention("oracle")
class Oracle(Attention):
    """``y_i = mean_r v_r``, r in R(i): every position takes the values of its true references.

    Only whoever made the image knows R(i): it sets :attr:`references` before a forward. Without
    them, as in a task that knows none, every position refers to itself.

    Shapes: ``[B, C, H, W]`` to ``[B, C, H, W]``; v is a 1x1 convolution of x.

    Numerics: one value is copied, without error; the mean of several has an error up to
    ``u max|v|`` and that of a sum in float32, see :mod:`.base`.

    Args:
        channels: channels C of input and output.
        res_scale: weight of the value in ``y = x + res_scale · v``.
    """

    label_format: ClassVar[str] = "Oracle"
    source: ClassVar[str] = "control: the true references"
    complexity: ClassVar[str] = "O(N)"

    #: ``[B, N, R]``, the positions R(i) of each position, in row-major order; None: its own.
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
        rows = v.flatten(2)
        found = self.check_references(rows.shape[0], rows.shape[2])
        index = found.flatten(1)[:, None].expand(-1, rows.shape[1], -1)
        values = torch.gather(rows, 2, index).unflatten(2, found.shape[1:])
        if found.shape[2] == 1:
            return values.view(v.shape)
        with no_autocast(v):
            return values.mean(3, dtype=sum_dtype(v)).to(v.dtype).view(v.shape)

    def check_references(self, batch: int, n: int) -> Tensor:
        """The references, if they fit so many images of so many positions.

        Raises:
            AttentionError: they do not.
        """
        found = self.references
        assert found is not None
        if found.dim() != 3 or list(found.shape[:2]) != [batch, n]:
            raise AttentionError(
                f"{self.name} has references {list(found.shape)} for images of {[batch, n]} "
                "positions: set [B, N, R] before each forward"
            )
        return found

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """``1 / R`` at each reference, else 0, ``[B, H, W]``."""
        height, width = q.shape[2:]
        position = row * width + col
        found = torch.full((q.shape[0], 1), position, device=q.device)
        if self.references is not None:
            found = self.references[:, position]
        weights = q.new_zeros(q.shape[0], height * width)
        share = q.new_full(found.shape, 1 / found.shape[1])
        return weights.scatter_add_(1, found, share).view(-1, height, width)

    def cost(self, height: int, width: int) -> Cost:
        """N C² MACs of the projection; copies and additions take none."""
        return Cost(projections=self.channels**2 * height * width, core=0, executed=0)
