"""Tiles on several threads: all done once, the same result each time, nothing left changed."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import create_attention
from attention_zoo.cores.tiles import (
    in_cache,
    num_workers,
    scratch,
    share_tiles,
    step_length,
    tile_limit,
)
from attention_zoo.enlca import contrastive_loss

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def sleeping(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch's threads slept while they wait, so that there are threads of our own."""
    monkeypatch.setattr("attention_zoo.cores.tiles._THREADS_SPIN", False)


@pytest.fixture
def spinning(monkeypatch: pytest.MonkeyPatch, sleeping: None) -> None:
    """As by default: torch's threads share every operation."""
    monkeypatch.setattr("attention_zoo.cores.tiles._THREADS_SPIN", True)


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_tile_is_done_once(threads: int, count: int, fixed: bool) -> None:
    done: list[tuple[int, int]] = []

    def worker(number: int) -> Callable[[int], None]:
        return lambda tile: done.append((number, tile))

    share_tiles(list(range(count)), CPU, worker, fixed=fixed)
    assert sorted(tile for _, tile in done) == list(range(count))
    for number in range(threads):
        mine = [tile for worker_number, tile in done if worker_number == number]
        assert mine == sorted(mine)
        if fixed:  # always the same tiles
            assert mine == list(range(count))[number :: min(threads, max(count, 1))]


def test_whoever_is_free_does_the_next_tile(threads: int) -> None:
    """One tile takes as long as all others together, whoever gets it."""
    others_done, results = threading.Semaphore(0), []

    def worker(_: int) -> Callable[[int], None]:
        def work(tile: int) -> None:
            if tile > 0:
                others_done.release()
            elif threads > 1:
                results.extend(others_done.acquire(timeout=20) for _ in range(6))

        return work

    share_tiles(range(7), CPU, worker)
    assert results == ([True] * 6 if threads > 1 else [])


def test_threads_run_operations_alone_and_the_callers_number_stays(threads: int) -> None:
    seen: list[int] = []

    def worker(_: int) -> Callable[[int], None]:
        def work(_: int) -> None:
            torch.ones(2**16).exp()  # the first operation settles the number
            seen.append(torch.get_num_threads())

        return work

    share_tiles(range(4), CPU, worker)
    assert seen == [1] * 4 if threads > 1 else seen == [threads] * 4
    assert torch.get_num_threads() == threads
    with ThreadPoolExecutor(1) as pool:  # a thread that did not exist yet
        assert pool.submit(torch.get_num_threads).result() == threads


def test_an_error_of_a_worker_comes_through(threads: int) -> None:
    def worker(number: int) -> Callable[[int], None]:
        def work(tile: int) -> None:
            raise KeyError(f"tile {tile}")

        return work

    with pytest.raises(KeyError, match="tile"):
        share_tiles(range(3), CPU, worker)
    with pytest.raises(KeyError, match="tile 0"):
        share_tiles(range(3), CPU, worker, fixed=True)


@pytest.mark.parametrize("inference", [False, True])
def test_no_gradient_is_recorded_and_the_mode_is_the_callers(threads: int, inference: bool) -> None:
    weight, seen = torch.ones(2, requires_grad=True), []

    def worker(_: int) -> Callable[[int], None]:
        def work(_: int) -> None:
            result = weight * 2
            seen.append((result.requires_grad, result.is_inference()))

        return work

    with torch.inference_mode(inference):
        share_tiles(range(4), CPU, worker)
    assert seen == [(False, inference)] * 4


