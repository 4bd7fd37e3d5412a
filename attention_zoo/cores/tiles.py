"""Work tile by tile, so that data is read again while it is still in the cache.

On the CPU there are two ways, depending on what torch's threads do while they wait:

- They sleep (``OMP_WAIT_POLICY=PASSIVE``, which the harness sets). Waking them for every operation
  is expensive, so threads of our own each do whole tiles (:func:`share_tiles`).
- They spin for a while (the default). Spinning holds the cores that other threads would need, but
  makes sharing cheap, so torch's threads share every operation, and tiles are as many times larger.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Barrier, Thread, local
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from ..base import AttentionError

Tile = TypeVar("Tile")

# OpenMP reads it once, when torch is loaded.
_THREADS_SPIN = os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE"
# Numbers in the largest piece of memory that a thread keeps, for each of its users: 16 MB in
# float32.
_MOST_KEPT = 2**22
_LEVEL_2 = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")
# Bounds of :func:`in_cache`, for caches of 1 and 2 MB.
_LEAST_IN_CACHE, _MOST_IN_CACHE = 2**18, 2**19
# Pieces of work for each worker where a call for a piece is expensive.
_PIECES = 4
_memory = local()
# torch knows since 2.7; before, its own errors must do.
_is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)


def leaves_cache() -> bool:
    """Whether tiles never fit a core's second-level cache: it is known to be below 1 MB."""
    numbers = _level_2()
    return numbers is not None and numbers < _LEAST_IN_CACHE


def in_cache() -> int:
    """Numbers in float32 that a core's second-level cache holds: 2^18 to 2^19.

    Larger tiles do not fit the cache; smaller tiles cost more calls, which threads make in turn.
    Where no tile fits, tiles have the largest size. A cache whose size cannot be read (off Linux)
    counts as 1 MB.
    """
    if leaves_cache():
        return _MOST_IN_CACHE
    return min(max(_level_2() or 0, _LEAST_IN_CACHE), _MOST_IN_CACHE)


def _level_2() -> int | None:
    """Numbers in float32 that the second-level cache holds; None if it cannot be read."""
    try:
        size = _LEVEL_2.read_text()  # such as 2048K
        return int(size.strip().removesuffix("K")) * 1024 // 4
    except (OSError, ValueError):
        return None


def tile_limit(device: torch.device, on_cpu: int, elsewhere: int) -> int:
    """Numbers that a tile may take.

    Args:
        device: where the tensors are.
        on_cpu: numbers per thread that works on the tile, so that they fit a core's cache.
        elsewhere: numbers off the CPU.
    """
    return on_cpu * _sharers() if device.type == "cpu" else elsewhere


def _sharers() -> int:
    """How many threads work on the same tile."""
    return torch.get_num_threads() if _THREADS_SPIN else 1


