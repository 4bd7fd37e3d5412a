"""Means, paired differences and their intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic
from scipy import stats

from harness.measuring.timing import median_ratio
from harness.records.shapes import Run
from harness.reporting.statistics import (
    bootstrap_interval,
    difference_interval,
    paired_differences,
    summarise,
)
from harness.reporting.tables.claims import p_above

Interval = Callable[..., tuple[float, float] | tuple[None, None]]
GENERATOR = np.random.default_rng(7)


@pytest.mark.parametrize("shape", [(1, 5), (2, 3), (3, 3), (3, 4), (4, 1)])
def test_interval_is_that_of_all_resamples(shape: tuple[int, int]) -> None:
    seeds, images = shape
    table = GENERATOR.normal(0.1, 1, shape)
    means = np.array(
        [
            table[np.ix_(rows, columns)].mean()
            for rows in itertools.product(range(seeds), repeat=seeds)
            for columns in itertools.product(range(images), repeat=images)
        ]
    )
    low, high = bootstrap_interval(table, resamples=100_000)
    for beyond, at in ((means < low, means <= low + 1e-9), (means > high, means >= high - 1e-9)):
        assert np.mean(beyond) <= 0.03
        assert np.mean(at) >= 0.02


def test_interval_is_deterministic_and_follows_its_seed() -> None:
    table = GENERATOR.normal(size=(2, 20))
    assert bootstrap_interval(table) == bootstrap_interval(table.copy())
    assert bootstrap_interval(table) != bootstrap_interval(table, seed=1)


@pytest.mark.parametrize("table", [np.empty((0, 0)), np.ones((1, 1))])
def test_nothing_to_resample_gives_no_interval(table: np.ndarray) -> None:
    assert bootstrap_interval(table) == (None, None)


def coverage(interval: Interval, seeds: int, images: int, noise: tuple[float, float]) -> float:
    """How often it holds the truth in 500 tables.

    Seeds and images have normal effects of their own, but a single seed none.
    """
    generator = np.random.default_rng(seeds)
    hits = 0
    for _ in range(500):
        of_seeds = generator.normal(0, noise[0] * (seeds > 1), (seeds, 1))
        of_images = generator.normal(0, noise[1], images)
        table = 0.5 + of_seeds + of_images + generator.normal(0, 0.3, (seeds, images))
        low, high = interval(table, resamples=500)
        hits += low <= 0.5 <= high
    return hits / 500


@pytest.mark.parametrize(("seeds", "images"), [(2, 30), (3, 30), (6, 30), (1, 5), (3, 5), (3, 14)])
@pytest.mark.parametrize("noise", [(1.0, 1.0), (0.2, 1.0), (1.0, 0.2)], ids=str)
def test_interval_of_few_covers_the_truth_too(
    seeds: int, images: int, noise: tuple[float, float]
) -> None:
    """91 % would be 4 sigma below 95 %."""
    assert coverage(difference_interval, seeds, images, noise) >= 0.91


@pytest.mark.parametrize(
    ("seeds", "images", "noise", "expected"),
    [
        *((2, 30, (1.0, 0.2), 0.55), (3, 30, (1.0, 0.2), 0.70), (1, 5, (0.0, 1.0), 0.82)),
        (1, 40, (0.0, 1.0), 0.94),
    ],
)
def test_a_bootstrap_of_few_alone_is_too_narrow(
    seeds: int, images: int, noise: tuple[float, float], expected: float
) -> None:
    """As docs/measuring.md says, within 3 sigma: hence Student's t beside it."""
    assert coverage(bootstrap_interval, seeds, images, noise) == pytest.approx(expected, abs=0.07)


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_interval_excludes_zero_where_its_level_says_so(seeds: int) -> None:
    generator = np.random.default_rng(1)
    agreed = []
    for shift in np.linspace(0, 4, 60):
        table = shift + generator.normal(0, 1, (seeds, 1)) + generator.normal(0, 1, (seeds, 9))
        low, _ = difference_interval(table)
        if abs(p_above(table, 0) - 0.025) > 0.002:  # the bootstrap's own noise
            agreed.append((low > 0) == (p_above(table, 0) < 0.025))
    assert all(agreed)
    assert len(agreed) > 40


@pytest.mark.parametrize("seeds", [1, 4])
def test_interval_of_one_image_or_seed_is_that_of_the_others(seeds: int) -> None:
    table = GENERATOR.normal(size=(seeds, 5 if seeds == 1 else 1))
    found = stats.ttest_1samp(table.ravel(), 0).confidence_interval(0.95)
    low, high = bootstrap_interval(table)
    assert difference_interval(table) == pytest.approx((min(low, found.low), max(high, found.high)))


