"""Figures of quality: PSNR against k and against m, and what every image says of a variant."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attention_zoo import find_attention

from ...records.origin import Record, by_age
from ...records.shapes import REFERENCE_M, WHOLE
from ..approximation import VARIANCES
from ..settings import PAPER_SET, Setting, paper_table
from ..statistics import Summary, by_seed, paired_differences
from .approximation import plot_line
from .marks import (
    MEASURED,
    PAPER_NETWORK,
    _network,
    baseline_psnr,
    draw_baseline,
    draw_title,
    error_bars,
    plain_variants,
    style_of,
)
from .style import COLOURS, COLUMN, MARKERS, PAGE, new_figure

#: Most panels in a row of a page.
PANELS = 3
_SPREAD = 0.6  # height of a row of dots, in rows


def drawn_psnr(setting: Setting, test_set: str | None, summary: Summary) -> float:
    """Where a variant's PSNR is drawn, in dB: the baseline's mean plus the paired difference.

    So seeds that a variant lacks do not set it off from the baseline; without a difference it is
    the variant's own mean.
    """
    level = baseline_psnr(setting, test_set)
    if level is None or summary.difference is None:
        return summary.mean
    return level + summary.difference


def _over_option(setting: Setting, option: str, test_set: str | None) -> dict[float, Summary]:
    """PSNR of ENLCA by the values of one option, all others at their defaults."""
    defaults = {o: p.default for o, p in find_attention("enlca").options().items()}
    found: dict[float, Summary] = {}
    for key in setting.runs_of:
        name, options = json.loads(key)
        summary = setting.summary(key, test_set)
        if name == "enlca" and options | {option: 0} == defaults | {option: 0} and summary:
            found[options[option]] = summary
    return dict(sorted(found.items()))


def _draw_psnr(
    axis: Axes,
    setting: Setting,
    test_set: str | None,
    by_value: dict[float, Summary],
    label: str,
) -> None:
    """PSNR with intervals, and the baseline's line."""
    shown = list(by_value.values())
    axis.errorbar(
        list(by_value),
        [drawn_psnr(setting, test_set, s) for s in shown],
        yerr=error_bars(shown),
        color=COLOURS[0],
        marker=MARKERS[0],
        capsize=2,
        label=label,
    )
    draw_baseline(axis, baseline_psnr(setting, test_set))
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.set_ylabel(f"PSNR (dB), {test_set} ×{setting.config['scale']}")


def _draw_legend(figure: Figure, panels: Iterable[Axes], columns: int) -> None:
    """One legend below all panels, where it hides no interval."""
    handles: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False
    )


def figure6(setting: Setting, approximations: Sequence[Record]) -> Figure | None:
    """PSNR against the amplification k of ENLCA, above the variance of its approximation.

    PSNR is that on Set5, as in the paper, or on the first test set; bars are the 95 % interval of
    the difference to the baseline, which is drawn as a line. The variance is that of the newest
    approximation record of a network of the setting, at m = 128 and the largest N; without one
    the panel is left out. The paper's figure has no printed numbers to set beside.

    Returns:
        None if fewer than two k were trained.
    """
    test_set = setting.nearest_set("Set5")
    by_k = _over_option(setting, "k", test_set)
    if len(by_k) < 2:
        return None
    fitting = [r for r in by_age(approximations) if r["enla"] and _network(r) in _ids(setting)]
    figure = new_figure(COLUMN, 4.4 if fitting else 2.6)
    draw_title(figure, setting)
    panels = figure.subplots(2 if fitting else 1, 1, squeeze=False, sharex=True)[:, 0]
    _draw_psnr(panels[0], setting, test_set, by_k, f"ENLCA-m{REFERENCE_M}")
    if fitting:
        record = fitting[-1]
        n = max(record["settings"]["sides"]) ** 2
        rows = [
            row
            for row in record["enla"]
            if (row["features"], row["n"], row["m"]) == (WHOLE, n, REFERENCE_M)
        ]
        panels[1].set_yscale("log")
        for style, (quantity, label) in enumerate(VARIANCES.items()):
            plot_line(panels[1], rows, "k", quantity, label, style + 1, fill="full")
        panels[1].set_ylabel("variance of φ(q)·φ(k)")
    _draw_legend(figure, panels, columns=2)
    panels[-1].set_xlabel("amplification k")
    panels[-1].set_xticks(list(by_k))
    return figure


