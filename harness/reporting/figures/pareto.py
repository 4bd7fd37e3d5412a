"""PSNR against cost, with the Pareto front: against GFLOPs and against latency."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from ...config.rows import table_rows
from ...config.variants import Variant
from ...records.origin import describe_machine
from ..benches import Bench
from ..settings import PAPER_SET, Setting, paper_table
from ..statistics import Summary
from .labels import label_points
from .marks import (
    BARS,
    BESIDE,
    HIGHLIGHTS,
    POINTS,
    baseline_psnr,
    draw_baseline,
    draw_title,
    drawn_psnr,
    highlighted,
    look_of,
    measured_label,
    paper_baseline,
    paper_label,
    pareto_front,
    plain_variants,
    reach,
    span,
)
from .style import (
    COLUMN,
    PAGE,
    fit_labels,
    label_within_decades,
    log_scale,
    low,
    narrow,
    new_figure,
)

#: Device of the paper's latencies.
PAPER_DEVICE = "RTX 2080 Ti"
# Font size of labels beside points.
_LABELS = 5
# Highest over lowest of a log scale that needs labels between its powers of ten.
_FEW_DECADES = 100


@dataclass(frozen=True)
class Point:
    """One variant: its module's name, label, cost above 0, and PSNR in dB as drawn.

    Attributes:
        summary: what was measured; None for the paper's points.
    """

    name: str
    label: str
    cost: float
    psnr: float
    summary: Summary | None = None

    @property
    def bars(self) -> tuple[float, float]:
        """How far its interval reaches below and above, in dB."""
        return reach(self.summary) if self.summary else (0.0, 0.0)


@dataclass(frozen=True)
class Pareto:
    """Measured points, drawn above, and the paper's, drawn below in outline.

    Attributes:
        setting: whose runs were measured.
        cost: name of the cost with its unit.
        details: what the cost depends on.
        machine: where the cost was measured; "" if that does not matter.
        measured: at least three points.
        paper: the paper's points; without any there is no second panel.
        dtype: of what was timed.
    """

    setting: Setting
    cost: str
    details: str
    machine: str
    measured: Sequence[Point]
    paper: Sequence[Point]
    dtype: str = ""

    def draw(self) -> Figure:
        """Two panels, each with its own PSNR axis; they share the cost axis if no machine is named.

        Bars are 95 % intervals of the differences to the baseline, whose cost is 0. The front
        joins means, the baseline's included.
        """
        shared = not self.machine
        bright = highlighted(point.name for point in (*self.measured, *self.paper))
        crowded = len({p.name for p in self.measured} - bright) > HIGHLIGHTS
        figure = new_figure(PAGE if crowded else COLUMN, (4.9 if shared else 5.3) + 1.6 * crowded)
        paper = () if low() else self.paper
        draw_title(figure, self.setting, BESIDE if paper else BARS)
        ratios = [2, 1] if crowded else [1, 1]
        rows = 2 if paper else 1
        grid = figure.subplots(rows, 1, sharex=shared, height_ratios=ratios[:rows], squeeze=False)
        panels: list[Axes] = list(grid[:, 0])
        handles: dict[str, Line2D] = {}
        edges = []
        level = baseline_psnr(self.setting, self.setting.test_set)
        shown = (
            (self.measured, level, "full"),
            (paper, paper_baseline(), "none"),
        )
        for axis, (points, baseline, fill) in zip(panels, shown, strict=False):
            ranged = [*self.measured, *paper] if shared else points
            least, most = span([(math.log10(p.cost), math.log10(p.cost)) for p in ranged])
            limits = (10**least / 3, 10**most * 2)
            log_scale(axis, "x")
            axis.set_xlim(limits)
            if (
                limits[1] < _FEW_DECADES * limits[0]
            ):  # else matplotlib labels so many that they overlap
                label_within_decades(axis.xaxis)
            _draw_front(axis, points, baseline, *limits)
            draw_baseline(axis, baseline)
            handles = _draw_points(axis, points, fill, bright, limits) | handles
            bottom, top = span([(p.psnr - p.bars[0], p.psnr + p.bars[1]) for p in points])
            if baseline is not None:
                bottom, top = min(bottom, baseline), max(top, baseline)
            margin = 0.12 * (top - bottom) or 0.01
            axis.set_ylim(bottom - margin, top + margin)
            edges.append((axis, points, *limits))
            axis.ticklabel_format(axis="y", useOffset=False)
        where = f"{self.setting.test_set} ×{self.setting.config.scale}"
        for axis, label in zip(
            panels, (measured_label(where), paper_label(f"{PAPER_SET} ×4")), strict=False
        ):
            axis.set_ylabel(label)
        machine = self.machine.partition(" (")[0]
        machines = (f", {self.dtype}, {machine}", f", {PAPER_DEVICE}") if machine else ("", "")
        for axis, machine in zip(panels, machines, strict=False):
            if axis is panels[-1] or not shared:
                axis.set_xlabel(f"{self.cost}, {self.details}{machine}")
        families = by_module([*self.measured, *paper])
        names = {
            family_label(families[name]): line for name, line in handles.items() if name in bright
        }
        if narrow() and (grey := next((h for n, h in handles.items() if n not in bright), None)):
            names["others"] = grey
        names |= {str(line.get_label()): line for line in panels[-1].get_lines()[:2]}
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
        fit_labels(figure)
        for axis, points, least, most in edges:
            if not (crowded and narrow()):
                found = [_label(point, bright, least, most) for point in points]
                label_points(axis, found, _LABELS)
        return figure

    def only(self, attn: Collection[str]) -> Pareto:
        """With the paper's points of these modules or labels alone; with all if there are none."""
        if not attn:
            return self
        return replace(self, paper=[p for p in self.paper if {p.name, p.label} & {*attn}])

    def marked(self) -> dict[str, list[Point]]:
        """Points of every drawn line in their order, by the line's gid."""
        return {
            _gid(fill, name): family
            for fill, points in (("full", self.measured), ("none", self.paper))
            for name, family in by_module(points).items()
        }


