"""All figures that the records give."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from msgspec.structs import replace

from ...base.errors import UserError
from ...records.shapes import Approximation, Cost, Latency, Record, Run, Scaling
from ...records.store import load_all_records, load_records
from ..benches import Bench, find_benches
from ..profile import Profile, find_profile, row_costs
from ..report.captions import CAPTIONS
from ..scaling import find_scalings
from ..settings import Setting, find_settings, of_task, super_resolution
from .approximation import figures as approximation_figures
from .marks import POINTS
from .pareto import Pareto, pareto_plots
from .profile import profile_figures
from .quality import figure6, paired_figure, psnr_m
from .scaling import scaling_figure
from .style import (
    FORMATS,
    Format,
    fit_labels,
    glyphs_told,
    has_room,
    house_style,
    save_figure,
    sized,
)
from .training import training_figure


@dataclass(frozen=True)
class Drawn:
    """A figure and what it was drawn from.

    Attributes:
        stem: its file in ``figures/``, without suffix.
        kind: what it shows: ``psnr-m``, ``pareto-latency``, ``scaling``, ….
        figure: the figure.
        source: the setting or record that it shows.
        which: the bench or record that sets it apart from others of its kind.
        plot: the points of a figure of PSNR against cost.
    """

    stem: Path
    kind: str
    figure: Figure
    source: Setting | Approximation | Scaling | Profile
    which: str = ""
    plot: Pareto | None = None


def setting_figures(
    setting: Setting,
    approximations: Sequence[Approximation],
    benches: Sequence[Bench],
    attn: Collection[str] = (),
) -> Iterator[Drawn]:
    """Every figure that a setting's runs suffice for; the paper's points of ``attn`` or all."""
    folder = Path(setting.label)
    figures = {
        "figure6": figure6(setting, approximations),
        "psnr-m": psnr_m(setting),
        "paired-differences": paired_figure(setting),
        "training-curves": training_figure(setting),
    }
    for kind, figure in figures.items():
        if figure:
            yield Drawn(folder / kind, kind, figure, setting)
    for kind, which, plot in pareto_plots(setting, benches, attn):
        name = f"{kind}-{which}" if which else kind
        yield Drawn(folder / name, kind, plot.draw(), setting, which, plot)


@dataclass(frozen=True)
class Choice:
    """Which figures are drawn, and how.

    Attributes:
        only: beginnings of kinds or stems, e.g. ``pareto``; all if empty.
        attn: modules or row labels that are drawn, beside the baseline; all if empty.
        size: width and height in inches; None for each figure's own.
        titled: whether PNG and SVG have a title above the figure.
        formats: suffixes of the files.
    """

    only: Sequence[str] = ()
    attn: Sequence[str] = ()
    size: tuple[float, float] | None = None
    titled: bool = True
    formats: Sequence[Format] = FORMATS

    def draws(self, drawn: Drawn) -> bool:
        """Whether the figure is among those that were asked for."""
        return not self.only or any(_names(name, [drawn]) for name in self.only)

    def of(self, records: Sequence[Record]) -> list[Record]:
        """The records with the chosen modules alone, and the baseline's.

        Raises:
            UserError: no record is of one of the modules.
        """
        if not self.attn:
            return list(records)
        wanted, known = set(self.attn), set()
        kept: list[Record] = []
        for record in records:
            if isinstance(record, Run | Cost):
                names = {record.variant.name, record.variant.label, record.variant.row_label}
                known |= names
                if record.variant.name == "none" or names & wanted:
                    kept.append(record)
            elif isinstance(record, Latency | Scaling):
                rows = []
                for row in record.rows:
                    names = {row.variant.name, row.variant.label, row.variant.row_label}
                    known |= names
                    if names & wanted:
                        rows.append(row)
                if rows:
                    kept.append(replace(record, rows=rows))
        if missing := wanted - known:
            raise UserError(
                f"no record is of {', '.join(sorted(missing))}; there are records of: "
                f"{', '.join(sorted(known)) or 'no module'}"
            )
        return kept


def draw_all(
    records: Sequence[Record], task: str | None = None, attn: Collection[str] = ()
) -> Iterator[Drawn]:
    """Every figure of these records: by setting, then by record, then the profile.

    Beside them are the paper's results of the modules or labels ``attn``, or all.

    Raises:
        UserError: no record is a run of the task.
    """
    if task is not None:
        records = of_task(records, task)
    if task in (None, "sr"):
        yield from _draw_default(records, attn)
    yield from _draw_profile(records)


def _draw_default(records: Sequence[Record], attn: Collection[str]) -> Iterator[Drawn]:
    """Figures of super-resolution, and of records that belong to no training."""
    approximations = [record for record in records if isinstance(record, Approximation)]
    benches = find_benches(record for record in records if isinstance(record, Latency))
    runs = super_resolution(records)
    costs = [record for record in records if isinstance(record, Cost)]
    for setting in find_settings(runs, costs) if runs else []:
        with house_style():
            drawn = list(setting_figures(setting, approximations, benches, attn))
        yield from drawn
    for record in approximations:
        for kind, figure in approximation_figures(record).items():
            stem = Path(f"approximation-{record.id}-{kind}")
            yield Drawn(stem, kind, figure, record, record.id)
    for one in find_scalings(record for record in records if isinstance(record, Scaling)):
        figure = scaling_figure(one.record)
        yield Drawn(Path(one.stem), "scaling", figure, one.record, one.label)


def _draw_profile(records: Sequence[Record]) -> Iterator[Drawn]:
    profile = find_profile(record for record in records if isinstance(record, Run))
    costs = [record for record in records if isinstance(record, Cost)]
    latency = [record for record in records if isinstance(record, Latency)]
    with house_style():
        figures = profile_figures(profile, row_costs(profile.rows, costs, latency))
    for kind, figure in figures.items():
        if figure:
            yield Drawn(Path(kind), kind, figure, profile)


def _names(name: str, drawn: Iterable[Drawn]) -> bool:
    """Whether a figure's kind or stem begins with the name."""
    return any(
        own.startswith(name)
        for one in drawn
        for own in (one.kind, one.stem.name, one.stem.as_posix())
    )


