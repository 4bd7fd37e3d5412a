"""Scaling: which sizes are timed and how, files, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
import torch
from torch import Tensor

from attention_zoo import Attention, Cost
from harness.base.errors import UserError
from harness.config.variants import Variant
from harness.measuring.scaling import measure, projected_seconds
from harness.records.shapes import Scaling, untyped
from harness.records.store import load_records, save_record
from harness.reporting.scaling import statements, unmeasured, verdict
from tests.harness.conftest import Cli
from tests.harness.listening import texts_of

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"device": CPU, "min_runs": 1, "max_runs": 1}


class Slow(Attention):
    """Says that its cost grows as N to a power; runs out of memory from some N on."""

    sizes: ClassVar[list[int]] = []

    def __init__(self, channels: int, *, power: int = 2, full: int = 10**9) -> None:
        super().__init__(channels)
        self.power, self.full = power, full

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n = v.shape[2] * v.shape[3]
        self.sizes.append(n)
        if n >= self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * v

    def cost(self, height: int, width: int) -> Cost:
        executed = (height * width) ** self.power if self.power else 0
        return Cost(projections=0, core=executed, executed=executed)


def slow(**options: Any) -> Variant:
    return Variant(f"{__name__}:Slow", options)


# -- measuring ------------------------------------------------------------------------------------


def test_rows_smallest_size_first(tmp_path: Path) -> None:
    variants = [Variant("enlca", {"m": 4}), Variant("none")]
    record = measure(variants, **QUICK, sizes=[(9, 9), (4, 5), (9, 9)], command="asked")
    save_record(tmp_path, record)
    (loaded,) = load_records(tmp_path, Scaling)
    assert loaded.rows == record.rows
    shapes = [(r.variant.name, r.height, r.width) for r in record.rows]
    assert shapes == [("enlca", 4, 5), ("none", 4, 5), ("enlca", 9, 9), ("none", 9, 9)]
    for row in record.rows:
        assert (row.part, row.passes, row.channels) == ("core", "forward", 64)
        assert row.median_ms > 0
        assert row.peak_memory_mb > 0
    assert record.command == "asked"
    assert record.settings.fit_from == 10_000
    assert (record.settings.max_seconds, record.settings.size_seconds) == (20.0, 10.0)


def test_a_size_is_skipped_where_the_closed_form_projects_too_long() -> None:
    """The cubic one would take 1e9 times as long as at the small size, the linear one 1000 times.

    The bound lies so that no pause of a busy machine takes a call over it, nor a fast one below.
    """
    Slow.sizes.clear()
    variants = [slow(power=3), Variant("conv")]
    sizes = [(1, 1), (10, 100), (20, 100)]
    record = measure(variants, **QUICK, sizes=sizes, max_seconds=100.0)
    first, _, second, conv, third, _ = record.rows
    assert set(Slow.sizes) == {1}
    assert first.median_ms is not None
    assert conv.median_ms is not None
    for row, n in ((second, 1000), (third, 2000)):
        assert row.median_ms is row.runs is row.peak_memory_mb is None
        assert (row.positions, row.variant.name) == (n, variants[0].name)
        seconds = first.median_ms / 1e3 * n**3
        assert row.note == f"skipped, as a call would take {seconds:.3g} s (bound 100)"


def test_memory_of_what_is_too_slow_to_time(tmp_path: Path) -> None:
    """At 10x10 a call is projected to take 1e6 times as long as at 1x1, at 100x100 1e12 times."""
    Slow.sizes.clear()
    variants, sizes = [slow(power=3), Variant("none")], [(1, 1), (10, 10), (100, 100)]
    limits = {"max_seconds": 1e-3, "memory_seconds": 1e5}
    record = measure(variants, **QUICK, sizes=sizes, **limits)
    save_record(tmp_path, record)
    _, _, second, _, third, _ = record.rows
    assert Slow.sizes.count(100) == 1
    assert 10_000 not in Slow.sizes
    assert second.median_ms is second.runs is None
    assert second.peak_memory_mb == pytest.approx(100 * 64 * 4 / 1e6, rel=0.1)
    assert second.note.startswith("not timed, as a call would take")
    assert third.peak_memory_mb is None
    assert third.note.startswith("skipped, as a call would take")
    label = variants[0].label
    assert f"{label} not measured beyond 10x10)" in verdict(record)[-1]
    notes = [text.partition(",")[0] for text in unmeasured(record)[:2]]
    assert notes == [f"{label} at 10x10: not timed", f"{label} at 100x100: skipped"]


def test_sizes_where_all_are_skipped_have_rows_too() -> None:
    record = measure([slow(power=3)], **QUICK, sizes=[(1, 1), (30, 30)], max_seconds=0.5)
    assert [row.median_ms is None for row in record.rows] == [False, True]


def test_projection_by_the_closed_form_and_by_n_without_one() -> None:
    (timed,) = measure([Variant("none")], **QUICK, sizes=[(10, 10)]).rows
    row = msgspec.structs.replace(timed, median_ms=500.0)
    assert projected_seconds(Variant("nla"), row, (20, 30)) == pytest.approx(0.5 * 6**2)
    assert projected_seconds(slow(power=0), row, (20, 30)) == pytest.approx(0.5 * 6)
    before = torch.get_rng_state()
    projected_seconds(Variant("enlca"), row, (20, 30))
    assert torch.equal(torch.get_rng_state(), before)


def test_out_of_memory_is_a_note_and_ends_nothing(tmp_path: Path) -> None:
    variants = [slow(full=9), Variant("conv")]
    record = measure(variants, **QUICK, sizes=[(2, 2), (3, 3)])
    assert [row.note for row in record.rows] == [None, None, "out of memory", None]
    save_record(tmp_path, record)
    assert unmeasured(record) == [f"{variants[0].label} at 3x3: out of memory."]
    # Where memory alone is measured:
    limits = {"max_seconds": 1e-3, "memory_seconds": 1e5}
    record = measure([slow(power=3, full=9)], **QUICK, sizes=[(1, 1), (10, 10)], **limits)
    assert record.rows[1].peak_memory_mb is None
    assert record.rows[1].note.endswith("s (bound 0.001); out of memory")


def test_nothing_to_time() -> None:
    for variants, sizes in (([], [(2, 2)]), ([Variant("none")], [])):
        with pytest.raises(UserError, match="nothing to time"):
            measure(variants, **QUICK, sizes=sizes)


def test_progress_over_all_sizes() -> None:
    told: list[tuple[float, str]] = []
    variants = [Variant("conv"), Variant("none")]
    measure(variants, **QUICK, sizes=[(2, 2), (3, 3)], on_run=lambda *both: told.append(both))
    assert {"core, forward, 2x2: Conv", "core, forward, 3x3: Baseline"} <= texts_of(told)


# -- command --------------------------------------------------------------------------------------


def test_command_line(cli: Cli, tmp_path: Path) -> None:
    words = "--attn enlca --m 4 --sizes 8x8 4x4 6x6 --fit-from 16 --max-runs 1 --backward"
    words += f" --size-seconds 0 --device cpu --threads {torch.get_num_threads()}"
    out = cli(f"scaling {words}", "--results", tmp_path).out
    (record,) = load_records(tmp_path, Scaling)
    assert [(row.height, row.passes) for row in record.rows] == [
        (side, "forward+backward") for side in (4, 6, 8)
    ]
    assert {row.variant.label for row in record.rows} == {"ENLCA-m4"}
    assert record.command.startswith("python -m harness.scaling --attn enlca --m 4")
    assert str(tmp_path) not in json.dumps(untyped(record))
    files = [tmp_path / "tables" / f"scaling-cpu.{s}" for s in ("csv", "md")]
    files.append(tmp_path / "tables" / "notes" / "scaling-cpu.md")
    files += [tmp_path / "figures" / f"scaling-cpu.{s}" for s in ("png", "pdf")]
    assert out == "".join(f"{line}\n" for line in (*files, *statements(record)))

    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    assert cli("scaling --from-records", "--results", tmp_path).out == out
    assert [path.read_bytes() for path in files] == before
    assert len(load_records(tmp_path, Scaling)) == 1