def pareto_plots(
    setting: Setting, benches: Iterable[Bench], attn: Collection[str] = ()
) -> Iterator[tuple[str, str, Pareto]]:
    """(kind, device, plot) against GFLOPs and latency, where three variants are known.

    Of each device and dtype it is the canonical session that timed the most of these variants.
    Of the paper's points there are those of the modules or labels ``attn``, or all.
    """
    if plot := gflops_plot(setting):
        yield "pareto-gflops", "", plot.only(attn)
    plots: dict[str, Pareto] = {}
    for bench in benches:
        if not bench.folder and (plot := latency_plot(setting, bench)):
            known = plots.get(bench.place)
            if known is None or len(known.measured) < len(plot.measured):
                plots[bench.place] = plot
    for where, plot in plots.items():
        yield "pareto-latency", where, plot.only(attn)


def gflops_plot(setting: Setting) -> Pareto | None:
    """PSNR against the GFLOPs of the core at 100x100, 64 channels, in the paper's convention.

    Returns:
        None if fewer than three variants beside the baseline were trained and counted.
    """
    costs = {variant: cost.parts.core.paper_gflops for variant, cost in setting.cost_of.items()}
    measured = _points(setting, costs)
    if len(measured) < POINTS:
        return None
    details = "100×100, C = 64"
    return Pareto(setting, "core GFLOPs", details, "", measured, _paper_points(4, "gflops"))


def latency_plot(setting: Setting, bench: Bench) -> Pareto | None:
    """PSNR against the mean latency in ms of the core's forward pass at 100x100, 64 channels.

    The paper's latencies come from another device.

    Returns:
        None if fewer than three variants beside the baseline were trained and timed.
    """
    rows = {variant: bench.find(variant, "core", "forward", 100) for variant in setting.runs_of}
    measured = _points(setting, {variant: row.mean_ms for variant, row in rows.items() if row})
    if len(measured) < POINTS:
        return None
    machine = describe_machine(bench.record).partition(", torch")[0]
    details, dtype = "100×100, C = 64", bench.row.dtype
    paper = _paper_points(5, "latency_ms_100x100")
    return Pareto(setting, "core latency (ms)", details, machine, measured, paper, dtype)


def by_module(points: Iterable[Point]) -> dict[str, list[Point]]:
    """Points by their module's name, each module's in the order of their costs."""
    families: dict[str, list[Point]] = {}
    for point in points:
        families.setdefault(point.name, []).append(point)
    return {name: sorted(family, key=lambda p: p.cost) for name, family in families.items()}


def family_label(points: Sequence[Point]) -> str:
    """The common label of a module's variants: ``ENLCA`` of ENLCA-m2 and ENLCA-m16."""
    common = points[0].label.rpartition("-")[0]
    return common if common and len({p.label for p in points}) > 1 else points[0].label


def _points(setting: Setting, costs: Mapping[Variant, float | None]) -> list[Point]:
    return [
        Point(variant.name, label, cost, drawn_psnr(setting, setting.test_set, summary), summary)
        for label, variant in plain_variants(setting)
        if variant.name != "none"  # the dotted line
        and (cost := costs.get(variant))
        and (summary := setting.psnr_of.get(variant))
    ]


def _paper_points(number: int, column: str) -> list[Point]:
    """A column of the paper's Table 4 or 5 against PSNR on Urban100 x4."""
    methods = [row["method"] for row in paper_table(4)]
    names = {m: v.name for m, v in zip(methods, table_rows("table4"), strict=True)}
    return [
        Point(names[row["method"]], row["method"], float(row[column]), float(row["psnr_db"]))
        for row in paper_table(number)
        if row["psnr_db"] and row["method"] != "Baseline"
    ]


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


def _label(
    point: Point, bright: Collection[str], low: float, high: float
) -> tuple[float, float, str]:
    """Where a point is drawn, and its label if it is grey or beyond the axis."""
    at = min(max(point.cost, low), high)
    if point.cost < low:
        return at, point.psnr, f"← {point.label}"
    if point.cost > high:
        return at, point.psnr, f"{point.label} →"
    return at, point.psnr, "" if point.name in bright else point.label


def _draw_points(
    axis: Axes,
    points: Sequence[Point],
    fill: str,
    bright: Collection[str],
    limits: tuple[float, float],
) -> dict[str, Line2D]:
    """A marker for each point; those of one module are joined, and the line's ends labelled.

    What costs less or more than the limits stands at the axis' end.

    Returns:
        The line of each module.
    """
    handles = {}
    for name, family in by_module(points).items():
        line = axis.errorbar(
            [min(max(point.cost, limits[0]), limits[1]) for point in family],
            [point.psnr for point in family],
            yerr=list(zip(*(p.bars for p in family), strict=True)) if fill == "full" else None,
            **look_of(name, bright),
            fillstyle=fill,
            elinewidth=1.0 if name in bright else 0.4,
            zorder=2.5 if name in bright else 2,
            lw=0.8,
            capsize=2,
        ).lines[0]
        line.set_gid(_gid(fill, name))
        handles[name] = line
        if len(family) > 1 and name in bright:
            for point, side in ((family[0], "right"), (family[-1], "left")):
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


def _gid(fill: str, name: str) -> str:
    return f"{'measured' if fill == 'full' else 'paper'}-{name}"