def step_length(count: int, size: int, limit: int, workers: int = 1) -> int:
    """Length of the steps that split ``count`` items into pieces of nearly the same size.

    Args:
        count: number of items.
        size: numbers that one item takes.
        limit: numbers that a piece may take, unless one item takes more.
        workers: each gets the same number of pieces.
    """
    pieces = math.ceil(count / max(1, limit // size))
    pieces = min(count, math.ceil(pieces / workers) * workers)
    return math.ceil(count / pieces)


def split_tiles(
    batch: int, n: int, size: int, limit: int, workers: int = 1
) -> tuple[list[tuple[slice, slice]], int, int]:
    """Tiles of ``batch`` images of ``n`` positions: whole images, or positions of one image.

    Args:
        batch: images.
        n: positions of an image.
        size: numbers that one position takes.
        limit: numbers that a tile may take, unless one position takes more.
        workers: there are enough tiles for so many.

    Returns:
        (images, positions) of each tile; number of images and of positions of the largest tile.
    """
    width = step_length(n, size, limit, workers if batch < workers else 1)
    group = step_length(batch, n * size, limit, workers) if width == n else 1
    tiles = [
        (slice(b, b + group), slice(i, i + width))
        for b in range(0, batch, group)
        for i in range(0, n, width)
    ]
    return tiles, group, width


def pieces_of_image(batch: int, workers: int) -> int:
    """Number of pieces per image of a batch where a call for a piece is expensive.

    Few pieces, but enough for each worker that none waits long for the last one.
    """
    return 1 if workers == 1 else math.ceil(_PIECES * workers / max(1, batch))


def share_tiles(
    tiles: Sequence[Tile],
    device: torch.device,
    worker: Callable[[int], Callable[[Tile], None]],
    own_threads: bool = False,
    fixed: bool = False,
) -> None:
    """Do the work of every tile, on the CPU by ``torch.get_num_threads()`` threads.

    A free worker takes the next tile, so a slow or busy core does not hold up the others. The
    result of a tile must therefore not depend on the worker that does it.

    Args:
        tiles: descriptions of the tiles.
        device: where the tensors are; off the CPU the caller does all tiles in turn.
        worker: called on each thread with the worker's number, 0 … ``num_workers() - 1``; returns
            the function that does a tile, with the memory of this thread. Neither records
            gradients.
        own_threads: use threads of our own even if torch's spin, for work that torch's threads do
            not share.
        fixed: the tiles of a worker, and their order, depend only on the number of tiles and of
            threads, so that a worker's sums are the same in every run.

    Raises:
        AttentionError: ``torch.export`` looks on, which cannot record what threads do.
        Exception: the error of the first worker, by number, that failed.
    """
    if _is_exporting():
        raise AttentionError(
            "torch.export takes plain operations, and this module works by tiles: use torch.compile"
        )
    count = min(num_workers(device, own_threads), len(tiles))
    inference = torch.is_inference_mode_enabled()
    waiting = deque(tiles)  # its operations are atomic

    def run(numbers: range) -> None:
        with torch.inference_mode(inference), torch.no_grad():
            # All workers first, so that a profiler sees the memory of threads that run at once.
            works = [worker(number) for number in numbers]
            if fixed or len(works) > 1:
                for number, work in zip(numbers, works, strict=True):
                    for tile in tiles[number::count]:
                        work(tile)
                return
            while waiting:
                try:
                    tile = waiting.popleft()
                except IndexError:  # another worker took the last
                    break
                works[0](tile)

    if count <= 1 or torch.autograd._profiler_enabled():  # a profiler sees this thread only
        run(range(count))
    else:
        _pool(count).run(run)


def added_up(sums: Sequence[Sequence[Tensor]]) -> Sequence[Tensor]:
    """The sums of all workers, in the order of their numbers, in the first one's memory."""
    first, *others = sums
    for other in others:
        for whole, part in zip(first, other, strict=True):
            whole += part
    return first


def scratch(name: str, like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Memory that the calling thread keeps from one call to the next: fresh pages are expensive.

    Args:
        name: its purpose; the next call with this name on this thread gets the same memory.
        like: a tensor on the device, and of the dtype if none is given.
        shape: shape of the result, whose content is arbitrary.
        dtype: dtype of the result.
    """
    dtype = dtype or like.dtype
    count = math.prod(shape)
    # A profiler must see the memory as if each call took it. A tracer, on which counters of
    # operations are built, does not know tensors of an earlier trace.
    watched = torch.autograd._profiler_enabled() or torch.jit.is_tracing()
    if like.device.type != "cpu" or watched or count > _MOST_KEPT * _sharers():
        return torch.empty(shape, dtype=dtype, device=like.device)
    kept: dict[Any, Tensor] = _memory.__dict__
    memory = kept.get((name, dtype))
    if memory is None or memory.numel() < count:
        with torch.inference_mode(False):  # it may be used in and out of that mode
            memory = kept[name, dtype] = torch.empty(count, dtype=dtype, device="cpu")
    return memory[:count].view(shape)


def num_workers(device: torch.device, own_threads: bool = False) -> int:
    """Largest number of workers that :func:`share_tiles` uses with the same arguments."""
    if device.type != "cpu" or (_THREADS_SPIN and not own_threads):
        return 1
    # Whoever watches sees the operations of his own thread only.
    return 1 if is_watched() else torch.get_num_threads()


def is_watched() -> bool:
    """Whether a counter, tracer, fake tensor or the like looks on, which sees only torch's."""
    return torch.jit.is_tracing() or _python_dispatch._get_current_dispatch_mode() is not None


_Job = tuple[Callable[[range], None], int, "SimpleQueue[tuple[int, BaseException | None]]"]


class _Pool:
    """Threads that run torch's operations alone; a call is cheaper than Python's executors."""

    def __init__(self, count: int) -> None:
        threads = torch.get_num_threads()
        self._jobs: list[SimpleQueue[_Job]] = [SimpleQueue() for _ in range(count)]
        started = Barrier(count + 1)
        for jobs in self._jobs:
            Thread(target=self._work, args=(jobs, started), name="tiles", daemon=True).start()
        started.wait()
        # The number is per thread, but a new thread takes the number that was set last.
        torch.set_num_threads(threads)

    @staticmethod
    def _work(jobs: SimpleQueue[_Job], started: Barrier) -> None:
        torch.get_num_threads()  # else the first operation overwrites what is set before it
        torch.set_num_threads(1)
        started.wait()
        while True:
            function, number, done = jobs.get()
            error: BaseException | None = None
            try:
                function(range(number, number + 1))
            except BaseException as raised:
                error = raised
            del function  # and everything it holds
            done.put((number, error))

    def run(self, function: Callable[[range], None]) -> None:
        """Call the function on each thread with its number, as a range; raise the first error."""
        done: SimpleQueue[tuple[int, BaseException | None]] = SimpleQueue()
        for number, jobs in enumerate(self._jobs):
            jobs.put((function, number, done))
        results: list[tuple[int, BaseException | None]] = []
        try:
            results += (done.get() for _ in self._jobs)
        finally:
            # A signal may end the wait. Were threads inside of torch when the interpreter ends,
            # that would abort the process.
            while len(results) < len(self._jobs):
                results.append(done.get())
        for _, error in sorted(results, key=lambda result: result[0]):
            if error is not None:
                raise error


@cache
def _pool(count: int) -> _Pool:
    return _Pool(count)


# A forked child inherits the pools, but not their threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
