"""Figures of the capability profile: against capacity, cost, size of the image, distance, steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ...config.profile import PROFILE
from ...config.rows import table_rows
from ...config.variants import Variant
from ..findings import fitted_laws, law_points
from ..predictions import PAIRS, SIZES
from ..profile import Profile, ProfileCell, ProfileRow, RowCost
from ..statistics import Estimate
from .labels import label_ends, label_points
from .marks import HIGHLIGHTS, POINTS, look_of, pareto_front, style_of
from .marks import highlighted as highlighted_modules
from .style import COLUMN, PAGE, log_scale, look, new_figure, panel_grid

#: Rows that figures of one line a row highlight, the first that have runs; the rest is grey.
HIGHLIGHTED = (
    *(Variant("nla"), Variant("enlca"), Variant("enlca", {"m": 16}), Variant("nlsa")),
    *(Variant("criss-cross"), Variant("mean"), Variant("performer"), Variant("nystrom")),
    *(Variant("agent"), Variant("window", {"window": 16}), Variant("oracle"), Variant("none")),
)
#: Most highlighted rows.
MOST = HIGHLIGHTS
# What a module can hold, and in which words, from its options.
_CAPACITIES: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "nlsa": ("chunk × rounds", lambda o: o["chunk_size"] * o["rounds"]),
    "window": ("window area", lambda o: o["window"] ** 2),
    "shifted-window": ("window area", lambda o: o["window"] ** 2),
    "nlrn": ("window area", lambda o: o["window"] ** 2),
    "agent": ("agents", lambda o: o["grid"] ** 2),
    "nystrom": ("landmarks", lambda o: o["grid"] ** 2),
    "atd": ("tokens", lambda o: o["tokens"]),
    "mdta": ("heads", lambda o: o["heads"]),
    "performer": ("features", lambda o: o["m"]),
    "hedgehog": ("features", lambda o: o["m"]),
    "top-k": ("entries", lambda o: o["k"]),
    "hspa": ("entries", lambda o: o["k"]),
    "token-cluster": ("group", lambda o: o["group_size"]),
    "neighbourhood": ("window area", lambda o: o["window"] ** 2),
    "overlap-window": ("window area", lambda o: ((1 + o["overlap"]) * o["window"]) ** 2),
    "permuted-window": ("window area", lambda o: o["window"] ** 2),
    "patch-knn": ("window area", lambda o: o["window"] ** 2),
    "gated-delta": ("state", lambda o: o["state"]),
    "selective-scan": ("state", lambda o: o["state"]),
}
# Below it no score is drawn: a network that diverged says nothing by how much.
_FLOOR = -0.25
_LABELS = 6.0
_ROWS = table_rows("profile")
# Cheaper cores stand at the left edge, with an arrow.
_LEAST = 0.003
_STYLES = dict(zip(PAIRS, ("-", "--"), strict=True))


def profile_figures(profile: Profile, costs: Mapping[Variant, RowCost]) -> dict[str, Figure | None]:
    """Every figure by its kind; None where the runs do not suffice."""
    return {
        "profile-capacity": capacity_figure(profile),
        "profile-gflops": gflops_figure(profile, costs),
        "profile-size": size_figure(profile),
        "profile-distance": distance_figure(profile),
        "profile-steps": steps_figure(profile),
    }


def capacity_figure(profile: Profile) -> Figure | None:
    """R² of recall at 2n against m of ENLCA, a line for each D; beside it other methods.

    The thin lines are the fitted laws. ENLA and Performer are open markers. Bars are 95 %
    intervals over seeds.

    Returns:
        None if ENLCA has fewer than three m in every setting.
    """
    points = {label: law_points(profile, label) for label in PAIRS}
    points = {label: found for label, found in points.items() if len(found) >= POINTS}
    if not points:
        return None
    others = _capacities(profile)
    figure = new_figure(PAGE if others else COLUMN, 2.9)
    left, *right = figure.subplots(1, 2 if others else 1, squeeze=False, sharey=True)[0]
    laws = fitted_laws(profile)
    for label, found in points.items():
        _errorbar(
            left,
            list(found),
            list(found.values()),
            0,
            ls=_STYLES[label],
            label=f"ENLCA, D = {PAIRS[label]}",
        )
        if label in laws:
            m = np.geomspace(min(found), max(found), 60)
            values = [laws[label].law.at(one) for one in m]
            left.plot(m, values, color="0.3", lw=0.6, ls=_STYLES[label], zorder=1)
        for name, text in (("enla", "ENLA"), ("performer", "Performer")):
            for row in profile.rows:
                if (
                    row.variant.name == name
                    and set(row.variant.options) <= {"m"}
                    and (one := row.score(label, 1))
                ):
                    x = float(row.recorded.options["m"])
                    first = text not in left.get_legend_handles_labels()[1]
                    _errorbar(
                        left,
                        [x],
                        [one],
                        style_of(name),
                        fillstyle="none",
                        ls="",
                        label=text if first else None,
                    )
    nla = profile.row("nla")
    for label in points:
        if nla and (one := nla.score(label, 1)):
            colour = look(style_of("nla"))["color"]
            left.axhline(
                one.mean,
                color=colour,
                lw=0.9,
                ls=_STYLES[label],
                zorder=0.5,
                label=f"NLA, D = {PAIRS[label]}",
            )
    ticks = sorted({m for found in points.values() for m in found})
    log_scale(left, "x", 2)
    left.set_xticks(ticks, [f"{m:g}" for m in ticks])
    left.minorticks_off()
    left.set_xlabel("random features m")
    left.set_ylabel("recall R² at 2n")
    handles, names = left.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=3 if others else 2, frameon=False
    )
    for axis in right:
        _draw_capacities(axis, others)
    _limit([left, *right])
    for axis in right:
        label_points(
            axis,
            [
                (x, one.mean, text if place == len(found) else "")
                for found in others.values()
                for place, (x, one, text) in enumerate(found, 1)
            ],
            _LABELS,
        )
    return figure


def gflops_figure(profile: Profile, costs: Mapping[Variant, RowCost]) -> Figure | None:
    """Score against the core's GFLOPs with the Pareto front: recall at 2n, and the aggregate.

    Controls that know the answer or have no cost are left out. The baseline, which costs nothing,
    is the dotted line.

    Returns:
        None if fewer than three rows have a score and a cost.
    """
    label = PROFILE[0].label
    measures: dict[str, Callable[[ProfileRow], Estimate | None]] = {
        f"{label}: R² at 2n": lambda row: row.score(label, 1),
        "aggregate": lambda row: row.aggregate,
    }
    panels = {}
    for name, measure in measures.items():
        found = [
            (row, gflops, one)
            for row in profile.rows
            if row.variant.name != "oracle"
            and (gflops := costs[row.variant].gflops)
            and (one := measure(row))
        ]
        if len(found) >= POINTS:
            panels[name] = found
    if not panels:
        return None
    figure = new_figure(PAGE, 3.4 * len(panels))
    grid: list[Axes] = list(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
    baseline = profile.row("none")
    for axis, (name, found) in zip(grid, panels.items(), strict=True):
        low = max(min(g for _, g, _ in found), _LEAST) / 3
        high = max(g for _, g, _ in found) * 3
        level = measures[name](baseline) if baseline else None
        pairs = [(gflops, one.mean) for _, gflops, one in found]
        front = pareto_front([(0.0, level.mean), *pairs] if level else pairs)
        log_scale(axis, "x")
        axis.set_xlim(low, high)
        axis.plot(
            [*(max(cost, low) for cost, _ in front), high],
            [*(score for _, score in front), front[-1][1]],
            drawstyle="steps-post",
            color="0.8",
            lw=2.5,
            zorder=0.5,
            label="Pareto front",
        )
        if level:
            axis.axhline(level.mean, color="0.2", ls=":", lw=1, label="baseline", zorder=1)
        bright = highlighted_modules(row.variant.name for row, _, _ in found)
        for row, gflops, one in found:
            module = row.variant.name
            extra = {} if module in bright else look_of(module, bright)
            _errorbar(axis, [max(gflops, low)], [one], style_of(module, bright), ls="", **extra)
        axis.set_ylabel(name)
        handles, names = axis.get_legend_handles_labels()
        axis.legend(handles, names, loc="upper left", frameon=False)
    grid[-1].set_xlabel("core GFLOPs at 100×100, C = 64")
    _limit(grid)
    for axis, found in zip(grid, panels.values(), strict=True):
        left = axis.get_xlim()[0]
        label_points(
            axis,
            [
                (max(x, left), one.mean, row.label if x > left else f"← {row.label}")
                for row, x, one in found
            ],
            _LABELS,
        )
    return figure


def size_figure(profile: Profile) -> Figure | None:
    """Score against the side of the test image, n, 2n and 4n: a line a row, a panel a setting."""

    def line(cell: ProfileCell) -> list[tuple[float, Estimate]]:
        scores = ((2.0**size, cell.score(size)) for size in range(len(cell.test_sets)))
        return [(place, one) for place, one in scores if one]

    def finish(axis: Axes) -> None:
        log_scale(axis, "x", 2)
        axis.set_xticks([1, 2, 4], SIZES)
        axis.minorticks_off()

    return _lines(profile, line, "side of the test image (trained at n)", finish)


def distance_figure(profile: Profile) -> Figure | None:
    """Score on the largest test set against the distance between a query and its reference."""
    return _lines(
        profile,
        lambda cell: [(float(d), one) for d, one in cell.by_distance(len(cell.test_sets) - 1)],
        "distance to the reference (input pixels, up to), at 4n",
    )


def steps_figure(profile: Profile) -> Figure | None:
    """Score on validation images against training steps: a line a row, a panel a setting."""
    return _lines(
        profile,
        lambda cell: [(float(step), one) for step, one in cell.curve()],
        "training step",
        marked=False,
    )


def highlighted(profile: Profile) -> list[ProfileRow]:
    """Rows that stand out: other people's first, then those of ``HIGHLIGHTED``; at most six."""
    own = [row for row in profile.rows if not row.recorded.built_in]
    known = {row.variant: row for row in profile.rows}
    found = [*own, *(known[variant] for variant in HIGHLIGHTED if variant in known)]
    return found[:MOST]


