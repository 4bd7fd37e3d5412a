"""The report's scatter plots with their points' numbers under the pointer, and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ...base.names import slug
from ...records.origin import describe_machine
from ..benches import Bench
from ..cells import difference_cell, fixed, milliseconds, setting_text
from ..figures.marks import PAPER_NETWORK, baseline_psnr, style_of
from ..figures.pareto import (
    Point,
    family_label,
    gflops_points,
    latency_points,
    paper_gflops_points,
    paper_latency_points,
    pareto_front,
)
from ..figures.style import COLOURS
from ..settings import PAPER_SET, Setting, paper_table
from ..statistics import Summary
from .blocks import Cell, Row, TableBlock, Tags, column_kinds, setting_tags, table_head

#: As the figures' markers, in their order.
_SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star")
_HEADERS = ("Method", "from", "cost", "PSNR (dB)", "difference to baseline", "seeds")


@dataclass(frozen=True)
class Plot:
    """A scatter plot: figure is plotly's JSON, table has the same points."""

    anchor: str
    title: str
    about: str
    alt: str
    figure: str
    table: TableBlock
    tags: Tags


def setting_plots(setting: Setting, benches: Sequence[Bench]) -> Iterator[Plot]:
    """PSNR against GFLOPs and against each bench's latency, where two variants are known."""
    if not setting.runs:
        return
    yield from _plot(
        setting,
        "gflops",
        "PSNR against GFLOPs",
        "core GFLOPs, 100×100",
        (gflops_points(setting), paper_gflops_points()),
        ("measured", "paper"),
    )
    for bench in benches:
        machine = describe_machine(bench.records[-1]).partition(", torch")[0]
        yield from _plot(
            setting,
            f"latency-{bench.label.removeprefix('table5-')}",
            f"PSNR against latency, {machine}, {bench.row['dtype']}",
            "core latency (ms), 100×100",
            (latency_points(setting, bench), paper_latency_points()),
            (f"measured on {machine}", "paper, RTX 2080 Ti"),
        )


def _plot(
    setting: Setting,
    name: str,
    title: str,
    cost: str,
    points: tuple[Sequence[Point], Sequence[Point]],
    origins: tuple[str, str],
) -> Iterator[Plot]:
    ours, theirs = points
    if len(ours) < 2:
        return
    summaries = {label: setting.psnr_by_key.get(key) for label, key in setting.trained}
    where = setting_text(setting)
    anchor = slug(f"hover-{setting.label}-{name}")
    psnr = f"PSNR (dB), {setting.test_set} ×{setting.config['scale']}"
    tags = setting_tags(setting)
    rows = [
        [p.label, origin, milliseconds(p.cost), fixed(p.psnr, 2), *_compared(summaries, p, origin)]
        for group, origin in zip(points, origins, strict=True)
        for p in group
    ]
    headers = [("", cost if h == "cost" else h) for h in _HEADERS]
    kinds = column_kinds(headers, rows)
    yield Plot(
        anchor=anchor,
        title=title,
        about="The attention alone, 64 channels. Above what was measured, bars: 95 % intervals of "
        f"the differences to the baseline. Below, in outline, the paper: {PAPER_NETWORK}. Grey "
        "steps: Pareto front of the means. Dotted: the baseline.",
        alt=f"Scatter plot: {title}, {cost}. The table below it has the same points.",
        figure=_figure(setting, ours, theirs, summaries, (psnr, f"paper, {PAPER_SET} ×4"), cost),
        table=TableBlock(
            anchor=f"{anchor}-table",
            title=f"Points: {title}",
            about=f"{where}; tested on {setting.test_set}",
            head=table_head(headers, kinds),
            rows=[Row([Cell(t, k) for t, k in zip(row, kinds, strict=True)]) for row in rows],
            tags=tags,
        ),
        tags=tags,
    )


def _compared(summaries: dict[str, Summary | None], point: Point, origin: str) -> list[str]:
    """Difference and seeds of a measured point; "" of the paper's."""
    summary = summaries.get(point.label) if origin.startswith("measured") else None
    return [difference_cell(summary), str(summary.seeds)] if summary else ["", ""]


