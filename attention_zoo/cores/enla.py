"""ENLA's forward and backward pass, from four passes over positions that each backend computes.

Notation as in :mod:`attention_zoo.enla`; exponents are in units of log 2. The forward pass goes
over the keys, which gives m sums of values and of features, then over the queries; the backward
pass goes over the queries, then over the keys. Here stands what lies between them, on sums of m
rows. The features ``[N, m]`` are never kept whole: the backward pass computes them again.

What eps adds to features is of rank one. It joins the sums instead of every feature::

    sum_j v_j (phi_j + eps)ᵀ = sum_j v_j phi_jᵀ + eps (sum_j v_j) 1ᵀ
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..base import no_autocast, sum_dtype, to_map, to_rows
from ..implementations import register_core, why_not
from .softmax import LOG2_E, refuse_second_derivative
from .triton import prefers_triton

#: Fewer features than these are not worth a second thread.
FEW_FEATURES = 2**15

# Largest exponent, as a power of 2, with which features are not shifted: products of two of them,
# times values of 1e19, stay below the largest float32 and above the smallest.
_MOST_UNSHIFTED = 48.0
# 2 to it is 0, yet differences of it are defined.
_LOG2_OF_ZERO = -1e30


def _rule(*args: Any) -> str:
    if prefers_triton(*args):
        return "triton"
    return "tiled" if why_not("enla", "native", *args) else "native"


register_core("enla", _rule)


class FeatureMap:
    """F, eps and the amplification of one call.

    With an amplification, embeddings are normalised. exp(−|u|²/2) of those of full length, the same
    for all, is then left out everywhere.

    Attributes:
        projection: F times the length of an embedding if that is normalised, sqrt(k), ``[m, c]``.
        scaled: the same, transposed, in units of log 2, ``[c, m]``.
        log2_eps: log2 of eps, over what is left out.
        unshifted: whether exponents are so small, for every direction of u, that exponentials and
            their sums stay far within float32's range: then nothing is subtracted from them.

    Args:
        shifted: subtract in any case.
    """

    def __init__(
        self,
        projection: Tensor,
        eps: float,
        amplification: float | None,
        shifted: bool = False,
    ) -> None:
        self.amplification = amplification
        length = 1.0 if amplification is None else math.sqrt(amplification)
        self.projection = projection * length
        self.scaled = projection.T * (LOG2_E * length)
        self.log2_eps = math.log2(eps) if eps > 0 else _LOG2_OF_ZERO
        self.unshifted = False
        if amplification is not None:
            self.log2_eps += amplification / 2 * LOG2_E
            # Off the CPU asking would wait for the device.
            if projection.device.type == "cpu" and not shifted:
                self.unshifted = can_stay_unshifted(projection, amplification)

    def eps_features(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """What eps adds to a query's features over its largest entry ``[B, m, 1]``; log2 of that.

        Features are multiplied by ``2^shift``, but for a factor common to all if unshifted.
        """
        exponents = (torch.zeros_like(shift) if self.unshifted else shift) + self.log2_eps
        floor = exponents.amax(1, keepdim=True)
        return (exponents - floor).exp2_(), floor


def can_stay_unshifted(projection: Tensor, amplification: float) -> bool:
    """Whether no exponent of normalised embeddings leaves the middle of float32's range."""
    longest = float(torch.linalg.vector_norm(projection, dim=1).amax())
    return longest * math.sqrt(amplification) * LOG2_E <= _MOST_UNSHIFTED


class KeySums(NamedTuple):
    """Sums over the keys of each of the P parts that an image is cut into.

    Attributes:
        values: of features times values, ``[B, P, m, C]``.
        features: of features, ``[B, P, m]``.
        shift: what was subtracted from exponents, 0 if unshifted, ``[B, P, m, 1]``.
        total: of values, ``[B, P, C]``.
    """

    values: Tensor
    features: Tensor
    shift: Tensor
    total: Tensor


