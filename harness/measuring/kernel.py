"""ENLA's approximation beside exact attention, on one map of features.

With u = sqrt(k)·q/|q| and w = sqrt(k)·k/|k| (Eq. 3 of the ENLCA paper), exact attention is the
softmax of u·w, and ENLA's kernel value phi(u)·phi(w) (Eq. 4) estimates exp(u·w).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attention_zoo.base import to_rows
from attention_zoo.enla import normalise, orthogonal_gaussian, phi

from .features import Features

#: Largest amplification at which Eq. 7, up to exp(6k), stays in range.
MAX_K = 100.0
_TINY = 1e-30


def kernel_estimates(
    u: Tensor, w: Tensor, projections: Tensor, counts: Sequence[int], eps: float = 0.0
) -> Iterator[Tensor]:
    """phi(u)·phi(w) with the first m rows of each projection, for each m of ``counts`` in turn.

    Args:
        u: queries ``[Q, c]``, normalised and amplified.
        w: keys ``[N, c]``, likewise.
        projections: draws of F ``[draws, M, c]``.
        counts: ascending, at most M.
        eps: that of phi, Eq. 4 as released.

    Yields:
        ``[draws, Q, N]``, a new tensor each time.
    """
    total = u.new_zeros(len(projections), len(u), len(w))
    begin = 0
    for m in counts:
        rows = projections[:, begin:m]
        scale = math.sqrt(m - begin)  # phi divides by it, which is too early
        e_u, e_w = (torch.stack([phi(x, f, eps) * scale for f in rows]) for x in (u, w))
        total = torch.baddbmm(total, e_u, e_w.mT)
        begin = m
        yield total / m


def variance_eq7(u: Tensor, w: Tensor, m: int) -> Tensor:
    """Eq. 7, ``m^-1 K² (exp(|u + w|²) − 1)`` with ``K = exp(u·w)``: ``[Q, N]``.

    Valid for independent rows of F and eps = 0.
    """
    dots = u @ w.T
    squared = u.square().sum(-1, keepdim=True) + w.square().sum(-1) + 2 * dots
    return (2 * dots).exp() * squared.expm1() / m


def attended_positions(weights: Tensor) -> dict[str, Tensor]:
    """Effective number of positions of rows ``[..., N]`` that sum to 1: the mean over rows.

    ``positions_entropy`` is exp of the entropy, ``positions_simpson`` 1 / sum of squares.
    """
    return {
        "positions_entropy": torch.special.entr(weights).sum(-1).exp().mean(-1),
        "positions_simpson": (1 / weights.square().sum(-1)).mean(-1),
    }


def measure_enla(
    features: Features,
    k: float,
    counts: Sequence[int],
    *,
    draws: int,
    queries: int,
    eps: float,
    seed: int,
) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """Exact attention at amplification k, and ENLA beside it for each m of ``counts``.

    At most ``queries`` positions are queries, all are keys. Norms are over queries and channels.

    Returns:
        Scalars of exact attention; by m, scalars and ``[draws]`` of ENLA. For both:
        ``mean_distance``, |output − mean of all values| / |output|; ``variation``, the norm of
        the output without its mean over queries / |output|; :func:`attended_positions`. For ENLA:

        ``output_error``, |output − exact| / |exact|; ``cosine`` and ``explained`` (1 − |residual|²
        / |exact|²) of both outputs without their means over queries; ``kernel_error`` and
        ``kernel_ratio``, median of |estimate / exp(u·w) − 1| and mean of estimate / exp(u·w) over
        pairs; ``variance_orthogonal`` and ``variance_independent``, squared deviation of the
        estimates from their mean over draws (times draws / (draws − 1), so that the mean over
        draws is the sample variance), mean over pairs; ``variance_closed``, the mean of
        :func:`variance_eq7`. Kernel values and variances are those of eps = 0.
    """
    generator = torch.Generator().manual_seed(seed)
    u, w = (to_rows(normalise(x.double(), k))[0] for x in (features.q, features.k))
    v = to_rows(features.v.double())[0]
    n, c = w.shape
    u = u[torch.randperm(n, generator=generator)[:queries]]
    scores = u @ w.T
    kernel, mean = scores.exp(), v.mean(0)
    weights = scores.softmax(-1)
    exact = weights @ v
    varying = exact - exact.mean(0)

    def output(y: Tensor) -> dict[str, Tensor]:
        centred = y - y.mean(-2, keepdim=True)
        size = _norm(y).clamp_min(_TINY)
        return {"mean_distance": _norm(y - mean) / size, "variation": _norm(centred) / size}

    most = counts[-1]
    orthogonal = torch.stack(
        [orthogonal_gaussian(most, c, generator).double() for _ in range(draws)]
    )
    independent = torch.randn(draws, most, c, generator=generator, dtype=torch.float64)
    by_m = {}
    for m, plain, offset, other in zip(
        counts,
        kernel_estimates(u, w, orthogonal, counts),
        kernel_estimates(u, w, orthogonal, counts, eps),
        kernel_estimates(u, w, independent, counts),
        strict=True,
    ):
        shares = offset / offset.sum(-1, keepdim=True)
        y = shares @ v
        centred = y - y.mean(-2, keepdim=True)
        ratio = (plain / kernel).flatten(1)
        by_m[m] = {
            **output(y),
            **attended_positions(shares),
            "output_error": _norm(y - exact) / _norm(exact).clamp_min(_TINY),
            "cosine": (centred * varying).sum((-2, -1))
            / (_norm(centred) * _norm(varying)).clamp_min(_TINY),
            "explained": 1 - (_norm(centred - varying) / _norm(varying).clamp_min(_TINY)).square(),
            "kernel_error": (ratio - 1).abs().median(-1).values,
            "kernel_ratio": ratio.mean(-1),
            "variance_orthogonal": _squared_deviation(plain),
            "variance_independent": _squared_deviation(other),
            "variance_closed": variance_eq7(u, w, m).mean(),
        }
    return {**output(exact), **attended_positions(weights)}, by_m


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x)


def _squared_deviation(estimates: Tensor) -> Tensor:
    draws = len(estimates)
    return (estimates - estimates.mean(0)).square().mean((1, 2)) * (draws / (draws - 1))
