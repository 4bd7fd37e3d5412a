"""Figures of an approximation record."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...base.files import write_text
from ...records.origin import plural
from ...records.shapes import REFERENCE_K, REFERENCE_M, WHOLE, Approximation
from ..approximation import VARIANCES, groups, select
from ..tables.approximation import table
from .marks import plot_line, points_of
from .style import (
    COLOURS,
    COLUMN,
    PAGE,
    house_style,
    label_within_decades,
    log_scale,
    new_figure,
    save_figure,
)

_MARGIN = 1.15  # inches beside the panels, for labels and their legends
_MOST_TICKS = 7
_AXES = {
    "m": "random features m",
    "n": "positions N",
    "k": "amplification k",
    "rounds": "hash rounds r",
}


@dataclass(frozen=True)
class _Line:
    """A quantity of the rows of one part, as the record names them, with the values ``at``."""

    part: str
    quantity: str
    label: str
    at: Mapping[str, float]


@dataclass(frozen=True)
class _Panel:
    """Lines over one of ``_AXES``, drawn for each group of features; ``note`` stands below."""

    label: str
    x: str
    lines: Sequence[_Line]
    note: str = ""


def write_report(record: Approximation, results: Path) -> list[Path]:
    """Write ``figures/approximation-<id>.csv`` and its figures beside it; returns the paths.

    Raises:
        UserError: a folder cannot be written.
    """
    stem = results / "figures" / f"approximation-{record.id}"
    paths = [stem.with_name(f"{stem.name}.csv")]
    write_text(paths[0], table(record))
    for name, figure in figures(record).items():
        paths += save_figure(figure, stem.with_name(f"{stem.name}-{name}"))
    return paths


def figures(record: Approximation) -> dict[str, Figure]:
    """Every figure that the record gives, by name."""
    if not groups(record):
        return {}
    drawn: dict[str, Figure] = {}
    with house_style():
        if record.enla:
            drawn["error"] = _grid(record, _error_panels(record), log=True)
            drawn["variance"] = _grid(record, _variance_panels(record), log=True)
            drawn["positions"] = _grid(record, _positions_panels(record), log=True, counts=True)
            drawn["output"] = _grid(record, _output_panels(record))
        drawn["nlsa"] = _grid(record, _nlsa_panels(record), limits=(0, 1.03))
        if record.enla and WHOLE in groups(record):
            drawn["modules"] = _modules_figure(record)
        if record.network:
            drawn["psnr"] = _psnr_figure(record)
        for figure in drawn.values():
            _draw_origin(figure, record)
    return drawn


def _error_panels(record: Approximation) -> list[_Panel]:
    """Error of the output against m, and against N at the reference m."""
    label, n = "relative error of output", _largest(record)
    by_m = _lines_by_k(record, "output_error", n=n)
    by_n = _lines_by_k(record, "output_error", m=REFERENCE_M)
    return [_Panel(label, "m", by_m, f"N = {n}"), _Panel(label, "n", by_n, f"m = {REFERENCE_M}")]


def _variance_panels(record: Approximation) -> list[_Panel]:
    """Variance of kernel values against k and m, and their median error against m."""
    label, n = "variance of φ(q)·φ(k)", _largest(record)

    def variances(**at: float) -> list[_Line]:
        return [_Line("enla", quantity, text, at) for quantity, text in VARIANCES.items()]

    return [
        _Panel(label, "k", variances(n=n, m=REFERENCE_M), f"m = {REFERENCE_M}"),
        _Panel(label, "m", variances(n=n, k=REFERENCE_K), f"k = {REFERENCE_K:g}"),
        _Panel("median relative error", "m", _lines_by_k(record, "kernel_error", n=n)),
    ]


def _positions_panels(record: Approximation) -> list[_Panel]:
    """Effective number of attended positions against k, m and N; exact attention has no m."""
    label, n = "attended positions", _largest(record)
    measures = {"positions_entropy": "exp(entropy)", "positions_simpson": "1 / sum of squares"}

    def both(**at: float) -> list[_Line]:
        exact = {key: value for key, value in at.items() if key != "m"}
        return [
            *(_Line("exact", q, f"exact, {words}", exact) for q, words in measures.items()),
            *(_Line("enla", q, f"ENLA, {words}", at) for q, words in measures.items()),
        ]

    return [
        _Panel(label, "k", both(n=n, m=REFERENCE_M), f"m = {REFERENCE_M}"),
        _Panel(label, "m", both(n=n, k=REFERENCE_K), f"k = {REFERENCE_K:g}"),
        _Panel(label, "n", both(m=REFERENCE_M, k=REFERENCE_K), f"k = {REFERENCE_K:g}"),
    ]


def _output_panels(record: Approximation) -> list[_Panel]:
    """How near the output is to a plain mean, and what ENLA keeps of the rest."""
    n = _largest(record)
    shares = {"mean_distance": "away from mean", "variation": "over queries"}
    of = {"exact": ("exact", {"n": n}), "ENLA": ("enla", {"n": n, "m": REFERENCE_M})}
    lines = [
        _Line(part, quantity, f"{name}: {words}", at)
        for name, (part, at) in of.items()
        for quantity, words in shares.items()
    ]
    return [
        _Panel("share of output's norm", "k", lines, f"m = {REFERENCE_M}"),
        _Panel("cosine of variations", "m", _lines_by_k(record, "cosine", n=n)),
    ]


def _nlsa_panels(record: Approximation) -> list[_Panel]:
    """What the buckets catch against the rounds, and after four rounds against N."""
    n, rounds = _largest(record), min(4, record.settings.rounds)
    quantities = {
        "mass": "mass",
        "mass_others": "mass on others",
        "recall": f"recall of top {record.settings.top}",
        "seen": "positions seen",
    }

    def caught(**at: float) -> list[_Line]:
        return [_Line("nlsa", quantity, text, at) for quantity, text in quantities.items()]

    return [
        _Panel("share caught", "rounds", caught(n=n), f"N = {n}"),
        _Panel("share caught", "n", caught(rounds=rounds), f"r = {rounds}"),
    ]


def _modules_figure(record: Approximation) -> Figure:
    """The modules one by one at the reference m: attended positions, error, variation kept."""
    figure = new_figure(PAGE, 2.3)
    axes = figure.subplots(1, 3)
    n = _largest(record)
    panels = {
        "attended positions, exact": _Line("exact", "positions_entropy", "", {"n": n}),
        "away from mean, exact": _Line("exact", "mean_distance", "", {"n": n}),
        "cosine of variations, ENLA": _Line("enla", "cosine", "", {"n": n, "m": REFERENCE_M}),
    }
    names = [n for n in dict.fromkeys(r["features"] for r in record.exact) if n[-1].isdigit()]
    for axis, (title, line) in zip(axes, panels.items(), strict=True):
        for style, name in enumerate(names):
            plot_line(axis, _points(record, line, "k", name), name, style)
        axis.set_ylabel(title)
        _label_x(axis, "k", _values(record, "k"))
    log_scale(axes[0], "y")
    label_within_decades(axes[0].yaxis)
    _legend(axes)
    return figure


def _psnr_figure(record: Approximation) -> Figure:
    """PSNR of the trained network with its attention replaced, against m."""
    figure = new_figure(COLUMN, 2.4)
    axis = figure.subplots()
    ours = [row for row in record.network if row["m"] is not None]
    plot_line(axis, points_of(ours, "m", "psnr"), "ENLA, F redrawn", 0)
    names = {"exact": "exact softmax", "mean": "mean of values", "none": "no attention"}
    fixed = (row for row in record.network if row["m"] is None)
    for row, colour, dash in zip(fixed, COLOURS[1:], ("-", "--", ":"), strict=False):
        axis.axhline(row["psnr"], color=colour, ls=dash, label=names[row["attention"]])
    if network := record.settings.network:
        crops = f"{plural(network.images, 'crop')} of {' + '.join(network.test_sets)}"
        axis.set_ylabel(f"PSNR (dB), {crops} ×{network.scale}")
    axis.ticklabel_format(axis="y", useOffset=False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    _label_x(axis, "m", {row["m"] for row in ours})
    return figure


def _grid(
    record: Approximation,
    panels: Sequence[_Panel],
    *,
    log: bool = False,
    counts: bool = False,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A row for each panel, a column for each group of features.

    Args:
        record: what was measured.
        panels: from top to bottom.
        log: the values are on log scales.
        counts: they span few powers of ten.
        limits: the range of values.
    """
    names = groups(record)
    width = min(PAGE, max(COLUMN, _MARGIN + 1.95 * len(names)))
    figure = new_figure(width, 1.75 * len(panels) + 0.3)
    axes = figure.subplots(len(panels), len(names), squeeze=False, sharey="row")
    for row, panel in zip(axes, panels, strict=True):
        row[0].set_ylabel(panel.label)
        if log:
            log_scale(row[0], "y")
        for axis, name in zip(row, names, strict=True):
            drawn = [_points(record, line, panel.x, name) for line in panel.lines]
            for style, (line, points) in enumerate(zip(panel.lines, drawn, strict=True)):
                plot_line(axis, points, line.label, style)
            ticks = {x for points in drawn for x, _, _ in points}
            _label_x(axis, panel.x, ticks, f" ({panel.note})" if panel.note else "")
        if counts:
            label_within_decades(row[0].yaxis)
        if limits:
            row[0].set_ylim(limits)
        _legend(row)
    for axis, name in zip(axes[-1], names, strict=True):  # the columns, which no title names
        features = "trained network" if name == WHOLE else f"{name} features"
        axis.set_xlabel(f"{axis.get_xlabel()}\n{features}")
    return figure


