"""The GPU benchmark's pieces, tried on the CPU with tiny sizes; nothing here is a result."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from attention_zoo.cores.native import why_not_native
from harness.base.errors import UserError
from harness.config import presets as config
from harness.config import variants
from harness.config.network import NetworkConfig
from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.measuring import latency
from harness.measuring.by_implementation import CORES
from harness.measuring.gpu import (
    LATENCIES,
    PIECES,
    SCALINGS,
    Conditions,
    _errors,
    _train_rates,
    choose,
    find_record,
    list_pieces,
    measure,
    share_of,
)
from harness.records.shapes import Code, Gpu, Latency, Scaling, untyped
from harness.records.store import load_records, save_record
from harness.training import graphs
from tests.harness.conftest import Cli

CPU = torch.device("cpu")
COMPILED = why_not_native(torch.zeros(1)) is None
TINY = Conditions(CPU, 0.01, ((6, 6),))
RATES = {"matmul_gflops": 10.0, "copy_gb_per_s": 2.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.measuring.gpu.machine_limits", lambda device, dtype: RATES)
    monkeypatch.setattr("gc.collect", lambda: 0)  # before each case it takes most of the time


@pytest.fixture
def tiny_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset "base" with a tiny network and patch."""
    tiny = dataclasses.replace(
        config.PRESETS["base"], network=NetworkConfig(4, 8), patch={4: 6}, batch=1
    )
    monkeypatch.setitem(config.PRESETS, "base", tiny)


def test_pieces_cover_the_dtypes_and_presets() -> None:
    names = list_pieces()
    assert names[0] == "tests"
    assert len(names) == len(set(names))
    for dtype in ("float32", "tf32", "bfloat16"):
        expected = {f"table5-{dtype}", f"limits-{dtype}"}
        assert expected | {f"train-base-{dtype}", f"train-paper-{dtype}"} <= set(names)
        assert {f"implementations-{dtype}"} <= set(names)
    assert sorted(names) == sorted([*PIECES, *LATENCIES, *SCALINGS])
    assert choose(["train-paper", "flash"])[0] == "flash"
    assert choose([]) == names
    with pytest.raises(UserError, match="no piece begins with 'table6': choose from tests, table5"):
        choose(["table6"])


def test_a_budget_is_shared_among_what_is_left() -> None:
    names, left, seconds = list_pieces(), 600.0, {}
    for index, piece in enumerate(names):
        seconds[piece] = share_of(piece, names[index + 1 :], left)
        left -= 2 * seconds[piece]  # half of a piece's time goes into measuring
    assert left == pytest.approx(0, abs=1e-6)
    assert seconds["tests"] == 0
    assert seconds["table5-float32"] == max(seconds.values())


def test_every_implementation_in_turn() -> None:
    rows = {row["name"]: row for row in measure("implementations-float32", TINY).rows}
    row = rows["ENLCA-m128, 6x6, forward"]
    assert row["tiled"] > 0
    assert row["released"] > 0
    assert re.search("need a CUDA device|Triton is not installed", row["notes"]["triton"])
    assert len(rows) == 2 * len(CORES)


def test_scaling_is_a_scaling_record() -> None:
    record = measure("scaling-float32", TINY)
    assert isinstance(record, Scaling)
    assert {row.height for row in record.rows} == {6}


