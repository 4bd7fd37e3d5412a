"""What figures share: a look for each module, lines with bars, the baseline, titles."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...config.rows import TODAY, TableName, table_rows
from ...config.variants import Variant
from ...records.shapes import UNSET
from ..approximation import Row
from ..settings import Setting, paper_table
from ..statistics import Summary
from .style import look

_PAPER = ("enlca", "nla", "nlsa", "criss-cross", "conv", "enla")
# The controls of synthetic tasks are in no figure of PSNR: they come last.
_TABLES = [table for table in get_args(TableName) if table not in ("controls", "profile")]
# Apart from the modules that stand beside them.
_CONTROLS = {"mean": 27, "reference-mean": 28, "oracle": 29}
_NAMES = {variant.name for table in _TABLES for variant in table_rows(table)} - {*TODAY}
# Modules of today came later: the others keep their looks.
_FIRST_OF_TODAY = 30
#: Modules in the order of their colours and markers, the same in all figures.
FAMILIES = (*_PAPER, *sorted(_NAMES - {*_PAPER}))
#: Most modules of a figure in colours of their own; all others are grey and labelled directly.
HIGHLIGHTS = 6
#: Fewest points of a figure.
POINTS = 3
GREY = "0.65"
# An axis leaves out the row without which it is this much shorter.
_STRETCH = 2.0
#: Lines of the title that say what stands beside the means.
BARS = "bars: 95 % intervals"
BESIDE = f"{BARS}; outlines: the paper's (32×256, 1000 epochs)"


def style_of(name: str, among: Iterable[str] = ()) -> int:
    """Index of a module's colour and marker for :func:`.style.look`.

    Args:
        name: of the module.
        among: the modules of the figure, in which users' own differ; without it they share one.
    """
    if name in _CONTROLS:
        return _CONTROLS[name]
    if name in FAMILIES:
        return FAMILIES.index(name)
    if name in TODAY:
        return _FIRST_OF_TODAY + TODAY.index(name)
    own = sorted({*among} - {*FAMILIES, *TODAY, *_CONTROLS})
    return len(FAMILIES) + (own.index(name) if name in own else 0)


def highlighted(names: Iterable[str]) -> set[str]:
    """The modules that are drawn in colour: users' own first, then the paper's, then others."""
    ours = {*FAMILIES, *TODAY}
    found = sorted({*names} - {"none"}, key=lambda name: (name in ours, style_of(name), name))
    return {*found[:HIGHLIGHTS]}


def look_of(name: str, bright: Collection[str]) -> dict[str, Any]:
    """Colour and marker of a module: its own if it is one of the highlighted, else grey."""
    return look(style_of(name, bright)) if name in bright else {"color": GREY, "marker": "."}


def span(rows: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """From the least to the largest of the rows' ends, on an axis that no row stretches alone.

    A row without which the span is half or less is left out, if three others remain.
    """

    def ends(kept: Sequence[tuple[float, float]]) -> tuple[float, float]:
        return min(low for low, _ in kept), max(high for _, high in kept)

    whole = ends(rows)
    if len(rows) <= POINTS:
        return whole
    without = [ends([*rows[:i], *rows[i + 1 :]]) for i in range(len(rows))]
    shortest = min(without, key=lambda found: found[1] - found[0])
    length = shortest[1] - shortest[0]
    return shortest if 0 < length * _STRETCH <= whole[1] - whole[0] else whole


def plain_variants(setting: Setting) -> list[tuple[str, Variant]]:
    """(label, variant) of the trained variants whose label shows all their options.

    The others belong to ablations, which have tables of their own.
    """
    return [
        (label, variant)
        for label, variant in setting.trained
        if label == setting.recorded[variant].label
    ]


def draw_title(figure: Figure, setting: Setting, *further: str) -> None:
    """Preset, scale, protocol, steps, device, seeds and training data above a figure.

    A PDF has no title: what its reader needs stands at the axes.
    """
    config = setting.config
    start = "" if config.start is UNSET else f"{config.start.steps}+"
    lines = (
        f"{config.preset} ({config.blocks}×{config.channels}), ×{config.scale}, "
        f"{config.protocol}, {start}{config.steps} steps, {config.device}, {setting.seed_count}",
        f"trained on {' + '.join(config.data.train)}",
        *further,
    )
    columns = round(20.3 * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.fill(line, columns) for line in lines), fontsize=6.3)


def _whole(words: str) -> str:
    """Words that no line break parts."""
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def measured_label(where: str) -> str:
    """Label of the axis of measured PSNRs, beside the paper's."""
    return f"measured PSNR\N{NO-BREAK SPACE}(dB), {_whole(where)}"


