"""Figures of the profile: what is drawn is what the records say; labels keep apart."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import optimize

from harness.records.shapes import Run
from harness.records.store import save_record
from harness.reporting.figures.labels import label_ends, label_points, spread
from harness.reporting.figures.marks import style_of
from harness.reporting.figures.profile import highlighted, profile_figures
from harness.reporting.figures.style import house_style, look, new_figure
from harness.reporting.profile import find_profile, row_costs
from tests.harness.conftest import Cli

MS = (2, 16, 128)


def variant(name: str, **options: Any) -> dict[str, Any]:
    return synthetic.variant(name, **options, res_scale=1.0)


def runs_of(pairs: int) -> list[Run]:
    rows = [(variant("enlca", m=m), m / 200) for m in MS]
    rows += [(variant("nla"), 0.9), (variant("enla"), 0.5), (variant("window", window=16), 0.1)]
    rows += [(synthetic.variant("none"), 0.0)]
    return [
        synthetic.task_run(
            row,
            [score + 0.02, score + seed / 100, score - 0.02],
            seed=seed,
            options={"pairs": pairs},
            curve=[(100, score / 2), (200, score)],
        )
        for row, score in rows
        for seed in range(3)
    ]


def draw(runs: list[Run]) -> dict[str, Figure | None]:
    profile = find_profile(runs)
    costs = [synthetic.cost(variant("enlca", m=m), m / 100) for m in MS]
    costs += [synthetic.cost(variant("nla"), 25.6), synthetic.cost("Baseline", 0.0)]
    with house_style():
        return profile_figures(profile, row_costs(profile.rows, costs, []))


@pytest.fixture(scope="module")
def figures() -> dict[str, Figure]:
    return {kind: figure for kind, figure in draw(runs_of(4) + runs_of(16)).items() if figure}


def points(axis: Axes, name: str) -> list[tuple[float, float]]:
    """The points of lines in a module's colour and marker, without bars' ends."""
    style = look(style_of(name))
    return [
        (round(x, 6), round(y, 6))
        for line in axis.get_lines()
        if (line.get_marker(), line.get_color()) == (style["marker"], style["color"])
        for x, y in np.asarray(line.get_xydata()).tolist()
    ]


def test_recall_is_drawn_against_m_for_each_d(figures: dict[str, Figure]) -> None:
    left, right = figures["profile-capacity"].axes
    assert points(left, "enlca") == 2 * [(m, round(m / 200 + 0.01, 6)) for m in MS]
    assert points(left, "enla") == 2 * [(128.0, 0.51)]
    assert points(right, "window") == [(256.0, 0.11)]  # its area
    (legend,) = figures["profile-capacity"].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert {"ENLCA, D = 4", "ENLCA, D = 16", "NLA, D = 4", "ENLA"} <= {*names}
    assert len({*names}) == len(names)


def test_score_is_drawn_against_gflops_with_the_front(figures: dict[str, Figure]) -> None:
    (axis,) = figures["profile-gflops"].axes  # no row has all settings
    assert sorted(points(axis, "enlca")) == [(m / 100, round(m / 200 + 0.01, 6)) for m in MS]
    assert points(axis, "nla") == [(25.6, 0.91)]
    assert axis.get_ylabel() == "recall D=4: R² at 2n"
    (front,) = (line for line in axis.get_lines() if line.get_label() == "Pareto front")
    heights = np.asarray(front.get_ydata())
    assert (heights[0], heights[-1]) == pytest.approx((0.01, 0.91))
    assert (np.diff(heights) >= 0).all()
    shown = {text.get_text() for text in axis.texts}
    assert shown == {"NLA", *(f"ENLCA-m{m}" for m in MS)}


def test_score_is_drawn_against_side_distance_and_steps(figures: dict[str, Figure]) -> None:
    for kind, wanted in {
        "profile-size": [(1.0, 0.92), (2.0, 0.91), (4.0, 0.88)],
        "profile-distance": [(8.0, 0.88), (16.0, 0.87)],
    }.items():
        first, second = figures[kind].axes
        labels = [axis.get_ylabel() for axis in (first, second)]
        assert labels == ["recall D=4: R²", "recall D=16: R²"]
        assert points(first, "nla") == wanted
        assert {"NLA", "ENLCA-m128", "ENLCA-m16"} <= {text.get_text() for text in first.texts}
    axis = figures["profile-steps"].axes[0]
    colour = look(style_of("nla"))["color"]
    (line,) = (line for line in axis.get_lines() if line.get_color() == colour)
    assert np.asarray(line.get_xydata()) == pytest.approx(np.array([(100, 0.45), (200, 0.9)]))


def test_what_the_runs_do_not_suffice_for_is_not_drawn() -> None:
    drawn = draw([synthetic.task_run("Baseline", curve=[])])
    assert {kind for kind, figure in drawn.items() if figure} == {
        "profile-size",
        "profile-distance",
    }
    assert not any(draw([]).values())


def test_other_peoples_modules_stand_out() -> None:
    known = [synthetic.task_run(row) for row in (variant("nla"), variant("region"))]
    own = synthetic.task_run("User_Attention-8")
    shown = highlighted(find_profile([*known, own]))
    assert [row.label for row in shown] == ["User_Attention-8", "NLA"]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=7), st.floats(0.01, 0.5))
def test_labels_are_spread_as_little_as_possible(places: list[float], gap: float) -> None:
    found = spread(places, gap)
    order = sorted(range(len(places)), key=lambda i: (places[i], i))
    moved = [found[i] for i in order]
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(moved))
    # Least squares under these constraints, by a slow optimiser over gaps above the least.
    wanted = np.array([places[i] - rank * gap for rank, i in enumerate(order)])
    cumulative = np.tril(np.ones((len(places), len(places))))
    lower = np.array([-np.inf] + [0.0] * (len(places) - 1))
    slow = optimize.lsq_linear(cumulative, wanted, bounds=(lower, np.inf))
    best = float(((cumulative @ slow.x - wanted) ** 2).sum())
    ours = sum((found[i] - places[i]) ** 2 for i in order)
    assert ours <= best + 1e-6


def test_labels_of_crowded_points_do_not_overlap() -> None:
    with house_style():
        figure = new_figure(6.0, 4.0)
        axis = figure.subplots()
        xy = [(x / 10, y / 10) for x in range(4) for y in range(4)]
        axis.plot(*zip(*xy, strict=True), "o")
        axis.set_xlim(-1, 2)
        axis.set_ylim(-1, 2)
        label_points(axis, [(x, y, f"label {i}") for i, (x, y) in enumerate(xy)], 6)
        figure.draw_without_rendering()
    extents = [Text.get_window_extent(text) for text in axis.texts]  # without their arrows
    assert len(extents) == 16
    assert not any(a.overlaps(b) for a, b in combinations(extents, 2))


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_of_lines_that_end_together_do_not_overlap(scale: str) -> None:
    with house_style():
        figure = new_figure(6.0, 4.0)
        axis = figure.subplots()
        axis.set_yscale(scale)
        axis.set_ylim(1e-2, 1e4)
        ends = [(1.0, 0.02 if i < 5 else 1e3 + i, f"label {i}", "0.5") for i in range(16)]
        label_ends(axis, ends, 6)
        figure.draw_without_rendering()
    # Without their leaders, and a pixel of the space around letters.
    extents = [Text.get_window_extent(text).padded(-0.5) for text in axis.texts]
    assert len(extents) == 16
    assert not any(a.overlaps(b) for a, b in combinations(extents, 2))
    heights = {text.get_text(): extent.y0 for text, extent in zip(axis.texts, extents, strict=True)}
    assert all(heights[f"label {i}"] > heights["label 4"] for i in range(5, 16))


def test_files_of_one_task(cli: Cli, tmp_path: Path) -> None:
    for run in runs_of(4):
        save_record(tmp_path, run)
    save_record(tmp_path, synthetic.run("NLA"))
    printed = cli("figures", "--results", tmp_path, "--task", "recall").out.splitlines()
    names = {Path(line).stem for line in printed}
    assert names == {f"profile-{kind}" for kind in ("capacity", "size", "distance", "steps")}
    assert "no runs of task 'phase'" in cli.refused(
        "figures", "--results", tmp_path, "--task", "phase"
    )

    def tables(task: str) -> set[str]:
        cli("tables", "--results", tmp_path, "--task", task, "--output", tmp_path / task)
        return {path.stem for path in (tmp_path / task).rglob("*.csv")}

    assert tables("recall") == {"recall", "profile", "profile-details", "profile-findings"}
    assert "table4" in tables("sr")
    assert not {"recall", "profile"} & tables("sr")
    message = cli.refused("tables", "--results", tmp_path, "--task", "nonsense")
    assert message.endswith("there are runs of: recall, sr")