def _lines(
    profile: Profile,
    line: Callable[[ProfileCell], list[tuple[float, Estimate]]],
    x: str,
    finish: Callable[[Axes], object] | None = None,
    *,
    marked: bool = True,
) -> Figure | None:
    """A panel for each setting, in it a line for each row; None without a line of two points."""
    drawn = {
        task.label: found
        for task in profile.tasks
        if (
            found := [
                (row, points)
                for row in profile.rows
                if task.label in row.cells and len(points := line(row.cells[task.label])) > 1
            ]
        )
    }
    if not drawn:
        return None
    shown = highlighted(profile)
    figure, grid = panel_grid(len(drawn), 2, lambda rows: 2.6 * rows)
    axes: list[Axes] = list(grid.flat[: len(drawn)])
    ends: dict[int, list[tuple[float, float, str, Any]]] = {}
    for axis, (label, found) in zip(axes, drawn.items(), strict=True):
        metric = found[0][0].cells[label].found(0)
        name = next(iter(metric.values())).metric
        axis.set_ylabel(f"{label}: {name}")
        axis.set_xlabel(x)
        ends[id(axis)] = []
        for row, points in found:
            places, scores = [place for place, _ in points], [one for _, one in points]
            means = [one.mean for one in scores]
            if row not in shown:
                axis.plot(places, means, color="0.85", lw=0.7, zorder=1)
                continue
            index = style_of(row.variant.name, (r.variant.name for r in shown))
            style = look(index)
            second = any(r.variant.name == row.variant.name for r in shown[: shown.index(row)])
            extra: dict[str, Any] = {"ls": "--", "fillstyle": "none"} if second else {}
            if marked:
                _errorbar(axis, places, scores, index, **extra)
            else:
                low = [one.mean - one.reach for one in scores]
                high = [one.mean + one.reach for one in scores]
                axis.plot(places, means, color=style["color"], ls=extra.get("ls", "-"))
                axis.fill_between(places, low, high, color=style["color"], alpha=0.15, lw=0)
            ends[id(axis)].append((places[-1], means[-1], row.label, style["color"]))
        if finish:
            finish(axis)
    _limit(axes)
    for axis in axes:
        label_ends(axis, ends[id(axis)], _LABELS)
    return figure