def test_a_counter_sees_all_operations(threads: int) -> None:
    def worker(_: int) -> Callable[[int], None]:
        def work(_: int) -> None:
            torch.mm(torch.ones(2, 3), torch.ones(3, 5))

        return work

    with FlopCounterMode(display=False) as counter:
        assert num_workers(CPU) == 1
        share_tiles(range(4), CPU, worker)
    assert counter.get_total_flops() == 4 * 2 * 2 * 3 * 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        share_tiles(range(2), CPU, lambda _: lambda _: None)
        child = os.fork()
        if child == 0:
            threading.Timer(20, os._exit, [1]).start()  # it would wait for ever
            done: list[int] = []
            share_tiles(range(4), CPU, lambda _: done.append)
            os._exit(0 if sorted(done) == list(range(4)) else 2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


@given(
    count=st.integers(1, 5000),
    size=st.integers(1, 10**6),
    limit=st.integers(1, 10**7),
    workers=st.integers(1, 9),
)
def test_steps_keep_the_limit_and_busy_all_workers(
    count: int, size: int, limit: int, workers: int
) -> None:
    step = step_length(count, size, limit, workers)
    assert 1 <= step <= count
    assert step * size <= max(limit, size)
    sizes = [min(step, count - i) for i in range(0, count, step)]
    assert len(sizes) <= math.ceil(math.ceil(count / max(1, limit // size)) / workers) * workers
    if count >= workers:
        assert max(sizes) <= math.ceil(count / workers)


@pytest.mark.usefixtures("spinning")
def test_threads_that_spin_share_each_operation(threads: int) -> None:
    seen: list[tuple[int, int, bool]] = []

    def worker(number: int) -> Callable[[int], None]:
        caller = threading.current_thread() is threading.main_thread()
        return lambda _: seen.append((number, torch.get_num_threads(), caller))

    share_tiles(range(4), CPU, worker)
    assert seen == [(0, threads, True)] * 4
    assert num_workers(CPU) == 1
    assert tile_limit(CPU, 10, 1000) == 10 * threads


@pytest.mark.usefixtures("spinning")
def test_work_that_torch_does_not_share_has_threads_of_its_own(threads: int) -> None:
    seen: list[int] = []

    def worker(number: int) -> Callable[[int], None]:
        return lambda _: seen.append(number)

    share_tiles(range(6), CPU, worker, own_threads=True, fixed=True)
    assert num_workers(CPU, own_threads=True) == threads
    assert sorted(set(seen)) == list(range(threads))


def test_a_tile_is_one_threads_or_the_devices(threads: int) -> None:
    assert tile_limit(CPU, 10, 1000) == 10
    assert tile_limit(torch.device("meta"), 10, 1000) == 1000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("512K", 2**19),  # left in any case
        ("1024K\n", 2**18),
        ("2048K\n", 2**19),
        ("16384K", 2**19),
        ("many", 2**18),
        (None, 2**18),
    ],
)
def test_tiles_fit_the_cache(
    content: str | None, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "size"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr("attention_zoo.cores.tiles._LEVEL_2", path)
    assert in_cache() == expected


@pytest.mark.parametrize(
    "name", ["nla", "nlsa", "criss-cross", "enla", "neighbourhood", "nlrn", "window"]
)
def test_both_ways_give_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module = create_attention(name, channels=8).eval().double()
    x = torch.randn(2, 8, 40, 36, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]

    def run(spin: bool) -> list[Tensor]:
        monkeypatch.setattr("attention_zoo.cores.tiles._THREADS_SPIN", spin)
        out = module(x)
        grads = torch.autograd.grad(out.square().sum(), inputs, allow_unused=True)
        return [out.detach(), *(g for g in grads if g is not None)]

    for a, b in zip(*(run_with(2, lambda s=s: run(s)) for s in (False, True)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


_WAYS = """
import os, sys
if sys.argv[1] == "torch first":
    import torch
import harness
from attention_zoo.cores import tiles
print(os.environ.get("OMP_WAIT_POLICY"), tiles._THREADS_SPIN)
"""


@pytest.mark.parametrize(
    ("first", "policy", "expected"),
    [
        ("harness first", None, "PASSIVE False"),
        ("torch first", None, "None True"),
        ("harness first", "active", "active True"),
        ("torch first", "passive", "passive False"),
    ],
)
def test_how_threads_wait_is_known(first: str, policy: str | None, expected: str) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    if policy:
        environment["OMP_WAIT_POLICY"] = policy
    command = [sys.executable, "-c", _WAYS, first]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected


def test_memory_is_kept_by_a_thread_for_itself() -> None:
    first = scratch("test", torch.empty(0), 3, 4)
    assert first.shape == (3, 4)
    assert scratch("test", torch.empty(0), 12).data_ptr() == first.data_ptr()
    assert scratch("test", torch.empty(0), 5).data_ptr() == first.data_ptr()
    assert scratch("other", torch.empty(0), 12).data_ptr() != first.data_ptr()
    assert scratch("test", torch.empty(0), 12, dtype=torch.float64).dtype == torch.float64
    with ThreadPoolExecutor(1) as pool:
        pointer = pool.submit(lambda: scratch("test", torch.empty(0), 12).data_ptr()).result()
    assert pointer != first.data_ptr()
    with torch.inference_mode():
        made_inside = scratch("made in inference mode", torch.empty(0), 2).zero_()
    made_inside.add_(1)  # refused for a tensor of that mode
    assert scratch("huge", torch.empty(0, device="meta"), 2**40).device.type == "meta"


def test_two_threads_give_the_contrastive_loss_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_zoo.cores.contrast_tiled._CPU_TILE", 2**9)
    torch.manual_seed(0)
    maps = [torch.randn(2, 4, 9, 8, requires_grad=True) for _ in range(2)]

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(contrastive_loss(*maps), maps))

    for a, b in zip(run_with(1, gradients), run_with(2, gradients), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def run_with(threads: int, function: Callable[[], list[Tensor]]) -> list[Tensor]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return function()
    finally:
        torch.set_num_threads(before)
