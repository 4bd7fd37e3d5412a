"""The capability profile from records: choice of the rate, intervals, aggregate, steps, tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from harness.config.profile import PROFILE
from harness.config.variants import Variant
from harness.records.shapes import Run
from harness.reporting.profile import (
    Profile,
    ProfileCell,
    find_profile,
    normalised,
    profile_rows,
    row_costs,
    steps_to,
)
from harness.reporting.statistics import estimate
from harness.reporting.tables.profile import (
    findings_table,
    profile_details,
    profile_summary,
    profile_table,
    steps_cell,
)
from harness.reporting.tables.tasks import task_settings, task_table

D4, D16, PHASE, STACK = (task.label for task in PROFILE)
run = synthetic.task_run


def of_task(variant: str, **options: Any) -> dict[str, Any]:
    """A variant with the tasks' weight of the attention."""
    return synthetic.variant(variant, res_scale=1.0, **options)


def one_cell(runs: Sequence[Run]) -> ProfileCell:
    (row,) = profile_rows(runs)
    return row.cells[D4]


def test_the_rate_is_chosen_on_validation_images_of_the_seed_that_all_rates_have() -> None:
    runs = [
        run(rate=0.002, validation=0.70, scores=[0.99, 0.99, 0.99]),  # best in the tests
        run(rate=0.004, validation=0.80, scores=[0.10, 0.20, 0.30]),
        run(rate=0.008, validation=0.75),
        run(rate=0.004, seed=1, validation=0.1, scores=[0.5, 0.6, 0.7]),
        run(rate=0.004, seed=2, validation=0.1, scores=[0.9, 0.7, 0.5]),
        run(rate=0.016, seed=1, validation=0.99),  # not of the seed that decides
    ]
    cell = one_cell(runs)
    assert (cell.first_seed, cell.rate) == (0, 0.004)
    assert cell.rates == [0.002, 0.004, 0.008, 0.016]
    assert cell.validation == {0.002: 0.70, 0.004: 0.80, 0.008: 0.75}
    assert [*cell.chosen] == [0, 1, 2]
    found = cell.score(1)
    assert found is not None
    assert found.values == (0.2, 0.6, 0.7)
    assert found.mean == pytest.approx(0.5)
    assert cell.finished
    assert cell.state == ""


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=5), st.randoms())
def test_test_scores_and_the_order_of_records_do_not_choose(values: list[float], any_: Any) -> None:
    runs = [
        run(rate=0.001 * (i + 1), validation=value, scores=[any_.random()] * 3)
        for i, value in enumerate(values)
    ]
    expected = 0.001 * (values.index(max(values)) + 1)  # of equal ones the smallest rate
    any_.shuffle(runs)
    assert one_cell(runs).rate == pytest.approx(expected)


def test_of_repeats_the_newest_counts() -> None:
    new = run(scores=[0.1, 0.2, 0.3])
    old = synthetic.edited(run(), lambda r: r.update(created="2025-01-01T00:00:00+00:00"))
    found = one_cell([new, old]).score(0)
    assert found is not None
    assert found.values == (0.1,)


def test_a_cell_has_the_runs_of_one_device() -> None:
    few = [run(seed=seed, scores=[0.1, 0.1, 0.1]) for seed in (0, 1)]
    more = [run(seed=seed, scores=[0.2, 0.2, 0.2], device="cuda") for seed in (0, 1, 2)]
    row = profile_rows([*few, *more])[0]
    assert (row.cells[D4].device, len(row.cells[D4].chosen)) == ("cuda", 3)
    assert [cell.device for cell in row.repeats[D4]] == ["cpu"]
    # Of as many runs, a CPU's.
    assert profile_rows([*few, *more[:2]])[0].cells[D4].device == "cpu"
    details = profile_details([*few, *more])
    assert details is not None
    assert [line[2] for line in details.rows] == ["cuda", "cpu"]
    table = profile_table([*few, *more], [], [])
    assert table is not None
    assert any(cell.startswith("0.002°") for cell in table.rows[0])
    assert any(note.startswith("° trained on device cuda") for note in table.notes)
    seen = {row["run"]: row["device"] for row in synthetic.csv_rows(table)}
    assert seen == {one.id: "cuda" for one in more}