def paper_label(where: str) -> str:
    """Label of the axis of the paper's PSNRs."""
    return f"paper's PSNR\N{NO-BREAK SPACE}(dB), {_whole(where)}"


def points_of(rows: Iterable[Row], x: str, y: str) -> list[tuple[float, float, float]]:
    """Two quantities of each row and the standard deviation of the second, 0 if it has none."""
    return [(row[x], row[y], row.get(f"{y}_std", 0.0)) for row in rows]


def plot_line(
    axis: Axes,
    points: Iterable[tuple[float, float, float]],
    label: str,
    style: int,
    fill: Literal["none", "full"] = "none",
) -> None:
    """One line through (x, y, standard deviation), with bars of ± one standard deviation.

    Markers are outlines unless filled, so that they hide nothing. On a log axis, which must be
    set before, a bar that would reach below zero has its upper half only.
    """
    ordered = sorted(points)
    x, y, above = ([point[i] for point in ordered] for i in range(3))
    log = axis.get_yscale() == "log"
    below = [0.0 if log and b >= v else b for v, b in zip(y, above, strict=True)]
    axis.errorbar(
        x,
        y,
        yerr=[below, above] if any(above) else None,
        label=label,
        **look(style),
        fillstyle=fill,
        capsize=1.5,
        elinewidth=0.8,
    )


def reach(summary: Summary) -> tuple[float, float]:
    """How far the 95 % interval of the difference reaches below and above it; 0 if there is none.

    The unit is that of the difference.
    """
    if summary.difference is None or summary.low is None or summary.high is None:
        return 0.0, 0.0
    return summary.difference - summary.low, summary.high - summary.difference


def error_bars(summaries: Sequence[Summary]) -> list[list[float]]:
    """:func:`reach` of several, as matplotlib takes it: all below, then all above."""
    return [[reach(summary)[side] for summary in summaries] for side in (0, 1)]


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, quality) pairs that no other beats, cheapest first.

    A pair is beaten by one that is no worse in both and better in one.
    """
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def draw_baseline(axis: Axes, level: float | None) -> None:
    """The baseline's PSNR as a dotted line; nothing for None."""
    if level is not None:
        axis.axhline(level, color="0.2", ls=":", lw=1, label="baseline", zorder=1)


def baseline_psnr(setting: Setting, test_set: str | None) -> float | None:
    """Mean PSNR of the baseline in dB; None if it was not trained."""
    baseline = next((v for v, runs in setting.runs_of.items() if runs is setting.baseline), None)
    summary = setting.summary(baseline, test_set)
    return summary.mean if summary else None


def paper_baseline() -> float:
    """The baseline's PSNR on Urban100 x4 in the paper's Table 4, in dB."""
    (row,) = (row for row in paper_table(4) if row["method"] == "Baseline")
    return float(row["psnr_db"])


def drawn_psnr(setting: Setting, test_set: str | None, summary: Summary) -> float:
    """PSNR in dB at which a variant is drawn: the baseline's mean plus the paired difference.

    A variant that lacks some of the baseline's seeds is thus not displaced by them. Without a
    difference it is the variant's own mean.
    """
    level = baseline_psnr(setting, test_set)
    if level is None or summary.difference is None:
        return summary.mean
    return level + summary.difference