def _why_not(missing: Sequence[str], found: Sequence[Drawn], choice: Choice) -> str:
    """Why figures that were asked for are not drawn: unknown, or too few records for them."""
    unknown = [name for name in missing if not any(kind.startswith(name) for kind in CAPTIONS)]
    if unknown:
        return (
            f"no figure is called {', '.join(unknown)}; there are: "
            f"{', '.join(sorted({drawn.kind for drawn in found}))}"
        )
    of = f"with --attn {' '.join(choice.attn)}" if choice.attn else "in the records"
    hint = "name more modules" if choice.attn else "train and count more variants"
    return (
        f"{', '.join(missing)}: not drawn, as it needs {POINTS} points or more, which there are "
        f"not {of}: {hint}"
    )


def write_figures(
    results: Path,
    output: Path | None = None,
    task: str | None = None,
    choice: Choice | None = None,
) -> list[Path]:
    """Draw all figures, a setting's into a folder of its own; returns the files.

    Args:
        results: folder that holds records/.
        output: where the figures go; ``figures/`` in the results folder if not given.
        task: only figures of this task.
        choice: which figures, and how; all by default.

    Raises:
        UserError: no records, none of the task or of a chosen module, no figure that they suffice
            for, none of that name, a bad record, or a folder that cannot be written.
    """
    choice = choice or Choice()
    output = output or results / "figures"
    kinds = (Run, Cost, Latency, Approximation, Scaling)
    records = [record for kind in kinds for record in load_records(results, kind)]
    paths, found, chosen, crowded = [], [], [], []
    with glyphs_told(), sized(choice.size):
        for drawn in draw_all(choice.of(records), task, choice.attn):
            found.append(drawn)
            if choice.draws(drawn):
                chosen.append(drawn)
                if choice.size:
                    fit_labels(drawn.figure)
                    crowded += [] if has_room(drawn.figure) else [drawn.stem.as_posix()]
                stem = output / drawn.stem
                paths += save_figure(drawn.figure, stem, choice.formats, titled=choice.titled)
    if crowded and choice.size:
        width, height = choice.size
        print(
            f"warning: {width:g}x{height:g} inches are too small for {', '.join(crowded)}: give a "
            "larger --size, or fewer modules with --attn",
            file=sys.stderr,
        )
    if found and (missing := [name for name in choice.only if not _names(name, chosen)]):
        raise UserError(_why_not(missing, found, choice))
    if not paths:
        if not load_all_records(results):
            raise UserError(
                f"no records under {results / 'records'}; run python -m harness.run first"
            )
        raise UserError(
            f"the records under {results / 'records'} suffice for no figure: train "
            "variants and their baseline, e.g. python -m harness.run --attn none enlca"
        )
    return paths
