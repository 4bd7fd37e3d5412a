"""Figures of the ENLCA paper from the records alone.

``python -m harness.figures`` draws, for every setting whose runs suffice, each as PNG and PDF.
No model, image or GPU is used, and the same records give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from attention_zoo import find_attention

from .approximation_report import REFERENCE_M, VARIANCES, WHOLE, plot_line
from .errors import UserError, command_line, usage_errors
from .plotting import COLOURS, COLUMN, MARKERS, house_style, new_figure, save_figure
from .records import load_records
from .settings import Record, Setting, by_age, find_settings
from .statistics import Summary


def figure6(setting: Setting, approximations: Sequence[Record]) -> Figure | None:
    """PSNR against the amplification k of ENLCA, above the variance of its approximation.

    PSNR is that on Set5, as in the paper, or on the first test set; bars are the 95 % interval of
    the difference to the baseline, which is drawn as a line. The variance is that of the newest
    approximation record of a network of the setting, at m = 128 and the largest N; without one
    the panel is left out. The paper's figure has no printed numbers to set beside.

    Returns:
        None if fewer than two k were trained.
    """
    test_set = "Set5" if "Set5" in setting.test_sets else next(iter(setting.test_sets), None)
    defaults = {o: p.default for o, p in find_attention("enlca").options().items()}
    by_k: dict[float, Summary] = {}
    for key in setting.runs_of:
        name, options = json.loads(key)
        summary = setting.summary(key, test_set)
        if name == "enlca" and options | {"k": 0} == defaults | {"k": 0} and summary:
            by_k[options["k"]] = summary
    if len(by_k) < 2:
        return None
    fitting = [r for r in by_age(approximations) if r["enla"] and _network(r) in _ids(setting)]
    figure = new_figure(COLUMN, 4.2 if fitting else 2.4)
    panels = figure.subplots(2 if fitting else 1, 1, squeeze=False, sharex=True)[:, 0]
    ks = sorted(by_k)
    shown = [by_k[k] for k in ks]
    panels[0].errorbar(
        ks,
        [s.mean for s in shown],
        yerr=[[_below(s) for s in shown], [_above(s) for s in shown]],
        color=COLOURS[0],
        marker=MARKERS[0],
        capsize=2,
        label=f"ENLCA-m{REFERENCE_M}",
    )
    baseline = next((k for k, runs in setting.runs_of.items() if runs is setting.baseline), None)
    if level := setting.summary(baseline, test_set):
        panels[0].axhline(level.mean, color="0.3", ls="--", label="baseline")
    panels[0].set_ylabel(f"PSNR (dB), {test_set} ×{setting.config['scale']}")
    panels[0].ticklabel_format(axis="y", useOffset=False)
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
            plot_line(panels[1], rows, "k", quantity, label, style)
        panels[1].set_ylabel("variance of φ(q)·φ(k)")
    for panel in panels:
        panel.legend()
    panels[-1].set_xlabel("amplification k")
    panels[-1].set_xticks(ks)
    return figure


def _network(approximation: Record) -> str | None:
    """Id of the run whose features were measured; None for synthetic features."""
    network = approximation["settings"]["network"]
    return network and network["name"]


def _ids(setting: Setting) -> set[str]:
    return {run["id"] for run in setting.runs}


def _below(summary: Summary) -> float:
    """How far the interval of the difference to the baseline reaches below the mean."""
    if summary.difference is None or summary.low is None:
        return 0.0
    return summary.difference - summary.low


def _above(summary: Summary) -> float:
    if summary.difference is None or summary.high is None:
        return 0.0
    return summary.high - summary.difference


#: Every figure that a setting may give: its name, and what draws it or returns None.
FIGURES: dict[str, Callable[[Setting, Sequence[Record]], Figure | None]] = {"figure6": figure6}


@dataclass(frozen=True)
class Options:
    """Draw the paper's figures as PNG and PDF from the records alone."""

    results: Path = Path("results")
    """Folder that holds records/."""
    output: Path | None = None
    """Where the figures go; by default figures/ in the results folder."""


def write_figures(options: Options) -> list[Path]:
    """Draw all figures into a folder for each setting; returns the files.

    Raises:
        UserError: no runs, no figure that they suffice for, a bad record, or a folder that cannot
            be written.
    """
    runs, approximations = (load_records(options.results, k) for k in ("run", "approximation"))
    if not runs:
        raise UserError(
            f"no run records under {options.results / 'records'}; run "
            "python -m harness.run --rows figure6 first"
        )
    output = options.output or options.results / "figures"
    paths = []
    with house_style():
        for setting in find_settings(runs, []):
            for name, draw in FIGURES.items():
                if figure := draw(setting, approximations):
                    paths += save_figure(figure, output / setting.label / name)
    if not paths:
        raise UserError(
            f"no setting under {options.results / 'records'} has runs for a figure; figure6 needs "
            "ENLCA at several k: python -m harness.run --rows figure6"
        )
    return paths


@command_line
def main() -> None:
    """Entry point of ``python -m harness.figures``."""
    with usage_errors():
        options = tyro.cli(Options, prog="python -m harness.figures")
    for path in write_figures(options):
        print(path)


if __name__ == "__main__":
    main()
