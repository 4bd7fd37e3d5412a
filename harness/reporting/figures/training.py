"""Training curves: the loss of the baseline, and of every variant against it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...records.origin import Record
from ..settings import Setting
from .marks import draw_title, plain_variants, style_of
from .style import COLOURS, COLUMN, PAGE, new_figure

#: Loss by step, by seed.
Curves = Mapping[int, Mapping[int, float]]

#: Most panels in a row.
PANELS = 4
#: Curves are running means over this share of the training.
SMOOTHING = 0.05


def training_figure(setting: Setting) -> Figure | None:
    """L1 loss of the baseline against the step, then each variant's difference to it.

    Variants of one seed see the same patches, so that the difference, taken seed by seed and step
    by step, in percent of the baseline's loss, has little of the patches' noise. Lines are
    running means of the mean over seeds; the shade is ± one standard deviation over seeds. The
    differences share one scale, that of the second half of the training; what lies beyond it
    earlier is cut. Without a baseline the losses themselves are drawn.

    Returns:
        None if no run has a training log.
    """
    baseline = loss_curves(setting.baseline)
    shown: list[tuple[str, str, Curves, bool]] = []
    for label, key in plain_variants(setting):
        curves: Curves = loss_curves(setting.runs_of[key])
        relative = setting.runs_of[key] is not setting.baseline and bool(baseline)
        if relative:
            curves = difference_percent(curves, baseline)
        if curves:
            shown.append((label, json.loads(key)[0], curves, relative))
    if not shown:
        return None
    columns = min(PANELS, len(shown))
    rows = math.ceil(len(shown) / columns)
    width = COLUMN if columns == 1 else PAGE
    figure = new_figure(width, 0.7 + rows * (1.7 if rows == 1 else 1.3))
    draw_title(figure, setting)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for unused in grid.flat[len(shown) :]:
        unused.set_visible(False)
    differences: list[Axes] = []
    reach = 0.0
    for axis, (label, name, curves, relative) in zip(grid.flat, shown, strict=False):
        steps, values = table_of(curves)
        mean = values.mean(axis=0)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        colour: Any = "0.2" if name == "none" else COLOURS[style_of(name) % len(COLOURS)]
        axis.plot(steps, mean, color=colour)
        axis.fill_between(steps, mean - spread, mean + spread, color=colour, alpha=0.3, lw=0)
        axis.set_title(label)
        if relative:
            axis.axhline(0, color="0.2", ls=":", lw=1)
            differences.append(axis)
            reach = max(reach, float((np.abs(mean) + spread)[len(mean) // 2 :].max()))
        else:
            axis.set_ylabel("L1 loss")
    for axis in differences:
        axis.set_ylim(-1.1 * reach, 1.1 * reach)
        # Only the first difference of a row needs the scale.
        if axis is differences[0] or axis in grid[:, 0]:
            axis.set_ylabel("over baseline's (%)")
        else:
            axis.tick_params(labelleft=False)
    figure.supxlabel("training step", fontsize=8)
    return figure


def loss_curves(runs: Sequence[Record]) -> dict[int, dict[int, float]]:
    """``{seed: {step: L1 loss}}`` of the runs that have a log."""
    return {
        run["config"]["seed"]: {int(row[0]): row[1] for row in log}
        for run in runs
        if (log := run["training"].get("log"))
    }


def difference_percent(ours: Curves, theirs: Curves) -> dict[int, dict[int, float]]:
    """Losses over the baseline's, minus 1, in percent, where both have the seed and the step."""
    return {
        seed: {
            step: 100 * (loss / theirs[seed][step] - 1)
            for step, loss in ours[seed].items()
            if step in theirs[seed]
        }
        for seed in sorted(ours.keys() & theirs.keys())
    }


def table_of(curves: Curves) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps that all seeds have, and values ``[seeds, steps]``, both as running means."""
    common = sorted(set.intersection(*(set(curve) for curve in curves.values())))
    window = max(1, round(SMOOTHING * len(common)))
    table = np.array([common, *([curve[step] for step in common] for curve in curves.values())])
    smooth = np.lib.stride_tricks.sliding_window_view(table, window, axis=1).mean(axis=2)
    return smooth[0], smooth[1:]
