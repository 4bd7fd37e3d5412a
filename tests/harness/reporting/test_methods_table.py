"""The README's table of methods takes all its times and memory from one record."""

from __future__ import annotations

from harness.reporting.tables.methods import methods_table
from tests.harness import synthetic_records as synthetic


def test_times_are_of_the_record_that_timed_most_methods() -> None:
    memory = {"peak_memory_mb": 3.5}
    most = [synthetic.latency_row(name, 12.5, **memory) for name in ("NLA", "NLSA-r4")]
    most.append(synthetic.latency_row("NLA", 99.0, size=150))
    newer = [synthetic.latency_row("Criss-Cross", 1.0), synthetic.latency_row("NLA", 2.0, "module")]
    records = [
        synthetic.latency(most, "most"),
        synthetic.latency(newer, "newer", created="2026-02-02T03:04:05+00:00"),
    ]
    table = methods_table([synthetic.cost("NLA", 25.6)], records)
    assert table is not None
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["NLA"] == ["O(N²)", "25.60", "25.60", "12.5", "99.0", "3.50"]
    assert rows["NLSA-r4"] == ["O(N)", "5.08", "", "12.5", "", "3.50"]
    assert rows["Criss-Cross"][3:] == ["", "", ""]
    assert {row["session"] for row in table.data} == {"most"}


def test_there_is_none_where_no_core_was_timed_on_a_cpu() -> None:
    gpu = synthetic.latency([synthetic.latency_row("NLA", 1.0, device="cuda")])
    assert methods_table([], []) is methods_table([], [gpu]) is None