def _capacities(profile: Profile) -> dict[str, list[tuple[float, Estimate, str]]]:
    """By module, from the smallest: capacity, R² at 2n of the first setting, and a label."""
    label = PROFILE[0].label
    found: dict[str, list[tuple[float, Estimate, str]]] = {}
    for row in profile.rows:
        name = row.variant.name
        if name in _CAPACITIES and row.variant in _ROWS and (one := row.score(label, 1)):
            words, capacity = _CAPACITIES[name]
            place = float(capacity(row.recorded.options))
            text = f"{row.recorded.label.partition('-')[0]}: {words}"
            found.setdefault(name, []).append((place, one, text))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items()}


def _draw_capacities(
    axis: Axes, others: Mapping[str, Sequence[tuple[float, Estimate, str]]]
) -> None:
    for name, points in others.items():
        places, scores = [place for place, _, _ in points], [one for _, one, _ in points]
        _errorbar(axis, places, scores, style_of(name), lw=0.8)
    log_scale(axis, "x", 2)
    axis.set_xlim(0.5, 4096)
    ticks = [4**power for power in range(7)]
    axis.set_xticks(ticks, list(map(str, ticks)))
    axis.minorticks_off()
    axis.set_xlabel(f"capacity of other methods, D = {next(iter(PAIRS.values()))}")


def _errorbar(
    axis: Axes, x: Sequence[float], found: Sequence[Estimate], style: int, **changes: Any
) -> Line2D:
    """A line through means, with bars of 95 % intervals where there are several seeds."""
    reaches = [one.reach for one in found]
    bars = axis.errorbar(
        x,
        [one.mean for one in found],
        yerr=reaches if any(reaches) else None,
        capsize=1.5,
        elinewidth=0.7,
        **look(style) | changes,
    )
    return bars.lines[0]


def _limit(axes: Sequence[Axes]) -> None:
    """Scores from the lowest that is drawn, not below :data:`_FLOOR`, to just above 1."""
    low = min(-0.04, *(axis.get_ylim()[0] for axis in axes))
    for axis in axes:
        axis.set_ylim(max(low, _FLOOR), 1.04)
