"""Figures of an approximation record."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...base.files import write_text
from ...records.origin import plural
from ...records.shapes import REFERENCE_K, REFERENCE_M, WHOLE
from ..approximation import VARIANCES, Row, _groups, _one, _select, _values
from ..tables.approximation import table
from .style import (
    COLOURS,
    COLUMN,
    MARKERS,
    PAGE,
    house_style,
    label_within_decades,
    new_figure,
    save_figure,
)

_MARGIN = 1.15  # inches beside the panels, for labels and their legends


def write_report(record: Row, results: Path) -> list[Path]:
    """Write ``figures/approximation-<id>.csv`` and its figures beside it; returns the paths.

    Raises:
        UserError: a folder cannot be written.
    """
    stem = f"approximation-{record['id']}"
    paths = [results / "figures" / f"{stem}.csv"]
    write_text(paths[0], table(record))
    for name, figure in figures(record).items():
        paths += save_figure(figure, results / "figures" / f"{stem}-{name}")
    return paths


def figures(record: Row) -> dict[str, Figure]:
    """Every figure that the record gives, by name."""
    if not _groups(record):
        return {}
    makers: dict[str, Callable[[Row], Figure]] = {}
    if record["enla"]:
        makers |= {
            "error": _error_figure,
            "variance": _variance_figure,
            "positions": _positions_figure,
            "output": _output_figure,
        }
    makers["nlsa"] = _nlsa_figure
    if record["enla"] and WHOLE in _groups(record):
        makers["modules"] = _modules_figure
    if record["network"]:
        makers["psnr"] = _psnr_figure
    with house_style():
        drawn = {name: make(record) for name, make in makers.items()}
        for figure in drawn.values():
            _draw_origin(figure, record)
    return drawn


def _draw_origin(figure: Figure, record: Row) -> None:
    """Network, data, device and number of redraws above a figure, which grows by their lines."""
    settings = record["settings"]
    text = "synthetic features"
    if network := settings["network"]:
        images, sets = network.get("images"), " + ".join(network.get("test_sets", []))
        text = f"network {network['name']}"
        if images:
            text += f", {plural(images, 'crop')} of {sets} ×{network['scale']}"
    if device := record.get("machine", {}).get("device"):
        text += f", {device}"
    text += f"; bars: ± one standard deviation over {settings['draws']} redraws"
    lines = textwrap.wrap(text, round(19.5 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.13 * len(lines))
    figure.suptitle("\n".join(lines), fontsize=6.5)


def _panels(record: Row, *labels: str, log: bool = False) -> tuple[Figure, Any, list[str]]:
    """A figure with a row of panels for each y label and a column for each group; the groups."""
    names = _groups(record)
    width = min(PAGE, max(COLUMN, _MARGIN + 1.95 * len(names)))
    figure = new_figure(width, 1.75 * len(labels) + 0.3)
    axes = figure.subplots(len(labels), len(names), squeeze=False, sharey="row")
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title("trained network" if name == WHOLE else f"{name} features")
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label)
        if log:
            row[0].set_yscale("log")
    return figure, axes, names


def plot_line(
    axis: Axes,
    rows: Iterable[Row],
    x: str,
    y: str,
    label: str,
    style: int,
    fill: Literal["none", "full"] = "none",
) -> None:
    """One line through the rows, with bars of ± one standard deviation where they have one.

    Markers are in outline unless filled: what lies below stays in sight. A bar that would reach
    below zero on a log axis, already scaled so, has its upper half only.
    """
    points = sorted(rows, key=lambda row: row[x])
    values = [row[y] for row in points]
    above = [row.get(f"{y}_std", 0.0) for row in points]
    log = axis.get_yscale() == "log"
    below = [0.0 if log and b >= v else b for v, b in zip(values, above, strict=True)]
    axis.errorbar(
        [row[x] for row in points],
        values,
        yerr=[below, above] if any(above) else None,
        label=label,
        color=COLOURS[style % len(COLOURS)],
        marker=MARKERS[style % len(MARKERS)],
        fillstyle=fill,
        capsize=1.5,
        elinewidth=0.8,
    )


def _plot_by_k(axis: Axes, rows: Sequence[Row], x: str, y: str) -> None:
    for style, k in enumerate(sorted({row["k"] for row in rows})):
        plot_line(axis, _select(rows, k=k), x, y, f"k = {k:g}", style)


def _label_x(axes: Sequence[Axes], x: str, values: Iterable[float], suffix: str = "") -> None:
    names = {
        "m": "random features m",
        "n": "positions N",
        "k": "amplification k",
        "rounds": "hash rounds r",
    }
    ticks = sorted(set(values))
    ticks = ticks[:: 1 + len(ticks) // 7]
    for axis in axes:
        if x in ("m", "n"):
            axis.set_xscale("log", base=2)
        axis.set_xticks(
            ticks[:: 1 + len(ticks) // 7], [f"{t:g}" for t in ticks[:: 1 + len(ticks) // 7]]
        )
        axis.minorticks_off()
        axis.set_xlabel(names[x] + suffix)


def _legend(axes: Sequence[Axes]) -> None:
    """The legend of a row of panels, to their right."""
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _log_counts(axis: Axes) -> None:
    """A log scale for numbers of a few powers of ten."""
    axis.set_yscale("log")
    label_within_decades(axis.yaxis)


def _at(record: Row, part: str, name: str, **values: Any) -> list[Row]:
    return _select(record[part], features=name, **values)


def _largest(record: Row) -> int:
    return max(record["settings"]["sides"]) ** 2


def _error_figure(record: Row) -> Figure:
    """Error of the output against m, and against N at the reference m; a line for each k."""
    figure, axes, names = _panels(record, *["relative error of output"] * 2, log=True)
    n = _largest(record)
    for column, name in enumerate(names):
        _plot_by_k(axes[0][column], _at(record, "enla", name, n=n), "m", "output_error")
        at_m = _at(record, "enla", name, m=REFERENCE_M)
        _plot_by_k(axes[1][column], at_m, "n", "output_error")
    for row in axes:
        _legend(row)
    _label_x(axes[0], "m", _values(record, "m"), f" (N = {n})")
    _label_x(axes[1], "n", _values(record, "n"), f" (m = {REFERENCE_M})")
    return figure


def _variance_figure(record: Row) -> Figure:
    """Variance of kernel values against k and m, and their median error against m."""
    labels = ("variance of φ(q)·φ(k)", "variance of φ(q)·φ(k)", "median relative error")
    figure, axes, names = _panels(record, *labels, log=True)
    n = _largest(record)
    for column, name in enumerate(names):
        for style, (quantity, label) in enumerate(VARIANCES.items()):
            at_m = _at(record, "enla", name, n=n, m=REFERENCE_M)
            plot_line(axes[0][column], at_m, "k", quantity, label, style)
            at_k = _at(record, "enla", name, n=n, k=REFERENCE_K)
            plot_line(axes[1][column], at_k, "m", quantity, label, style)
        _plot_by_k(axes[2][column], _at(record, "enla", name, n=n), "m", "kernel_error")
    for row, label in zip(
        axes,
        ("variance of φ(q)·φ(k)", "variance of φ(q)·φ(k)", "median relative error"),
        strict=True,
    ):
        row[0].set_yscale("log")
        row[0].set_ylabel(label)
        _legend(row)
    _label_x(axes[0], "k", _values(record, "k"), f" (m = {REFERENCE_M})")
    _label_x(axes[1], "m", _values(record, "m"), f" (k = {REFERENCE_K:g})")
    _label_x(axes[2], "m", _values(record, "m"))
    return figure


def _positions_figure(record: Row) -> Figure:
    """Effective number of attended positions against k, m and N; exact attention has no m."""
    figure, axes, names = _panels(record, *["attended positions"] * 3, log=True)
    n = _largest(record)
    measures = {"positions_entropy": "exp(entropy)", "positions_simpson": "1 / sum of squares"}
    for column, name in enumerate(names):
        exact = _at(record, "exact", name, n=n)
        exact_by_n = _at(record, "exact", name, k=REFERENCE_K)
        ours = _at(record, "enla", name, n=n, m=REFERENCE_M)
        ours_by_m = _at(record, "enla", name, n=n, k=REFERENCE_K)
        ours_by_n = _at(record, "enla", name, m=REFERENCE_M, k=REFERENCE_K)
        for style, (quantity, words) in enumerate(measures.items()):
            label = f"exact, {words}"
            plot_line(axes[0][column], exact, "k", quantity, label, style)
            level = _one(exact_by_n, n=n)[quantity]
            flat = [{"m": row["m"], quantity: level} for row in ours_by_m]
            plot_line(axes[1][column], flat, "m", quantity, label, style)
            plot_line(axes[2][column], exact_by_n, "n", quantity, label, style)
        for style, (quantity, words) in enumerate(measures.items(), start=2):
            label = f"ENLA, {words}"
            plot_line(axes[0][column], ours, "k", quantity, label, style)
            plot_line(axes[1][column], ours_by_m, "m", quantity, label, style)
            plot_line(axes[2][column], ours_by_n, "n", quantity, label, style)
    for row in axes:
        _log_counts(row[0])
        _legend(row)
    _label_x(axes[0], "k", _values(record, "k"), f" (m = {REFERENCE_M})")
    _label_x(axes[1], "m", _values(record, "m"), f" (k = {REFERENCE_K:g})")
    _label_x(axes[2], "n", _values(record, "n"), f" (k = {REFERENCE_K:g})")
    return figure


def _output_figure(record: Row) -> Figure:
    """How near the output is to a plain mean, and what ENLA keeps of the rest."""
    figure, axes, names = _panels(record, "share of output's norm", "cosine of variations")
    n = _largest(record)
    for column, name in enumerate(names):
        exact = _at(record, "exact", name, n=n)
        ours = _at(record, "enla", name, n=n, m=REFERENCE_M)
        plot_line(axes[0][column], exact, "k", "mean_distance", "exact: away from mean", 0)
        plot_line(axes[0][column], exact, "k", "variation", "exact: over queries", 1)
        plot_line(axes[0][column], ours, "k", "mean_distance", "ENLA: away from mean", 2)
        plot_line(axes[0][column], ours, "k", "variation", "ENLA: over queries", 3)
        _plot_by_k(axes[1][column], _at(record, "enla", name, n=n), "m", "cosine")
    for row in axes:
        _legend(row)
    _label_x(axes[0], "k", _values(record, "k"), f" (m = {REFERENCE_M})")
    _label_x(axes[1], "m", _values(record, "m"))
    return figure


def _nlsa_figure(record: Row) -> Figure:
    """What the buckets catch against the rounds, and after four rounds against N."""
    figure, axes, names = _panels(record, *["share caught"] * 2)
    rounds = min(4, record["settings"]["rounds"])
    top = record["settings"]["top"]
    quantities = {
        "mass": "mass",
        "mass_others": "mass on others",
        "recall": f"recall of top {top}",
        "seen": "positions seen",
    }
    for column, name in enumerate(names):
        for style, (quantity, label) in enumerate(quantities.items()):
            at_n = _at(record, "nlsa", name, n=_largest(record))
            plot_line(axes[0][column], at_n, "rounds", quantity, label, style)
            at_r = _at(record, "nlsa", name, rounds=rounds)
            plot_line(axes[1][column], at_r, "n", quantity, label, style)
    for row in axes:
        row[0].set_ylim(0, 1.03)
        _legend(row)
    _label_x(axes[0], "rounds", (r["rounds"] for r in record["nlsa"]), f" (N = {_largest(record)})")
    _label_x(axes[1], "n", (r["n"] for r in record["nlsa"]), f" (r = {rounds})")
    return figure


def _modules_figure(record: Row) -> Figure:
    """The modules one by one at the reference m: attended positions, error, variation kept."""
    figure = new_figure(PAGE, 2.3)
    axes = figure.subplots(1, 3)
    names = [n for n in dict.fromkeys(r["features"] for r in record["exact"]) if n[-1].isdigit()]
    n = _largest(record)
    for style, name in enumerate(names):
        exact = _at(record, "exact", name, n=n)
        ours = _at(record, "enla", name, n=n, m=REFERENCE_M)
        plot_line(axes[0], exact, "k", "positions_entropy", name, style)
        plot_line(axes[1], exact, "k", "mean_distance", name, style)
        plot_line(axes[2], ours, "k", "cosine", name, style)
    titles = ("attended positions, exact", "away from mean, exact", "cosine of variations, ENLA")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
    _log_counts(axes[0])
    _legend(axes)
    _label_x(axes, "k", _values(record, "k"))
    return figure


def _psnr_figure(record: Row) -> Figure:
    """PSNR of the trained network with its attention replaced, against m."""
    figure = new_figure(COLUMN, 2.4)
    axis = figure.subplots()
    ours = [row for row in record["network"] if row["m"] is not None]
    plot_line(axis, ours, "m", "psnr", "ENLA, F redrawn", 0)
    names = {"exact": "exact softmax", "mean": "mean of values", "none": "no attention"}
    dashes = ("-", "--", ":")
    for style, row in enumerate(r for r in record["network"] if r["m"] is None):
        axis.axhline(
            row["psnr"], color=COLOURS[style + 1], ls=dashes[style], label=names[row["attention"]]
        )
    network = record["settings"]["network"]
    sets = " + ".join(network["test_sets"])
    crops = plural(network["images"], "crop")
    axis.set_ylabel(f"PSNR (dB), {crops} of {sets} ×{network['scale']}")
    axis.ticklabel_format(axis="y", useOffset=False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _label_x([axis], "m", (row["m"] for row in ours))
    return figure
