"""The comparison of speed: what is timed, its limits, the record and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_zoo.implementations import watch_implementations
from harness.base.errors import UserError
from harness.config.variants import Variant
from harness.measuring.apart import ProcessEnded
from harness.measuring.memory import peak_memory
from harness.measuring.speed import CASES, Comparison, choose, machine_limits, measure
from harness.records.shapes import Speed, untyped
from harness.records.store import load_records, save_record
from harness.reporting.tables.speed import find_speeds, speed_table
from tests.harness.conftest import Cli
from tests.harness.listening import texts_of

CPU = torch.device("cpu")
ENLCA = Variant("enlca", {"m": 8})
QUICK: dict[str, Any] = {"device": CPU, "max_seconds": 0.0}
TINY = [
    Comparison("core", Variant("nlsa", {"chunk_size": 9}), {"forward": 1e-6}, 1e-6, side=7),
    Comparison("module", Variant("nla"), {"forward": 1e6, "forward+backward": 1e6}, 1e6, side=4),
    Comparison("contrast", ENLCA, {"forward+backward": 1e6}, 1e6, side=5, batch=2),
    Comparison("step", ENLCA, {"step": 1e6}, side=8, batch=2, network=(4, 8)),
    Comparison("step", Variant("none"), {"step": 1e6}, side=8, batch=2, network=(4, 8)),
]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.measuring.speed._MATMUL_SIDE", {"cpu": 64})
    monkeypatch.setattr("harness.measuring.speed._COPY_NUMBERS", 2**12)


def test_the_cases_are_those_of_the_plan() -> None:
    names = [one.name for one in CASES]
    assert len(set(names)) == len(names) == 14
    assert sum(len(one.targets) for one in CASES) == 23
    assert [str(one) for one in CASES if one.part in ("contrast", "step")] == [
        "contrastive loss, 28×28, batch 16",
        "contrastive loss, 100×100",
        "training step, EDSR 8×32 + ENLCA-m128, 28×28, batch 16",
        "training step, EDSR 8×32, 28×28, batch 16",
        "training step, EDSR 16×64, 28×28, batch 16",
    ]
    assert str(CASES[1]) == "core, NLA, 150×150"


@pytest.mark.parametrize("one", TINY, ids=lambda one: one.name)
def test_both_sides_compute_the_same_from_the_same_weights(one: Comparison) -> None:
    for passes in one.targets:
        if passes == "forward+backward" and one.part != "contrast":
            continue  # its output's gradient is drawn in the order of memory
        ours, theirs = (one.function(side, passes, CPU, seed=3) for side in ("ours", "obvious"))
        for _ in range(3):  # a step changes the weights
            mine, wanted = ours(), theirs()
            pairs = zip(mine, wanted, strict=True) if isinstance(mine, tuple) else [(mine, wanted)]
            for a, b in pairs:
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("one", TINY, ids=lambda one: one.name)
def test_one_side_is_released_and_the_other_auto(one: Comparison) -> None:
    """Of all cores that the case runs, the backbone's convolution too."""
    for passes in one.targets:
        used = {}
        for side in ("obvious", "ours"):
            with watch_implementations() as seen:
                one.function(side, passes, CPU)()
            used[side] = set(seen.values())
        assert used["obvious"] == {"released"}
        assert "released" not in used["ours"]


@pytest.mark.parametrize(("name", "megabytes"), [("nlsa", 286), ("criss-cross", 48)])
def test_the_tensors_are_those_of_the_published_code(name: str, megabytes: float) -> None:
    """Peak memory at 100x100 is what was measured of the published code, in MB of 2^20 bytes."""
    one = Comparison("core", Variant(name), {"forward": 1.0})
    peak = peak_memory(one.function("obvious", "forward", CPU), CPU)
    assert peak is not None
    assert peak / 2**20 == pytest.approx(megabytes, rel=0.03)


def test_each_side_has_its_own_memory_format() -> None:
    one = Comparison("module", Variant("nla"), {"forward": 1.0}, side=6)
    ours, theirs = (one.function(side, "forward", CPU)() for side in ("ours", "obvious"))
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert theirs.is_contiguous()


def test_work_by_hand() -> None:
    n = 7 * 7
    core = Comparison("core", Variant("nla"), {}, side=7, batch=3)
    assert core.work("forward") == (3 * 2 * n * n * 128, 3 * 4 * 4 * 64 * n)
    assert core.work("forward+backward") == (9 * 2 * n * n * 128, 3 * 8 * 4 * 64 * n)
    module = Comparison("module", Variant("nla"), {}, side=7)
    parameters = 256 * 64 * 2 + 64 * 2 + 256 * 256 + 256
    projections = 2 * n * 256 * (64 + 64 + 256)
    assert module.work("forward") == (projections + 2 * n * n * 320, 4 * (2 * 256 * n + parameters))
    # One entry in each group.
    contrast = Comparison("contrast", Variant("enlca", {"n1": 1.0}), {}, side=7, batch=2)
    assert contrast.work("forward+backward") == (2 * 2 * n * 64 * (n + 4), 2 * 8 * 2 * 64 * n)
    # EDSR of 4 blocks: head, 8 and 1 of the body, two up-samplers, tail at 16 times the pixels.
    step = Comparison("step", Variant("none"), {}, side=7, batch=2, network=(4, 8))
    macs = n * 9 * (3 * 8 + 9 * 8 * 8 + 8 * 32 + 4 * 8 * 32 + 16 * 8 * 3)
    flops, touched = step.work("step")
    assert flops == pytest.approx(2 * 3 * 2 * macs)
    weights = 9 * (3 * 8 + 9 * 64 + 2 * 8 * 32 + 8 * 3) + 10 * 8 + 2 * 32 + 3
    assert touched == 2 * 4 * (2 * 3 * n * 17 + weights)
    with_enlca = Comparison("step", ENLCA, {}, side=7, batch=2, network=(4, 8))
    contrasts = 5 * n * 2 * (n + 4)
    cost = ENLCA.create(8).cost(7, 7)
    assert with_enlca.work("step")[0] == pytest.approx(
        flops + 2 * 2 * (3 * 5 * cost.module_executed + contrasts)
    )


