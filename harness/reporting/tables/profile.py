"""Tables of the capability profile: scores, costs, controls; every run in the CSV."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as RichTable
from rich.text import Text

from ...config.profile import PROFILE, RATES, SEEDS
from ...config.variants import Variant, with_options
from ...records.origin import describe_machine, origin_note, plural
from ...records.shapes import Cost, Latency, Run
from ..cells import columns_of, fixed, milliseconds, setting_columns, variant_columns
from ..findings import find_findings
from ..predictions import SIZES
from ..profile import (
    LEVELS,
    SIDE,
    Profile,
    ProfileCell,
    ProfileRow,
    RowCost,
    find_profile,
    normalised,
    row_costs,
    steps_to,
)
from ..settings import Setting, image_task_settings, photographs
from ..statistics import Estimate
from .aggregate import AGGREGATE, profile_text, score_cell
from .render import Table

#: Names of the tables.
PROFILE_TABLES = ("profile", "profile-details", "profile-findings")
#: Setting whose learning curves give the steps.
LEARNED = PROFILE[0]
#: Behind the rate of a cell that no CPU trained.
ELSEWHERE = "°"


def profile_table(
    runs: Sequence[Run], costs: Sequence[Cost], latency: Sequence[Latency]
) -> Table | None:
    """A row for each module; in the CSV one for each run and test set. None without a run."""
    profile = find_profile(runs)
    if not profile.rows:
        return None
    found = row_costs(profile.rows, costs, latency)
    steps = _steps_columns(profile)
    rows = []
    for row in profile.rows:
        cells = [row.label]
        for task in profile.tasks:
            cell = row.cells.get(task.label)
            cells += [score_cell(row.score(task.label, size)) for size in (1, 2)]
            cells.append(_rate_cell(cell))
        cells.append(score_cell(row.aggregate))
        cells += [steps_cell(row.cells.get(LEARNED.label), level) for level, _ in steps]
        cells += _cost_cells(found[row.variant])
        rows.append([*cells, str(row.parameters)])
    shown = [run for task in profile.tasks for run in profile.runs[task.label]]
    sessions = {cost.session.id: cost.session for cost in found.values() if cost.session}
    notes = [
        "Score on test images of twice (2n) and four times (4n) the training size, ± half of its "
        "95 % interval over seeds. What stands behind a rate is all that the row has: it is not "
        "finished.",
        f"Score on test images of twice (2n) and four times (4n) the training size. Of the rates "
        f"{', '.join(f'{rate:g}' for rate in RATES)} each row has the one with the best validation "
        f"score of seed {SEEDS[0]}, and is trained at it with {plural(len(SEEDS), 'seed')}; test "
        "scores have no part in it. ± is half of the 95 % interval of Student's t over seeds.",
        "What stands behind a rate is all that the row has: it is not finished.",
        AGGREGATE,
        f"Steps: mean over seeds of the first step at which the validation score of "
        f"{LEARNED.label} is at or above {LEVELS[0]} and {LEVELS[1]}. A number with + is the length"
        " of the training, within which no seed came there.",
        f"GFLOPs and ms: the core alone at {SIDE}×{SIDE}, 64 channels, in the paper's convention "
        "and forward in float32"
        + (f" on {_machines(list(sessions.values()))}; " if sessions else "; ")
        + "parameters: those of the whole network.",
        "The CSV has every run and test set, with those of the rates that were not chosen.",
        *_devices(profile),
        *_gaps(profile),
        origin_note(shown, "Runs"),
    ]
    return Table(
        name="profile",
        caption="Scores of the capability profile: "
        f"{', '.join(task.label for task in profile.tasks)}; {profile_text(profile)}",
        notes=notes,
        headers=[
            ("", "Method"),
            *((task.label, header) for task in profile.tasks for header in (*SIZES[1:], "rate")),
            ("", "aggregate"),
            *(("steps to", header) for _, header in steps),
            ("", "core GFLOPs"),
            ("", "core ms"),
            ("", "parameters"),
        ],
        rows=rows,
        data=[line for row in profile.rows for line in _long(profile, row, found[row.variant])],
    )


def profile_details(runs: Sequence[Run]) -> Table | None:
    """Controls and all rates of each row and setting; in the CSV a line for each test set."""
    profile = find_profile(runs)
    if not profile.rows:
        return None
    rows, data = [], []
    for row in profile.rows:
        every = [
            (task, cell)
            for task in profile.tasks
            if task.label in row.cells
            for cell in (row.cells[task.label], *row.repeats.get(task.label, ()))
        ]
        for task, cell in every:
            tried = ", ".join(f"{rate:g}: {value:.3f}" for rate, value in cell.validation.items())
            cells = [row.label, task.label, cell.device, tried, f"{cell.rate:g}"]
            cells.append(str(len(cell.chosen)))
            cells.append(score_cell(cell.chosen_validation(), 3))
            for size, name in enumerate(cell.test_sets):
                found = _estimates(cell, size)
                cells += [score_cell(one, 3) for one in found.values()]
                data.append(
                    variant_columns(row.label, row.recorded)
                    | {"profile": task.label, "test_set": name, "size": SIZES[size]}
                    | {"device": cell.device}
                    | {"learning_rate": cell.rate, "seeds": len(cell.chosen)}
                    | {"rates": len(cell.rates), "finished": _yes(cell.finished)}
                    | {k: v for what, one in found.items() for k, v in _columns(what, one).items()}
                    | _columns("validation", cell.chosen_validation())
                    | _columns("aggregate", row.aggregate)
                )
            rows.append(cells)
    kinds = ("score", "as mean", "deleted", "all references")
    return Table(
        name="profile-details",
        caption=f"Controls of the capability profile: {profile_text(profile)}",
        notes=[
            "Tried: validation score of the first seed at each learning rate; the best has the "
            "other seeds. As mean: the trained attention is replaced by the plain mean of its "
            "values. Deleted: the images lack what the network has to find. All references: the "
            "oracle takes all references alike. ± is half of the 95 % interval of Student's t over "
            "seeds.",
            "A row that was trained on two devices has both here; the first stands in the profile.",
        ],
        headers=[
            *(("", one) for one in ("Method", "setting", "device", "tried", "rate", "seeds")),
            ("", "validation"),
            *((size, kind) for size in SIZES for kind in kinds),
        ],
        rows=rows,
        data=data,
    )


def findings_table(runs: Sequence[Run]) -> Table | None:
    """Laws, effects, orders, and which predictions held; None without a run of recall."""
    profile = find_profile(runs)
    findings = find_findings(profile, photographs(image_task_settings(runs, [])))
    if not findings:
        return None
    return Table(
        name="profile-findings",
        caption=f"What the capability profile says: {profile_text(profile)}",
        notes=[
            "Brackets are 95 % intervals. What did not hold comes first; – was not measured. * is "
            "a row that is not finished.",
            "Law: least squares over the means of ENLCA's rows; intervals from a bootstrap over "
            "seeds. Effect: paired over seeds, each row at its own rate; 95 % interval of Student's"
            " t. Order: Kendall's tau-b of the means; interval from a bootstrap over rows and "
            "seeds.",
            "A prediction of docs/tasks.md is encoded as conditions on means, at D = 4 if not told."
            " It held if all conditions do, it did not if one does not, and else it was not "
            "measured (–). What does not hold comes first. * is a row that is not finished.",
            origin_note([run for runs in profile.runs.values() for run in runs], "Runs"),
        ],
        headers=[("", header) for header in ("Finding", "kind", "verdict", "numbers")],
        rows=[[one.statement, one.topic, one.verdict, one.numbers] for one in findings],
        data=[
            columns_of(one, "topic", "statement", "verdict", "value", "low", "high", "numbers")
            for one in findings
        ],
    )


def profile_summary(
    rows: Sequence[ProfileRow],
    costs: Sequence[Cost] = (),
    latency: Sequence[Latency] = (),
    marked: Collection[Variant] = (),
) -> RichTable:
    """The short table for a terminal; a cell has the scores at 2n/4n.

    Args:
        rows: as :func:`.profile.profile_rows` gives them, or some of them.
        costs: cost records.
        latency: latency records.
        marked: variants of the rows that are set in bold type.
    """
    found = row_costs(rows, costs, latency)
    tasks = [task for task in PROFILE if any(task.label in row.cells for row in rows)]
    table = RichTable(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.add_column("method", min_width=max((len(row.label) for row in rows), default=6))
    heads = [task.label.replace(" ", "\n") for task in tasks]
    for header in (*heads, "aggre-\ngate", "core\nGFLOPs", "core\nms", "param-\neters"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        pairs = ([row.score(task.label, size) for size in (1, 2)] for task in tasks)
        table.add_row(
            Text(row.label),
            *("/".join(f"{one.mean:.2f}" for one in pair if one) for pair in pairs),
            fixed(row.aggregate.mean if row.aggregate else None, 2),
            *_cost_cells(found[row.variant]),
            str(row.parameters),
            style="bold" if row.variant in marked else None,
        )
    return table


def steps_cell(cell: ProfileCell | None, level: float) -> str:
    """Mean steps over the seeds that came there, and how many did if not all; see the notes."""
    if cell is None:
        return ""
    each = cell.steps_to(level)
    there = [step for step in each.values() if step is not None]
    if not there:
        return f"{cell.config.steps}+"
    share = "" if len(there) == len(each) else f" ({len(there)} of {plural(len(each), 'seed')})"
    return f"{sum(there) / len(there):.0f}{share}"


def _rate_cell(cell: ProfileCell | None) -> str:
    if cell is None:
        return ""
    mark = "" if cell.device == "cpu" else ELSEWHERE
    return f"{cell.rate:g}{mark}" + (f" ({cell.state})" if cell.state else "")


def _cost_cells(cost: RowCost) -> list[str]:
    gflops = "" if cost.gflops is None else f"{cost.gflops:.3g}"
    return [gflops, milliseconds(cost.milliseconds)]


def _steps_columns(profile: Profile) -> list[tuple[float, str]]:
    if LEARNED not in profile.tasks:
        return []
    return [(level, f"{level}") for level in LEVELS]


def _devices(profile: Profile) -> list[str]:
    """What the mark behind a rate means, where a cell bears it."""
    cells = [cell for row in profile.rows for cell in row.cells.values()]
    others = sorted({cell.device for cell in cells} - {"cpu"})
    if not others:
        return []
    return [
        f"{ELSEWHERE} trained on device {' or '.join(others)}, the others on a CPU: the same "
        "images, steps and protocol. profile-details has rows of both devices."
    ]


def _gaps(profile: Profile) -> list[str]:
    """What the profile lacks."""
    notes = []
    if profile.missing:
        names = ", ".join(with_options(v.name, v.options) for v in profile.missing)
        notes.append(f"Not run yet: {names}.")
    lacking = [
        f"{row.label} ({', '.join(absent)})"
        for row in profile.rows
        if (absent := [task.label for task in profile.tasks if task.label not in row.cells])
    ]
    if lacking:
        notes.append(f"Without a run in a setting: {', '.join(lacking)}.")
    if profile.left_out:
        notes.append(
            f"Not shown: {plural(profile.left_out, 'run')} of these tasks with other options, "
            "sizes or steps; they have tables of their own."
        )
    return notes


def _machines(records: Sequence[Latency]) -> str:
    return "; ".join(sorted({describe_machine(record) for record in records}))


def _estimates(cell: ProfileCell, size: int) -> dict[str, Estimate | None]:
    controls = ("as_mean", "deleted", "all_references")
    return {"score": cell.score(size)} | {name: cell.control(name, size) for name in controls}


def _columns(what: str, found: Estimate | None) -> dict[str, Any]:
    return {
        what: found and found.mean,
        f"{what}_low": found and found.low,
        f"{what}_high": found and found.high,
    }


def _long(profile: Profile, row: ProfileRow, cost: RowCost) -> list[dict[str, Any]]:
    """A line for each run and test set of a row; the names of the columns are those of a task."""
    lines = []
    for task in profile.tasks:
        if not (cell := row.cells.get(task.label)):
            continue
        for (rate, seed), run in sorted(cell.runs.items()):
            own = setting_columns(Setting([run], []))  # device and machine are this run's
            for size, name in enumerate(cell.test_sets):
                one = run.scores[name]
                lines.append(
                    variant_columns(row.label, run.variant)
                    | {"profile": task.label, "task": task.task, "test_set": name}
                    | {"size": SIZES[size], "seed": seed, "learning_rate": rate}
                    | {"chosen": _yes(rate == cell.rate), "finished": _yes(cell.finished)}
                    | {"score": one.score, "floor": one.floor, "ceiling": one.ceiling}
                    | {"normalised": normalised(one), "score_as_mean": one.as_mean}
                    | {"score_deleted": one.deleted, "score_all_references": one.all_references}
                    | {"validation_score": run.validation and run.validation.score}
                    | {f"steps_to_{level}": steps_to(run, level) for level in LEVELS}
                    | {"parameters": run.training.parameters, "core_gflops": cost.gflops}
                    | {"core_ms": cost.milliseconds}
                    | {"core_ms_session": cost.session and cost.session.id}
                    | {"run": run.id}
                    | own
                )
    return lines


def _yes(value: bool) -> str:
    return "yes" if value else "no"
