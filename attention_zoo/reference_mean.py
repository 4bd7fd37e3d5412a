"""The mean over the references: a control that is told what there is to match, and matches not."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .base import check_qkv, no_autocast, sum_dtype
from .oracle import Oracle
from .registry import register_attention


@register_attention("reference-mean")
class ReferenceMean(Oracle):
    """``y_i = mean_r v_r``, r in the union of R(j) \\ {j} over all positions j.

    Every position takes the mean over the values of all positions to which another one refers:
    what attention gives that finds the references and tells none from another. Unlike the plain
    mean it is not diluted by the other positions. Where no references are set, as in a task that
    knows none, it is the plain mean; in an image where none refers to another position, it is 0.

    Shapes: ``[B, C, H, W]`` to ``[B, C, H, W]``; v is a 1x1 convolution of x.

    Numerics: a mean in float32, with an error up to ``u max|v|``, see :mod:`.base`.

    Args:
        channels: channels C of input and output.
        res_scale: weight of the mean in ``y = x + res_scale · mean``.
    """

    label_format: ClassVar[str] = "Mean of references"
    source: ClassVar[str] = "control: the true references, not told apart"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The mean value at the references, ``[B, C, H, W]``.

        Raises:
            AttentionError: the maps do not fit, or the references are of another batch or size.
        """
        check_qkv(q, k, v)
        shares = self._shares(v).to(sum_dtype(v))
        with no_autocast(v):
            mean = (v.flatten(2) * shares[:, None]).sum(2).to(v.dtype)
        return mean[..., None, None].expand_as(v)

    def attention_weights(self, q: Tensor, k: Tensor, row: int, col: int) -> Tensor:
        """The same share for each reference, else 0, ``[B, H, W]``."""
        return self._shares(q).to(q.dtype).view(-1, *q.shape[2:])

    def _shares(self, maps: Tensor) -> Tensor:
        """Weights ``[B, N]`` of the values."""
        batch, n = maps.shape[0], maps.shape[2] * maps.shape[3]
        if self.references is None:
            return maps.new_full((batch, n), 1 / n)
        found = self.check_references(batch, n)
        others = found != torch.arange(n, device=found.device)[:, None]
        counts = torch.zeros(batch, n, dtype=torch.int64, device=found.device)
        counts.scatter_add_(1, found.flatten(1), others.flatten(1).long())
        referred = (counts > 0).to(torch.float32)
        return referred / referred.sum(1, keepdim=True).clamp_min(1)