def test_machine_limits_are_positive_rates() -> None:
    rates = machine_limits(CPU, max_seconds=0.0)
    assert rates.keys() == {"matmul_gflops", "copy_gb_per_s"}
    assert all(0.01 < rate < 1e6 for rate in rates.values())


def test_record_and_table(tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    state = torch.random.get_rng_state()
    record = measure(TINY, **QUICK, min_runs=2, on_run=lambda *both: told.append(both))
    assert torch.equal(torch.random.get_rng_state(), state)
    save_record(tmp_path, record)
    (loaded,) = load_records(tmp_path, Speed)
    assert [(row.name, row.passes) for row in loaded.rows] == [
        (one.name, passes) for one in TINY for passes in one.targets
    ]
    for row in loaded.rows:
        assert row.obvious.runs == row.ours.runs == 2
        assert row.ratio == pytest.approx(row.obvious.median_ms / row.ours.median_ms)
        assert row.ratio_low <= row.ratio <= row.ratio_high
        assert min(side.peak_memory_mb for side in (row.obvious, row.ours)) > 0
        rates = loaded.machine_limits
        by_rate = row.gflops / rates.matmul_gflops * 1e3, row.megabytes / rates.copy_gb_per_s
        assert row.limit_ms == pytest.approx(max(by_rate))
    (rows,) = find_speeds([loaded])
    cells = speed_table(rows).rows
    assert [row[5] for row in cells] == ["1e-06 met", *["1e+06 missed"] * 5]
    assert [row[8] for row in cells] == ["1e-06 missed", "1e+06 met", "", "1e+06 met", "", ""]
    texts = {"core, NLSA-r4, 7×7: obvious", "contrastive loss, 5×5, batch 2: ours"}
    assert texts <= texts_of(told)


@pytest.mark.parametrize(
    ("full", "fault"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("a real fault")),
        (ProcessEnded(-9), ProcessEnded(1)),
    ],
    ids=["here", "apart"],
)
def test_out_of_memory_is_a_row_without_numbers(
    full: Exception, fault: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of this process, or the kill of the row's own; any other end comes through."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    error = full
    apart = isinstance(full, ProcessEnded)
    place = "run_in_subprocess" if apart else "Comparison.function"
    monkeypatch.setattr(f"harness.measuring.speed.{place}", fail)
    record = measure(TINY[:1], device=CPU, apart=apart)
    save_record(tmp_path, record)
    (row,) = record.rows
    assert row.note == "out of memory"
    assert row.ratio is row.ours.median_ms is row.obvious.peak_memory_mb is None
    assert row.limit_ms > 0
    error = fault
    with pytest.raises(type(fault), match=str(fault)):
        measure(TINY[:1], device=CPU, apart=apart)


@pytest.mark.parametrize("apart", [False, True])
def test_rows_apart_or_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    told: list[tuple[float, str]] = []
    here: list[Any] = []
    build = Comparison.function

    def remember(*arguments: Any) -> Any:
        here.append(arguments)
        return build(*arguments)

    monkeypatch.setattr(Comparison, "function", remember)
    record = measure(
        TINY[:1], **QUICK, min_runs=3, apart=apart, on_run=lambda *both: told.append(both)
    )
    assert bool(here) is not apart
    assert record.settings.processes == ("one for each row" if apart else "one")
    (row,) = record.rows
    assert row.ours.runs == row.obvious.runs == 3
    assert row.ours.peak_memory_mb > 0
    assert (0.0, "core, NLSA-r4, 7×7: obvious") in told
    save_record(tmp_path, record)


def test_choose() -> None:
    assert choose(()) == CASES
    assert [one.name for one in choose(("step", "core-nla"))] == [
        *("core-nla-100", "core-nla-150"),
        *("step-8x32-enlca", "step-8x32-none", "step-16x64-none"),
    ]
    with pytest.raises(UserError, match=r"no case begins with 'cores': .* core-nla-100"):
        choose(("core", "cores"))


def test_command_line(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("harness.measuring.speed.CASES", TINY)
    words = f"--only core step-4x8-none --seconds 0.01 --threads {torch.get_num_threads()}"
    printed = cli(f"speed {words}", "--results", tmp_path).out
    (record,) = load_records(tmp_path, Speed)
    assert [row.name for row in record.rows] == ["core-nlsa-7", "step-4x8-none"]
    assert record.command.startswith("python -m harness.speed --only core step-4x8-none")
    assert str(tmp_path) not in json.dumps(untyped(record))
    assert "| core, NLSA-r4, 7×7 " in printed
    assert "1e+06 missed" in printed
    assert f"Record: {tmp_path / 'records' / 'speed'}" in printed


def test_settings_of_ones_own_choice(cli: Cli, tmp_path: Path) -> None:
    words = f"--attn enlca:m=2 enlca:m=4 --seconds 0.01 --threads {torch.get_num_threads()}"
    cli(f"speed {words}", "--results", tmp_path)
    (record,) = load_records(tmp_path, Speed)
    names = ["core-enlca-m2-100", "core-enlca-m4-100"]
    assert [row.name for row in record.rows] == [name for name in names for _ in range(2)]
    assert {row.ratio_target for row in record.rows} == {None}
    refused = cli.refused("speed --attn nla --only core")
    assert "--only chooses among the cases" in refused