def test_summary_of_two_seeds() -> None:
    ours = [synthetic.run("NLA", s, v) for s, v in enumerate(([26.0, 28.0], [27.0, 29.5]))]
    baseline = [synthetic.run(seed=s, values=v) for s, v in enumerate(([25.0, 27.5], [27.0, 29.0]))]
    summary = summarise(ours, baseline, "Set5")
    means = [27.0, 28.25]
    assert summary.mean == pytest.approx(np.mean(means))
    assert summary.std_over_seeds == pytest.approx(np.std(means, ddof=1))
    assert summary.difference == pytest.approx(np.mean([1.0, 0.5, 0.0, 0.5]))
    assert (summary.seeds, summary.paired_seeds, summary.images) == (2, 2, 2)
    assert summary.low <= summary.difference <= summary.high
    ssim = summarise(ours, baseline, "Set5", "ssim")
    assert ssim.mean == pytest.approx(summary.mean / 40)
    assert ssim.difference == pytest.approx(summary.difference / 40)


def test_only_common_seeds_and_images_are_paired() -> None:
    ours = [synthetic.run("NLA", s, [20.0 + s, 30.0 + s]) for s in (0, 1, 5)]
    baseline = [synthetic.run(seed=s, values=[20.0, 29.0, 99.0]) for s in (1, 2, 5)]
    summary = summarise(ours, baseline, "Set5")
    assert (summary.seeds, summary.paired_seeds, summary.images) == (3, 2, 2)
    assert summary.mean == pytest.approx(np.mean([25.0, 26.0, 30.0]))
    assert summary.difference == pytest.approx(np.mean([1.0, 2.0, 5.0, 6.0]))


def test_pairs_are_matched_by_name_not_by_order() -> None:
    table = paired_differences({0: {"a": 1.0, "b": 5.0}}, {0: {"b": 2.0, "a": 1.0, "c": 0.0}})
    assert table.tolist() == [[0.0, 3.0]]


@pytest.mark.parametrize("baseline", [[], [synthetic.run(seed=9)]])
def test_no_common_seed_means_no_difference(baseline: list[Run]) -> None:
    summary = summarise([synthetic.run("NLA", 0)], baseline, "Set5")
    assert summary.mean == 27.0
    assert summary.std_over_seeds is None
    assert (summary.difference, summary.low, summary.high) == (None, None, None)
    assert (summary.paired_seeds, summary.images) == (0, 0)


def test_runs_on_different_images_are_not_paired(capsys: pytest.CaptureFixture[str]) -> None:
    """Image 1 was replaced after seed 0 of the baseline: bicubic's PSNR tells, or SSIM alone."""

    def replaced(record: dict[str, Any], metric: str, by: float) -> None:
        record["quality"]["Set5"]["images"][1][f"bicubic_{metric}"] += by

    ours = [synthetic.run("NLA", s, [27.0, 28.0], identifier=f"nla-{s}") for s in (0, 1)]
    fine = [synthetic.run(seed=s, values=[25.0, 27.0]) for s in (0, 1)]
    for metric, by in (("psnr", 0.01), ("ssim", -0.001)):
        other = synthetic.edited(fine[0], partial(replaced, metric=metric, by=by))
        summary = summarise(ours, [other, fine[1]], "Set5")
        assert (summary.paired_seeds, summary.difference) == (1, 1.5)
        assert summarise(ours[:1], [other], "Set5").difference is None
        (line,) = capsys.readouterr().err.splitlines()  # once
        assert f"nla-0 and {other.id} are not comparable on Set5: they saw different" in line
        assert "images img1.png (input: 25.0000 dB / 0.6250 and 2" in line
        assert summarise(ours, [other, fine[1]], "Urban100").paired_seeds == 2
    rounding = synthetic.edited(fine[0], partial(replaced, metric="psnr", by=1e-6))
    assert summarise(ours, [rounding, fine[1]], "Set5").paired_seeds == 2
    # A mean over both images has a warning too.
    summarise([rounding, other], [], "Set5")
    assert "are not comparable on Set5" in capsys.readouterr().err


def test_median_ratio_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(200):
        generator = np.random.default_rng(trial)
        drift = generator.uniform(1, 3, 30)  # hits both of a pair alike
        pairs = drift * np.array([[3.0], [1.0]]) * generator.lognormal(0, 0.1, (2, 30))
        ratio, low, high = median_ratio(*pairs, resamples=200)
        assert low <= ratio <= high
        hits += low <= 3.0 <= high
    assert 180 <= hits <= 200


def test_median_ratio_of_pairs_that_drift_alike_is_sharp() -> None:
    times = [1.0, 2.0, 4.0, 8.0, 16.0]
    assert median_ratio([3 * t for t in times], times) == (3.0, 3.0, 3.0)
    assert median_ratio([6.0], [2.0]) == (3.0, None, None)
