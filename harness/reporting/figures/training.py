"""Training curves: the baseline's loss, and every variant's loss relative to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...records.shapes import Run
from ..settings import Setting
from .marks import draw_title, highlighted, look_of, plain_variants, span
from .style import panel_grid, panel_label

#: Most panels in a row.
PANELS = 4
#: Curves are running means over this share of the training.
SMOOTHING = 0.05


def training_figure(setting: Setting) -> Figure | None:
    """L1 loss of the baseline against the step, then each variant's difference to it.

    Variants of one seed see the same patches. The difference is therefore taken seed by seed and
    step by step, in percent of the baseline's loss: little of the patches' noise is left. Lines
    are running means of the mean over seeds; the shade is ± one standard deviation over seeds. The
    differences share the scale of the second half of the training, which may cut earlier steps.
    Without a baseline, the losses themselves are drawn.

    Returns:
        None if no run has a training log.
    """
    baseline = loss_curves(setting.baseline)
    shown: list[tuple[str, str, pd.DataFrame, bool]] = []
    for label, variant in plain_variants(setting):
        curves = loss_curves(setting.runs_of[variant])
        relative = variant.name != "none" and not baseline.empty
        if relative:
            curves = difference_percent(curves, baseline)
        if not curves.empty:
            shown.append((label, variant.name, smooth(curves), relative))
    if not shown:
        return None
    figure, grid = panel_grid(
        len(shown), PANELS, lambda rows: 0.7 + rows * (1.7 if rows == 1 else 1.3), sharex=True
    )
    draw_title(figure, setting)
    differences: list[Axes] = []
    reaches: list[float] = []
    bright = highlighted(name for _, name, _, _ in shown)
    for axis, (label, name, curves, relative) in zip(grid.flat, shown, strict=False):
        mean, spread = curves.mean(axis=1), curves.std(axis=1).fillna(0.0)
        colour: Any = "0.2" if name == "none" else look_of(name, bright)["color"]
        axis.plot(mean.index, mean, color=colour)
        axis.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.3, lw=0)
        panel_label(axis, label)
        if relative:
            axis.axhline(0, color="0.2", ls=":", lw=1)
            differences.append(axis)
            reaches.append(float((mean.abs() + spread)[len(mean) // 2 :].max()))
        else:
            axis.set_ylabel("L1 loss")
    reach = span([(0.0, one) for one in reaches])[1] if reaches else 0.0
    for axis in differences:
        axis.set_ylim(-1.1 * reach, 1.1 * reach)
        # The scale stands at the first difference of each row.
        if axis is differences[0] or axis in grid[:, 0]:
            axis.set_ylabel("over baseline's (%)")
        else:
            axis.tick_params(labelleft=False)
    figure.supxlabel("training step", fontsize=8)
    return figure


def loss_curves(runs: Sequence[Run]) -> pd.DataFrame:
    """L1 loss by step and seed ``[steps, seeds]`` of the runs that have a log."""
    return pd.DataFrame(
        {
            run.config.seed: {int(row[0]): row[1] for row in run.training.log}
            for run in runs
            if run.training.log
        }
    )


def difference_percent(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Losses over the baseline's, minus 1, in percent, of the seeds and steps that both have."""
    return (100 * (ours / theirs - 1)).dropna(how="all").dropna(axis=1, how="all")


def smooth(curves: pd.DataFrame) -> pd.DataFrame:
    """Running means of the values and of the steps, over the steps that all seeds have."""
    common = curves.dropna().sort_index()
    window = max(1, round(SMOOTHING * len(common)))
    means = common.rolling(window).mean()
    return means.set_index(pd.Series(common.index).rolling(window).mean()).dropna()
