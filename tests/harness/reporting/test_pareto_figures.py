"""PSNR against cost: points from the records, front against brute force."""

from __future__ import annotations

import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes

from harness.config.rows import table_rows
from harness.records.shapes import Cost, Run
from harness.reporting.benches import find_benches
from harness.reporting.figures.marks import pareto_front, span
from harness.reporting.figures.pareto import (
    Pareto,
    Point,
    family_label,
    gflops_plot,
    latency_plot,
)
from harness.reporting.settings import Setting, paper_table

levels = st.integers(0, 5).map(float)


@given(st.lists(st.tuples(levels, levels), max_size=12))
def test_the_front_is_what_no_other_pair_beats(points: list[tuple[float, float]]) -> None:
    def beaten(p: tuple[float, float]) -> bool:
        return any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)

    assert pareto_front(points) == sorted({p for p in points if not beaten(p)})


RUNS = [
    synthetic.run(),
    synthetic.run("NLA", values=[26.1, 27.3, 28.2]),
    synthetic.run("NLSA-r4", values=[26.2, 27.4, 28.6]),
    synthetic.run("Criss-Cross", values=[26.0, 27.1, 28.1]),
    synthetic.run(synthetic.variant("conv"), values=[26.0, 27.05, 28.0]),
]
COSTS = [synthetic.cost("NLA", 4.0), synthetic.cost("NLSA-r4", 1.0)]
COSTS.append(synthetic.cost(synthetic.variant("conv"), 2.0))


def plotted(runs: list[Run] = RUNS, costs: list[Cost] = COSTS) -> Pareto:
    plot = gflops_plot(Setting(runs, costs))
    assert plot is not None
    return plot


def points_of(axis: Axes) -> set[tuple[float, float]]:
    """Positions of all markers of an axis."""
    lines = [line for line in axis.get_lines() if line.get_marker() not in ("None", "_", "|")]
    return {(round(x, 6), round(y, 6)) for line in lines for x, y in line.get_xydata().tolist()}


def step_of(axis: Axes) -> list[list[float]]:
    (line,) = (line for line in axis.get_lines() if line.get_label() == "Pareto front")
    return line.get_xydata().tolist()


def test_gflops_are_the_records_and_the_papers_are_beside() -> None:
    figure = plotted().draw()
    ours, theirs = figure.axes
    assert points_of(ours) == {
        (4.0, 27.2),
        (1.0, 27.4),
        (2.0, round((26.0 + 27.05 + 28.0) / 3, 6)),
    }  # Criss-Cross has no cost record
    rows = [row for row in paper_table(4) if row["method"] != "Baseline" and row["psnr_db"]]
    printed = {(float(row["gflops"]), float(row["psnr_db"])) for row in rows}
    assert points_of(theirs) == printed
    # From the baseline at the left edge up to NLSA, whose better and cheaper NLA is not.
    left, first, last = step_of(ours)
    assert (left[1], first, last[1]) == (27.0, [1.0, pytest.approx(27.4)], pytest.approx(27.4))
    assert left[0] < 1.0
    assert ours.get_xlim() == theirs.get_xlim()
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == len({*names})
    assert {"NLA", "ENLCA", "baseline", "Pareto front"} <= {*names}


def test_latency_is_the_benchs_and_its_machine_is_named() -> None:
    times = {"Baseline": 0.1, "NLA": 9.0, "NLSA-r4": 3.0, "Criss-Cross": 5.0}
    rows = [synthetic.latency_row(name, ms) for name, ms in times.items()]
    rows.append(synthetic.latency_row("NLA", 90.0, size=150))
    (bench,) = find_benches([synthetic.latency(rows)])
    plot = latency_plot(Setting(RUNS, []), bench)
    ours, theirs = plot.draw().axes
    assert {x for x, _ in points_of(ours)} == {9.0, 3.0, 5.0}
    words = [" ".join(axis.get_xlabel().split()) for axis in (ours, theirs)]
    assert words[0] == "core latency (ms), 100×100, C = 64, float32, Made-up CPU, 2 threads"
    assert words[1] == "core latency (ms), 100×100, C = 64, RTX 2080 Ti"
    printed = {float(row["latency_ms_100x100"]) for row in paper_table(5)}
    assert {x for x, _ in points_of(theirs)} == printed


def test_three_counted_variants_are_needed() -> None:
    assert gflops_plot(Setting(RUNS, COSTS[:2])) is None
    assert gflops_plot(Setting([], [])) is None


