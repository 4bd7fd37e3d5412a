"""All tables that the records give."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from ...base.errors import UserError
from ...config.rows import table_rows
from ...config.variants import Variant
from ...records.shapes import Cost, Gpu, Implementations, Latency, Redraw, Run, Scaling, Speed
from ...records.store import load_records
from ..benches import find_benches
from ..scaling import find_scalings
from ..settings import Setting, find_settings, image_task_settings, of_task
from .claims import claims_table
from .gpu import gpu_tables
from .implementations import implementation_tables
from .joined import joined_runs, mark_joined
from .latency import latency_details, table5
from .leaderboard import leaderboard_table
from .methods import methods_table
from .modules import modules_table
from .operations import table4
from .per_image import per_image_table
from .profile import findings_table, profile_details, profile_table
from .quality import quality_table, table1, table2, table3, table6
from .redraws import redraw_table
from .render import Table, write_table
from .scaling import scaling_table
from .speed import find_speeds, speed_table
from .tasks import task_settings, task_table


def build(
    runs: Sequence[Run],
    costs: Sequence[Cost],
    latency: Sequence[Latency],
    joined: Collection[str] = (),
) -> list[tuple[str, Table]]:
    """Every table that the records give, each with its folder ("" or the setting's).

    Rows of ``joined`` runs are marked: ids of published runs beside a user's own.
    """
    settings = find_settings(runs, costs)
    tables: list[tuple[str, Table]] = []
    for setting in settings:
        made = [table4(setting)]
        if setting.runs:
            few = [make(setting) for make in (claims_table, table1, table2, table3)]
            made = [*filter(None, few), *made, table6(setting), quality_table(setting)]
            made += filter(None, [per_image_table(setting)])
        tables += [(setting.label, mark_joined(table, setting.runs, joined)) for table in made]
    nearest = settings[0] if settings else Setting([], [])
    # Its tables are the canonical ones, which stand without a folder too.
    tables += [
        ("", replace(table, label=table.name))
        for folder, table in list(tables)
        if nearest.runs and folder == nearest.label
    ]
    benches = find_benches(latency)
    for bench in benches:
        folder = bench.folder
        tables += [(folder, table5(bench, nearest)), (folder, latency_details(bench))]
    tables += build_tasks(runs, costs, latency, joined)
    of_images = [*settings, *image_task_settings(runs, costs)]
    board = leaderboard_table(runs, costs, latency, of_images)
    overviews = (
        # Trainings of another task alone are no overview of modules.
        modules_table(of_images if settings or benches else [], benches),
        methods_table(costs, latency),
        board and mark_joined(board, runs, joined),
    )
    return tables + [("", table) for table in overviews if table]


def build_tasks(
    runs: Sequence[Run],
    costs: Sequence[Cost],
    latency: Sequence[Latency],
    joined: Collection[str] = (),
) -> list[tuple[str, Table]]:
    """As :func:`build`, of all tasks but the default alone: settings, then the profile."""
    made = [
        (setting, table)
        for setting in image_task_settings(runs, costs)
        for table in (
            claims_table(setting),
            *(make(setting) for rows, make in _OF_PAPER.items() if _has_rows(setting, rows)),
            quality_table(setting),
            per_image_table(setting),
        )
        if table
    ]
    made += [(setting, task_table(setting)) for setting in task_settings(runs)]
    tables = [(one.label, mark_joined(table, one.runs, joined)) for one, table in made]
    profile = (profile_table(runs, costs, latency), profile_details(runs), findings_table(runs))
    return tables + [("", mark_joined(table, runs, joined)) for table in profile if table]


#: Tables of the paper's rows that another task on images has too, where it has two of the rows.
_OF_PAPER = {"table4": table4, "table6": table6}


def _has_rows(setting: Setting, table: str) -> bool:
    return len(setting.runs_of.keys() & {*table_rows(table)} - {Variant("none")}) > 1


def all_tables(
    results: Path, preset: str | None = None, task: str | None = None
) -> list[tuple[str, Table]]:
    """Every table of a results folder, each with its folder ("" or the setting's).

    Args:
        results: folder that holds records/.
        preset: only runs of this preset.
        task: only runs of this task; if it is not the default one, only its own tables.

    Raises:
        UserError: no records, none of the preset or of the task, or a bad record.
    """
    runs, costs = load_records(results, Run), load_records(results, Cost)
    latency, scaling = load_records(results, Latency), load_records(results, Scaling)
    speed, redraws = load_records(results, Speed), load_records(results, Redraw)
    gpu, implementations = load_records(results, Gpu), load_records(results, Implementations)
    joined = joined_runs(results, runs)
    if not (runs or costs or latency or scaling or speed or redraws or gpu or implementations):
        raise UserError(f"no records under {results / 'records'}; run python -m harness.run first")
    if preset is not None:
        found = sorted({run.config.preset for run in runs})
        runs = [run for run in runs if run.config.preset == preset]
        if not runs:
            raise UserError(
                f"no runs of preset {preset!r} under {results / 'records'}; "
                f"there are runs of: {', '.join(found) or 'no preset'}"
            )
    if task is not None:
        runs = of_task(runs, task)
        if task != "sr":
            return build_tasks(runs, costs, latency, joined)
    tables = build(runs, costs, latency, joined)
    tables += [(one.folder, scaling_table(one)) for one in find_scalings(scaling)]
    tables += [(session.folder, speed_table(session)) for session in find_speeds(speed)]
    tables += [("", table) for table in gpu_tables(gpu)]
    tables += [("", table) for table in implementation_tables(implementations)]
    return tables + ([("", redraw_table(redraws))] if redraws else [])


def write_tables(
    results: Path,
    preset: str | None = None,
    output: Path | None = None,
    *,
    latex: bool = False,
    task: str | None = None,
) -> list[tuple[Table, list[Path]]]:
    """Build and write all tables; returns each with its files.

    Args:
        results: folder that holds records/.
        preset: only runs of this preset.
        output: where the tables go; ``tables/`` in the results folder if not given.
        latex: write LaTeX too.
        task: as :func:`all_tables`.

    Raises:
        UserError: as :func:`all_tables`, or a folder that cannot be written.
    """
    output = output or results / "tables"
    tables = all_tables(results, preset, task)
    return [(table, write_table(table, output / folder, latex=latex)) for folder, table in tables]
