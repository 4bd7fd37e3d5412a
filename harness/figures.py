"""Figures of the ENLCA paper, and our own, from the records alone.

``python -m harness.figures`` draws, for every setting, those that its runs suffice for, and those
of every scaling and approximation record, each as PNG and PDF. No model, image or GPU is used, and
the same records give the same bytes. Figures that need weights are ``harness.maps``'s and
``harness.visual``'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from matplotlib.figure import Figure

from .approximation_report import figures as approximation_figures
from .errors import UserError, command_line, usage_errors
from .latency_tables import Bench, find_benches
from .pareto_figures import pareto_gflops, pareto_latency
from .plotting import house_style, save_figure
from .quality_figures import figure6, paired_figure, psnr_m
from .records import load_records
from .scaling_report import scaling_figure
from .settings import Record, Setting, find_settings
from .training_figures import training_figure


def setting_figures(
    setting: Setting, approximations: Sequence[Record], benches: Sequence[Bench]
) -> Iterator[tuple[str, Figure]]:
    """Every figure that a setting's runs suffice for, with its name."""
    drawn = {
        "figure6": figure6(setting, approximations),
        "psnr-m": psnr_m(setting),
        "paired-differences": paired_figure(setting),
        "training-curves": training_figure(setting),
        "pareto-gflops": pareto_gflops(setting),
    }
    for bench in benches:
        where = bench.label.removeprefix("table5-")
        drawn[f"pareto-latency-{where}"] = pareto_latency(setting, bench)
    yield from ((name, figure) for name, figure in drawn.items() if figure)


def all_figures(results: Path) -> Iterator[tuple[Path, Figure]]:
    """Every figure of a results folder, with its file's path, without suffix, in ``figures/``.

    Raises:
        UserError: no records, or a bad one.
    """
    kinds = ("run", "cost", "latency", "approximation", "scaling")
    records = [load_records(results, kind) for kind in kinds]
    if not any(records) and not load_records(results):
        raise UserError(f"no records under {results / 'records'}; run python -m harness.run first")
    runs, costs, latency, approximations, scaling = records
    benches = find_benches(latency)
    for setting in find_settings(runs, costs) if runs else []:
        with house_style():
            drawn = list(setting_figures(setting, approximations, benches))
        yield from ((Path(setting.label) / name, figure) for name, figure in drawn)
    for record in approximations:
        for name, figure in approximation_figures(record).items():
            yield Path(f"approximation-{record['id']}-{name}"), figure
    for record in scaling:
        yield Path(f"scaling-{record['id']}"), scaling_figure(record)


@dataclass(frozen=True)
class Options:
    """Draw all figures that need the records alone, as PNG and PDF."""

    results: Path = Path("results")
    """Folder that holds records/."""
    output: Path | None = None
    """Where the figures go; by default figures/ in the results folder."""


def write_figures(options: Options) -> list[Path]:
    """Draw all figures, a setting's into a folder of its own; returns the files.

    Raises:
        UserError: no records, no figure that they suffice for, a bad record, or a folder that
            cannot be written.
    """
    output = options.output or options.results / "figures"
    paths = []
    for stem, figure in all_figures(options.results):
        paths += save_figure(figure, output / stem)
    if not paths:
        raise UserError(
            f"the records under {options.results / 'records'} suffice for no figure: train "
            "variants and their baseline, e.g. python -m harness.run --attn none enlca"
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
