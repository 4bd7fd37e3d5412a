"""The leaderboard: modules ranked by the aggregate of the capability profile, and its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...base.errors import UserError
from ...base.files import write_text
from ...config.profile import PROFILE
from ...config.rows import table_rows
from ...config.variants import Variant
from ...records.origin import describe_machine, origin_note
from ...records.shapes import Cost, Latency, Run
from ..cells import (
    difference_cell,
    milliseconds,
    setting_text,
    variant_columns,
)
from ..labels import natural
from ..profile import SIDE, ProfileRow, RowCost, find_profile, row_costs
from ..settings import PAPER_SET, Setting, photographs, photographs_header
from .aggregate import AGGREGATE, profile_text, score_cell
from .render import Table, escaped

#: Marks in the page, between which the command writes.
BEGIN, END = "<!-- leaderboard: begin -->", "<!-- leaderboard: end -->"
#: Behind milliseconds of another session than the other rows'.
ELSEWHERE = "°"
#: Decimals of the aggregate that tell ranks apart.
DIGITS = 2
#: Where a row has no rank.
UNRANKED = "–"


def leaderboard_table(
    runs: Sequence[Run],
    costs: Sequence[Cost],
    latency: Sequence[Latency],
    settings: Sequence[Setting],
) -> Table | None:
    """Ranked rows, the best first, then controls and unfinished rows; None without a profile.

    Args:
        runs: of all tasks.
        costs: cost records.
        latency: latency records.
        settings: of tasks on images, of which one gives the gain on photographs.
    """
    profile = find_profile(runs)
    if not profile.rows:
        return None
    ranks = ranking(profile.rows)
    rows = sorted(profile.rows, key=lambda row: _place(row, ranks))
    together = row_costs(rows, costs, latency)
    alone = {
        row.variant: row_costs([row], costs, latency)[row.variant]
        for row in rows
        if together[row.variant].milliseconds is None
    }
    photos = photographs(settings)
    cells, data = [], []
    for row in rows:
        cost = alone.get(row.variant, together[row.variant])
        gain = photos.summary(row.variant, PAPER_SET) if photos else None
        rank = ranks.get(row.variant)
        mark = ELSEWHERE if row.variant in alone and cost.session else ""
        cells.append(
            [
                *(row.label, str(rank or UNRANKED), score_cell(row.aggregate, DIGITS)),
                difference_cell(gain),
                "" if cost.gflops is None else f"{cost.gflops:.3g}",
                milliseconds(cost.milliseconds) + mark,
                str(row.parameters),
            ]
        )
        data.append(
            variant_columns(row.label, row.recorded)
            | {"rank": rank, "aggregate": row.aggregate and row.aggregate.mean}
            | {"aggregate_low": row.aggregate and row.aggregate.low}
            | {"aggregate_high": row.aggregate and row.aggregate.high}
            | {"seeds": len(row.aggregate_by_seed), "lacks": "; ".join(lacks(row))}
            | {"psnr_db_difference": gain and gain.difference}
            | {"psnr_db_difference_low": gain and gain.low}
            | {"psnr_db_difference_high": gain and gain.high}
            | {"core_gflops": cost.gflops, "core_ms": cost.milliseconds}
            | {"core_ms_session": cost.session and cost.session.id, "parameters": row.parameters}
        )
    nla = profile.row("nla")
    session = next((cost.session for cost in together.values() if cost.session), None)
    lacking = [f"{row.label} ({'; '.join(found)})" for row in rows if (found := lacks(row))]
    notes = [
        "Rows whose aggregates are equal to two digits share a rank. ± is half of the aggregate's "
        "95 % interval over seeds.",
        f"{UNRANKED}: controls, which are no methods, and rows that lack a part of the profile.",
        AGGREGATE,
        *([f"Lacking: {', '.join(lacking)}."] if lacking else []),
        *(
            [
                f"Gain: PSNR on {photographs_header(photos)} minus the baseline's, with its "
                f"95 % interval; {setting_text(photos)}."
            ]
            if photos
            else []
        ),
        f"GFLOPs and ms: the core alone at {SIDE}×{SIDE}, 64 channels, in the paper's convention "
        f"and forward in float32{f' on {describe_machine(session)}' if session else ''}. "
        "Parameters: those of the whole network.",
        *_apart({row.label: alone[row.variant] for row in rows if row.variant in alone}, nla),
        origin_note([run for found in profile.runs.values() for run in found], "Runs"),
    ]
    return Table(
        name="leaderboard",
        caption=f"Modules by the aggregate of the capability profile: {profile_text(profile)}",
        notes=notes,
        headers=[
            *(("", header) for header in ("Method", "rank", "aggregate")),
            (photographs_header(photos), "gain (dB)"),
            *(("", header) for header in ("core GFLOPs", "core ms", "parameters")),
        ],
        rows=cells,
        data=data,
    )


def ranking(rows: Sequence[ProfileRow]) -> dict[Variant, int]:
    """Rank of each row that has one, 1 for the largest aggregate; of what is shown as equal, alike.

    No rank have controls, which are no methods, and rows that lack a setting, rates or seeds.
    """
    controls = set(table_rows("controls"))
    shown = {
        row.variant: round(row.aggregate.mean, DIGITS)
        for row in rows
        if row.aggregate and row.variant not in controls and not lacks(row)
    }
    return {
        variant: 1 + sum(other > value for other in shown.values())
        for variant, value in shown.items()
    }


def _place(row: ProfileRow, ranks: Mapping[Variant, int]) -> tuple[float, list[tuple[str, int]]]:
    """Ranked rows by rank and label; the others stay in their order below."""
    rank = ranks.get(row.variant)
    return (math.inf, []) if rank is None else (rank, natural(row.label))


def lacks(row: ProfileRow) -> list[str]:
    """What a row lacks of the profile, e.g. ``phase: 1 of 3 rates, 1 of 3 seeds``."""
    found = []
    for task in PROFILE:
        cell = row.cells.get(task.label)
        if cell is None:
            found.append(f"no {task.label}")
        elif not cell.finished:
            found.append(f"{task.label}: {cell.state}")
    return found


def page_block(table: Table) -> str:
    """The table as it stands in the page: rows, then all notes."""
    notes = "".join(f"- {escaped(note)}\n" for note in table.notes)
    return f"**{escaped(table.caption)}**\n\n{table.markdown_grid()}\n{notes}"


def write_page(path: Path, table: Table) -> None:
    """Write the table between the marks of the page; the rest of it stays as it is.

    Raises:
        UserError: the page cannot be read or written, or lacks the marks.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"{path} needs the lines {BEGIN} and {END}: put them back")
    write_text(path, f"{before}{BEGIN}\n\n{page_block(table)}\n{END}{after}")


def _apart(alone: Mapping[str, RowCost], nla: ProfileRow | None) -> list[str]:
    """A note on each session that timed some rows alone, by label, and what NLA takes there."""
    sessions = {cost.session.id: cost.session for cost in alone.values() if cost.session}
    notes = []
    for session in sessions.values():
        labels = ", ".join(label for label, cost in alone.items() if cost.session is session)
        beside = row_costs([nla], [], [session])[nla.variant].milliseconds if nla else None
        where = f", where NLA takes {milliseconds(beside)} ms" if beside else ""
        notes.append(
            f"{ELSEWHERE} {labels}: timed in another session than the other rows, on "
            f"{describe_machine(session)}{where}."
        )
    return notes
