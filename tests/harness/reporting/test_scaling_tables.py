"""What a scaling record says: exponents against exact power laws, verdict, table and figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st

from harness.config.rows import table_rows
from harness.records.shapes import Scaling
from harness.reporting.figures.scaling import scaling_figure
from harness.reporting.scaling import (
    Fit,
    Scaled,
    find_scalings,
    fit_exponent,
    methods,
    statements,
    unmeasured,
    verdict,
)
from harness.reporting.tables.scaling import scaling_table


@given(
    st.floats(-3, 3),
    st.floats(1e-6, 1e6),
    st.lists(st.integers(1, 10**6), min_size=3, max_size=9, unique=True),
)
def test_exact_power_laws_are_found(slope: float, factor: float, ns: list[int]) -> None:
    fit = fit_exponent(ns, [factor * n**slope for n in ns])
    spread = np.std(np.log(ns))
    tolerance = 1e-12 + 1e-12 / spread  # a fit is rounded
    assert fit.slope == pytest.approx(slope, abs=tolerance)
    assert fit.error == pytest.approx(0, abs=tolerance)


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=9))
def test_slope_and_error_are_those_of_the_normal_equations(values: list[float]) -> None:
    ns = [10 * 2**i for i in range(len(values))]
    design = np.stack([np.ones(len(ns)), np.log(ns)], axis=1)
    beta = np.linalg.solve(design.T @ design, design.T @ np.log(values))
    residual = np.log(values) - design @ beta
    variance = residual @ residual / (len(ns) - 2) * np.linalg.inv(design.T @ design)
    fit = fit_exponent(ns, values)
    assert fit.slope == pytest.approx(beta[1], abs=1e-9)
    assert fit.error == pytest.approx(math.sqrt(variance[1, 1]), abs=1e-9)


@pytest.mark.parametrize("slope", [1, 1.5, 2])
def test_a_fit_has_no_rounding_noise(slope: float) -> None:
    """It differs between processors; tables of the same record must not."""
    ns = [32**2, 64**2, 100**2, 128**2, 512**2]
    assert fit_exponent(ns, [1e-3 * n**slope for n in ns]) == Fit(slope, 0)


def test_no_fit_of_too_little() -> None:
    assert fit_exponent([1, 2], [1.0, 2.0]) is None
    assert fit_exponent([1, 2, 2], [1.0, 2.0, 2.0]) is None
    assert fit_exponent([1, 2, 3], [1.0, 0.0, 2.0]) is None


def test_small_sizes_are_left_out_of_the_fit() -> None:
    def fits(fit_from: int) -> dict[str, Fit | None]:
        record = synthetic.scaling({"NLA": (2.0, 1.0)}, fit_from=fit_from)
        outlier = {"median_ms": 1e6, "peak_memory_mb": 1e6}  # at 50x50
        (method,) = methods(synthetic.edited(record, lambda c: c["rows"][0].update(outlier)))
        return method.fits

    assert str(fits(10_000)["median_ms"]) == "2.00 ± 0.00"
    assert str(fits(10_000)["peak_memory_mb"]) == "1.00 ± 0.00"
    found = fits(2500)["median_ms"]
    assert found.slope < 1.5


def test_verdict() -> None:
    record = synthetic.scaling({"NLA": (2, 1), "NLSA-r4": (1.15, 1), "Criss-Cross": (1.5, 1)})
    assert verdict(record) == [
        "NLSA-r4 grows at most as N^1.15: holds (time 1.15 ± 0.00, memory 1.00 ± 0.00).",
        "Criss-Cross grows at most as N^1.6: holds (time 1.50 ± 0.00, memory 1.00 ± 0.00).",
        "No method needs more than 4 GB: holds (most 0.00012 GB, NLA at 200x200).",
    ]
    record = synthetic.scaling({"NLSA-r4": (1, 1.2), "User_Attention-8": (1.7, 1), "NLA": (2, 2)})
    nlsa, user, most = verdict(record)
    assert "N^1.15: does not hold (time 1.00 ± 0.00, memory 1.20" in nlsa
    assert "User_Attention-8 grows at most as N^1.6: does not hold (time 1.70 ± 0.00" in user
    assert "does not hold (most 4.8 GB, NLA at 200x200)" in most


def test_verdict_is_withheld_where_too_little_was_measured() -> None:
    record = synthetic.scaling({"NLSA-r4": (1, 1), "NLA": (2, 1)}, skipped={"NLSA-r4": 200})
    growth, most = verdict(record)
    assert growth.endswith("cannot be judged (time not fitted, memory not fitted).")
    assert "holds where measured (most 0.00012 GB, NLA at 200x200; NLSA-r4 not measured" in most
    assert "beyond 150x150" in most
    assert unmeasured(record) == ["NLSA-r4 at 200x200: skipped, as it is slow."]
    without = {"peak_memory_mb": None}  # as on a device that reports none
    record = synthetic.edited(record, lambda c: [row.update(without) for row in c["rows"]])
    assert verdict(record)[-1].endswith("cannot be judged (no peak memory was measured).")
    assert set(unmeasured(record)) < set(statements(record))
    assert "N >= 10000" in statements(record)[0]
    scaling_figure(record)


def test_memory_counts_where_times_are_missing() -> None:
    def skip(content: dict[str, Any]) -> None:
        for row in content["rows"]:
            if row["variant"]["name"] == "nla" and row["height"] == 200:
                row |= dict.fromkeys(("mean_ms", "median_ms", "iqr_ms", "min_ms", "runs"))
                row["note"] = "not timed, as it is slow"

    record = synthetic.edited(synthetic.scaling({"NLA": (2, 1), "Criss-Cross": (1.5, 1)}), skip)
    (nla, _) = methods(record)
    assert nla.fits["median_ms"] is None
    assert str(nla.fits["peak_memory_mb"]) == "1.00 ± 0.00"
    assert verdict(record)[-1].endswith("holds (most 0.00012 GB, NLA at 200x200).")
    assert unmeasured(record) == ["NLA at 200x200: not timed, as it is slow."]
    figure = scaling_figure(record)
    lengths = [[len(line.get_xdata()) for line in axis.get_lines()] for axis in figure.axes]
    assert lengths == [[3, 4], [4, 4]]
    assert figure.legends[0].get_texts()[0].get_text().endswith("; timed to 150x150")


def test_a_method_without_any_number() -> None:
    record = synthetic.scaling({"NLSA-r4": (1, 1), "NLA": (2, 1)}, skipped={"NLSA-r4": 1})
    assert "NLSA-r4 not measured)" in verdict(record)[-1]
    assert len(scaling_figure(record).axes[0].get_lines()) == 1
    record = synthetic.scaling({"NLA": (2, 1)}, skipped={"NLA": 1})
    figure = scaling_figure(record)
    assert not figure.axes[0].get_lines()
    figure.draw_without_rendering()
    assert "cannot be judged" in verdict(record)[-1]


def test_table() -> None:
    laws = {"NLA": (2.0, 1.0), "NLSA-r4": (1.0, 1.1)}
    record = synthetic.scaling(laws, skipped={"NLA": 200})
    table = scaling_table(Scaled(record, "scaling-cpu"))
    assert table.name == "scaling-cpu"
    assert table.rows[0] == ["NLA", "ms", "12.5", "200", "1012", "", ""]
    assert table.rows[3][-1] == "1.10 ± 0.00"
    assert "NLA at 200x200: skipped, as it is slow." in table.notes
    rows = synthetic.csv_rows(table)
    assert len(rows) == len(record.rows)
    assert [r["fitted"] for r in rows[:4]] == ["False", "True", "True", "True"]
    assert rows[3]["median_ms"] == "" != rows[3]["note"]
    assert float(rows[-1]["memory_exponent"]) == pytest.approx(1.1)
    assert float(rows[-1]["median_ms"]) == pytest.approx(2e-6 * 40_000)


def test_one_canonical_table_a_device_and_the_rest_is_history() -> None:
    def record(name: str, day: int, *labels: str) -> Scaling:
        created = f"2026-03-{day:02}T00:00:00+00:00"
        laws = dict.fromkeys(labels, (1.0, 1.0))
        return synthetic.scaling(laws, identifier=name, created=created)

    found = find_scalings(
        [
            record("a-0a", 1, "NLA", "NLSA-r4"),
            record("b-0b", 2, "NLA", "NLSA-r4"),
            record("c-0c", 3, "User_Attention-8", "Criss-Cross"),
            record("d-0d", 4, "NLA"),
            record("e-0e", 5, "User_Attention-8"),
        ]
    )
    assert {one.stem: one.record.id for one in found} == {
        "scaling-cpu": "b-0b",
        "scaling-others-cpu": "c-0c",
        "history/scaling-cpu-0e": "e-0e",
        "history/scaling-cpu-0d": "d-0d",
        "history/scaling-cpu-0a": "a-0a",
    }
    captions = [scaling_table(one).caption for one in found]
    assert len({*captions}) == len(captions)


def test_figure_has_a_line_a_method_with_its_own_look() -> None:
    laws = {"NLA": (2.0, 1.0), "NLSA-r4": (1.0, 1.1), "Criss-Cross": (1.5, 1.0)}
    figure = scaling_figure(synthetic.scaling(laws, skipped={"NLA": 200}))
    time, memory = figure.axes
    for axis in (time, memory):
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        assert len(axis.get_lines()) == 3
    assert time.get_lines()[0].get_xdata().tolist() == [2500, 10_000, 22_500]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "NLA: time not fitted, memory not fitted; measured to 150x150",
        "NLSA-r4: time 1.00 ± 0.00, memory 1.10 ± 0.00",
        "Criss-Cross: time 1.50 ± 0.00, memory 1.00 ± 0.00",
    ]


def test_twelve_methods_look_different() -> None:
    variants = [variant.describe() for variant in table_rows("table4")]

    def repeat(content: dict[str, Any]) -> None:
        content["rows"] = [row | {"variant": v} for v in variants for row in content["rows"]]

    record = synthetic.edited(synthetic.scaling({"NLA": (1.0, 1.0)}), repeat)
    for axis in scaling_figure(record).axes:
        looks = {(line.get_color(), line.get_marker()) for line in axis.get_lines()}
        assert len(looks) == 12
