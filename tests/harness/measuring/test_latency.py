"""The latency record: what is timed, its rows, errors, and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from attention_zoo import Attention, Cost
from attention_zoo.cores.native import why_not_native
from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.options import parse_size
from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.measuring.latency import measure
from harness.measuring.timing import Timing
from harness.records.shapes import Latency, Scaling, untyped
from harness.records.store import load_records, save_record
from tests.harness.conftest import Cli
from tests.harness.listening import texts_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
QUICK: dict[str, Any] = {"device": CPU, "min_runs": 2, "max_runs": 2, "warmup": 0}


class Probe(Attention):
    """Writes down how it is called."""

    calls: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, channels: int, *, fails: str = "") -> None:
        super().__init__(channels)
        self.fails = fails

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x[:, : self.channels // 2], x[:, : self.channels // 2], x

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fails == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.fails:
            raise RuntimeError(self.fails)
        mode = (self.training, torch.is_grad_enabled(), self.auxiliary_enabled)
        tf32 = torch.backends.cudnn.allow_tf32
        self.calls.append({"q": q, "v": v, "mode": mode, "dtype": v.dtype, "tf32": tf32})
        return v * q.mean()

    def cost(self, height: int, width: int) -> Cost:
        return Cost(projections=0, core=0, executed=0)


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[dict[str, Any]]]:
    Probe.calls.clear()
    yield Probe.calls
    Probe.calls.clear()


def probe(**options: Any) -> Variant:
    return Variant(f"{__name__}:Probe", options)


def test_rows_and_record(tmp_path: Path) -> None:
    variants = [Variant("enlca", {"m": 4}), Variant("none")]
    network = {"network": NetworkConfig(4, 16), "scale": 2}
    record = measure(variants, **QUICK, **network, sizes=((5, 6), (8, 3)), command="asked")
    path = save_record(tmp_path, record)
    assert load_records(tmp_path, Latency)[0].rows == record.rows
    assert path.name.startswith("cpu-float32-")
    assert record.command == "asked"
    assert record.machine.device == "cpu"
    assert record.settings.max_runs == 2
    sizes = {"blocks": 4, "channels": 16, "scale": 2, "block_res_scale": 1.0}
    assert record.settings.network == sizes
    rows = record.rows
    assert len(rows) == 3 * 2 * 2 * 2
    cells = {(r.variant.label, r.part, r.passes, r.height, r.width) for r in rows}
    assert len(cells) == len(rows)
    for row in rows:
        assert row.channels == {"core": 64, "module": 256, "network": 3}[row.part]
        assert (row.batch, row.dtype, row.device) == (1, "float32", "cpu")
        assert row.runs == 2
        assert 0 < row.min_ms <= row.median_ms
        assert row.peak_memory_mb >= 0


def test_network_only_if_there_is_one() -> None:
    one = {**QUICK, "sizes": ((4, 4),), "passes": ("forward",)}
    assert [r.part for r in measure([Variant("conv")], **one).rows] == ["core", "module"]
    with pytest.raises(ValueError, match="network"):
        measure([Variant("conv")], **one, parts=("network",))


def test_variants_of_one_label_are_kept_apart() -> None:
    variants = [Variant("enlca", {"k": 4.0}), Variant("enlca", {"k": 6.0})]
    rows = measure(variants, **QUICK, sizes=((4, 4),), parts=("core",), passes=("forward",)).rows
    assert [row.variant.options["k"] for row in rows] == [4.0, 6.0]


def test_forward_is_inference_and_backward_is_training(calls: list[dict[str, Any]]) -> None:
    one: dict[str, Any] = {**QUICK, "sizes": ((4, 5),), "parts": ("core",)}
    measure([probe()], **one, passes=("forward",))
    assert {c["mode"] for c in calls} == {(False, False, False)}  # training, gradient, auxiliary
    assert calls[0]["q"].shape == (1, 32, 4, 5)
    assert calls[0]["v"].shape == (1, 64, 4, 5)
    assert not calls[0]["v"].requires_grad
    calls.clear()
    measure([probe()], **one, passes=("forward+backward",))
    timed = calls[1:]  # the first call only finds the shape of the output
    assert {c["mode"] for c in timed} == {(True, True, False)}
    assert all(c["q"].requires_grad and c["v"].requires_grad for c in timed)
    assert len(timed) == 2 + 2


def test_inputs_are_random_repeatable_and_the_same_for_all(calls: list[dict[str, Any]]) -> None:
    one: dict[str, Any] = {**QUICK, "sizes": ((20, 25),), "parts": ("core",), "batch": 2}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    measure([Variant("nla"), probe(), Variant("conv"), probe()], **one, passes=("forward",))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(c["v"], calls[0]["v"]) for c in calls)
    v = calls[0]["v"]
    assert v.shape[0] == 2
    assert v.is_contiguous(memory_format=torch.channels_last)
    assert abs(float(v.mean())) < 0.05
    assert abs(float(v.std()) - 1) < 0.05
    assert not torch.equal(calls[0]["q"], v[:, :32])


def test_images_of_the_network_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    monkeypatch.setattr("harness.measuring.latency.build_network", lambda *_: Spy())
    one: dict[str, Any] = {"sizes": ((30, 40),), "parts": ("network",), "passes": ("forward",)}
    measure([Variant("none")], **QUICK, **one, network=NetworkConfig(4, 8))
    assert 0 <= float(seen[0].min()) < 0.01 < 0.99 < float(seen[0].max()) <= 1


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_dtype_reaches_the_module_and_switches_come_back(
    calls: list[dict[str, Any]], name: str
) -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    record = measure([probe()], **QUICK, dtype=name, sizes=((3, 3),))
    assert {(c["dtype"], c["tf32"]) for c in calls} == {(getattr(torch, name), False)}
    assert {row.dtype for row in record.rows} == {name}
    assert record.machine.torch.cudnn_tf32 is False
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_out_of_memory_is_a_row_without_numbers(tmp_path: Path) -> None:
    variants = [Variant("conv"), probe(fails="memory"), probe(fails="can't allocate memory: 9 TB")]
    record = measure(variants, **QUICK, sizes=((3, 3),), parts=("core",))
    assert save_record(tmp_path, record).exists()
    for good, *bad in (record.rows[:3], record.rows[3:]):
        assert good.runs == 2
        for row in bad:
            assert row.note == "out of memory"
            assert row.mean_ms is row.runs is row.peak_memory_mb is None


def test_other_errors_come_through() -> None:
    with pytest.raises(RuntimeError, match="a real fault"):
        measure([probe(fails="a real fault")], **QUICK, sizes=((3, 3),))


def test_mistakes() -> None:
    with pytest.raises(UserError, match="unknown dtype 'float8': choose from float32"):
        measure([Variant("conv")], **QUICK, dtype="float8")
    with pytest.raises(UserError, match="nothing to time"):
        measure([Variant("conv")], **QUICK, parts=())


def test_default_limits_depend_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "harness.measuring.latency.time_in_turn",
        lambda functions, *_, **__: dict.fromkeys(functions, Timing.of([1.0])),
    )
    one: dict[str, Any] = {"sizes": ((2, 2),), "parts": ("core",), "passes": ("forward",)}
    settings = measure([Variant("none")], device=CPU, **one).settings
    assert (settings.warmup, settings.max_runs, settings.max_seconds) == (1, 1000, 20.0)


def test_progress_over_all_cases() -> None:
    told: list[tuple[float, str]] = []
    variants = [Variant("conv"), Variant("none")]
    measure(variants, **QUICK, sizes=((2, 3),), on_run=lambda *both: told.append(both))
    texts = {"core, forward, 2x3: Conv", "module, forward+backward, 2x3: Baseline"}
    assert texts <= texts_of(told)
    assert told[-1][0] > 0.75


def test_parse_size() -> None:
    assert parse_size("100x150") == (100, 150)
    for text in ("100", "0x5", "5x", "axb", "5X5", "-1x2", "1x2x3", ""):
        with pytest.raises(UserError, match="not height x width"):
            parse_size(text)


ONE_RUN = "--sizes 3x3 --parts core --max-runs 1 --passes forward"


def test_command_line(cli: Cli, tmp_path: Path) -> None:
    words = "--attn enlca --m 4 --sizes 6x7 --parts core network --passes forward"
    words += f" --max-seconds 0 --max-runs 2 --device cpu --threads {torch.get_num_threads()}"
    assert "ENLCA-m4" in cli(f"latency {words}", "--results", tmp_path).out
    (record,) = load_records(tmp_path, Latency)
    assert [r.part for r in record.rows] == ["core", "network"]
    assert {r.variant.label for r in record.rows} == {"ENLCA-m4"}
    assert record.command.startswith("python -m harness.latency --attn enlca --m 4")
    assert str(tmp_path) not in json.dumps(untyped(record))


@pytest.mark.parametrize(
    ("line", "shape"),
    [(f"latency {ONE_RUN}", Latency), ("scaling --sizes 3x3 --max-runs 1", Scaling)],
)
def test_rows_of_table_5_are_the_default(
    line: str, shape: type, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("harness.scaling.write_report", lambda *_: [])  # drawing takes seconds
    cli(line, "--results", tmp_path)
    (record,) = load_records(tmp_path, shape)
    labels = [variant.label for variant in table_rows("table5")]
    assert [r.variant.label for r in record.rows] == labels


def test_a_chosen_implementation_runs_and_is_recorded(cli: Cli, tmp_path: Path) -> None:
    quick = (f"latency --attn nla enlca {ONE_RUN}", "--results", tmp_path)
    cli(*quick, "--impl", "enla=reference")
    (record,) = load_records(tmp_path, Latency)
    assert record.settings.implementation == "enla=reference"
    compiled = why_not_native(torch.zeros(1)) is None
    nla = "native" if compiled else "sdpa"
    assert [r.implementation for r in record.rows] == [{"nla": nla}, {"enla": "reference"}]
    cli(*quick)  # the choice ended with its command
    auto = next(r for r in load_records(tmp_path, Latency) if r.id != record.id)
    assert not auto.settings.implementation
    assert auto.rows[1].implementation == {"enla": "native" if compiled else "tiled"}


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
def test_on_cuda(dtype: str, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    variants = [Variant("nla"), Variant("nlsa"), Variant("enlca")]
    record = measure(
        variants, device=torch.device("cuda", 0), dtype=dtype, sizes=((20, 21),), max_runs=3
    )
    save_record(tmp_path, record)
    assert record.settings.clock == "CUDA events"
    assert all(row.runs == 3 and row.peak_memory_mb > 0 for row in record.rows)
