"""The tables of modules and, for the README, of methods."""

from __future__ import annotations

from attention_zoo import find_attention, list_attentions
from harness.records.shapes import Cost, Latency, Run
from harness.reporting.benches import find_benches
from harness.reporting.cells import difference_cell
from harness.reporting.settings import find_settings
from harness.reporting.tables.methods import methods_table
from harness.reporting.tables.modules import modules_table
from harness.reporting.tables.render import minus
from tests.harness import synthetic_records as synthetic


def rows_of(
    runs: list[Run], latency: list[Latency], costs: list[Cost] | None = None
) -> dict[str, list[str]]:
    table = modules_table(find_settings(runs, costs or []), find_benches(latency))
    return {row[0]: list(row[1:]) for row in table.rows} if table else {}


def test_every_measured_module_has_a_row_and_what_was_not_measured_is_empty() -> None:
    names = list_attentions(installed=False)
    costs = [synthetic.cost(synthetic.variant(name), 1.25) for name in reversed(names)]
    rows = rows_of([], [], costs)
    assert list(rows) == names
    for name, row in rows.items():
        module = find_attention(name)
        stated = [module.label(), module.source, module.complexity]
        assert row == [*stated, "1.25", "", "", ""]
    assert rows_of([], []) == {}


def test_modules_with_other_options_and_users_modules_have_no_row() -> None:
    runs = [synthetic.run(synthetic.variant("enlca", m=16)), synthetic.run("User_Attention-8")]
    assert rows_of([*runs, synthetic.run("NLA")], []).keys() == {"nla"}
    assert rows_of(runs, []) == {}


def test_differences_are_of_the_setting_with_most_runs_on_urban100_x4() -> None:
    small = [synthetic.run("Baseline", 0), synthetic.run("NLA", 0, [20.0, 21.0, 22.0])]
    other = [
        synthetic.run(name, s, [30.0, 31.0, last], steps=7, identifier=f"{name}-{s}")
        for name, last in (("Baseline", 32.0), ("NLA", 33.0))
        for s in (0, 1)
    ]
    elsewhere = [synthetic.run("NLA", s, sets=["Set5"], identifier=f"e{s}") for s in range(9)]
    rows = rows_of([*small, *other, *elsewhere], [])
    (setting,) = find_settings(other, [])
    (nla,) = (variant for variant in setting.runs_of if variant.name == "nla")
    assert rows["nla"][5:] == [minus(difference_cell(setting.summary(nla, "Urban100"))), "2"]
    assert rows["nla"][5].startswith("+0.333 [")
    assert rows["none"][5:] == ["", "2"]


def test_latency_is_of_a_cpu_in_float32() -> None:
    record = synthetic.latency([synthetic.latency_row("NLA", 12.5)])
    assert rows_of([], [record])["nla"][3:5] == ["", "12.5"]


def test_all_times_of_methods_are_of_the_record_that_timed_most() -> None:
    memory = {"peak_memory_mb": 3.5}
    most = [synthetic.latency_row(name, 12.5, **memory) for name in ("NLA", "NLSA-r4")]
    most.append(synthetic.latency_row("NLA", 99.0, size=150))
    newer = [synthetic.latency_row("Criss-Cross", 1.0), synthetic.latency_row("NLA", 2.0, "module")]
    records = [
        synthetic.latency(most, "most"),
        synthetic.latency(newer, "newer", created="2026-02-02T03:04:05+00:00"),
    ]
    table = methods_table([synthetic.cost("NLA", 25.6)], records)
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["NLA"] == ["O(N²)", "25.60", "25.60", "12.5", "99.0", "3.50"]
    assert rows["NLSA-r4"] == ["O(N)", "5.08", "", "12.5", "", "3.50"]
    assert rows["Criss-Cross"][3:] == ["", "", ""]
    assert {row["session"] for row in table.data} == {"most"}


def test_methods_have_no_table_where_no_core_was_timed_on_a_cpu() -> None:
    gpu = synthetic.latency([synthetic.latency_row("NLA", 1.0, device="cuda")])
    assert methods_table([], []) is methods_table([], [gpu]) is None
