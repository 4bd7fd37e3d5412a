"""Training curves from made-up logs."""

from __future__ import annotations

import msgspec
import numpy as np
import pandas as pd
import pytest
import synthetic_records as synthetic

from harness.records.shapes import Run
from harness.reporting.figures.training import (
    difference_percent,
    loss_curves,
    smooth,
    training_figure,
)
from harness.reporting.settings import Setting

STEPS = 40


def logged(variant: str, seed: int, factor: float) -> Run:
    """A run whose loss at step s is factor · (1 + seed) / s."""
    record = synthetic.run(variant, seed)
    log = [[s, factor * (1 + seed) / s, 0.0] for s in range(1, STEPS + 1)]
    training = msgspec.structs.replace(record.training, log=log)
    return msgspec.structs.replace(record, training=training)


def test_differences_are_by_seed_and_step() -> None:
    runs = [logged("NLA", seed, 1.1 if seed else 0.9) for seed in (0, 1)]
    curves = difference_percent(
        loss_curves(runs), loss_curves([logged("Baseline", seed, 1.0) for seed in (0, 1, 2)])
    )
    assert list(curves.columns) == [0, 1]
    assert sorted(curves.index) == list(range(1, STEPS + 1))
    assert curves[0].to_numpy() == pytest.approx(-10.0)
    assert curves[1].to_numpy() == pytest.approx(10.0)


def test_running_means_are_over_steps_that_all_seeds_have() -> None:
    short = {s: float(s) for s in range(1, 31)}
    long = {s: 2.0 * s for s in range(1, 41)}
    values = smooth(pd.DataFrame({0: short, 1: long}))  # a window of 2 of 30 steps
    steps = [s + 0.5 for s in range(1, 30)]
    assert values.index.tolist() == steps
    assert values[0].tolist() == steps
    assert values[1].tolist() == [2 * step for step in steps]


def test_a_panel_for_the_loss_and_for_each_difference() -> None:
    runs = [logged("Baseline", seed, 1.0) for seed in (0, 1)]
    runs += [logged("NLA", seed, 1.1 if seed else 0.9) for seed in (0, 1)]
    runs += [logged("Criss-Cross", 0, 0.98)]
    figure = training_figure(Setting(runs, []))
    panels = {axis.texts[0].get_text(): axis for axis in figure.axes}
    assert list(panels) == ["Baseline", "NLA", "Criss-Cross"]
    assert panels["Baseline"].get_ylabel() == "L1 loss"
    loss = panels["Baseline"].get_lines()[0].get_xydata()
    raw = np.array([1.5 / s for s in range(1, STEPS + 1)])
    assert loss[:, 1] == pytest.approx((raw[:-1] + raw[1:]) / 2)
    nla = panels["NLA"].get_lines()[0].get_ydata()
    assert nla == pytest.approx(np.zeros(len(nla)), abs=1e-9)
    assert panels["Criss-Cross"].get_lines()[0].get_ydata() == pytest.approx(-2.0)
    (shade,) = panels["NLA"].collections
    heights = shade.get_paths()[0].vertices[:, 1]
    spread = np.std([-10, 10], ddof=1)
    assert (heights.min(), heights.max()) == pytest.approx((-spread, spread))
    assert panels["NLA"].get_ylim() == panels["Criss-Cross"].get_ylim()
    assert panels["NLA"].get_ylim()[1] > spread


def test_without_logs_there_is_no_figure_and_without_a_baseline_losses() -> None:
    assert training_figure(Setting([synthetic.run()], [])) is None
    figure = training_figure(Setting([logged("NLA", 0, 1.0)], []))
    assert [axis.get_ylabel() for axis in figure.axes] == ["L1 loss"]
