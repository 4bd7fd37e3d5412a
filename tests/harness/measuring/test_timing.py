"""Timing in turn: order, counts, limits and the clock."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch

from harness.measuring.timing import Timing, time_in_turn
from tests.harness.listening import texts_of

CPU = torch.device("cpu")


def recorders(names: str, log: list[str]) -> dict[str, Callable[[], None]]:
    def recorder(name: str) -> Callable[[], None]:
        return lambda: log.append(name)

    return {name: recorder(name) for name in names}


def test_statistics() -> None:
    timing = Timing.of([1.0, 2.0, 3.0, 4.0, 10.0])
    assert timing == Timing(mean_ms=4.0, median_ms=3.0, iqr_ms=2.0, min_ms=1.0, runs=5)
    assert Timing.of([7.0]) == Timing(mean_ms=7.0, median_ms=7.0, iqr_ms=0.0, min_ms=7.0, runs=1)


def test_every_round_runs_each_once_and_orders_change() -> None:
    log: list[str] = []
    timings = time_in_turn(
        recorders("ABCD", log), CPU, warmup=0, min_runs=40, max_runs=40, max_seconds=None
    )
    rounds = ["".join(log[i : i + 4]) for i in range(0, len(log), 4)]
    assert len(rounds) == 40
    assert {"".join(sorted(one)) for one in rounds} == {"ABCD"}
    assert len(set(rounds)) > 10
    assert len({one[one.index("B") - 1] for one in rounds if one[0] != "B"}) == 3
    assert list(timings) == ["A", "B", "C", "D"]
    assert {timing.runs for timing in timings.values()} == {40}


def test_the_seed_decides_the_order() -> None:
    logs: list[list[str]] = [[], [], []]
    for log, seed in zip(logs, (1, 1, 2), strict=True):
        time_in_turn(recorders("ABC", log), CPU, min_runs=9, max_runs=9, seed=seed)
    assert logs[0] == logs[1] != logs[2]


def test_warm_up_comes_first_and_is_not_counted() -> None:
    log: list[str] = []
    timings = time_in_turn(recorders("AB", log), CPU, warmup=3, min_runs=2, max_runs=2)
    assert log[:6] == list("AAABBB")
    assert len(log) == 6 + 4
    assert timings["A"].runs == 2


def test_measures_what_passes() -> None:
    functions = {"short": lambda: time.sleep(0.002), "long": lambda: time.sleep(0.010)}
    timings = time_in_turn(functions, CPU, warmup=0, min_runs=7, max_runs=7)
    # A busy machine makes a sleep longer, never shorter.
    assert 2.0 <= timings["short"].min_ms < timings["long"].min_ms
    assert timings["long"].min_ms >= 10.0
    assert timings["short"].min_ms <= timings["short"].median_ms


def test_time_ends_it_but_not_before_the_least_runs() -> None:
    functions = {"sleep": lambda: time.sleep(0.01)}
    few = time_in_turn(functions, CPU, warmup=0, min_runs=4, max_runs=1000, max_seconds=0.0)
    assert few["sleep"].runs == 4
    begin = time.perf_counter()
    some = time_in_turn(functions, CPU, warmup=0, min_runs=1, max_runs=10_000, max_seconds=0.2)
    assert 1 < some["sleep"].runs <= 20
    assert time.perf_counter() - begin < 10


def test_most_runs_bound_the_least_and_nothing_is_timed_at_once() -> None:
    timings = time_in_turn(recorders("A", []), CPU, warmup=0, min_runs=5, max_runs=3)
    assert timings["A"].runs == 3
    assert time_in_turn({}, CPU, max_runs=3) == {}


def test_garbage_collection_is_held_off_and_comes_back() -> None:
    states: list[bool] = []
    time_in_turn({"A": lambda: states.append(gc.isenabled())}, CPU, warmup=0, max_runs=2)
    assert states == [False, False]
    assert gc.isenabled()

    with pytest.raises(ZeroDivisionError):
        time_in_turn({"A": lambda: 1 / 0}, CPU, warmup=0)
    assert gc.isenabled()


@pytest.mark.parametrize("max_seconds", [None, 0.0, 30.0])
def test_progress_grows_from_0_to_1(max_seconds: float | None) -> None:
    told: list[tuple[float, str]] = []
    limits = {"min_runs": 6, "max_runs": 6, "max_seconds": max_seconds}
    time_in_turn(recorders("AB", []), CPU, **limits, on_run=lambda *both: told.append(both))
    assert len(told) == 12
    assert texts_of(told) == {"A", "B"}


def test_other_devices_are_synchronised_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(torch.mps, "synchronize", lambda: log.append("wait"))
    functions = {"A": lambda: log.append("run")}
    time_in_turn(functions, torch.device("mps"), warmup=0, min_runs=2, max_runs=2)
    assert log == ["wait", "run", "wait"] * 2


def test_cuda_is_timed_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait for event")

        def elapsed_time(self, end: Event) -> float:
            assert end is not self
            return 2.5

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    functions = {"A": lambda: log.append("run")}
    device = torch.device("cuda", 0)
    timings = time_in_turn(functions, device, warmup=0, min_runs=2, max_runs=2)
    assert timings["A"] == Timing(mean_ms=2.5, median_ms=2.5, iqr_ms=0.0, min_ms=2.5, runs=2)
    assert log == ["wait", "record", "run", "record", "wait for event"] * 2


@pytest.mark.cuda
def test_cuda_events_time_the_device_not_the_launch() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", 0)
    a = torch.randn(4096, 4096, device=device)
    functions = {"one": lambda: a @ a, "four": lambda: [a @ a for _ in range(4)]}
    timings = time_in_turn(functions, device, warmup=3, min_runs=20, max_runs=20, max_seconds=None)
    assert 3 < timings["four"].median_ms / timings["one"].median_ms < 5
