"""Up to three 1x1 convolutions of one map, by kernels in C.

Torch's read the map once for each, their backward passes once more, and gradients of the map are
added. For narrow maps that takes longer than the products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import to_map, to_rows
from ..implementations import implementation, register_core
from .native import WIDTH, padded, why_not_native
from .native import projections as native
from .softmax import refuse_second_derivative
from .tiles import num_workers, scratch

# Positions of a tile.
_ROWS = 128
# Fewer products than these are not worth a second thread.
_FEW_PRODUCTS = 2**20


def why_not(x: Tensor, *layers: Tensor) -> str | None:
    """As :func:`.native.why_not_native`; besides, maps are channels-last, in float32."""
    if reason := why_not_native(*layers, x):
        return reason
    if any(t.device.type != "cpu" for t in layers):
        return "the projections in C take weights on the CPU only"
    if any(t.dtype != torch.float32 for t in (x, *layers)) or torch.is_autocast_enabled("cpu"):
        return "the projections in C take float32 only"
    if x.shape[1] % WIDTH or not x.is_contiguous(memory_format=torch.channels_last):
        return f"the projections in C take channels-last maps of a multiple of {WIDTH} channels"
    if len(layers) > 2 * native.MOST_LAYERS:
        return f"the projections in C are at most {native.MOST_LAYERS}"
    return None


@implementation("projections", "native", why_not)
def project(x: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
    """Outputs ``[B, c, H, W]`` of a map; layers are a weight ``[c, C]`` and bias ``[c]`` each."""
    return tuple(to_map(t, like=x) for t in _Project.apply(to_rows(x), *layers))


class _Call:
    """What forward and backward pass of one call share: rows ``[B, N, C]`` and all weights."""

    def __init__(self, x: Tensor, weights: Sequence[Tensor]) -> None:
        self.x, self.weights = x, _together(weights)
        self.widths = tuple(map(len, weights))
        w, c = self.weights.shape
        positions = x.shape[0] * x.shape[1]
        many = positions * w * c >= _FEW_PRODUCTS
        self.workers = num_workers(x.device, own_threads=True) if many else 1
        self.workers = min(self.workers, math.ceil(positions / _ROWS))
        self._sizes = {"positions": positions, "c": c, "w": w, "workers": self.workers}

    def job(self, **fields: Any) -> native.Projections:
        """The sizes, and these."""
        of = {"x": self.x, "weights": self.weights, "rows": _ROWS}
        return native.Projections.of(**self._sizes, **of, widths=self.widths, **fields)

    def workspace(self) -> Tensor:
        """Memory for all workers."""
        size = self.workers * native.workspace_size(_ROWS, len(self.weights))
        return scratch("native", self.x, size)


class _Project(torch.autograd.Function):
    """Of rows ``[B, N, C]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *layers: Tensor) -> tuple[Tensor, ...]:
        weights, biases = layers[::2], layers[1::2]
        call = _Call(x, weights)
        outs = tuple(x.new_empty(*x.shape[:2], width) for width in call.widths)
        needed = ctx.needs_input_grad
        learned = [needed[0] or any(needed[i : i + 2]) for i in range(1, len(needed), 2)]
        ctx.mark_non_differentiable(*(o for o, one in zip(outs, learned, strict=True) if not one))
        ctx.set_materialize_grads(False)
        turned, bias = call.weights.T.contiguous(), _together(biases)
        job = call.job(turned=turned, bias=bias, outs=outs)
        native.forward(job, call.workspace())
        ctx.save_for_backward(x, *weights)
        return outs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("the projections")
        x, *weights = (t.contiguous() for t in ctx.saved_tensors)  # hooks may change the layout
        call = _Call(x, weights)
        shape = x.shape[:2]
        given = tuple(
            x.new_zeros(*shape, width) if t is None else t.contiguous()
            for t, width in zip(grads, call.widths, strict=True)
        )
        of_x = {"grad_x": torch.empty_like(x)} if ctx.needs_input_grad[0] else {}
        # Of the last tiles, and of those before: long sums would lose digits.
        of_weights = x.new_zeros(2 * call.workers, *call.weights.shape)
        of_biases = x.new_zeros(2 * call.workers, len(call.weights))
        sums = {"grad_weights": of_weights, "grad_bias": of_biases}
        native.backward(call.job(grads=given, **of_x, **sums), call.workspace())
        width = sum(call.widths)
        found = (t.sum(0)[:width].split(call.widths) for t in (of_weights, of_biases))
        of_layers = (
            None if grad is None else t
            for grad, *layer in zip(grads, *found, strict=True)
            for t in layer
        )
        return of_x.get("grad_x"), *of_layers


def _together(tensors: Sequence[Tensor]) -> Tensor:
    """One behind the other, and zeros up to a multiple of the widest vector."""
    width = sum(map(len, tensors))
    return torch.cat([*tensors, tensors[0].new_zeros(padded(width) - width, *tensors[0].shape[1:])])


def _rule(*args: Any) -> str:
    return "reference" if why_not(*args) else "native"


register_core("projections", _rule, auxiliary=True)
