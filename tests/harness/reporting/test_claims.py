"""Claims: levels against brute force and simulation, Holm's correction, and plain sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.config.variants import Variant
from harness.records.shapes import Run
from harness.reporting.settings import Setting
from harness.reporting.tables.claims import (
    CLAIMS,
    Claim,
    claims_table,
    find_claims,
    holm,
    levels,
    p_above,
)
from tests.harness import synthetic_records as synthetic

BETTER = Claim(Variant("nlsa"), Variant("nla"))
CLOSE = Claim(Variant("nlsa"), Variant("nla"), margin=0.5)


def table_of(seeds: int, images: int, mean: float, noise: float, seed: int = 0) -> np.ndarray:
    """Differences in which every seed and every image has an effect of its own."""
    draw = np.random.default_rng(seed)
    return (
        mean
        + draw.normal(0, noise, (seeds, 1))
        + draw.normal(0, noise, (1, images))
        + draw.normal(0, noise, (seeds, images))
    )


@pytest.mark.parametrize("bound", [-0.3, 0.0, 0.2])
@pytest.mark.parametrize("images", [4, 20])
def test_level_is_the_largest_of_bootstrap_and_t(bound: float, images: int) -> None:
    table = table_of(4, images, 0.1, 0.3)
    draw, below = np.random.default_rng(5), 0
    for _ in range(4000):
        drawn = table[draw.integers(4, size=4)][:, draw.integers(images, size=images)]
        below += drawn.mean() <= bound
    by_t = [
        stats.ttest_1samp(table.mean(axis=axis), bound, alternative="greater").pvalue
        for axis in (0, 1)
    ]
    assert p_above(table, bound) == pytest.approx(max(below / 4000, *by_t), abs=0.02)


def test_levels_of_certain_tables() -> None:
    sure, equal = (table_of(5, 30, mean, 0.01) for mean in (10.0, 0.0))
    for claim, table, (low, high) in (
        (BETTER, sure, ((0, 0.001), (0.999, 1))),
        (BETTER, -sure, ((0.999, 1), (0, 0.001))),
        (CLOSE, equal, ((0, 0.001), (1, 1))),
        (CLOSE, sure, ((0.999, 1), (0, 0.002))),
        (CLOSE, -sure, ((0, 1), (0, 0.002))),
    ):
        for found, (least, most) in zip(levels(claim, table), (low, high), strict=True):
            assert least <= found <= most
    assert p_above(np.ones((3, 4)), 0) == pytest.approx(1 / 10_001)
    assert p_above(np.zeros((3, 4)), 0) == 1.0
    assert p_above(sure[:1], 0) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_decides_as_its_definition(found: list[float]) -> None:
    """Step down from the smallest; stop at the first that misses alpha / (tests left)."""
    adjusted = holm(found)
    for alpha in (0.01, 0.05, 0.5):
        rejected, left = set(), len(found)
        for index in sorted(range(len(found)), key=lambda i: found[i]):
            if left * found[index] > alpha:
                break
            rejected.add(index)
            left -= 1
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p >= q for p, q in zip(adjusted, found, strict=True))


def runs(label: str, gain: float, seeds: int = 3) -> list[Run]:
    return [
        synthetic.run(label, s, [26.0 + gain + 0.01 * s, 27.0 + gain, 28.0 + gain - 0.01 * s])
        for s in range(seeds)
    ]


def test_verdicts() -> None:
    setting = Setting([*runs("Baseline", 0.0), *runs("NLA", 0.5), *runs("NLSA-r4", 0.2)], [])
    found = {f.text: f for f in find_claims(setting)}
    verdicts = {text: one.verdict for text, one in found.items()}
    assert verdicts == {"NLA over Baseline": "reproduced", "NLSA-r4 over NLA": "not reproduced"}
    assert {one.paper for one in found.values()} == {0.23, 0.09}
    for part in ("NLSA-r4 over NLA", " -0.300 dB", "95 % [-0.3", "3 seeds: not reproduced"):
        assert part in found["NLSA-r4 over NLA"].sentence


def test_one_seed_decides_nothing() -> None:
    setting = Setting([*runs("Baseline", 0.0, 1), *runs("NLA", 5.0, 1)], [])
    (found,) = find_claims(setting)
    assert found.verdict == "not decided (one seed)"
    assert (found.p, found.adjusted) == (None, None)
    assert ", 1 seed: not decided (one seed)" in found.sentence


def test_noise_decides_nothing() -> None:
    draw = np.random.default_rng(0)
    values = [(26 + draw.normal(0, 1, 9)).tolist() for _ in range(6)]
    noisy = [
        synthetic.run(name, s, values[s + 3 * (name == "NLA")])
        for name in ("Baseline", "NLA")
        for s in range(3)
    ]
    (found,) = find_claims(Setting(noisy, []))
    assert found.verdict == "not decided"


def noisy(label: str | dict[str, Any], gain: float, spread: float) -> list[Run]:
    """Three seeds whose gains over the baseline of :func:`runs` have this spread and mean."""
    return [
        synthetic.run(label, s, [v + gain + (s - 1) * spread for v in (26.0, 27.0, 28.0)])
        for s in range(3)
    ]


@pytest.mark.parametrize(
    ("gain", "spread", "verdict"),
    [
        (0.0, 0.01, "no effect of that size here"),  # ± 0.025; the paper has +0.23
        (0.0, 0.2, "not decided"),  # ± 0.5, which has 0.23 in it
        (0.23, 0.2, "not decided"),
        (0.5, 0.01, "reproduced"),
        (-0.5, 0.01, "not reproduced"),
    ],
)
def test_an_effect_of_the_papers_size_may_be_excluded(
    gain: float, spread: float, verdict: str
) -> None:
    flat = noisy("Baseline", 0.0, 0.0)
    (found,) = find_claims(Setting([*flat, *noisy("NLA", gain, spread)], []))
    assert (found.paper, found.verdict) == (0.23, verdict)


@pytest.mark.parametrize(("gain", "verdict"), [(0.3, "reproduced"), (0.0, "not judged")])
def test_within_is_judged_only_of_what_beats_the_baseline(gain: float, verdict: str) -> None:
    flat = noisy("Baseline", 0.0, 0.0)
    both = [
        run
        for options in ({}, {"m": 16})
        for run in noisy(synthetic.variant("enlca", **options), gain, 0.001)
    ]
    claims = {f.text: f for f in find_claims(Setting([*flat, *both], []))}
    found = claims["ENLCA-m128 within 0.05 dB of ENLCA-m16"]
    assert found.verdict.startswith(verdict)
    assert (found.p is None) == (verdict == "not judged")


def test_table_sets_the_papers_differences_beside() -> None:
    setting = Setting([*runs("Baseline", 0.0), *runs("NLA", 0.5)], [])
    table = claims_table(setting)
    (row,) = table.rows
    assert (row[1], row[2][:8], row[5]) == ("+0.23", "+0.500 [", "reproduced")
    assert float(row[4]) < 0.05
    assert claims_table(Setting(runs("NLA", 0.5), [])) is None


def test_the_paper_makes_these_claims() -> None:
    """Its printed PSNRs bear out every claim that has both."""
    variants = [variant for claim in CLAIMS for variant in (claim.better, claim.than)]
    assert all(Variant.of(variant.name, variant.options) == variant for variant in variants)
    table = claims_table(Setting([synthetic.run(v.describe(), 0) for v in variants], []))
    for claim, row in zip(CLAIMS, table.data, strict=True):
        assert (row["better"], row["than"]) == (claim.better.label, claim.than.label)
        between = "over" if claim.margin is None else f"within {claim.margin} dB of"
        assert row["claim"] == f"{row['better']} {between} {row['than']}"
        if row["difference_db_paper"] is None:
            assert claim.than.name == "enla"  # which the paper's tables do not have
        elif claim.margin is None:
            assert row["difference_db_paper"] > 0
        else:
            assert abs(row["difference_db_paper"]) <= claim.margin
