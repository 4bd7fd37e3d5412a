"""Laws, effects and orders: recovered from made data, and against scipy; predictions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from harness.records.shapes import Run
from harness.reporting.findings import find_findings, fitted_laws
from harness.reporting.laws import (
    Law,
    exponent,
    fit_law,
    fit_with_intervals,
    kendall,
    kendall_interval,
    paired,
)
from harness.reporting.predictions import PREDICTIONS, REQUIREMENTS, Finding
from harness.reporting.profile import find_profile
from harness.reporting.statistics import Estimate, estimate

MS = (2, 4, 8, 16, 32, 64, 128, 256)


def seeds(*values: float) -> Estimate:
    found = estimate(values)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "law", [Law(0.9, 12, 1.2), Law(0.7, 40, 2.0), Law(0.5, 3, 0.8), Law(1.0, 100, 1.0)]
)
def test_a_known_law_is_recovered(law: Law) -> None:
    found = fit_law(MS, [law.at(m) for m in MS])
    assert (found.limit, found.m50, found.power) == pytest.approx(
        (law.limit, law.m50, law.power), rel=1e-3
    )
    assert found.residual < 1e-5


def test_a_fit_to_noise_is_no_worse_than_a_slow_search() -> None:
    generator = np.random.default_rng(0)
    y = [Law(0.8, 20, 1.1).at(m) + generator.normal(0, 0.05) for m in MS]

    def error(x: Sequence[float]) -> float:
        law = Law(x[0], 2 ** x[1], x[2])
        return float(sum((law.at(m) - value) ** 2 for m, value in zip(MS, y, strict=True)))

    bounds = [(0, 1), (-3, 15), (0.1, 10)]
    slow = optimize.differential_evolution(error, bounds, seed=0, tol=1e-8)
    assert fit_law(MS, y).residual ** 2 * len(MS) <= slow.fun * 1.001


def test_a_law_is_inverted() -> None:
    law = Law(0.9, 12, 1.2)
    m = law.m_for(0.3)
    assert m is not None
    assert law.at(m) == pytest.approx(0.3)
    assert law.m_for(0.45) == pytest.approx(12)
    assert law.m_for(0.95) is None
    assert law.m_for(-0.1) is None


def test_intervals_hold_the_truth_and_vanish_without_noise() -> None:
    law = Law(0.9, 12, 1.2)
    exact = fit_with_intervals({m: seeds(law.at(m)) for m in MS}, seeds(0.9))
    assert exact.m50[0] == exact.m50[1] == pytest.approx(12, rel=0.1)  # a point of the grid
    assert exact.half == pytest.approx(12, rel=1e-3)
    generator = np.random.default_rng(1)
    noisy = fit_with_intervals(
        {m: seeds(*(law.at(m) + generator.normal(0, 0.03, 3))) for m in MS}, seeds(0.88, 0.92)
    )
    assert noisy.m50[0] < 12 < noisy.m50[1] < 24
    assert noisy.half_interval is not None
    assert noisy.half_interval[0] < noisy.half < noisy.half_interval[1]  # type: ignore[operator]
    # Half of a reference that the law never reaches.
    never = fit_with_intervals({m: seeds(0.3 * law.at(m)) for m in MS}, seeds(0.9))
    assert (never.half, never.half_interval) == (None, None)


def test_the_exponent_of_several_d() -> None:
    fits = {
        d: fit_with_intervals({m: seeds(Law(0.9, 1.5 * d**1.2, 1.5).at(m)) for m in MS})
        for d in (4.0, 8.0, 16.0)
    }
    found = exponent(fits)
    assert found is not None
    value, low, high = found
    assert value == pytest.approx(1.2, abs=0.01)
    assert low <= high
    assert low == pytest.approx(1.2, abs=0.1)
    assert exponent({4.0: fits[4.0]}) is None


def test_differences_are_paired_over_seeds() -> None:
    found = paired({0: 0.5, 1: 0.7, 2: 0.9, 9: 5.0}, {0: 0.4, 1: 0.5, 2: 0.6, 8: -5.0})
    assert found is not None
    slow = stats.ttest_rel([0.5, 0.7, 0.9], [0.4, 0.5, 0.6]).confidence_interval()
    assert (found.low, found.high) == pytest.approx((slow.low, slow.high))
    assert paired({0: 0.5}, {1: 0.5}) is None


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9))
def test_tau_is_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = zip(*pairs, strict=True)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, nan_ok=True)


def test_taus_interval_is_that_of_all_resamples() -> None:
    x, y = [1.0, 2.0, 5.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0, 5.0]
    taus = [
        stats.kendalltau([x[i] for i in rows], [y[i] for i in rows]).statistic
        for rows in itertools.product(range(5), repeat=5)
        if len({*rows}) > 1
    ]
    low, high = np.quantile(taus, [0.025, 0.975], method="nearest")
    assert kendall_interval([seeds(value) for value in x], y) == pytest.approx((low, high))
    # Seeds that overlap add to it.
    steady = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert kendall_interval([seeds(v) for v in steady], y) == pytest.approx((1.0, 1.0))
    wild = kendall_interval([seeds(v - 2.1, v, v + 2.2) for v in steady], y)
    assert wild is not None
    assert wild[0] < 0.8
    assert kendall_interval([seeds(1.0)] * 3, [1.0, 2.0, 3.0]) is None


def found_in(runs: Sequence[Run], statement: str) -> Finding:
    (found,) = (one for one in find_findings(find_profile(runs)) if statement in one.statement)
    return found


def rows(scores: Callable[[int, int], float], name: str = "enlca", pairs: int = 4) -> list[Run]:
    """A run for each m: (m, size) to score."""
    return [
        synthetic.task_run(
            synthetic.variant(name, m=m, res_scale=1.0),
            [scores(m, size) for size in range(3)],
            options={"pairs": pairs},
        )
        for m in MS
    ]


def test_the_records_law_is_that_of_2n() -> None:
    laws = {4: Law(0.9, 8, 1.2), 16: Law(0.8, 32, 1.2)}
    runs = []
    for d, law in laws.items():
        runs += rows(lambda m, size, law=law: law.at(m) if size == 1 else 0.0, pairs=d)  # type: ignore[misc]
    nla = synthetic.task_run(synthetic.variant("nla", res_scale=1.0), (0.0, 0.9, 0.0))
    fits = fitted_laws(find_profile([*runs, nla]))
    assert [fit.law.m50 for fit in fits.values()] == pytest.approx([8, 32], rel=1e-3)
    half = found_in([*runs, nla], "recall D=4: m for half")
    assert half.value == pytest.approx(8, rel=1e-3)
    assert found_in(runs, "exponent").value == pytest.approx(1.0, abs=1e-3)
    assert "NLA has no run" in found_in(runs, "recall D=4: m for half").numbers


def test_effects_compare_rows_that_differ_in_one_thing() -> None:
    runs = [
        synthetic.task_run(synthetic.variant(name, res_scale=weight, **options), scores, seed=seed)
        for seed in range(3)
        for name, weight, options, scores in (
            ("enlca", 1.0, {"m": 16}, (0.0, 0.5 + seed / 10, 0.4)),
            ("enla", 1.0, {"m": 16}, (0.0, 0.3, 0.4)),
            ("enlca", 1.0, {"m": 16, "k": 2.0}, (0.0, 0.4, 0.4)),
            ("enlca", 0.1, {"m": 16}, (0.0, 0.1, 0.4)),
        )
    ]
    loss = found_in(runs, "contrastive loss, recall D=4 at 2n")
    assert loss.statement.endswith("ENLCA-m16 minus ENLA-m16")
    assert loss.value == pytest.approx(0.3)
    assert loss.high == pytest.approx(0.3 + stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3))
    assert found_in(runs, "amplification k, recall D=4 at 2n").value == pytest.approx(-0.2)
    assert found_in(runs, "weight of the attention, recall D=4 at 2n").value == pytest.approx(-0.5)


def test_the_order_is_compared_with_the_papers() -> None:
    runs = rows(lambda m, _: m / 300)
    runs.append(synthetic.task_run("Baseline", (0.0, 0.0, 0.0)))
    tau = found_in(runs, "recall D=4 at 2n and PSNR on Urban100 ×4 of the paper's Table 4")
    # Baseline and m = 2 … 256 in the paper's Table 4; its PSNRs have ties.
    ours = [0.0, *MS]
    psnr = [26.64, *map(_printed, MS)]
    assert tau.value == pytest.approx(stats.kendalltau(ours, psnr).statistic)
    assert tau.numbers.endswith("rows: 9")
    assert found_in(runs, "aggregate and PSNR on Urban100 ×4 of the paper's Table 6").verdict


def _printed(m: int) -> float:
    from harness.reporting.settings import paper_table

    return next(float(row["psnr_db"]) for row in paper_table(4) if row["m"] == str(m))


def three(name: str, *scores: float, **options: float) -> Run:
    return synthetic.task_run(synthetic.variant(name, res_scale=1.0, **options), scores)


def test_predictions_hold_or_not_or_are_not_measured() -> None:
    nla = three("nla", 0.97, 0.95, 0.93)
    statement = "nlrn: within 0.05 of NLA at n and 2n, lower at 4n"
    assert found_in([nla], statement).verdict == "not measured"
    held = found_in([nla, three("nlrn", 0.96, 0.94, 0.3)], statement)
    assert held.verdict == "held"
    assert "NLRN-45x45* n 0.960 within 0.05 of NLA* n 0.970" in held.numbers
    failed = found_in([nla, three("nlrn", 0.96, 0.80, 0.3)], statement)
    assert failed.verdict == "did not hold"
    assert failed.numbers.startswith("not: NLRN-45x45* 2n 0.800 within 0.05 of NLA* 2n 0.950")
    # Half of it is there: what is there does not hold.
    half = found_in([three("nlrn", 0.96, 0.80, 0.9)], statement)
    assert half.verdict == "did not hold"
    assert half.numbers.endswith("2 of 3 conditions not measured")


def test_chains_fall_at_every_step() -> None:
    nystrom = "nystrom: falls with n"
    assert found_in([three("nystrom", 0.5, 0.4, 0.3)], nystrom).verdict == "held"
    assert found_in([three("nystrom", 0.5, 0.5, 0.3)], nystrom).verdict == "did not hold"
    small = "enlca: falls with m; 1/D or below for m up to D"
    runs = [run for d in (4, 16) for run in rows(lambda m, _, d=d: min(0.9, m / d**2), pairs=d)]  # type: ignore[misc]  # fmt: skip
    assert found_in(runs, small).verdict == "held"
    runs = [run for d in (4, 16) for run in rows(lambda m, _, d=d: min(0.9, 2 * m / d**2), pairs=d)]  # type: ignore[misc]  # fmt: skip
    assert found_in(runs, small).verdict == "did not hold"


def test_the_plain_mean_is_diluted_as_predicted() -> None:
    runs = [
        synthetic.task_run(
            synthetic.variant("mean", res_scale=1.0), [x / d for x in (1, 0.44, 0.12)],
            options={"pairs": d},
        )
        for d in (4, 16)
    ]  # fmt: skip
    statement = "mean: 1/D at n, 0.44/D at 2n, 0.12/D at 4n"
    assert found_in(runs, statement).verdict == "held"
    assert found_in([*runs[1:], three("mean", 0.25, 0.25, 0.25)], statement).verdict == (
        "did not hold"
    )


def test_intervals_of_m_must_not_touch() -> None:
    def both(spread: float) -> list[Run]:
        return [
            synthetic.task_run(
                synthetic.variant("enlca", m=m, res_scale=1.0),
                [level + spread * seed] * 3,
                seed=seed,
            )
            for m, level in ((128, 0.6), (16, 0.4))
            for seed in range(3)
        ]

    statement = "the intervals of enlca with m = 128 and 16 do not touch"
    assert found_in(both(0.01), statement).verdict == "held"
    assert found_in(both(0.1), statement).verdict == "did not hold"
    assert found_in(both(0.1)[::3], statement).verdict == "not measured"  # one seed each


def test_without_references_every_row_is_looked_at() -> None:
    statement = "without references every row is at 0"
    leak = synthetic.task_run("Baseline", [synthetic.score(0.0, deleted=0.3)] * 3)
    assert found_in([three("nla", 0.9, 0.9, 0.9)], statement).verdict == "held"
    found = found_in([three("nla", 0.9, 0.9, 0.9), leak], statement)
    assert (found.verdict, "Baseline" in found.numbers) == ("did not hold", True)


def test_every_statement_is_one_line_of_its_own() -> None:
    statements = [one.statement for one in (*REQUIREMENTS, *PREDICTIONS)]
    assert len({*statements}) == len(statements)
    findings = find_findings(find_profile([three("nla", 0.9, 0.9, 0.9)]))
    assert {*statements} <= {one.statement for one in findings}
