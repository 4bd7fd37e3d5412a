"""Time functions in turn, so that drift of the machine affects all of them alike."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..base.machine import synchronise
from ..base.progress import OnRun
from ..records.shapes import CONFIDENCE

#: Largest number of runs of a method: the ENLCA paper's.
MAX_RUNS = 1000


def median_ratio(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float | None, float | None]:
    """Ratio of the medians of paired samples, with its 95 % percentile interval.

    The bootstrap draws pairs (rounds of measurement) with replacement, so that what affects both
    of a pair alike does not widen the interval. One pair alone has no interval.
    """
    pairs = np.array([numerators, denominators])
    ratio = float(np.divide(*np.median(pairs, axis=1)))
    count = pairs.shape[1]
    if count < 2:
        return ratio, None, None
    drawn = np.random.default_rng(seed).integers(count, size=(resamples, count))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.divide(*np.median(pairs[:, drawn], axis=2)), [tail, 1 - tail])
    return ratio, float(low), float(high)


@dataclass(frozen=True)
class Timing:
    """Statistics of a function's runs in milliseconds; ``iqr_ms`` is the interquartile range."""

    mean_ms: float
    median_ms: float
    iqr_ms: float
    min_ms: float
    runs: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """Statistics of at least one run."""
        spread = 0.0
        if len(samples) > 1:
            lower, _, upper = statistics.quantiles(samples, n=4, method="inclusive")
            spread = upper - lower
        return cls(
            mean_ms=statistics.fmean(samples),
            median_ms=statistics.median(samples),
            iqr_ms=spread,
            min_ms=min(samples),
            runs=len(samples),
        )


def time_in_turn(
    functions: dict[str, Callable[[], Any]], device: torch.device, **limits: Any
) -> dict[str, Timing]:
    """Statistics of :func:`sample_in_turn`, whose arguments it takes."""
    samples = sample_in_turn(functions, device, **limits)
    return {name: Timing.of(times) for name, times in samples.items()}


def sample_in_turn(
    functions: dict[str, Callable[[], Any]],
    device: torch.device,
    *,
    warmup: int = 1,
    min_runs: int = 5,
    max_runs: int = MAX_RUNS,
    max_seconds: float | None = 60.0,
    seed: int = 0,
    on_run: OnRun | None = None,
) -> dict[str, list[float]]:
    """Time functions in turn: each round runs each of them once, in a newly drawn order.

    The order changes, so that no function always follows the same other. CUDA is timed by events
    on the current stream, everything else by a clock with the device synchronised before and
    after. Results are freed outside the timed span, and the garbage collector is off meanwhile.

    Args:
        functions: what to time, by name.
        device: where the functions run.
        warmup: untimed runs of each function beforehand.
        min_runs: least number of rounds, however long they take, but at most ``max_runs``.
        max_runs: largest number of rounds, at least 1.
        max_seconds: time after which no further round begins; None is no limit.
        seed: of the orders.
        on_run: called with the progress, outside the timed spans.

    Returns:
        Each function's times in milliseconds, one per round.
    """
    time_once = _time_cuda if device.type == "cuda" else _time_host
    limit = math.inf if max_seconds is None else max_seconds
    draw = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        for _ in range(warmup):
            function()
    with _no_garbage_collection():
        begin = time.perf_counter()
        for done in range(max_runs):
            spent = time.perf_counter() - begin
            if done >= min_runs and spent >= limit:
                break
            by_time = min(1.0, spent / limit if limit > 0 else 1.0, done / max(min_runs, 1))
            for name in draw.sample(list(functions), len(functions)):
                if on_run:
                    on_run(max(done / max_runs, by_time), name)
                samples[name].append(time_once(functions[name], device))
    return samples


def _time_host(function: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    begin = time.perf_counter_ns()
    result = function()
    synchronise(device)
    end = time.perf_counter_ns()
    del result
    return (end - begin) / 1e6


def _time_cuda(function: Callable[[], Any], device: torch.device) -> float:
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        result = function()
        end.record()
        end.synchronize()
    del result
    return begin.elapsed_time(end)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