def psnr_m(setting: Setting) -> Figure | None:
    """PSNR against the number of random features m of ENLCA, above the paper's.

    PSNR is that on Urban100, or on the first test set; bars are the 95 % interval of the
    difference to the baseline, which is drawn as a line.

    Returns:
        None if fewer than two m were trained.
    """
    by_m = _over_option(setting, "m", setting.test_set)
    if len(by_m) < 2:
        return None
    figure = new_figure(COLUMN, 4.2)
    draw_title(figure, setting)
    ours, paper = figure.subplots(2, 1, sharex=True)
    _draw_psnr(ours, setting, setting.test_set, by_m, "ENLCA")
    printed = {row["method"]: row for row in paper_table(4)}
    points = {int(r["m"]): float(r["psnr_db"]) for r in printed.values() if r["m"]}
    ms = sorted(points)
    paper.plot(
        ms,
        [points[m] for m in ms],
        color=COLOURS[0],
        marker=MARKERS[0],
        fillstyle="none",
        label="ENLCA, paper",
    )
    draw_baseline(paper, float(printed["Baseline"]["psnr_db"]))
    paper.set_ylabel(f"PSNR (dB), {PAPER_SET} ×4")
    ours.set_title(MEASURED)
    paper.set_title(f"paper: {PAPER_NETWORK}")
    _draw_legend(figure, (ours, paper), columns=3)
    ticks = sorted({*by_m, *points})
    paper.set_xscale("log", base=2)
    paper.set_xticks(ticks, [f"{m:g}" for m in ticks])
    paper.minorticks_off()
    paper.set_xlabel("random features m")
    return figure


def paired_figure(setting: Setting) -> Figure | None:
    """Difference to the baseline in PSNR of every image, a panel for each test set.

    A dot is an image, its difference the mean over the seeds that both have. The marker is the
    mean over images, the bar its 95 % interval.

    Returns:
        None without a baseline, or if no other variant shares a seed with it.
    """
    variants = [
        (label, key)
        for label, key in plain_variants(setting)
        if setting.runs_of[key] is not setting.baseline
        and all(_paired(setting, key, name).size for name in setting.test_sets)
    ]
    if not variants or not setting.test_sets:
        return None
    columns = min(PANELS, len(setting.test_sets))
    rows = math.ceil(len(setting.test_sets) / columns)
    width = COLUMN if columns == 1 else PAGE
    figure = new_figure(width, 0.75 + rows * (0.6 + 0.19 * len(variants)))
    draw_title(figure, setting)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for unused in grid.flat[len(setting.test_sets) :]:
        unused.set_visible(False)
    for axis, name in zip(grid.flat, setting.test_sets, strict=False):
        axis.axvline(0, color="0.2", ls=":", lw=1, zorder=1)
        for row, (_, key) in enumerate(variants):
            style = style_of(json.loads(key)[0])
            images = _paired(setting, key, name).mean(axis=0)
            summary = setting.summary(key, name)
            assert summary is not None
            axis.plot(images, row + _scatter(len(images)), ".", ms=2, color="0.6", zorder=2)
            axis.errorbar(
                [summary.difference],
                [row],
                xerr=error_bars([summary]),
                color=COLOURS[style % len(COLOURS)],
                marker=MARKERS[style % len(MARKERS)],
                markeredgecolor="black",
                markeredgewidth=0.5,
                ecolor="black",
                capsize=2,
                zorder=3,
            )
        axis.set_title(f"{name} ×{setting.config['scale']} ({len(images)} images)")
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="y", visible=False)
    first = grid[0, 0]
    first.set_yticks(range(len(variants)), [label for label, _ in variants])
    first.set_ylim(len(variants) - 0.4, -0.6)
    figure.supxlabel(
        "difference to the baseline in PSNR (dB)\n"
        "dots: images, markers: means, bars: 95 % intervals",
        fontsize=8,
    )
    return figure


def _paired(setting: Setting, key: str, test_set: str) -> np.ndarray:
    """Differences to the baseline ``[seeds, images]``, images in the order of their names."""
    return paired_differences(
        *(by_seed(runs, test_set, "psnr") for runs in (setting.runs_of[key], setting.baseline))
    )


def _scatter(count: int) -> np.ndarray:
    """Offsets in rows that keep dots apart: the golden ratio's even sequence."""
    return _SPREAD * ((np.arange(count) * 0.618034) % 1 - 0.5)


def _ids(setting: Setting) -> set[str]:
    return {run["id"] for run in setting.runs}