def test_intervals_are_students() -> None:
    values = [0.3, 0.5, 0.4]
    found = estimate(values)
    assert found is not None
    slow = stats.t.interval(0.95, 2, np.mean(values), np.std(values, ddof=1) / np.sqrt(3))
    assert (found.low, found.high) == pytest.approx(slow)
    assert found.mean + found.reach == pytest.approx(found.high)
    alone = estimate([0.3])
    assert alone is not None
    assert (alone.low, alone.high, alone.reach) == (None, None, 0.0)
    assert estimate([]) is None


def test_scores_are_normalised_and_clipped() -> None:
    def share(**values: float) -> float:
        return normalised(run(scores=[synthetic.score(0.0, **values)] * 3).scores["n6"])

    assert share(score=0.6, floor=0.2, ceiling=1.0) == pytest.approx(0.5)
    assert share(score=-0.3) == 0.0
    assert share(score=1.2) == 1.0


def everywhere(scores: dict[str, Sequence[float]], **changes: Any) -> list[Run]:
    return [
        run(scores=scores[task.label], task=task.task, options=dict(task.options), **changes)
        for task in PROFILE
        if task.label in scores
    ]


def test_the_aggregate_is_the_mean_of_settings_by_seed() -> None:
    first = {D4: (0, 0.8, 0.6), D16: (0, 0.4, 0.2), PHASE: (0, 1.0, 1.4), STACK: (0, -0.5, 0.1)}
    second = {**first, D4: (0.9, 1.0, 1.0)}
    (row,) = profile_rows(everywhere(first) + everywhere(second, seed=1))
    # (0.7 + 0.3 + (1 + 1) / 2 + (0 + 0.1) / 2) / 4, and 1.0 instead of 0.7; n has no part in it.
    assert row.aggregate_by_seed == pytest.approx({0: 2.05 / 4, 1: 2.35 / 4})
    found = row.aggregate
    assert found is not None
    assert found.mean == pytest.approx(2.2 / 4)
    assert found.reach == pytest.approx(stats.t.ppf(0.975, 1) * 0.3 / 4 / 2)
    # Only seeds that all settings have, and only rows that have all settings.
    (row,) = profile_rows(everywhere(first) + everywhere({D4: (0, 1, 1)}, seed=1))
    assert [*row.aggregate_by_seed] == [0]
    del first[STACK]
    (row,) = profile_rows(everywhere(first))
    assert row.aggregate is None


def test_steps_are_those_of_the_first_point_at_or_above() -> None:
    curve = [(100, 0.2), (200, 0.5), (300, 0.4), (400, 0.79)]
    assert steps_to(run(curve=curve), 0.5) == 200
    assert steps_to(run(curve=curve), 0.8) is None
    assert steps_to(run(curve=[]), 0.5) is None
    later = [(100, 0.2), (200, 0.4), (300, 0.6), (400, 0.9)]
    cell = one_cell([run(curve=curve), run(curve=later, seed=1)])
    assert cell.steps_to(0.5) == {0: 200, 1: 300}
    assert [steps_cell(cell, level) for level in (0.5, 0.8, 0.95)] == [
        "250",
        "400 (1 of 2 seeds)",
        "300+",
    ]


def test_curves_and_distances_are_merged_where_all_seeds_have_them() -> None:
    scores = [[synthetic.score(0.5, by_distance=rows)] * 3 for rows in (
        [[8, 0.4, 1.0], [16, 0.2, 1.0], [24, 0.1, 1.0]],
        [[8, 0.6, 1.0], [16, 0.4, 1.0]],
    )]  # fmt: skip
    cell = one_cell(
        [run(scores=found, seed=s, curve=[(100, 0.1 * s)]) for s, found in enumerate(scores)]
    )
    assert [(d, round(e.mean, 9)) for d, e in cell.by_distance(2)] == [(8, 0.5), (16, 0.3)]
    assert [(step, round(e.mean, 9)) for step, e in cell.curve()] == [(100, 0.05)]


