"""Every implementation of every core, timed in turn: the records that ``auto`` follows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import torch

from attention_zoo.implementations import watch_implementations

from ..base import machine
from ..base.progress import OnRun
from ..config.variants import Variant
from ..records.shapes import Implementations
from ..records.store import new_record, record_id
from .apart import run_in_subprocess
from .by_implementation import CORES, by_implementation
from .latency import PASSES, Case
from .load import warn_of_load, watch_load
from .memory import peak_memory
from .speed import limit_ms, machine_limits
from .timing import MAX_RUNS, Timing, sample_in_turn

#: Implementations that hold whole matrices: oracles, not candidates.
WHOLE = ("reference", "released")
#: Sides of the maps.
SIDES = (32, 64, 100, 150, 256)
# Side of a map from which on its size does not decide what ``auto`` takes.
_SMALL = 12


def measure(
    sides: Sequence[int] = SIDES,
    *,
    device: torch.device,
    max_seconds: float = 2.0,
    min_runs: int = 2,
    max_runs: int = MAX_RUNS,
    seed: int = 0,
    command: str = "",
    on_run: OnRun | None = None,
) -> Implementations:
    """Time all implementations of each core in turn, in float32, forward and with backward.

    On a CPU each core, size and pass has a process of its own.

    Oracles are left out, see :data:`WHOLE`. Memory is the peak of one call above its start, in MB.

    Args:
        sides: of square maps of 64 channels, one image.
        device: where.
        max_seconds: for each core, size and pass.
        min_runs: least number of runs of each.
        max_runs: largest number of runs of each.
        seed: of inputs and orders.
        command: the command to record.
        on_run: told about progress.
    """
    cases = list(itertools.product(sides, CORES, PASSES))
    work = [side**3 for side, *_ in cases]  # for the progress alone
    limits: dict[str, Any] = {
        "max_seconds": max_seconds,
        "min_runs": min_runs,
        "max_runs": max_runs,
        "seed": seed,
    }
    rows = []
    load = watch_load()
    random = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with machine.use_tf32(False), random:
        described, rates = machine.describe(device), machine_limits(device)
        for index, (side, core, passes) in enumerate(cases):

            def report(share: float, name: str, index: int = index, text: str = core) -> None:
                if on_run:
                    done = sum(work[:index]) + share * work[index]
                    on_run(done / sum(work), f"{text} {cases[index][0]}: {name}")

            arguments = (core, side, passes, device, limits)
            if device.type == "cpu":  # memory that was freed before must not matter
                auto, times = run_in_subprocess(_times, *arguments, on_run=report)
            else:
                auto, times = _times(*arguments, report)
            variant = Variant(CORES[core])
            rows.append(
                {
                    "variant": variant.describe(),
                    "passes": passes,
                    "height": side,
                    "width": side,
                    "dtype": "float32",
                    "device": device.type,
                    "auto": auto,
                    "limit_ms": limit_ms(variant, side, passes, rates),
                    "times": times,
                }
            )
    others = load()
    warn_of_load(others)
    content = {
        "command": command,
        "machine": described,
        "machine_limits": rates,
        "settings": limits,
        "rows": rows,
        "other_cores": others,
    }
    return new_record(Implementations, record_id(f"{device.type}-float32", content), content)


def _times(
    core: str,
    side: int,
    passes: str,
    device: torch.device,
    limits: dict[str, Any],
    on_run: OnRun,
) -> tuple[str, dict[str, Any]]:
    """What ``auto`` takes, and each implementation's times and memory, or why it has none."""
    variant = Variant(CORES[core])
    case = Case("core", passes, side, side, device=device, seed=limits["seed"])
    on_run(0.0, "")
    functions, notes = by_implementation(core, variant, case, WHOLE)
    small = min(side, _SMALL)
    with watch_implementations() as seen:
        Case("core", passes, small, small, device=device, seed=limits["seed"]).function(variant)()
    peaks = {name: peak_memory(function, device) for name, function in functions.items()}
    samples = sample_in_turn(functions, device, warmup=0, **limits, on_run=on_run)
    times: dict[str, Any] = {}
    for name, found in samples.items():
        peak = peaks[name]
        memory = None if peak is None else peak / 1e6
        times[name] = dataclasses.asdict(Timing.of(found)) | {"peak_memory_mb": memory}
    for name, note in notes.items():
        times[name] = {"median_ms": None, "runs": None, "peak_memory_mb": None, "note": note}
    return seen[core], times
