"""Time and peak memory of cores against the number of positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..base.errors import UserError
from ..base.progress import OnRun
from ..config.variants import Variant, create_core
from ..records.shapes import Latency, LatencyRow, Scaling, untyped
from ..records.store import new_record, record_id
from . import latency
from .latency import PASSES, Case, memory_row, without_numbers
from .load import warn_of_load, watch_load
from .timing import MAX_RUNS

SIZES = tuple((side, side) for side in (32, 64, 100, 128, 192, 256, 384, 512))
#: Smallest N in the fit: below it, fixed costs of a call are a visible share of the fast methods.
FIT_FROM = 100**2


def measure(
    variants: Sequence[Variant],
    *,
    device: torch.device,
    dtype: str = "float32",
    sizes: Sequence[tuple[int, int]] = SIZES,
    backward: bool = False,
    fit_from: int = FIT_FROM,
    max_seconds: float = 20.0,
    memory_seconds: float = 0.0,
    size_seconds: float = 10.0,
    min_runs: int = 3,
    max_runs: int = MAX_RUNS,
    seed: int = 0,
    command: str = "",
    on_run: OnRun | None = None,
) -> Scaling:
    """Time and measure the cores of all variants at each size.

    Each size is a session of :func:`.latency.measure`, smallest first: the same inputs, timing in
    turn and peak memory above the inputs. A variant whose projected time at a size is too long
    gets a row with a note instead of numbers, or of times: see :func:`projected_seconds`.

    Args:
        variants: what to time.
        device: where.
        dtype: a key of :data:`.latency.DTYPES`.
        sizes: feature maps (height, width), in any order; the smallest is always measured.
        backward: time forward and backward instead of forward alone.
        fit_from: smallest N in the fit, for the record.
        max_seconds: longest projected time of a single call that is timed.
        memory_seconds: longest projected time of a call that is made for its peak memory alone.
        size_seconds: time at a size after which no further round of runs begins.
        min_runs: least number of rounds.
        max_runs: largest number of rounds.
        seed: of weights, inputs and orders.
        command: the command of the record.
        on_run: called with the progress.

    Raises:
        UserError: a dtype that the device does not offer, or nothing to time.
        AttentionError: a bad variant.
    """
    for variant in variants:
        if not variant.has_core:
            raise UserError(f"{variant.name} is a plain module: it has no core whose growth shows")
    passes = PASSES[backward]
    ordered = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
    latest: dict[int, LatencyRow] = {}
    rows: list[LatencyRow] = []
    session: Latency | None = None
    load = watch_load()
    for index, size in enumerate(ordered):
        case = Case("core", passes, *size, dtype=dtype, device=device, seed=seed)
        slow: dict[int, float] = {}
        for i, row in latest.items():
            seconds = projected_seconds(variants[i], row, size)
            if seconds > max_seconds:
                slow[i] = seconds

        def report(share: float, text: str, index: int = index) -> None:
            if on_run:
                on_run((index + share) / len(ordered), text)

        chosen = [i for i in range(len(variants)) if i not in slow]
        measured = {}
        if chosen:
            session = latency.measure(
                [variants[i] for i in chosen],
                device=device,
                dtype=dtype,
                sizes=[size],
                parts=("core",),
                passes=(passes,),
                min_runs=min_runs,
                max_runs=max_runs,
                max_seconds=size_seconds,
                seed=seed,
                on_run=report,
                warn=False,
            )
            measured = dict(zip(chosen, session.rows, strict=True))
        latest |= {i: row for i, row in measured.items() if row.median_ms is not None}
        for i, seconds in slow.items():
            reason = f"as a call would take {seconds:.3g} s (bound {max_seconds:g})"
            if seconds <= memory_seconds:
                report(0.9, f"{case}: memory of {variants[i].label}")
                measured[i] = memory_row(case, variants[i], f"not timed, {reason}")
            else:
                measured[i] = case.row(variants[i], **without_numbers(f"skipped, {reason}"))
        rows += [measured[i] for i in range(len(variants))]
    if session is None:
        raise UserError("nothing to time: name at least one attention and size")
    others = load()
    warn_of_load(others)
    settings = untyped(session.settings) | {
        "max_seconds": max_seconds,
        "memory_seconds": memory_seconds,
        "size_seconds": size_seconds,
        "fit_from": fit_from,
    }
    content = {
        "command": command,
        "machine": untyped(session.machine),
        "settings": settings,
        "rows": [untyped(row) for row in rows],
        "other_cores": others,
    }
    return new_record(Scaling, record_id(f"{device.type}-{dtype}", content), content)


def projected_seconds(variant: Variant, row: LatencyRow, size: tuple[int, int]) -> float:
    """Time of one call at ``size = (height, width)``, in s.

    It is the median of the measured ``row`` times the ratio of the operations that the closed form
    of the variant's core counts at both sizes, or of N where it counts none.
    """
    with torch.random.fork_rng(devices=[]):
        core = create_core(variant)
    before = core.cost(row.height, row.width).executed
    ratio = core.cost(*size).executed / before if before else size[0] * size[1] / row.positions
    assert row.median_ms is not None, "a row that was timed"
    return row.median_ms / 1e3 * ratio