def profile(*runs: Run) -> Profile:
    return find_profile(runs)


def test_rows_are_variants_in_the_order_of_the_profile() -> None:
    found = profile(
        run("User_Attention-8"),
        run(of_task("enlca", m=16)),
        run(synthetic.variant("enlca")),  # released weight, 0.1
        run(of_task("enlca")),
        run(of_task("enlca", k=2.0)),
        run("Baseline"),
        run(of_task("nlsa", chunk_size=72)),
        run(of_task("nla")),
    )
    assert [row.label for row in found.rows] == [
        *("Baseline", "NLA", "NLSA-r4 (chunk_size=72)", "ENLCA-m128"),
        *("ENLCA-m128 (res_scale=0.1)", "ENLCA-m16", "ENLCA-m128 (k=2.0)", "User_Attention-8"),
    ]
    assert found.row("enlca") is found.rows[3]
    assert found.row("enlca", res_scale=0.1) is found.rows[4]
    assert found.row("nlsa") is None
    assert Variant("nlsa") in found.missing
    assert Variant("nlsa", {"chunk_size": 72}) not in found.missing


def test_other_tasks_presets_and_options_are_no_part_of_it() -> None:
    assert not profile(
        run(options={"pairs": 3}), run(preset="small"), run(task="other"), synthetic.run()
    ).rows
    noisy = {"pairs": 4, "key_noise": 0.1}
    found = profile(run(scores=(0.1, 0.1, 0.1), options=noisy), run(), run("Baseline"))
    assert (len(found.rows), found.left_out) == (2, 1)
    cell = found.rows[1].cells[D4]
    assert [run.scores["n6"].score for run in cell.chosen.values()] == [0.9]


def test_costs_are_those_of_the_module_and_all_times_of_one_session() -> None:
    costs = [synthetic.cost(synthetic.variant("nla"), 25.6)]
    row = synthetic.latency_row
    latency = [
        synthetic.latency([row("NLA", 9.0), row("NLSA-r4", 3.0)], "cpu-1"),
        synthetic.latency(
            [
                *(row("NLA", 8.0), row("NLSA-r4", None), row("NLA", 1.0, dtype="float16")),
                *(row("NLA", 1.0, size=150), row("NLA", 1.0, passes="forward+backward")),
            ],
            "cpu-2",
            created="2026-02-02T00:00:00+00:00",
        ),
    ]
    rows = profile_rows([run(of_task("nla")), run(of_task("nlsa")), run("Baseline")])
    found = row_costs(rows, costs, latency)
    by_label = {row.label: found[row.variant] for row in rows}
    assert (by_label["NLA"].gflops, by_label["NLA"].milliseconds) == (25.6, 9.0)
    assert by_label["NLSA-r4"].gflops is None
    assert by_label["NLSA-r4"].milliseconds == 3.0
    assert by_label["NLA"].session is by_label["NLSA-r4"].session is latency[0]
    assert by_label["Baseline"].milliseconds is None


RUNS = [
    run(of_task("nla"), (0.9, 0.8, 0.7), rate=0.002, validation=0.5),
    *(run(of_task("nla"), (0.9, 0.8, 0.7 + s / 10), rate=0.004, seed=s) for s in range(3)),
    run(of_task("nla"), (0.9, 0.8, 0.7), rate=0.008, validation=0.6),
    run("Baseline", (0.0, 0.01, 0.02), rate=0.002),
    run("Baseline", (0.0, 0.01, 0.02), options={"pairs": 16}),
]


