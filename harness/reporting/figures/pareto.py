"""PSNR against cost, with the Pareto front: against GFLOPs and against latency."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ...config.rows import table_rows
from ...records.origin import describe_machine
from ..benches import Bench
from ..settings import PAPER_SET, Setting, paper_table
from ..statistics import Summary
from .marks import (
    MEASURED,
    PAPER_NETWORK,
    baseline_psnr,
    draw_baseline,
    draw_title,
    error_bars,
    plain_variants,
    style_of,
)
from .quality import drawn_psnr
from .style import COLOURS, COLUMN, MARKERS, label_within_decades, new_figure


@dataclass(frozen=True)
class Point:
    """One variant: cost above 0, PSNR in dB, and how far its interval reaches below and above."""

    name: str
    label: str
    cost: float
    psnr: float
    below: float = 0.0
    above: float = 0.0


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, quality) pairs that no other beats, cheapest first.

    A pair is beaten by one that is no worse in both and better in one.
    """
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def gflops_points(setting: Setting) -> list[Point]:
    """Trained variants by the GFLOPs of the core at 100x100, 64 channels, as the paper counts."""
    costs = {key: cost["parts"]["core"]["paper_gflops"] for key, cost in setting.cost_of.items()}
    return _points(setting, costs)


def latency_points(setting: Setting, bench: Bench) -> list[Point]:
    """Trained variants by mean latency in ms of the core's forward at 100x100, 64 channels."""
    found = {key: bench.find(key, "core", "forward", 100)[0] for _, key in setting.trained}
    return _points(setting, {key: row["mean_ms"] for key, row in found.items() if row})


def paper_gflops_points() -> list[Point]:
    """Table 4 of the paper: GFLOPs and PSNR on Urban100 x4."""
    names = _paper_names()
    return [
        Point(names[row["method"]], row["method"], float(row["gflops"]), float(row["psnr_db"]))
        for row in paper_table(4)
        if row["psnr_db"] and row["method"] != "Baseline"
    ]


def paper_latency_points() -> list[Point]:
    """Table 5 of the paper: latency at 100x100 in ms on an RTX 2080 Ti, and PSNR."""
    names, column = _paper_names(), "latency_ms_100x100"
    return [
        Point(names[row["method"]], row["method"], float(row[column]), float(row["psnr_db"]))
        for row in paper_table(5)
    ]


def pareto_gflops(setting: Setting) -> Figure | None:
    """PSNR against the GFLOPs of the core at 100x100, 64 channels, in the paper's convention.

    Below are the paper's points, in outline. Bars are 95 % intervals of the differences to the
    baseline, which costs nothing; the front is that of the means, the baseline included.

    Returns:
        None if fewer than two variants beside the baseline were trained and counted.
    """
    points, paper = gflops_points(setting), f"paper: {PAPER_NETWORK}"
    label = "core GFLOPs, 100×100, C = 64"
    return _figure(setting, points, paper_gflops_points(), label, MEASURED, paper, shared=True)


# Characters of a panel's title that fit its width.
_TITLE_COLUMNS = 40
# Highest over lowest of a log scale that needs labels between its powers of ten.
_FEW_DECADES = 100


def pareto_latency(setting: Setting, bench: Bench) -> Figure | None:
    """PSNR against the mean latency of the core's forward pass at 100x100, 64 channels.

    As :func:`pareto_gflops`; the paper's latencies are of another device.
    """
    points, paper = latency_points(setting, bench), f"paper: {PAPER_NETWORK}\nRTX 2080 Ti"
    machine = describe_machine(bench.records[-1]).partition(", torch")[0]
    measured = f"{MEASURED}\n{textwrap.fill(machine, _TITLE_COLUMNS)}"
    label = f"core latency (ms), 100×100, C = 64, {bench.row['dtype']}"
    return _figure(setting, points, paper_latency_points(), label, measured, paper, shared=False)


def _paper_names() -> dict[str, str]:
    return {variant.label: variant.name for variant in table_rows("table4")}


