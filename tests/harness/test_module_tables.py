"""The table of modules holds every module, and what was measured of it."""

from __future__ import annotations

from attention_zoo import list_attentions
from harness.reporting.benches import find_benches
from harness.reporting.cells import difference_cell
from harness.reporting.settings import find_settings
from harness.reporting.tables.modules import modules_table
from tests.harness import synthetic_records as synthetic


def rows_of(runs: list[dict], latency: list[dict]) -> dict[str, list[str]]:  # type: ignore[type-arg]
    table = modules_table(find_settings(runs, []), find_benches(latency))
    return {row[0]: row[1:] for row in table.rows}


def test_every_module_has_a_row_and_what_was_not_measured_is_empty() -> None:
    rows = rows_of([], [])
    assert list(rows) == list_attentions(installed=False)
    assert all(row[4:] == ["", "", ""] for row in rows.values())
    assert rows["nla"][:1] + rows["nla"][2:4] == ["NLA", "O(N²)", "25.6"]
    assert rows["enlca"][3] == "0.657"


def test_differences_are_of_the_setting_with_most_runs_on_urban100_x4() -> None:
    small = [synthetic.run("Baseline", 0), synthetic.run("NLA", 0, [20.0, 21.0, 22.0])]
    other = [
        synthetic.run(name, seed, [30.0, 31.0, 32.0 + (name == "NLA")], steps=7)
        for name in ("Baseline", "NLA")
        for seed in (0, 1)
    ]
    elsewhere = [
        synthetic.run("NLA", seed, sets=["Set5"], identifier=f"e{seed}") for seed in range(9)
    ]
    for run in other:
        run["id"] += "-7"
    rows = rows_of([*small, *other, *elsewhere], [])
    settings = find_settings(other, [])
    (key,) = (k for k, runs in settings[0].runs_of.items() if runs[0]["variant"]["name"] == "nla")
    assert rows["nla"][5:] == [difference_cell(settings[0].summary(key, "Urban100")), "2"]
    assert rows["nla"][5].startswith("+0.333 [")
    assert rows["none"][5:] == ["", "2"]


def test_latency_is_of_a_cpu_in_float32() -> None:
    record = synthetic.latency([synthetic.latency_row("NLA", 12.5)])
    assert rows_of([], [record])["nla"][4] == "12.5"