def _points(
    record: Approximation, line: _Line, x: str, features: str
) -> list[tuple[float, float, float]]:
    rows = select(getattr(record, line.part), features=features, **line.at)
    if line.part == "exact" and x == "m":  # the same whatever the m
        rows = [row | {"m": m} for m in _values(record, "m") for row in rows]
    return points_of(rows, x, line.quantity)


def _lines_by_k(record: Approximation, quantity: str, **at: float) -> list[_Line]:
    """A line of ENLA for each k."""
    ks = _values(record, "k")
    return [_Line("enla", quantity, f"k = {k:g}", {"k": k, **at}) for k in ks]


def _label_x(axis: Axes, x: str, values: Iterable[float], note: str = "") -> None:
    if x in ("m", "n"):
        log_scale(axis, "x", 2)
    ticks = sorted(values)
    ticks = ticks[:: 1 + len(ticks) // _MOST_TICKS]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel(_AXES[x] + note)


def _legend(axes: Sequence[Axes]) -> None:
    """The legend of a row of panels, to their right."""
    axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _draw_origin(figure: Figure, record: Approximation) -> None:
    """Network, data, device and number of redraws above a figure, which grows by their lines."""
    text = "synthetic features"
    if network := record.settings.network:
        text = f"network {network.name}"
        if network.images:
            sets = " + ".join(network.test_sets)
            text += f", {plural(network.images, 'crop')} of {sets} ×{network.scale}"
    if device := record.machine.device:
        text += f", {device}"
    text += f"; bars: ± one standard deviation over {record.settings.draws} redraws"
    lines = textwrap.wrap(text, round(19.5 * figure.get_figwidth()))
    figure.set_figheight(figure.get_figheight() + 0.13 * len(lines))
    figure.suptitle("\n".join(lines), fontsize=6.5)


def _largest(record: Approximation) -> int:
    """The largest N."""
    return max(record.settings.sides) ** 2


def _values(record: Approximation, key: str) -> list[float]:
    """Every m or k of ENLA that was measured."""
    return sorted({row[key] for row in record.enla})
