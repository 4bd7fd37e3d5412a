"""Quality of ENLA's approximation and of NLSA's buckets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_zoo.base import to_rows
from attention_zoo.enla import EfficientNonLocalAttention, normalise, orthogonal_gaussian, phi
from attention_zoo.nla import non_local_attention
from attention_zoo.nlsa import (
    hash_codes,
    normalise_keys,
    num_buckets,
    padded_order,
)

from ..images.metrics import psnr, rgb_to_y
from ..images.sources import TestImage
from ..network.edsr import EDSR
from ..records.shapes import REFERENCE_M, WHOLE
from .features import Features
from .quality import MAX_PSNR, super_resolve

#: Largest amplification at which Eq. 7, up to exp(6k), stays in range.
MAX_K = 100.0
_TINY = 1e-30


@dataclass(frozen=True)
class Sweep:
    """What is measured; see :class:`Options`. At the largest map every m and k is, elsewhere
    every k at the reference m."""

    m: tuple[int, ...]
    k: tuple[float, ...]
    rounds: int = 8
    draws: int = 8
    queries: int = 64
    top: int = 16
    chunk_size: int = 144
    eps: float = 1e-4
    seed: int = 0


def kernel_estimates(
    u: Tensor, w: Tensor, projections: Tensor, counts: Sequence[int], eps: float = 0.0
) -> Iterator[Tensor]:
    """phi(u)·phi(w) with the first m rows of each projection, for each m of ``counts`` in turn.

    Args:
        u: queries ``[Q, c]``, normalised and amplified.
        w: keys ``[N, c]``, likewise.
        projections: draws of F ``[draws, M, c]``.
        counts: ascending, the last at most M.
        eps: of phi, Eq. 4 as released.

    Yields:
        ``[draws, Q, N]``, a new tensor each time.
    """
    total = u.new_zeros(len(projections), len(u), len(w))
    begin = 0
    for m in counts:
        rows = projections[:, begin:m]
        scale = math.sqrt(m - begin)  # phi divides by it, but m is not reached yet
        e_u, e_w = (torch.stack([phi(x, f, eps) * scale for f in rows]) for x in (u, w))
        total = torch.baddbmm(total, e_u, e_w.mT)
        begin = m
        yield total / m


def variance_eq7(u: Tensor, w: Tensor, m: int) -> Tensor:
    """Eq. 7, ``m^-1 K² (exp(|u + w|²) − 1)`` with ``K = exp(u·w)``: ``[Q, N]``.

    It holds for independent rows of F and eps = 0.
    """
    dots = u @ w.T
    squared = u.square().sum(-1, keepdim=True) + w.square().sum(-1) + 2 * dots
    return (2 * dots).exp() * squared.expm1() / m


def attended_positions(weights: Tensor) -> dict[str, Tensor]:
    """Effective number of positions of rows ``[..., N]`` that sum to 1, mean over rows.

    ``positions_entropy`` is exp of the entropy, ``positions_simpson`` 1 / sum of squares.
    """
    return {
        "positions_entropy": torch.special.entr(weights).sum(-1).exp().mean(-1),
        "positions_simpson": (1 / weights.square().sum(-1)).mean(-1),
    }


def measure_enla(
    features: Features, k: float, counts: Sequence[int], sweep: Sweep, seed: int
) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """Exact attention at amplification k, and ENLA beside it for each m of ``counts``.

    ``sweep.queries`` positions are queries, all are keys. Norms are over queries and channels.

    Returns:
        Of the exact attention, scalars, and of ENLA by m, scalars and ``[draws]``:
        ``mean_distance``, |output − mean of all values| / |output|; ``variation``, the norm of
        the output without its mean over queries / |output|; :func:`attended_positions`; and

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
    u = u[torch.randperm(n, generator=generator)[: sweep.queries]]
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
        [orthogonal_gaussian(most, c, generator).double() for _ in range(sweep.draws)]
    )
    independent = torch.randn(sweep.draws, most, c, generator=generator, dtype=torch.float64)
    by_m = {}
    for m, plain, offset, other in zip(
        counts,
        kernel_estimates(u, w, orthogonal, counts),
        kernel_estimates(u, w, orthogonal, counts, sweep.eps),
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


def chunk_size(n: int, largest: int) -> int:
    """``largest``, or n // 16 on maps too small for it: a window is 3/16 of the map then."""
    return max(1, min(largest, n // 16))


def bucket_windows(order: Tensor, size: int, queries: Tensor) -> Tensor:
    """Which keys each query sees in one hash round of NLSA: bool ``[Q, N]``.

    Args:
        order: positions sorted by hash code ``[N]``.
        size: chunk size.
        queries: positions ``[Q]``.
    """
    n = len(order)
    chunks = padded_order(order.unsqueeze(0), size).view(-1, size)
    member = torch.zeros(len(chunks), n, dtype=torch.bool).scatter_(1, chunks, True)
    window = member | member.roll(1, 0) | member.roll(-1, 0)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(n))
    return window[rank[queries] // size]


def measure_nlsa(features: Features, sweep: Sweep, seed: int) -> dict[int, dict[str, Tensor]]:
    """What NLSA's buckets catch of its exact softmax after each of ``sweep.rounds`` rounds.

    As in the module one embedding, here ``features.q``, serves as query and, normalised, as key;
    positions seen in several rounds count once.

    Returns:
        By rounds, each ``[draws]``: ``mass`` of the softmax over all positions that is caught;
        ``mass_others``, the same without the query's own position, which every round catches;
        ``recall`` of each query's ``sweep.top`` largest weights; ``seen``, share of the positions
        looked at, which is what buckets at random would catch.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = to_rows(features.q)
    n, c = rows.shape[1:]
    size = chunk_size(n, sweep.chunk_size)
    queries = torch.randperm(n, generator=generator)[: sweep.queries]
    weights = (rows[0, queries].double() @ normalise_keys(rows)[0].double().T).softmax(-1)
    own = weights.gather(1, queries.unsqueeze(1)).squeeze(1)
    best = weights.topk(min(sweep.top, n)).indices
    by_rounds: dict[int, dict[str, list[Tensor]]] = {}
    for _ in range(sweep.draws):
        rotations = torch.randn(sweep.rounds, c, num_buckets(n, size) // 2, generator=generator)
        order = torch.sort(hash_codes(rows, rotations), dim=-1, stable=True).indices[0]
        seen = torch.zeros(len(queries), n, dtype=torch.bool)
        for r in range(sweep.rounds):
            seen |= bucket_windows(order[r], size, queries)
            mass = (weights * seen).sum(-1)
            found = {
                "mass": mass.mean(),
                "mass_others": (mass - own).sum() / (1 - own).sum().clamp_min(_TINY),
                "recall": seen.gather(1, best).double().mean(),
                "seen": seen.double().mean(),
            }
            for name, value in found.items():
                by_rounds.setdefault(r + 1, {}).setdefault(name, []).append(value)
    return {r: {q: torch.stack(x) for q, x in found.items()} for r, found in by_rounds.items()}


@torch.inference_mode()
def measure_network(
    network: EDSR, images: Iterable[TestImage], sweep: Sweep, on_step: Callable[[], None]
) -> list[dict[str, Any]]:
    """PSNR in dB of a trained ENLA network whose attention is replaced, mean over the images.

    Nothing is trained anew. ``enla`` with m newly drawn features (for each m, spread over draws),
    ``exact`` softmax at the network's own k, ``mean``: every position gets the mean of all values,
    ``none``: the modules add nothing.
    """
    images = list(images)
    modules = [m for m in network.attention_modules if isinstance(m, EfficientNonLocalAttention)]
    kept = [(m.projection, m.res_scale) for m in modules]

    def quality() -> float:
        values = []
        for image in images:
            sr = super_resolve(network, image.lr, network.scale)
            value = psnr(rgb_to_y(sr), rgb_to_y(image.hr), network.scale)
            values.append(min(value, MAX_PSNR))
        on_step()
        return float(np.mean(values))

    def exact(module: EfficientNonLocalAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return non_local_attention(normalise(q, module.k), normalise(k, module.k), v)

    def mean(_: EfficientNonLocalAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return v.mean((2, 3), keepdim=True).expand_as(v)

    rows: list[dict[str, Any]] = []
    try:
        for name, attend in (("exact", exact), ("mean", mean)):
            for module in modules:
                module.__dict__["attend"] = partial(attend, module)
            rows.append({"attention": name, "m": None, "psnr": quality()})
            for module in modules:
                del module.__dict__["attend"]
        for m in sweep.m:
            generator = torch.Generator().manual_seed(sweep.seed)
            values = []
            for _ in range(sweep.draws):
                for module in modules:
                    module.projection = orthogonal_gaussian(m, module.embedding, generator)
                values.append(quality())
            rows.append({"attention": "enla", "m": m} | _mean_and_std("psnr", values))
        for module in modules:
            module.res_scale = 0.0
        rows.append({"attention": "none", "m": None, "psnr": quality()})
    finally:
        for module, (projection, scale) in zip(modules, kept, strict=True):
            module.__dict__.pop("attend", None)
            module.projection, module.res_scale = projection, scale
    return rows


def measure(
    features: Mapping[int, Sequence[Features]],
    sweep: Sweep,
    *,
    enla: bool = True,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """Rows ``exact``, ``enla`` and ``nlsa`` of a record: means over images, spread over draws.

    Args:
        features: by side of the map; sets of one name are averaged, those named ``module …``
            also over all modules (rows of single modules: largest map and reference m only).
        sweep: what to measure.
        enla: whether to measure ENLA, or NLSA only.
        on_step: called after each set, k and part.
    """
    exact: dict[tuple[str, int, float], list[dict[str, Tensor]]] = {}
    approximate: dict[tuple[str, int, float, int], list[dict[str, Tensor]]] = {}
    caught: dict[tuple[str, int, int], list[dict[str, Tensor]]] = {}
    for side, sets in features.items():
        counts = sweep.m if side == max(features) else (REFERENCE_M,)
        for index, one in enumerate(sets):
            names = [one.name]
            if one.name.startswith("module"):  # single modules at the largest map only
                names = [one.name, WHOLE] if side == max(features) else [WHOLE]
            seed = 1000 * sweep.seed + index
            for k in sweep.k if enla else ():
                of_exact, by_m = measure_enla(one, k, counts, sweep, seed)
                for name in names:
                    exact.setdefault((name, side**2, k), []).append(of_exact)
                    for m, found in by_m.items():
                        # … and at the reference m, which keeps records small.
                        if m == REFERENCE_M or not name.startswith("module"):
                            approximate.setdefault((name, side**2, k, m), []).append(found)
                on_step()
            for rounds, found in measure_nlsa(one, sweep, seed).items():
                for name in names:
                    caught.setdefault((name, side**2, rounds), []).append(found)
            on_step()
    return {
        "exact": [
            {"features": name, "n": n, "k": k} | _average(x) for (name, n, k), x in exact.items()
        ],
        "enla": [
            {"features": name, "n": n, "k": k, "m": m} | _average(x)
            for (name, n, k, m), x in approximate.items()
        ],
        "nlsa": [
            {"features": name, "n": n, "rounds": r, "chunk_size": chunk_size(n, sweep.chunk_size)}
            | _average(x)
            for (name, n, r), x in caught.items()
        ],
    }


def _average(sets: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Mean over sets of each quantity; of one with draws, the mean and the spread over draws."""
    row: dict[str, float] = {}
    for name in sets[0]:
        mean = torch.stack([one[name] for one in sets]).mean(0)
        if mean.dim():
            row |= _mean_and_std(name, mean.tolist())
        else:
            row[name] = _rounded(mean.item())
    return row


def _mean_and_std(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        name: _rounded(float(np.mean(values))),
        f"{name}_std": _rounded(float(np.std(values, ddof=1))),
    }


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