def _figure(
    setting: Setting,
    measured: Sequence[Point],
    paper: Sequence[Point],
    cost_label: str,
    measured_title: str,
    paper_title: str,
    *,
    shared: bool,
) -> Figure | None:
    """Measured above, the paper's below, each with a PSNR axis of its own."""
    if len(measured) < 2:
        return None
    printed = {row["method"]: row["psnr_db"] for row in paper_table(4)}
    figure = new_figure(COLUMN, 4.9 if shared else 5.3)
    draw_title(figure, setting)
    ours, theirs = figure.subplots(2, 1, sharex=shared)
    handles: dict[str, Line2D] = {}
    for axis, points, level, fill in (
        (ours, measured, baseline_psnr(setting, setting.test_set), "full"),
        (theirs, paper, float(printed["Baseline"]), "none"),
    ):
        ranged = [*measured, *paper] if shared else points
        low = min(point.cost for point in ranged) / 3
        high = max(point.cost for point in ranged) * 2
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        if high < _FEW_DECADES * low:  # else matplotlib labels so many that they overlap
            label_within_decades(axis.xaxis)
        _draw_front(axis, points, level, low, high)
        draw_baseline(axis, level)
        handles = _draw_points(axis, points, fill) | handles
        axis.margins(y=0.12)
        axis.ticklabel_format(axis="y", useOffset=False)
    ours.set_title(measured_title)
    ours.set_ylabel(f"PSNR (dB), {setting.test_set} ×{setting.config['scale']}")
    theirs.set_title(paper_title)
    theirs.set_ylabel(f"PSNR (dB), {PAPER_SET} ×4")
    theirs.set_xlabel(cost_label)
    if not shared:
        ours.set_xlabel(cost_label)
    labels: dict[str, list[str]] = {}
    for point in (*measured, *paper):
        labels.setdefault(point.name, []).append(point.label)
    names = {family_label(labels[name]): line for name, line in handles.items()}
    names |= {str(line.get_label()): line for line in theirs.get_lines()[:2]}
    figure.legend(
        names.values(),
        names.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=6,
        handlelength=1.5,
        columnspacing=1,
    )
    return figure


def family_label(labels: Sequence[str]) -> str:
    """The common name of a module's variants: ``ENLCA`` of ENLCA-m2 and ENLCA-m16."""
    common = labels[0].rpartition("-")[0]
    return common if common and len({*labels}) > 1 else labels[0]


def _points(setting: Setting, costs: dict[str, float | None]) -> list[Point]:
    return [
        _point(label, key, cost, summary, drawn_psnr(setting, setting.test_set, summary))
        for label, key in plain_variants(setting)
        if json.loads(key)[0] != "none"  # the dotted line
        and (cost := costs.get(key))
        and (summary := setting.psnr_by_key.get(key))
    ]


def _point(label: str, key: str, cost: float, summary: Summary, psnr: float) -> Point:
    (below,), (above,) = error_bars([summary])
    return Point(json.loads(key)[0], label, cost, psnr, below, above)


def _draw_front(
    axis: Axes, points: Sequence[Point], baseline: float | None, low: float, high: float
) -> None:
    """The best PSNR that each cost buys, as steps; left of ``low`` is the baseline alone."""
    pairs = [(point.cost, point.psnr) for point in points]
    front = pareto_front(pairs if baseline is None else [(0.0, baseline), *pairs])
    costs, psnrs = zip(*front, strict=True)
    axis.plot(
        [*(max(cost, low) for cost in costs), high],
        [*psnrs, psnrs[-1]],
        drawstyle="steps-post",
        color="0.7",
        lw=2.5,
        label="Pareto front",
        zorder=0.5,
    )


def _draw_points(axis: Axes, points: Sequence[Point], fill: str) -> dict[str, Line2D]:
    """A marker for each point; those of one module are joined, and the ends of the line named.

    Returns:
        The marker of each module.
    """
    handles = {}
    for name in dict.fromkeys(point.name for point in points):
        family = sorted((p for p in points if p.name == name), key=lambda p: p.cost)
        style, first = style_of(name), family[0]
        line = axis.errorbar(
            [point.cost for point in family],
            [point.psnr for point in family],
            yerr=[[p.below for p in family], [p.above for p in family]] if fill == "full" else None,
            color=COLOURS[style % len(COLOURS)],
            marker=MARKERS[style % len(MARKERS)],
            fillstyle=fill,
            lw=0.8,
            capsize=2,
        ).lines[0]
        handles[name] = line
        if len(family) > 1:
            for point, side in ((first, "right"), (family[-1], "left")):
                axis.annotate(
                    point.label.rpartition("-")[2],
                    (point.cost, point.psnr),
                    (-4 if side == "right" else 4, 4),
                    textcoords="offset points",
                    ha=side,
                    fontsize=6,
                    path_effects=[withStroke(linewidth=2, foreground="white")],
                )
    return handles
