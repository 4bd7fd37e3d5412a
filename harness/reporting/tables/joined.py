"""Marks of rows that hold published runs, which stand beside a user's own in the same tables."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...base.folders import sources
from ...base.names import canonical_json
from ...config.variants import Variant
from ...records.shapes import Run
from ...records.store import record_path
from ..labels import variant_of
from .render import Table

#: Mark of a row, and what it says.
MARK = "†"
NOTE = f"{MARK} Published runs of this suite are in the row, beside your own or alone."
#: Note of a table whose rows are of no single variant.
TAKE_PART = "Published runs of this suite take part, beside your own."
_SECOND = {"rate": "learning_rate", "setting": "profile"}
#: Values of the CSV's column ``runs_from``: of own runs, of published ones.
WORDS = {(True, False): "own", (False, True): "published", (True, True): "own and published"}


def joined_runs(results: Path, runs: Sequence[Run]) -> set[str]:
    """Ids of the runs that are not in ``results`` itself but in the published folder behind it."""
    if len(sources(results)) == 1:
        return set()
    return {run.id for run in runs if not record_path(results, Run, run.id).exists()}


def mark_joined(table: Table, runs: Sequence[Run], joined: Collection[str]) -> Table:
    """The table with :data:`MARK` at rows that hold joined runs, and ``runs_from`` in its CSV.

    Args:
        table: of any kind; where no row is of one variant, as in claims, a note alone is added.
        runs: those that it was made of.
        joined: ids of published runs.
    """
    if not any(run.id in joined for run in runs):
        return table
    if not any("variant" in row for row in table.data):
        return replace(table, notes=[TAKE_PART, *table.notes])
    groups: dict[Variant, list[Run]] = {}
    for run in runs:
        groups.setdefault(variant_of(run.variant), []).append(run)
    members = {
        (run.variant.name, canonical_json(run.variant.options)): group
        for group in groups.values()
        for run in group
    }
    # Where a method has several rows, the second column tells them apart.
    second = _SECOND.get(table.headers[1][1], "")
    origins: dict[tuple[str, str], set[bool]] = {}
    data = []
    for row in table.data:
        found = {run.id in joined for run in _runs_of(row, members)}
        data.append({**row, "runs_from": WORDS.get((False in found, True in found))})
        part = row[second] if second else ""
        key = (str(row.get("method")), part if isinstance(part, str) else f"{part or 0:g}")
        origins.setdefault(key, set()).update(found)
    marked = {key for key, found in origins.items() if True in found}
    rows = [
        [_marked(row[0], {label for label, part in marked if part in ("", row[1])}), *row[1:]]
        for row in table.rows
    ]
    if rows == [list(row) for row in table.rows]:
        return replace(table, data=data)
    return replace(table, rows=rows, data=data, notes=[NOTE, *table.notes])


def _runs_of(
    row: Mapping[str, Any], members: Mapping[tuple[str, str], Sequence[Run]]
) -> Sequence[Run]:
    """The runs of a row of the CSV: of its variant, and its run, seed and rate if it has them."""
    found = members.get((str(row.get("variant")), str(row.get("options"))), ())
    if row.get("run"):
        return [run for run in found if run.id == row["run"]]
    for name in ("seed", "learning_rate"):
        if row.get(name) is not None:
            found = [run for run in found if getattr(run.config, name) == row[name]]
    place = row.get("test_set")
    return [run for run in found if place is None or not run.scores or place in run.scores]


def _marked(cell: str, labels: Collection[str]) -> str:
    plain = re.sub(r" \(measured, .*\)$", "", cell)
    return f"{cell} {MARK}" if plain in labels else cell
