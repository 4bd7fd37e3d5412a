"""ENLA by kernels in C: the CPU, float32, exponents that need no shift."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..enla import MIN_NORM
from ..implementations import implementation
from .enla import FEW_FEATURES, FeatureMap, attend_rows, can_stay_unshifted
from .native import WIDTH, float_rows, padded, why_not_native
from .native import enla as native
from .softmax import LOG2_E, refuse_second_derivative
from .tiles import num_workers, pieces_of_image, scratch


class _Call:
    """What forward and backward pass of one call share: the inputs as the kernels take them."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        projection: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        amplification: float,
    ) -> None:
        feature_map = FeatureMap(projection, eps, amplification)
        assert feature_map.unshifted
        batch, n, c = q.shape
        m, c_in = projection.shape[0], v.shape[2]
        self.c_out = c_in if weight is None else weight.shape[0]
        d, d_out = padded(c_in), padded(self.c_out)
        many = batch * n * m >= FEW_FEATURES
        workers = num_workers(q.device, own_threads=True) if many else 1
        rows = math.ceil(n / pieces_of_image(batch, workers))
        #: Images, parts of an image, features, widths of values and output.
        self.sizes = batch, math.ceil(n / rows), m, d, d_out
        self.tensors = {"q": float_rows(q), "k": float_rows(k), "v": float_rows(v, WIDTH)}
        self._scaled = (feature_map.projection * LOG2_E).contiguous()
        if weight is not None and bias is not None:
            filled = F.pad(float_rows(weight, WIDTH), (0, 0, 0, d_out - self.c_out))
            of_map = {"weight": filled, "turned": filled.T.contiguous()}
            self.tensors |= of_map | {"bias": float_rows(bias, WIDTH)}
        self._numbers: dict[str, Any] = {
            "map": native.FeatureMap(
                self._scaled,
                amplification / 2 * LOG2_E,
                MIN_NORM,
                math.sqrt(torch.finfo(torch.float32).max),
            ),
            "images": batch,
            "positions": n,
            "rows": rows,
            "workers": workers,
            "d": d,
            "d_out": d_out,
            "eps": 2**feature_map.log2_eps,
        }
        size = workers * native.workspace_size(m, c, max(d, d_out))
        self.workspace = scratch("native", self._scaled, size)

    def new(self, *shape: int) -> Tensor:
        """Memory for a result."""
        return self._scaled.new_empty(shape)

    def job(self, **tensors: Tensor) -> native.Enla:
        """The inputs, and these."""
        return native.Enla.of(**self._numbers, **self.tensors, **tensors)


class _Native(torch.autograd.Function):
    """Eq. 5–6 on rows, arguments as of :class:`.enla.RandomFeatureAttention`."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        call = _Call(*given)
        batch, parts, m, d, d_out = call.sizes
        n, new = given[2].shape[1], call.new
        context = new(batch, m, d)
        kept = {
            "context": context,
            "norm": new(batch, m),
            "scale": new(batch),
            "mapped": context if given[4] is None else new(batch, m, d_out),
            "out": new(batch, n, d_out),
            "normaliser": new(batch, n),
        }
        passing = {
            "sums": new(batch, parts, m, d),
            "norms": new(batch, parts, m),
            "totals": new(batch, parts, d),
            "eps_sums": new(batch, d_out),
            "eps_norm": new(batch),
        }
        native.forward(call.job(**kept, **passing), call.workspace)
        ctx.save_for_backward(*given[:6], *kept.values())
        ctx.names, ctx.numbers = list(kept), given[6:]
        return kept["out"][..., : call.c_out].to(given[2].dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("random_feature_attention")
        saved = ctx.saved_tensors  # read once: torch's checkpoint allows no more
        q, k, v, _, weight, bias = given = saved[:6]
        # Hooks of saved tensors may change the layout.
        kept = {name: t.contiguous() for name, t in zip(ctx.names, saved[6:], strict=True)}
        call = _Call(*given, *ctx.numbers)
        batch, parts, m, d, d_out = call.sizes
        new = call.new
        of_inputs = {f"grad_{name}": torch.empty_like(call.tensors[name]) for name in "qkv"}
        grad_mapped, grad_context = new(batch, m, d_out), new(batch, m, d)
        passing = {
            "grad": float_rows(grads[0], WIDTH),
            "grad_parts": new(batch, parts, m, d_out),
            "grad_norms": new(batch, parts, m),
            "grad_eps": new(batch, parts, d_out + 1),
            "grad_mapped": grad_mapped,
            "grad_context": grad_context,
            "grad_norm": new(batch, m),
            "grad_total": new(batch, d),
        }
        native.backward(call.job(**kept, **passing, **of_inputs), call.workspace)
        grad_weight = grad_bias = None
        if weight is not None:
            of_outputs = grad_mapped.flatten(0, 1).T  # sums over images and features
            if ctx.needs_input_grad[4]:
                of_weight = torch.mm(of_outputs, kept["context"].flatten(0, 1))
                grad_weight = of_weight[: call.c_out, : v.shape[2]].to(weight.dtype)
            if ctx.needs_input_grad[5]:
                of_bias = torch.mv(of_outputs, kept["norm"].flatten())
                grad_bias = of_bias[: call.c_out].to(bias.dtype)
        found = zip(of_inputs.values(), (q, k, v), strict=True)
        of_rows = (t[..., : x.shape[2]].to(x.dtype) for t, x in found)
        return *of_rows, None, grad_weight, grad_bias, None, None


def why_not(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float,
    amplification: float | None,
    value_map: tuple[Tensor, Tensor] | None,
) -> str | None:
    """As :func:`.native.why_not_native`; besides, exponents must need no shift."""
    if reason := why_not_native(*(value_map or ()), q, k, v):
        return reason
    if amplification is None:
        return "the kernels in C normalise the embeddings: give an amplification"
    if not can_stay_unshifted(projection, amplification):
        return "the kernels in C shift no exponents, which this amplification and projection need"
    return None


implementation("enla", "native", why_not)(partial(attend_rows, _Native.apply))
