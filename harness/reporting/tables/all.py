"""All tables that the records give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...base.errors import UserError
from ...records.origin import Record
from ...records.store import load_records
from ..benches import find_benches
from ..settings import Setting, find_settings
from .claims import claims_table
from .latency import latency_details, table5
from .methods import methods_table
from .modules import modules_table
from .operations import table4, table6
from .quality import quality_table, table1, table2, table3
from .redraws import redraw_table
from .render import Table, write_table
from .scaling import scaling_table
from .speed import find_speeds, speed_table


def build(
    runs: Sequence[Record], costs: Sequence[Record], latency: Sequence[Record]
) -> list[tuple[str, Table]]:
    """Every table that the records give, each with its folder ("" or the setting's)."""
    settings = find_settings(runs, costs)
    tables = []
    for setting in settings:
        made = [table4(setting)]
        if setting.runs:
            few = [make(setting) for make in (claims_table, table1, table2, table3)]
            made = [*filter(None, few), *made, table6(setting), quality_table(setting)]
        tables += [(setting.label, table) for table in made]
    nearest = settings[0] if settings else Setting([], [])
    benches = find_benches(latency)
    for bench in benches:
        tables += [("", table5(bench, nearest)), ("", latency_details(bench))]
    tables += [("", modules_table(settings, benches))]
    methods = methods_table(costs, latency)
    return [*tables, ("", methods)] if methods else tables


def all_tables(results: Path, preset: str | None = None) -> list[tuple[str, Table]]:
    """Every table of a results folder, each with its folder ("" or the setting's).

    Args:
        results: folder that holds records/.
        preset: only runs of this preset.

    Raises:
        UserError: no records, none of the preset, or a bad record.
    """
    kinds = ("run", "cost", "latency", "scaling", "speed", "redraw")
    records = [load_records(results, kind) for kind in kinds]
    if not any(records):
        raise UserError(f"no records under {results / 'records'}; run python -m harness.run first")
    runs, costs, latency, scaling, speed, redraws = records
    if preset is not None:
        found = sorted({run["config"]["preset"] for run in runs})
        runs = [run for run in runs if run["config"]["preset"] == preset]
        if not runs:
            raise UserError(
                f"no runs of preset {preset!r} under {results / 'records'}; "
                f"there are runs of: {', '.join(found) or 'no preset'}"
            )
    tables = build(runs, costs, latency) + [("", scaling_table(record)) for record in scaling]
    tables += [("", speed_table(rows)) for rows in find_speeds(speed)]
    return tables + ([("", redraw_table(redraws))] if redraws else [])


def write_tables(
    results: Path, preset: str | None = None, output: Path | None = None
) -> list[tuple[Table, list[Path]]]:
    """Build and write all tables; returns each with its files.

    Args:
        results: folder that holds records/.
        preset: only runs of this preset.
        output: where the tables go; ``tables/`` in the results folder if not given.

    Raises:
        UserError: as :func:`all_tables`, or a folder that cannot be written.
    """
    output = output or results / "tables"
    tables = all_tables(results, preset)
    return [(table, write_table(table, output / folder)) for folder, table in tables]
