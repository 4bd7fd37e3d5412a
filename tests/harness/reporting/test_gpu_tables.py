"""Tables of what was measured on a GPU."""

from __future__ import annotations

from typing import Any

from harness.reporting.tables.gpu import gpu_tables
from tests.harness.synthetic_records import GPU_MACHINE, MACHINE, cells, csv_rows, gpu, variant

NLA: dict[str, Any] = {
    "name": "NLA, 100x100, forward",
    "variant": variant("nla"),
    "height": 100,
    "width": 100,
    "passes": "forward",
    "dtype": "float32",
}
RATES = {"matmul_gflops": 50_000.0, "copy_gb_per_s": 4000.0}
LIMIT = NLA | RATES | {"median_ms": 1.5, "graph_ms": 1.25, "limit_ms": 0.5, "share": 0.4}


def test_limits_with_errors_flash_and_the_tests_result() -> None:
    records = [
        gpu([LIMIT], piece="limits-float32", machine=GPU_MACHINE),
        gpu(
            [{"name": "NLA", "height": 100, "width": 100, "ratio": 2.05}],
            piece="flash",
            id="flash-1",
            machine=GPU_MACHINE,
        ),
        gpu(
            [{"name": "tests", "result": "50 passed in 52s"}],
            piece="tests",
            id="tests-1",
            machine=GPU_MACHINE,
        ),
    ]
    (table,) = gpu_tables(records)
    assert table.name == "gpu-limits-made-up-gpu"
    expected = ["100×100", "forward", "float32", "1.50", "1.25", "0.500", "0.400", "", ""]
    assert cells(table)["NLA"] == expected
    notes = " ".join(table.notes)
    assert "float32 50 TFLOP/s and 4.0 TB/s" in notes
    assert "2.05 times its time at 100×100" in notes
    assert "50 passed in 52s" in notes
    assert "Driver 1.2" in notes
    assert csv_rows(table)[0]["graph_ms"] == "1.25"


def test_a_call_without_a_graph_and_what_cannot_run_are_empty() -> None:
    row = NLA | {
        "tiled": 5.51,
        "sdpa": 1.64,
        "sdpa graph": 1.4,
        "runs": 22,
        "notes": {"native": "C"},
    }
    (table,) = gpu_tables([gpu([row], piece="implementations-float32", machine=GPU_MACHINE)])
    assert [header for _, header in table.headers][4:] == ["tiled", "sdpa", "rounds"]
    assert cells(table)["NLA"][3:] == ["5.51", "1.64 / 1.40", "22"]


def test_training_and_what_ran_out_of_memory() -> None:
    rows = [
        NLA
        | {"preset": "paper", "steps_per_second_before_auxiliary": 9.8, "steps_per_second": 8.71}
        | {"schedule_steps": 1_000_000, "projected_gpu_hours": 31.84},
        {"name": "paper, NLSA-r4, float32", "note": "out of memory"},
    ]
    (table,) = gpu_tables([gpu(rows, piece="train-paper-float32", machine=GPU_MACHINE)])
    assert cells(table)["NLA"] == ["paper", "float32", "9.8", "8.7", "1,000,000", "31.8"]
    assert cells(table)["paper, NLSA-r4, float32"][2] == "out of memory"


def test_the_newest_record_of_a_piece_counts_and_none_of_a_cpu() -> None:
    def limits(median: float, day: int, **changes: Any) -> Any:
        return gpu(
            [LIMIT | {"median_ms": median}],
            piece="limits-float32",
            id=f"limits-{day}",
            created=f"2026-11-{day:02}T00:00:00+00:00",
            **changes,
        )

    records = [
        limits(2.0, 3, machine=GPU_MACHINE),
        limits(9.0, 2, machine=GPU_MACHINE),
        limits(7.0, 4, machine=MACHINE),
    ]
    (table,) = gpu_tables(records)
    assert cells(table)["NLA"][3] == "2.00"
    assert gpu_tables([limits(7.0, 4, machine=MACHINE)]) == []
