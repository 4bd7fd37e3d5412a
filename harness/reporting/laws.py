"""What the capability profile's numbers say: the law of m, paired effects, agreement of orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from ..records.shapes import CONFIDENCE
from .statistics import Estimate, FloatArray, estimate

# Where the fit looks first: half-way points and powers. The ends bound it.
_M50 = np.exp2(np.arange(-2, 14.01, 0.1))
_POWERS = np.exp2(np.arange(-2.5, 3.01, 0.125))
# Resamples that are fitted at once.
_CHUNK = 100


@dataclass(frozen=True)
class Law:
    """R² = limit / (1 + (m50 / m)^power): a score that rises with m and saturates.

    Attributes:
        limit: score as m grows, 0 ... 1.
        m50: m of half the limit.
        power: steepness.
        residual: root mean square of score minus law at the fitted points.
    """

    limit: float
    m50: float
    power: float
    residual: float = 0.0

    def at(self, m: float) -> float:
        """The score at m."""
        return float(self.limit / (1 + (self.m50 / m) ** self.power))

    def m_for(self, score: float) -> float | None:
        """The m that gives a score above 0; None where the law never comes there."""
        if not 0 < score < self.limit:
            return None
        return float(self.m50 / (self.limit / score - 1) ** (1 / self.power))


@dataclass(frozen=True)
class FittedLaw:
    """A law with 95 % bootstrap intervals over seeds, each (low, high).

    Attributes:
        m50: interval of the law's m50.
        half: m of half a reference's score; None if the law never comes there.
        half_interval: its interval; None as ``half``. Infinite where a resample never comes there.
        logs: log2 of the m50 of each resample.
    """

    law: Law
    m50: tuple[float, float]
    half: float | None
    half_interval: tuple[float, float] | None
    logs: FloatArray


def fit_law(m: Sequence[float], scores: Sequence[float]) -> Law:
    """Least squares of :class:`Law` over points; at least three."""
    x, y = np.asarray(m, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    limit, m50, power = (float(found[0]) for found in _fits(x, y[None]))

    def errors(parameters: FloatArray) -> FloatArray:
        found: FloatArray = parameters[0] / (1 + (2.0 ** parameters[1] / x) ** parameters[2]) - y
        return found

    bounds = ([0.0, np.log2(_M50[0]) - 1, 0.1], [1.0, np.log2(_M50[-1]) + 1, 10.0])
    start = [np.clip(limit, 0.001, 0.999), np.log2(m50), power]
    best = optimize.least_squares(errors, start, bounds=bounds, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    limit, log, power = (float(value) for value in best.x)
    residual = float(np.sqrt(np.mean(best.fun**2)))
    # The last digits of a minimum differ between processors: tables must not.
    return Law(*(float(f"{value:.6g}") for value in (limit, 2**log, power, residual)))


def fit_with_intervals(
    points: Mapping[float, Estimate],
    reference: Estimate | None = None,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> FittedLaw:
    """The law of the means by m, with intervals from seeds drawn anew at every m.

    Args:
        points: score over seeds by m; at least three.
        reference: score over seeds of what :attr:`FittedLaw.half` is half of.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap's generator.
    """
    m = np.array(sorted(points), dtype=np.float64)
    law = fit_law(m.tolist(), [points[value].mean for value in m.tolist()])
    generator = np.random.default_rng(seed)
    drawn = np.stack([_resampled(points[v], resamples, generator) for v in m.tolist()], axis=1)
    limit, m50, power = _fits(m, drawn)
    half, interval = None, None
    if reference is not None and (half := law.m_for(reference.mean / 2)):
        target = _resampled(reference, resamples, generator) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            there = m50 / (limit / target - 1) ** (1 / power)
        interval = _interval(np.where((target > 0) & (target < limit), there, np.inf))
    logs: FloatArray = np.log2(m50)
    low, high = _interval(logs)
    return FittedLaw(law, (2**low, 2**high), half, interval, logs)


def exponent(fits: Mapping[float, FittedLaw]) -> tuple[float, float, float] | None:
    """a of m50 = c · D^a with its interval, by least squares of logarithms; None for one D."""
    if len(fits) < 2:
        return None
    x = np.log2(np.array(sorted(fits)))
    centred = x - x.mean()
    weights = centred / (centred**2).sum()
    value = sum(w * np.log2(fits[d].law.m50) for w, d in zip(weights, sorted(fits), strict=True))
    drawn = sum(w * fits[d].logs for w, d in zip(weights, sorted(fits), strict=True))
    return (float(value), *_interval(np.asarray(drawn)))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Estimate | None:
    """Difference over the seeds that both have; None without one."""
    return estimate(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys()))


def kendall(x: Sequence[float] | FloatArray, y: Sequence[float] | FloatArray) -> float:
    """Kendall's tau-b of two rankings: -1 ... 1; nan where one has ties alone."""
    return float(_taus(np.asarray(x, dtype=np.float64)[None], np.asarray(y, np.float64)[None])[0])


def kendall_interval(
    x: Sequence[Estimate], y: Sequence[float], *, resamples: int = 5000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % bootstrap interval of tau-b between means over seeds and fixed numbers.

    Each resample draws rows and, for each of them, seeds. Those in which one side has ties alone
    have no tau and are left out; None if none is left.
    """
    generator = np.random.default_rng(seed)
    drawn = np.stack([_resampled(one, resamples, generator) for one in x], axis=1)
    rows = generator.integers(len(x), size=(resamples, len(x)))
    taus = _taus(np.take_along_axis(drawn, rows, 1), np.asarray(y, dtype=np.float64)[rows])
    taus = taus[np.isfinite(taus)]
    return _interval(taus) if taus.size else None


def _fits(m: FloatArray, scores: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """limit, m50 and power of the best point of the grid for each row of ``scores [R, points]``."""
    m50, power = (grid.ravel() for grid in np.meshgrid(_M50, _POWERS, indexing="ij"))
    basis = 1 / (1 + (m50[:, None] / m) ** power[:, None])
    squares = (basis**2).sum(axis=1)
    limits, best = [], []
    for start in range(0, len(scores), _CHUNK):
        products = basis @ scores[start : start + _CHUNK].T
        limit = np.clip(products / squares[:, None], 0, 1)
        # The squared error but for the squares of the scores, which all points share.
        place = (limit * (limit * squares[:, None] - 2 * products)).argmin(axis=0)
        limits.append(np.take_along_axis(limit, place[None], 0)[0])
        best.append(place)
    found = np.concatenate(best)
    return np.concatenate(limits), m50[found], power[found]


def _resampled(found: Estimate, resamples: int, generator: np.random.Generator) -> FloatArray:
    """Means of the seeds' values drawn with replacement ``[resamples]``."""
    values = np.array(found.values)
    means: FloatArray = values[generator.integers(len(values), size=(resamples, len(values)))].mean(
        1
    )
    return means


def _taus(x: FloatArray, y: FloatArray) -> FloatArray:
    """tau-b of each row of ``x`` and ``y [R, n]``."""
    signs_x, signs_y = (np.sign(v[:, :, None] - v[:, None, :]) for v in (x, y))
    products = (signs_x * signs_y).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        taus: FloatArray = products / np.sqrt(
            (signs_x**2).sum(axis=(1, 2)) * (signs_y**2).sum(axis=(1, 2))
        )
    return taus


def _interval(values: FloatArray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail], method="nearest")
    return float(low), float(high)