def _figure(
    setting: Setting,
    ours: Sequence[Point],
    theirs: Sequence[Point],
    summaries: dict[str, Summary | None],
    titles: tuple[str, str],
    cost: str,
) -> str:
    """Two panels, measured and paper, in plotly's JSON."""
    from plotly import graph_objects, subplots

    figure = subplots.make_subplots(rows=2, cols=1, vertical_spacing=0.14)
    printed = {row["method"]: float(row["psnr_db"] or "nan") for row in paper_table(4)}
    levels = (baseline_psnr(setting, setting.test_set), printed["Baseline"])
    named: set[str] = set()
    for panel, (points, level) in enumerate(zip((ours, theirs), levels, strict=True), 1):
        where = {"row": panel, "col": 1}
        low = min(p.cost for p in points) / 2
        high = max(p.cost for p in points) * 2
        pairs = [(p.cost, p.psnr) for p in points]
        front = pareto_front(pairs if level is None else [(0.0, level), *pairs])
        steps: dict[str, Any] = {
            "x": [*(max(x, low) for x, _ in front), high],
            "y": [*(y for _, y in front), front[-1][1]],
            "line": {"color": "#9a9fa8", "width": 4, "shape": "hv"},
        }
        figure.add_trace(_line("Pareto front", steps, panel == 1, graph_objects), **where)
        if level is not None:
            dotted = {"x": [low, high], "y": [level, level]}
            dotted["line"] = {"color": "#8a8f98", "width": 2, "dash": "dot"}  # type: ignore[assignment]
            figure.add_trace(_line("baseline", dotted, panel == 1, graph_objects), **where)
        for name in dict.fromkeys(p.name for p in points):
            family = sorted((p for p in points if p.name == name), key=lambda p: p.cost)
            style, measured = style_of(name), panel == 1
            colour = "rgb({}, {}, {})".format(
                *(round(255 * part) for part in COLOURS[style % len(COLOURS)])
            )
            symbol = _SYMBOLS[style % len(_SYMBOLS)]
            figure.add_trace(
                graph_objects.Scatter(
                    x=[p.cost for p in family],
                    y=[p.psnr for p in family],
                    error_y={
                        "type": "data",
                        "array": [p.above for p in family],
                        "arrayminus": [p.below for p in family],
                        "visible": measured,
                    },
                    mode="lines+markers",
                    line={"color": colour, "width": 1},
                    marker={
                        "symbol": symbol if measured else f"{symbol}-open",
                        "size": 10,
                        "line": {"width": 2} if not measured else {},
                    },
                    name=escape(family_label([p.label for p in family]), quote=False),
                    legendgroup=name,
                    showlegend=name not in named,
                    text=[_hover(p, summaries if measured else {}, cost) for p in family],
                    hovertemplate="%{text}<extra></extra>",
                ),
                **where,
            )
            named.add(name)
    figure.update_xaxes(type="log", showline=True, ticks="outside", dtick=1, zeroline=False)
    figure.update_yaxes(
        showline=True, ticks="outside", zeroline=False, automargin=True, title={"standoff": 12}
    )
    figure.update_xaxes(title=cost, row=2, col=1)
    for panel, title in enumerate(titles, 1):
        figure.update_yaxes(title={"text": title}, row=panel, col=1)
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 70, "r": 15, "t": 10, "b": 50},
        legend={"orientation": "h", "yanchor": "top", "y": -0.14, "x": 0},
        hoverlabel={"align": "left"},
        dragmode=False,
    )
    return str(figure.to_json()).replace("<", "\\u003c")


def _line(name: str, shape: dict[str, Any], legend: bool, graph_objects: Any) -> Any:
    return graph_objects.Scatter(
        **shape, mode="lines", name=name, legendgroup=name, showlegend=legend, hoverinfo="skip"
    )


def _hover(point: Point, summaries: dict[str, Summary | None], cost: str) -> str:
    label, kind = escape(point.label, quote=False), cost.partition(",")[0]
    lines = [f"<b>{label}</b>", f"{kind}: {milliseconds(point.cost)}"]
    lines.append(f"PSNR: {fixed(point.psnr, 3 if summaries else 2)} dB")
    if summary := summaries.get(point.label):
        if difference := difference_cell(summary):
            lines.append(f"to baseline: {difference} dB")
        lines.append(f"seeds: {summary.seeds}")
    return "<br>".join(lines if summaries else [*lines, "paper, not measured here"])
