"""Marks of published runs in a user's own tables: of every row against the runs that it is of."""

from __future__ import annotations

from itertools import combinations

import synthetic_records as synthetic

from harness.records.shapes import Run
from harness.reporting.settings import Setting
from harness.reporting.tables.claims import claims_table
from harness.reporting.tables.joined import MARK, NOTE, TAKE_PART, mark_joined
from harness.reporting.tables.operations import table4
from harness.reporting.tables.quality import quality_table, table1, table6
from harness.reporting.tables.tasks import task_settings, task_table

LABELS = ("Baseline", "NLA", "NLSA-r4")
RUNS = [
    synthetic.run(label, seed, [25.0 + seed, 26.0], identifier=f"{label.lower()}-{seed}")
    for label in LABELS
    for seed in range(2)
]


def test_rows_with_joined_runs_are_marked_and_no_others() -> None:
    setting = Setting(RUNS, [synthetic.cost("Criss-Cross", 1.0)])
    tables = [table4(setting), table6(setting), quality_table(setting)]
    tables += [table for table in [table1(setting)] if table]
    for count in range(3):
        for joined in combinations(RUNS, count):
            ids = {run.id for run in joined}
            for table in tables:
                marked = mark_joined(table, RUNS, ids)
                wanted = {run.variant.label for run in joined}
                found = {
                    row[0].split(" (")[0].removesuffix(f" {MARK}")
                    for row in marked.rows
                    if row[0].endswith(MARK)
                }
                assert found == wanted & {row[0].split(" (")[0] for row in table.rows}
                assert (marked.notes[0] == NOTE) == bool(found)
                assert (r"\dag{}" in marked.latex()) == bool(found)
                for row in marked.data if ids else ():
                    own = [run.id in ids for run in RUNS if run.variant.label == row["method"]]
                    measured = own and row.get("source") != "published"
                    words = {(1, 0): "own", (0, 1): "published", (1, 1): "own and published"}
                    told = words[not all(own), any(own)] if measured else None
                    assert row["runs_from"] == told


def test_without_joined_runs_nothing_changes() -> None:
    table = table4(Setting(RUNS, []))
    assert mark_joined(table, RUNS, ()) is table
    assert mark_joined(table, RUNS, {"another"}) is table


def test_claims_have_a_note_alone() -> None:
    table = claims_table(Setting(RUNS, []))
    assert table
    marked = mark_joined(table, RUNS, {RUNS[0].id})
    assert marked.notes == [TAKE_PART, *table.notes]
    assert (marked.rows, marked.data) == (table.rows, table.data)


def test_of_two_rates_only_the_joined_one_is_marked() -> None:
    def run(rate: float, name: str) -> Run:
        found = synthetic.task_run(synthetic.variant("nla", res_scale=1.0), [0.9, 0.9, 0.9])
        return synthetic.edited(
            found, lambda c: c.update(id=name) or c["config"].update(learning_rate=rate)
        )

    runs = [run(0.001, "own"), run(0.002, "joined")]
    (setting,) = task_settings(runs)
    table = mark_joined(task_table(setting), runs, {"joined"})
    assert [row[:2] for row in table.rows[:2]] == [["NLA", "0.001"], [f"NLA {MARK}", "0.002"]]
    origins = {row["learning_rate"]: row["runs_from"] for row in table.data}
    assert origins == {0.001: "own", 0.002: "published"}
