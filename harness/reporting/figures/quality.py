"""Figures of quality: PSNR against k and m, and every image's difference to the baseline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...config.variants import Variant
from ...records.origin import by_age
from ...records.shapes import REFERENCE_M, WHOLE, Approximation
from ..approximation import VARIANCES, select
from ..settings import PAPER_SET, Setting, paper_table
from ..statistics import FloatArray, Summary, compare
from .marks import (
    BARS,
    BESIDE,
    POINTS,
    baseline_psnr,
    draw_baseline,
    draw_title,
    drawn_psnr,
    error_bars,
    highlighted,
    look_of,
    measured_label,
    paper_baseline,
    paper_label,
    plain_variants,
    plot_line,
    points_of,
    reach,
    span,
)
from .style import COLUMN, fit_labels, log_scale, look, low, new_figure, panel_grid

#: Most panels in a row of a page.
PANELS = 3
# Marker of a mean that is not highlighted, among grey dots.
_PLAIN: Any = {"color": "white", "marker": "o"}
_SPREAD = 0.6  # height of a row of dots, in rows


def figure6(setting: Setting, approximations: Sequence[Approximation]) -> Figure | None:
    """PSNR against the amplification k of ENLCA, above the variance of its approximation.

    PSNR is measured on Set5, as in the paper, or on the first test set. Bars are the 95 % interval
    of the difference to the baseline, which is a dotted line. The variance comes from the newest
    approximation record of a network of the setting, at m = 128 and the largest N; without such a
    record the figure has no second panel. The paper prints no numbers for its Figure 6.

    Returns:
        None if fewer than three k were trained.
    """
    test_set = setting.nearest_set("Set5")
    by_k = _over_option(setting, "k", test_set)
    if len(by_k) < POINTS:
        return None
    networks = {run.id for run in setting.runs}
    fitting = [r for r in by_age(approximations) if r.enla and _network(r) in networks]
    figure = new_figure(COLUMN, 4.4 if fitting else 2.6)
    draw_title(figure, setting)
    panels = figure.subplots(2 if fitting else 1, 1, squeeze=False, sharex=True)[:, 0]
    _draw_psnr(panels[0], setting, test_set, by_k, f"ENLCA-m{REFERENCE_M}")
    if fitting:
        n = max(fitting[-1].settings.sides) ** 2
        rows = select(fitting[-1].enla, features=WHOLE, n=n, m=REFERENCE_M)
        log_scale(panels[1], "y")
        for style, (quantity, label) in enumerate(VARIANCES.items(), start=1):
            plot_line(panels[1], points_of(rows, "k", quantity), label, style, fill="full")
        panels[1].set_ylabel("variance of φ(q)·φ(k)")
    _draw_legend(figure, panels, columns=2)
    panels[-1].set_xlabel("amplification k")
    panels[-1].set_xticks(list(by_k))
    return figure


def psnr_m(setting: Setting) -> Figure | None:
    """PSNR against the number of random features m of ENLCA, above the paper's.

    PSNR is measured on Urban100, or on the first test set. Bars are the 95 % interval of the
    difference to the baseline, which is a dotted line.

    Returns:
        None if fewer than three m were trained.
    """
    by_m = _over_option(setting, "m", setting.test_set)
    if len(by_m) < POINTS:
        return None
    figure = new_figure(COLUMN, 4.2)
    draw_title(figure, setting, BARS if low() else BESIDE)
    panels = list(figure.subplots(1 if low() else 2, 1, sharex=True, squeeze=False)[:, 0])
    ours = panels[0]
    _draw_psnr(ours, setting, setting.test_set, by_m, "ENLCA")
    rows = (row for row in paper_table(4) if row["m"])
    printed = dict(sorted((int(row["m"]), float(row["psnr_db"])) for row in rows))
    for paper in panels[1:]:
        paper.plot(
            list(printed), list(printed.values()), **look(0), fillstyle="none", label="ENLCA, paper"
        )
        draw_baseline(paper, paper_baseline())
        paper.set_ylabel(paper_label(f"{PAPER_SET} ×4"))
    ours.set_ylabel(measured_label(f"{setting.test_set} ×{setting.config.scale}"))
    _draw_legend(figure, panels, columns=3)
    ticks = sorted({*by_m, *printed} if len(panels) > 1 else by_m)
    log_scale(panels[-1], "x", 2)
    panels[-1].set_xticks(ticks, [f"{m:g}" for m in ticks])
    panels[-1].minorticks_off()
    panels[-1].set_xlabel("random features m")
    fit_labels(figure)
    return figure


def paired_figure(setting: Setting) -> Figure | None:
    """Difference to the baseline in PSNR of every image, with a panel for each test set.

    A dot is an image; its difference is the mean over the seeds that variant and baseline share.
    The marker is the mean over images, the bar its 95 % interval.

    Returns:
        None without a baseline, or if no other variant shares a seed with it.
    """
    variants = [
        (label, variant)
        for label, variant in plain_variants(setting)
        if setting.runs_of[variant] is not setting.baseline
        and all(_paired(setting, variant, name).size for name in setting.test_sets)
    ]
    dots = [_paired(setting, v, name).shape[1] for _, v in variants for name in setting.test_sets]
    if sum(dots) < POINTS:
        return None
    bright = highlighted(variant.name for _, variant in variants)
    figure, grid = panel_grid(
        len(setting.test_sets),
        PANELS,
        lambda rows: 0.75 + rows * (0.6 + 0.19 * len(variants)),
        sharey=True,
    )
    draw_title(figure, setting)
    for axis, name in zip(grid.flat, setting.test_sets, strict=False):
        axis.axvline(0, color="0.2", ls=":", lw=1, zorder=1)
        for row, (_, variant) in enumerate(variants):
            images = _paired(setting, variant, name).mean(axis=0)
            summary = setting.summary(variant, name)
            assert summary is not None
            axis.plot(images, row + _scatter(len(images)), ".", ms=2, color="0.6", zorder=2)
            axis.errorbar(
                [summary.difference],
                [row],
                xerr=error_bars([summary]),
                **(look_of(variant.name, bright) if variant.name in bright else _PLAIN),
                markeredgecolor="black",
                markeredgewidth=0.5,
                ecolor="black",
                capsize=2,
                zorder=3,
            )
        axis.set_xlabel(f"{name} ×{setting.config.scale} ({len(images)} images)")
        _limit(axis, [setting.summary(variant, name) for _, variant in variants])
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


def _limit(axis: Axes, rows: Sequence[Summary | None]) -> None:
    """No row alone stretches the axis: the mean of one that lies beyond it stands at its edge."""
    found = [(row.difference or 0.0, *reach(row)) if row else (0.0, 0.0, 0.0) for row in rows]
    ends = [(mean - below, mean + above) for mean, below, above in found]
    low, high = span([*ends, (0.0, 0.0)])
    if all(low <= start and end <= high for start, end in ends):
        return
    margin = 0.1 * (high - low)
    axis.set_xlim(low - margin, high + margin)
    for place, (mean, _, _) in enumerate(found):
        if mean < low:
            axis.annotate(f"← {mean:+.2f}", (low, place), va="bottom", fontsize=6)
        elif mean > high:
            axis.annotate(f"{mean:+.2f} →", (high, place), ha="right", va="bottom", fontsize=6)


def _over_option(setting: Setting, option: str, test_set: str | None) -> dict[float, Summary]:
    """PSNR of ENLCA by the values of one option, all others at their defaults."""
    found = {
        setting.recorded[variant].options[option]: summary
        for variant in setting.runs_of
        if variant.name == "enlca" and set(variant.options) <= {option}
        if (summary := setting.summary(variant, test_set))
    }
    return dict(sorted(found.items()))


def _draw_psnr(
    axis: Axes,
    setting: Setting,
    test_set: str | None,
    by_value: Mapping[float, Summary],
    label: str,
) -> None:
    """PSNR with intervals, and the baseline's line."""
    shown = list(by_value.values())
    axis.errorbar(
        list(by_value),
        [drawn_psnr(setting, test_set, summary) for summary in shown],
        yerr=error_bars(shown),
        **look(0),
        capsize=2,
        label=label,
    )
    draw_baseline(axis, baseline_psnr(setting, test_set))
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.set_ylabel(f"PSNR (dB), {test_set} ×{setting.config.scale}")


def _draw_legend(figure: Figure, panels: Iterable[Axes], columns: int) -> None:
    """One legend below all panels, where it hides no interval."""
    handles: dict[str, Artist] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False
    )


def _network(approximation: Approximation) -> str | None:
    """Id of the run whose features were measured; None for synthetic features."""
    network = approximation.settings.network
    return network.name if network else None


def _paired(setting: Setting, variant: Variant, test_set: str) -> FloatArray:
    """Differences to the baseline ``[seeds, images]``, images in the order of their names."""
    return compare(setting.runs_of[variant], setting.baseline, test_set)


def _scatter(count: int) -> FloatArray:
    """Offsets in rows that keep dots apart: the golden ratio's even sequence."""
    return _SPREAD * ((np.arange(count, dtype=np.float64) * 0.618034) % 1 - 0.5)
