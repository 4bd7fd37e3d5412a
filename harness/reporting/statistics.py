"""Means over seeds, and paired differences to the baseline with their intervals."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..records.shapes import CONFIDENCE, Run, differ, input_qualities, measured

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Mean of independent values, one a seed, in their unit.

    Attributes:
        low, high: 95 % interval of Student's t over the values; None with one value.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def reach(self) -> float:
        """How far the interval reaches from the mean; 0 where there is none."""
        return 0.0 if self.high is None else self.high - self.mean


def estimate(values: Iterable[float]) -> Estimate | None:
    """Mean and interval of the values; None if there are none."""
    found = np.array(list(values), dtype=np.float64)
    if not found.size:
        return None
    mean, low, high = float(found.mean()), None, None
    if found.size > 1:
        reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, found.size - 1)) * standard_error(found)
        low, high = mean - reach, mean + reach
    return Estimate(mean, low, high, tuple(found.tolist()))


@dataclass(frozen=True)
class Summary:
    """One variant's quality on one test set (dB for PSNR, unitless for SSIM).

    Attributes:
        mean: mean over seeds of each run's mean over images.
        seeds: number of runs, one a seed.
        std_over_seeds: sample standard deviation of the runs' means; None with one seed.
        difference: mean paired difference to the baseline; None without a common seed and image.
        low, high: ends of the difference's 95 % interval; None where there is nothing to resample.
        paired_seeds: seeds that the variant and the baseline share.
        images: images that all paired runs share.
    """

    mean: float
    seeds: int
    std_over_seeds: float | None
    difference: float | None
    low: float | None
    high: float | None
    paired_seeds: int
    images: int


def summarise(
    runs: Sequence[Run],
    baseline_runs: Sequence[Run],
    test_set: str,
    metric: str = "psnr",
    *,
    baseline_metric: str | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Summary:
    """Summarise one variant's run records against the baseline's, all of one setting.

    The difference is taken per image and seed, over the images and seeds that both have. All
    seeds share the same images, so the two levels are crossed: each bootstrap resample draws
    seeds and, independently, images with replacement, and takes the mean over the drawn table
    (the "pigeonhole" bootstrap: Owen, Annals of Applied Statistics 1(2), 2007). The interval is
    the 2.5 and 97.5 percentile, or that of Student's t of the seeds' or of the images' means where
    it reaches further (:func:`difference_interval`). With one paired seed it is over images only:
    it then says nothing of the noise of training.

    Args:
        runs: the variant's run records, at most one a seed.
        baseline_runs: the baseline's; empty if there are none.
        test_set: name of a test set that every run has.
        metric: the per-image value, "psnr" or "ssim" (or "bicubic_…", "noisy_…").
        baseline_metric: the baseline's, if it is another.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap's generator.
    """
    for run in runs[1:]:
        _on_same_images(runs[0], run, test_set)  # a mean over both gets the warning
    ours = by_seed(runs, test_set, metric)
    means = [float(np.mean(list(images.values()))) for images in ours.values()]
    differences = compare(runs, baseline_runs, test_set, metric, baseline_metric)
    low, high = difference_interval(differences, resamples=resamples, seed=seed)
    return Summary(
        mean=float(np.mean(means)),
        seeds=len(means),
        std_over_seeds=float(np.std(means, ddof=1)) if len(means) > 1 else None,
        difference=float(differences.mean()) if differences.size else None,
        low=low,
        high=high,
        paired_seeds=differences.shape[0],
        images=differences.shape[1],
    )


def versus(
    baseline_runs: Sequence[Run],
    values: Mapping[str, float],
    test_set: str,
    metric: str = "psnr",
    *,
    without: Collection[str] = (),
) -> Summary | None:
    """As :func:`summarise`, of one value an image that has no seed; None without values.

    The difference leaves out the images ``without``.
    """
    if not values:
        return None
    theirs = by_seed(baseline_runs, test_set, metric)
    ours = {image: value for image, value in values.items() if image not in without}
    differences = paired_differences(dict.fromkeys(theirs, ours), theirs)
    low, high = difference_interval(differences)
    return Summary(
        mean=float(np.mean(list(values.values()))),
        seeds=1,
        std_over_seeds=None,
        difference=float(differences.mean()) if differences.size else None,
        low=low,
        high=high,
        paired_seeds=differences.shape[0],
        images=differences.shape[1],
    )


def compare(
    runs: Sequence[Run],
    others: Sequence[Run],
    test_set: str,
    metric: str = "psnr",
    other_metric: str | None = None,
) -> FloatArray:
    """Paired differences ``[seeds, images]`` of the runs of two variants, of one setting.

    Only runs on the same images are paired: a seed is left out, and a warning names it, where the
    quality of the input (bicubic's, or the noisy image's) of one of the images differs.

    Args:
        runs, others: at most one a seed.
        test_set: name of a test set that every run has.
        metric: the per-image value.
        other_metric: that of ``others``, if it is another.
    """
    of_seed = {run.config.seed: run for run in runs}
    same = [
        other
        for other in others
        if (run := of_seed.get(other.config.seed)) and _on_same_images(run, other, test_set)
    ]
    ours, theirs = by_seed(runs, test_set, metric), by_seed(same, test_set, other_metric or metric)
    return paired_differences(ours, theirs)


def _on_same_images(run: Run, other: Run, test_set: str) -> bool:
    ours, theirs = (input_qualities(one.quality[test_set]) for one in (run, other))
    for name in sorted(ours.keys() & theirs.keys()):
        if differ(ours[name], theirs[name]):
            values = " and ".join("{:.4f} dB / {:.4f}".format(*q[name]) for q in (ours, theirs))
            _warn(
                f"{run.id} and {other.id} are not comparable on {test_set}: they saw different "
                f"images {name} (input: {values}); run both again, which evaluates them anew"
            )
            return False
    return True


@lru_cache(maxsize=1024)  # once a process
def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def paired_differences(
    ours: Mapping[int, Mapping[str, float]], theirs: Mapping[int, Mapping[str, float]]
) -> FloatArray:
    """Differences ``[seeds, images]`` over what both ``{seed: {image: value}}`` tables share.

    Images are in the order of :func:`shared_images`.
    """
    seeds, images = sorted(ours.keys() & theirs.keys()), shared_images(ours, theirs)
    if not images:
        return np.empty((0, 0))
    return np.array([[ours[s][i] - theirs[s][i] for i in images] for s in seeds])


def shared_images(
    ours: Mapping[int, Mapping[str, float]], theirs: Mapping[int, Mapping[str, float]]
) -> list[str]:
    """Names, in order, of the images that both tables have for every seed that they share."""
    tables = [table[s] for s in ours.keys() & theirs.keys() for table in (ours, theirs)]
    return sorted(set.intersection(*(set(t) for t in tables))) if tables else []


def difference_interval(
    table: FloatArray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """95 % interval of the mean of ``table [seeds, images]``: the widest end of three on each side.

    The crossed bootstrap's holds for other seeds and images, but of few it is too narrow: where
    seeds differ most, that of three covers the truth in 70 of 100 cases, that of two in 55; of
    five images, where these differ most, in 82. Student's t of the seeds' means holds for few
    seeds, but for these images alone, and that of the images' means for few images, but for these
    seeds alone. With one seed none holds for others. (None, None) as :func:`bootstrap_interval`.
    """
    low, high = bootstrap_interval(table, resamples=resamples, seed=seed)
    if low is None or high is None:
        return None, None
    for means in several_means(table):
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(means) - 1) * standard_error(means)
        low, high = min(low, float(means.mean() - reach)), max(high, float(means.mean() + reach))
    return low, high


def several_means(table: FloatArray) -> list[FloatArray]:
    """Means of each seed, and of each image, of ``table [seeds, images]``, if there are several."""
    return [table.mean(axis=1 - axis) for axis in (0, 1) if table.shape[axis] > 1]


def standard_error(values: FloatArray) -> float:
    """Standard error of the mean of independent values."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def bootstrap_interval(
    table: FloatArray, *, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | tuple[None, None]:
    """95 % percentile interval of the mean of ``table [seeds, images]``; see :func:`summarise`.

    (None, None) for a table with fewer than two entries: there is nothing to resample.
    """
    if table.size < 2:
        return None, None
    tail = (1 - CONFIDENCE) / 2
    means = bootstrap_means(table, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_means(table: FloatArray, *, resamples: int = 10_000, seed: int = 0) -> FloatArray:
    """Mean of ``table [seeds, images]`` in each resample ``[resamples]``; see :func:`summarise`."""
    seeds, images = table.shape
    drawn_seeds, drawn_images = (
        _weights(seeds, resamples, seed, 0),
        _weights(images, resamples, seed, 1),
    )
    return ((drawn_seeds @ table) * drawn_images).sum(axis=1)


@lru_cache(maxsize=16)
def _weights(count: int, resamples: int, seed: int, level: int) -> FloatArray:
    """Share of each of ``count`` items in each resample: ``[resamples, count]``, rows sum to 1."""
    generator = np.random.default_rng([seed, level, count])
    return generator.multinomial(count, np.full(count, 1 / count), size=resamples) / count


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with its 95 % interval."""

    value: float
    low: float
    high: float


def rank_correlation(
    table: FloatArray, covariate: FloatArray, *, resamples: int = 1_000, seed: int = 0
) -> Correlation | None:
    """Spearman's correlation of the mean over seeds of ``table [seeds, images]`` with a covariate.

    The interval is the percentile one of the crossed bootstrap, as of :func:`summarise`; ranks are
    those within each resample. None for fewer than three images, or where all are alike.

    Args:
        table: value of each seed and image.
        covariate: ``[images]``.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap's generator.
    """
    seeds, images = table.shape
    if images < 3:
        return None
    whole = _correlations(table.mean(0).round(9)[None], covariate, np.ones((1, images)))[0]
    drawn_seeds, drawn = _weights(seeds, resamples, seed, 0), _weights(images, resamples, seed, 1)
    # Rounded, so that what ties does so in every sum.
    found = _correlations((drawn_seeds @ table).round(9), covariate, drawn)
    if np.isnan(whole) or np.isnan(found).all():
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail])
    return Correlation(float(whole), float(low), float(high))


def _correlations(values: FloatArray, covariate: FloatArray, weights: FloatArray) -> FloatArray:
    """Spearman's correlation of each row of ``values [n, images]``, images with these weights.

    NaN for rows in which all images with a weight are alike.
    """
    weights = weights / weights.sum(1, keepdims=True)
    ranks = [_ranks(x, weights) for x in (values, np.broadcast_to(covariate, values.shape))]
    a, b = (rank - (weights * rank).sum(1, keepdims=True) for rank in ranks)
    spread = (weights * a * a).sum(1) * (weights * b * b).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-12, (weights * a * b).sum(1) / np.sqrt(spread), np.nan)


def _ranks(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Mean rank of each entry within its row, from 0 to 1; an entry counts as its weight."""
    order = np.argsort(values, axis=1)
    ordered, share = (np.take_along_axis(x, order, 1) for x in (values, weights))
    up_to = share.cumsum(1)
    first = np.ones(values.shape, dtype=bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    last = np.roll(first, -1, axis=1)
    # Entries alike share the middle of their range.
    below = np.maximum.accumulate(np.where(first, up_to - share, 0.0), axis=1)
    above = np.minimum.accumulate(np.where(last, up_to, np.inf)[:, ::-1], axis=1)[:, ::-1]
    ranks = np.empty_like(up_to)
    np.put_along_axis(ranks, order, (below + above) / 2, 1)
    return ranks


def by_seed(runs: Sequence[Run], test_set: str, metric: str) -> dict[int, dict[str, float]]:
    """``{seed: {image: value}}`` of run records; without images where it was not measured."""
    return {
        run.config.seed: {
            image.name: value
            for image in run.quality[test_set].images
            if (value := measured(image, metric)) is not None
        }
        for run in runs
    }