def test_a_day_within_its_budget(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One piece fails, the others go on; with no time left the rest waits; finished ones stay."""
    clock = [0.0]
    monkeypatch.setattr("harness.gpu.time", SimpleNamespace(monotonic=lambda: clock[0]))
    pieces = ["flash", "tests", "table5-float32", "rivals-float32"]
    monkeypatch.setattr("harness.measuring.gpu.choose", lambda only: pieces)
    real = measure

    def timed(piece: str, conditions: Conditions) -> Any:
        clock[0] += 4.0
        if piece == "tests":
            raise UserError("tests of CUDA failed: a")
        assert piece == "flash"
        return real("flash", dataclasses.replace(TINY, seconds=conditions.seconds / 1e4))

    monkeypatch.setattr("harness.measuring.gpu.measure", timed)
    words = ("gpu --device cpu --sizes 6x6 --budget 17s", "--results", tmp_path)
    done = cli(*words, status=75)
    assert "Time budget used up before table5-float32; run the same command" in done.out
    assert "tests failed: tests of CUDA failed: a" in done.err
    assert len(load_records(tmp_path, Gpu)) == 1
    pieces[:] = ["flash", "tests"]
    done = cli(*words, status=1)
    assert "1 of 2 pieces failed: tests" in done.err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_limits_and_errors(dtype: str, tmp_path: Path) -> None:
    record = measure(f"limits-{dtype}", TINY)
    rows = record.rows
    assert len(rows) == 2 * len(table_rows("table5"))
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    for row in rows:
        assert row["median_ms"] > 0
        assert row["share"] == pytest.approx(row["limit_ms"] / row["median_ms"])
        if row["passes"] == "forward+backward":
            assert row["value_rms_error"] < tolerance
            assert row["gradient_rms_error"] < 2 * tolerance
    by_name = {row["name"]: row for row in rows}
    nla = by_name["NLA, 6x6, forward"]
    used = {"nla": "native", "projections": "native"}
    assert nla["implementation"] == (
        used if COMPILED else {"nla": "sdpa", "projections": "reference"}
    )
    # 2 N² (c + c_out) FLOPs, or 4 c N numbers.
    itemsize = 4 if dtype == "float32" else 2
    flops, touched = 2 * 36**2 * 128, itemsize * 4 * 64 * 36
    assert nla["limit_ms"] == pytest.approx(max(flops / 10e9, touched / 2e9) * 1e3)
    assert save_record(tmp_path, record).exists()


def test_an_error_of_the_core_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _errors(Variant("nla"), 5, 5, "float32", CPU)
    create = variants.create_core

    def spoilt(variant: Variant) -> Any:
        core = create(variant)
        attend = core.attend
        core.attend = lambda q, k, v: attend(q, k, v) * (1 if v.dtype == torch.float64 else 1.01)
        return core

    monkeypatch.setattr("harness.measuring.gpu.create_core", spoilt)
    wrong = _errors(Variant("nla"), 5, 5, "float32", CPU)
    assert max(honest.values()) < 1e-5
    assert wrong["value_rms_error"] == pytest.approx(0.01, rel=1e-2)
    assert wrong["gradient_rms_error"] == pytest.approx(0.01, rel=1e-2)


def test_flash_beside_nla() -> None:
    (row,) = measure("flash", TINY).rows
    assert row["ratio"] == pytest.approx(row["nla_ms"] / row["flash_ms"])
    assert row["ratio_target"] is None  # it stands for an H200


@pytest.mark.usefixtures("tiny_base")
def test_training_rates() -> None:
    rows = measure("train-base-bfloat16", TINY).rows
    assert [row["variant"]["label"] for row in rows] == [
        *("Baseline", "Criss-Cross", "NLSA-r4", "ENLCA-m128", "NLA")
    ]
    for row in rows:
        before, after = row["steps_per_second_before_auxiliary"], row["steps_per_second"]
        seconds = 0.15 / before + 0.85 / after
        assert row["steps_per_gpu_hour"] == pytest.approx(3600 / seconds)
        assert row["projected_gpu_hours"] == pytest.approx(50_000 * seconds / 3600)
    enla = "native" if COMPILED else "tiled"
    convolutions = {"conv3x3": "reference", "projections": "reference"}  # of 8 channels
    used = {"enla": enla, "contrast": enla} | convolutions
    assert rows[3]["implementation"] == used


@pytest.mark.usefixtures("tiny_base")
def test_the_contrastive_loss_is_on_in_the_second_phase_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def rate(trainer: Any, seconds: float) -> float:
        trainer.train_step()
        seen.append(float(trainer.network.auxiliary_loss().detach()))
        return 1.0

    monkeypatch.setattr("harness.measuring.gpu._steps_per_second", rate)
    _train_rates(TINY, Variant("enlca"), "base", "float32", 1)
    assert seen[0] == 0.0 < seen[1]


def test_table5_is_a_latency_record_and_finished_pieces_are_left_out(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "--only table5-float32 --device cpu --seconds 0.01 --sizes 4x4"
    quick = (f"gpu {words}", "--results", tmp_path)
    monkeypatch.setattr(
        "harness.measuring.gpu.rows_to_run", lambda table: [Variant("conv"), Variant("criss-cross")]
    )
    cli(*quick)
    (record,) = load_records(tmp_path, Latency)
    assert [row.variant.name for row in record.rows] == ["conv", "criss-cross"] * 4
    assert str(tmp_path) not in json.dumps(untyped(record))
    assert f"table5-float32 is finished: {record.id}" in " ".join(cli(*quick).out.split())
    cli(*quick, "--again")
    assert len(load_records(tmp_path, Latency)) == 2


def test_a_record_of_other_code_or_size_does_not_count(tmp_path: Path) -> None:
    record = measure("flash", TINY)
    save_record(tmp_path, record)
    assert find_record(tmp_path, "flash", TINY) == record
    assert find_record(tmp_path, "flash", dataclasses.replace(TINY, sizes=((5, 5),))) is None
    code = Code(version="0", commit="0000000")
    machine = msgspec.structs.replace(record.machine, code=code)
    other = msgspec.structs.replace(record, id="flash-other", machine=machine)
    save_record(tmp_path / "other", other)
    assert find_record(tmp_path / "other", "flash", TINY) is None


def test_out_of_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.measuring.gpu.rows_to_run", lambda table: [Variant("nla")])

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("harness.measuring.gpu._errors", full)
    notes = {row["passes"]: row.get("note") for row in measure("limits-float32", TINY).rows}
    assert notes == {"forward": None, "forward+backward": "out of memory"}


def test_failed_tests_leave_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    out = "x\nFAILED tests/test_a.py::test_b - boom\n1 failed in 1s"
    done = subprocess.CompletedProcess([], 1, out, "")
    monkeypatch.setattr("subprocess.run", lambda *a, **k: done)
    with pytest.raises(UserError, match="tests of CUDA failed: FAILED tests/test_a"):
        measure("tests", TINY)
    done.returncode = 0
    assert measure("tests", TINY).rows == [{"name": "tests", "result": "1 failed in 1s"}]


def test_pieces_are_listed_anywhere(cli: Cli) -> None:
    assert cli("gpu --pieces").out.split() == list_pieces()


def test_graphs_need_cuda() -> None:
    with pytest.raises(UserError, match="CUDA graphs need a CUDA device, not cpu"):
        latency.measure([Variant("nla")], device=CPU, graphs=True)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["nla", "nlsa", "criss-cross", "enlca", "conv"])
def test_a_graph_gives_what_the_call_gives(name: str) -> None:
    case = latency.Case("core", "forward", 20, 21, device=torch.device("cuda", 0))
    function = case.function(Variant(name))
    expected = function().clone()
    replay = graphs.captured(function, case.device)
    replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(replay(), expected)