def test_six_modules_are_highlighted_and_the_others_labelled() -> None:
    names = ("nla", "nlsa", "criss-cross", "conv", "enla", "enlca", "window", "agent", "mdta")
    runs = [synthetic.run(), *(synthetic.run(synthetic.variant(name)) for name in names)]
    costs = [synthetic.cost(synthetic.variant(n), 1.0 + i, id=n) for i, n in enumerate(names)]
    user = synthetic.VARIANTS["User_Attention-8"]
    figure = plotted([*runs, synthetic.run(user)], [*costs, synthetic.cost(user, 3.5)]).draw()
    ours, theirs = figure.axes
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    labels = {text.get_text() for text in ours.texts}
    assert "User_Attention-8" in legend
    assert len(legend - {"Pareto front", "baseline"}) == 6
    assert {"Window-w8", "Agent-7x7", "MDTA"} <= labels
    assert not {text.get_text() for text in theirs.texts} & labels


@pytest.mark.parametrize("cost", [1e-6, 1e9])
def test_no_row_alone_stretches_the_axis(cost: float) -> None:
    plot = plotted(costs=[*COSTS, synthetic.cost("Criss-Cross", cost)])
    ours, _ = plot.draw().axes
    low, high = ours.get_xlim()
    assert high / low < 1e6
    (label,) = (text.get_text() for text in ours.texts if "Criss-Cross" in text.get_text())
    assert label == ("← Criss-Cross" if cost < 1 else "Criss-Cross →")


@given(st.lists(st.tuples(levels, levels).map(sorted).map(tuple), min_size=1, max_size=8))
def test_a_span_has_all_rows_but_one(rows: list[tuple[float, float]]) -> None:
    low, high = span(rows)
    left_out = [row for row in rows if row[0] < low or row[1] > high]
    assert len(left_out) <= 1
    assert {low, high} <= {end for row in rows for end in row}
    if left_out:
        whole = max(end for _, end in rows) - min(start for start, _ in rows)
        assert 2 * (high - low) <= whole


def test_a_family_is_called_by_what_its_labels_share() -> None:
    two, sixteen = (Point("enlca", f"ENLCA-m{m}", 1.0, 26.0) for m in (2, 16))
    assert family_label([two, sixteen]) == "ENLCA"
    assert family_label([two, two]) == "ENLCA-m2"


def test_the_papers_points_are_of_the_modules_that_have_these_labels() -> None:
    labels = {v.label: v.name for v in table_rows("table4")}
    assert {p.label: p.name for p in plotted().paper}.items() <= labels.items()


def test_every_drawn_point_is_known_by_its_lines_gid() -> None:
    gflops = {16: 0.5, 2: 0.1}
    variants = {m: synthetic.variant("enlca", m=m) for m in gflops}
    runs = [*RUNS, *(synthetic.run(variant) for variant in variants.values())]
    plot = plotted(runs, [COSTS[0], *(synthetic.cost(variants[m], gflops[m]) for m in gflops)])
    lines = {line.get_gid(): line for axis in plot.draw().axes for line in axis.get_lines()}
    marked = plot.marked()
    assert [p.label for p in marked["measured-enlca"]] == ["ENLCA-m2", "ENLCA-m16"]
    assert {*marked} == {*lines} - {None}
    for gid, points in marked.items():
        assert lines[gid].get_xydata().tolist() == [[p.cost, p.psnr] for p in points]


def test_a_variant_with_fewer_seeds_stands_at_its_paired_difference() -> None:
    """The baseline's second seed is 1 dB better; NLA, without it, is 0.1 dB above its own pair."""
    runs = [
        synthetic.run(values=[26.0, 27.0, 28.0]),
        synthetic.run(values=[27.0, 28.0, 29.0], seed=1),
        synthetic.run("NLA", values=[26.1, 27.1, 28.1]),
    ]
    plot = plotted([*runs, synthetic.run("NLSA-r4"), RUNS[-1]])
    assert plot.measured[0].psnr == pytest.approx(27.5 + 0.1)


def test_the_papers_points_are_of_the_chosen_modules_alone() -> None:
    plot = plotted()
    assert {point.name for point in plot.only(("nla", "enlca")).paper} == {"nla", "enlca"}
    assert [point.label for point in plot.only(("ENLCA-m16",)).paper] == ["ENLCA-m16"]
    assert plot.only(()) is plot
    alone = plot.only(("window",))
    assert not alone.paper
    (ours,) = alone.draw().axes
    assert points_of(ours) == points_of(plot.draw().axes[0])