def test_the_table_marks_what_is_not_finished() -> None:
    table = profile_table(RUNS, [], [])
    assert table is not None
    columns = synthetic.headers(table)
    assert columns[1:7] == [f"{D} {what}" for D in (D4, D16) for what in ("2n", "4n", "rate")]
    found = synthetic.cells(table)
    half = stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3)
    assert found["NLA"][:6] == ["0.80 ± 0.00", f"0.80 ± {half:.2f}", "0.004", "", "", ""]
    assert found["Baseline"][:3] == ["0.01", "0.02", "0.002 (1 of 3 rates, 1 of 3 seeds)"]
    notes = " ".join(table.notes)
    assert "Not run yet: conv, mean" in notes
    assert f"NLA ({D16})" in notes


def test_the_csv_has_every_run_and_test_set_with_the_columns_of_a_task() -> None:
    rows = synthetic.csv_rows(profile_table(RUNS, [], []))
    assert len(rows) == 3 * len(RUNS)
    (setting, *_) = task_settings(RUNS)
    of_task = synthetic.csv_rows(task_table(setting))
    shared = {"method", "variant", "options", "task", "test_set", "seed", "score", "floor"}
    shared |= {"ceiling", "score_as_mean", "score_deleted", "validation_score", "parameters"}
    shared |= {"learning_rate", "setting", "preset", "steps", "machine"}
    assert shared <= set(rows[0]) & set(of_task[0])
    chosen = {
        (row["learning_rate"], row["seed"])
        for row in rows
        if row["method"] == "NLA" and row["chosen"] == "yes"
    }
    assert chosen == {("0.004", seed) for seed in "012"}
    last = next(row for row in rows if row["seed"] == "2" and row["size"] == "4n")
    assert (last["score"], last["normalised"], last["finished"]) == ("0.9", "0.9", "yes")
    assert (last["steps_to_0.5"], last["steps_to_0.8"]) == ("200", "300")


def test_details_have_controls_and_all_rates() -> None:
    table = profile_details(RUNS)
    assert table is not None
    assert table.rows[1][:5] == ["Baseline", D16, "cpu", "0.002: 0.750", "0.002"]
    nla = table.rows[2]
    assert nla[3] == "0.002: 0.500, 0.004: 0.750, 0.008: 0.600"
    assert synthetic.headers(table)[7:10] == ["n score", "n as mean", "n deleted"]
    assert nla[7:10] == ["0.900 ± 0.000", "0.090 ± 0.000", "−0.010 ± 0.000"]
    found = synthetic.csv_rows(table)
    last = next(row for row in found if (row["method"], row["size"]) == ("NLA", "4n"))
    assert float(last["score"]) == pytest.approx(0.8)
    assert float(last["score_low"]) == pytest.approx(0.8 - stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3))


def test_without_a_run_of_the_profile_there_is_no_table() -> None:
    runs = [synthetic.run(), run(options={"pairs": 3})]
    assert profile_table(runs, [], []) is None
    assert profile_details(runs) is None
    assert findings_table(runs) is None
    assert findings_table([run(task="phase", options={})]) is None


def test_the_summary_is_short() -> None:
    console = Console(width=100, record=True)
    rows = profile_rows(RUNS)
    console.print(profile_summary(rows, [synthetic.cost("NLA", 25.6)], marked={rows[1].variant}))
    printed = console.export_text()
    (line,) = (line for line in printed.splitlines() if line.startswith("NLA"))
    assert line.split() == ["NLA", "0.80/0.80", "25.6", "1000"]


def test_a_tasks_rates_are_rows_of_one_table() -> None:
    settings = task_settings(RUNS)
    assert len(settings) == 2
    table = task_table(settings[0] if len(settings[0].runs) > 1 else settings[1])
    assert [row[:2] for row in table.rows] == [
        *(["NLA", "0.002"], ["NLA", "0.004"], ["NLA", "0.008"], ["Baseline", "0.002"]),
        *(["floor", ""], ["ceiling", ""]),
    ]
    assert table.rows[1][-1] == "3"
    assert {row["learning_rate"] for row in synthetic.csv_rows(table)} == {
        "0.002",
        "0.004",
        "0.008",
    }