class Passes(Protocol):
    """The passes over positions of one call.

    Args:
        q: queries ``[B, N, c]``.
        k: keys ``[B, N, c]``.
        v: values ``[B, N, C]``.
        c_out: channels of the output.
        feature_map: of queries and keys.
    """

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, c_out: int, feature_map: FeatureMap
    ) -> None: ...

    def sum_keys(self) -> KeySums:
        """The sums over keys, without what eps adds."""

    def attend(
        self, context: Tensor, eps_sums: Tensor, shift: Tensor, floor: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output ``[B, N, c_out]`` and what it was divided by, ``[B, N, 1]``.

        Args:
            context: sums over keys, that of the features last, ``[B, m, c_out + 1]``.
            eps_sums: what eps adds to a query's product with them, ``[B, 1, c_out + 1]``.
            shift: added to the exponents of queries if not unshifted, ``[B, m, 1]``.
            floor: log2 of the largest that eps adds to a feature, ``[B, 1, 1]``.
        """

    def query_gradients(
        self,
        grad_out: Tensor,
        out: Tensor,
        normaliser: Tensor,
        context: Tensor,
        shift: Tensor,
        floor: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of what :meth:`attend` took, given that of its output.

        Returns:
            Those of the queries ``[B, N, c]``, of context ``[B, m, c_out + 1]`` and of eps_sums
            ``[B, 1, c_out + 1]``.
        """

    def key_gradients(
        self, grad_values: Tensor, grad_features: Tensor, grad_total: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of keys ``[B, N, c]`` and values ``[B, N, C]``.

        Args:
            grad_values: gradient of the sums of features times values, ``[B, m, C]``.
            grad_features: that of the sums of features, ``[B, m, 1]``.
            grad_total: that of the sum of values, ``[B, 1, C]``.
            shift: what is subtracted from exponents if not unshifted, ``[B, m, 1]``.
        """


class RandomFeatureAttention(torch.autograd.Function):
    """Eq. 5–6 on rows: q, k ``[B, N, c]``, v ``[B, N, C]``, F ``[m, c]``.

    C is c_out unless weight ``[c_out, C]`` and bias ``[c_out]`` map the values.
    """

    @staticmethod
    def forward(
        ctx: Any,
        passes_of: type[Passes],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        projection: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        amplification: float | None,
    ) -> Tensor:
        n, c_in = v.shape[1:]
        feature_map = FeatureMap(projection, eps, amplification)
        c_out = c_in if weight is None else weight.shape[0]
        passes = passes_of(q, k, v, c_out, feature_map)
        sums_of_v, shift = _join(passes.sum_keys(), n, feature_map)  # before the map
        context = map_sums(sums_of_v, weight, bias)
        eps_q, floor = feature_map.eps_features(shift)
        eps_sums = (context * eps_q).sum(1, keepdim=True)
        if feature_map.unshifted:
            eps_sums.mul_(floor.exp2())
        out, normaliser = passes.attend(context, eps_sums, shift, floor)
        saved = (q, k, v, projection, weight, bias, out, sums_of_v, context, shift, normaliser)
        ctx.save_for_backward(*saved)
        ctx.eps, ctx.amplification, ctx.shifted = eps, amplification, not feature_map.unshifted
        ctx.passes_of = passes_of
        return out.to(v.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("random_feature_attention")
        saved = ctx.saved_tensors  # read once: torch's checkpoint allows no more
        q, k, v, projection, weight, bias, out, sums_of_v, context, shift, normaliser = saved
        n, c_in = v.shape[1:]
        feature_map = FeatureMap(projection, ctx.eps, ctx.amplification, ctx.shifted)
        passes = ctx.passes_of(q, k, v, out.shape[2], feature_map)
        eps_q, floor = feature_map.eps_features(shift)
        grad_q, grad_context, grad_eps = passes.query_gradients(
            grads[0], out, normaliser, context, shift, floor
        )
        if feature_map.unshifted:
            grad_eps.mul_(floor.exp2())
        grad_context.addcmul_(eps_q, grad_eps)
        grad_weight = grad_bias = None
        if weight is not None:
            grad_sums = grad_context[..., : out.shape[2]]
            if ctx.needs_input_grad[5]:
                grad_weight = torch.bmm(grad_sums.mT, sums_of_v[..., :c_in]).sum(0).to(weight.dtype)
            if ctx.needs_input_grad[6]:
                grad_bias = (grad_sums * sums_of_v[..., c_in:]).sum((0, 1)).to(bias.dtype)
            grad_context = _unmap_gradient(grad_context, weight, bias)
        eps_k = (feature_map.log2_eps - shift).exp2_()
        grad_total = (grad_context[..., :c_in] * eps_k).sum(1, keepdim=True).div_(n)
        if feature_map.unshifted:
            grad_context.mul_(shift.neg().exp2_())
        grad_values, grad_features = grad_context.div_(n).tensor_split([c_in], dim=2)
        grad_k, grad_v = passes.key_gradients(
            grad_values.contiguous(), grad_features, grad_total, shift
        )
        return None, grad_q, grad_k, grad_v, None, grad_weight, grad_bias, None, None


def attend_rows(
    function: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    projection: Tensor,
    eps: float,
    amplification: float | None,
    value_map: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """The core ``enla`` of maps, by a function of rows: an output ``[B, c_out, H, W]``."""
    with no_autocast(v):
        rows = (to_rows(t) for t in (q, k, v))
        mapped = value_map or (None, None)
        out = function(*rows, projection.to(sum_dtype(v)), *mapped, eps, amplification)
    return to_map(out, like=v)


def _join(sums: KeySums, n: int, feature_map: FeatureMap) -> tuple[Tensor, Tensor]:
    """Means over all N keys, with eps: ``[B, m, C + 1]`` over ``2^shift``, and shift ``[B, m, 1]``.

    Last stands that of the features.
    """
    if feature_map.unshifted:  # one shift for all features
        values, features = sums.values.sum(1), sums.features.sum(1)
        shift = (features.amax(1, keepdim=True) / n).log2_().unsqueeze(-1)
        shift = shift.expand(*features.shape, 1)
    else:
        shift = sums.shift.amax(1).clamp_min_(feature_map.log2_eps)
        scale = (sums.shift - shift.unsqueeze(1)).exp2_()
        values, features = (
            (sums.values * scale).sum(1),
            (sums.features * scale.squeeze(-1)).sum(1),
        )
    context = torch.cat([values, features.unsqueeze(-1)], dim=2).div_(n)
    if feature_map.unshifted:
        context.mul_(shift.neg().exp2_())
    mean = sums.total.sum(1, keepdim=True).div_(n)
    mean = torch.cat([mean, mean.new_ones(mean.shape[0], 1, 1)], dim=2)
    return context.addcmul_((feature_map.log2_eps - shift).exp2_(), mean), shift


def map_sums(context: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Sums of values and, last, of features ``[B, m, C + 1]``: as if values had been mapped before.

    Returns:
        ``[B, m, c_out + 1]``.
    """
    if weight is None or bias is None:
        return context
    sums, norm = context.tensor_split([weight.shape[1]], dim=2)
    weight, bias = (t.to(context.dtype) for t in (weight, bias))
    mapped = torch.matmul(sums, weight.mT).addcmul_(norm, bias)
    return torch.cat([mapped, norm], dim=2)


def _unmap_gradient(grad: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Gradient of what :func:`map_sums` took ``[B, m, C + 1]``, given that of its result."""
    grad_sums, grad_norm = grad.tensor_split([weight.shape[0]], dim=2)
    weight, bias = (t.to(grad.dtype) for t in (weight, bias))
    grad_norm = grad_norm + torch.matmul(grad_sums, bias).unsqueeze(-1)
    return torch.cat([torch.matmul(grad_sums, weight), grad_norm], dim=2)


def like_values(v: Tensor, c_out: int) -> Tensor:
    """Room for output ``[B, N, c_out]``, in the layout of the values ``[B, N, C]``."""
    batch, n, c_in = v.shape
    if c_out == c_in:
        return torch.empty_like(v)
    if v.stride(1) == 1 < n:
        return v.new_empty(batch, c_out, n).mT
    return v.new_empty(batch, n, c_out)
