"""All figures that the records give."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ...base.errors import UserError
from ...records.origin import Record
from ...records.store import load_records
from ..benches import Bench, find_benches
from ..settings import Setting, find_settings
from .approximation import figures as approximation_figures
from .pareto import pareto_gflops, pareto_latency
from .quality import figure6, paired_figure, psnr_m
from .scaling import scaling_figure
from .style import house_style, save_figure
from .training import training_figure


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


def write_figures(results: Path, output: Path | None = None) -> list[Path]:
    """Draw all figures, a setting's into a folder of its own; returns the files.

    Args:
        results: folder that holds records/.
        output: where the figures go; ``figures/`` in the results folder if not given.

    Raises:
        UserError: no records, no figure that they suffice for, a bad record, or a folder that
            cannot be written.
    """
    output = output or results / "figures"
    paths = []
    for stem, figure in all_figures(results):
        paths += save_figure(figure, output / stem)
    if not paths:
        raise UserError(
            f"the records under {results / 'records'} suffice for no figure: train "
            "variants and their baseline, e.g. python -m harness.run --attn none enlca"
        )
    return paths
