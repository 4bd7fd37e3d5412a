"""Training curves from made-up logs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic

from harness.reporting.figures.training import (
    difference_percent,
    loss_curves,
    table_of,
    training_figure,
)
from harness.reporting.settings import Setting

STEPS = 40


def logged(variant: str, seed: int, factor: float) -> dict[str, Any]:
    """A run whose loss at step s is factor / s, in the log's columns step, loss."""
    record = synthetic.run(variant, seed)
    record["training"]["log"] = [[s, factor * (1 + seed) / s, 0.0] for s in range(1, STEPS + 1)]
    return record


def test_differences_are_by_seed_and_step() -> None:
    runs = [logged("NLA", seed, 1.1 if seed else 0.9) for seed in (0, 1)]
    curves = difference_percent(
        loss_curves(runs), loss_curves([logged("Baseline", seed, 1.0) for seed in (0, 1, 2)])
    )
    assert sorted(curves) == [0, 1]
    for seed, percent in ((0, -10.0), (1, 10.0)):
        assert sorted(curves[seed]) == list(range(1, STEPS + 1))
        assert all(value == pytest.approx(percent) for value in curves[seed].values())


def test_running_means_are_over_steps_that_all_seeds_have() -> None:
    short = {s: float(s) for s in range(1, 31)}
    long = {s: 2.0 * s for s in range(1, 41)}
    steps, values = table_of({0: short, 1: long})  # a window of 2 of 30 steps
    assert steps.tolist() == [s + 0.5 for s in range(1, 30)]
    assert values.tolist() == [steps.tolist(), (2 * steps).tolist()]


def test_a_panel_for_the_loss_and_for_each_difference() -> None:
    runs = [logged("Baseline", seed, 1.0) for seed in (0, 1)]
    runs += [logged("NLA", seed, 1.1 if seed else 0.9) for seed in (0, 1)]
    runs += [logged("Criss-Cross", 0, 0.98)]
    figure = training_figure(Setting(runs, []))
    assert figure is not None
    panels = {axis.get_title(): axis for axis in figure.axes}
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
    assert figure is not None
    assert [axis.get_ylabel() for axis in figure.axes] == ["L1 loss"]
