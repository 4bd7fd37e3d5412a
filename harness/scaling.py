"""How time and memory of the attention modules grow with the number of positions.

``python -m harness.scaling`` times the modules' cores in turn at growing sizes and writes a record,
and from it a table, a figure and the fitted exponents. ``--from-records`` redraws alone.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from . import latency, machine
from .config import TableName, Variant
from .errors import UserError, command_line
from .flops import create_core
from .options import describe_command, parse
from .records import load_records, record_id, save_record
from .scaling_report import positions, statements, write_report
from .signals import resumable
from .timing import MAX_RUNS, OnRun

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
) -> dict[str, Any]:
    """Time and measure the cores of all variants at each size; return a scaling record.

    Each size is a session of :func:`harness.latency.measure`, smallest first: the same inputs,
    timing in turn and peak memory above the inputs. A variant whose projected time at a size is
    too long gets a row with a note instead of numbers, or of times: see :func:`projected_seconds`.

    Args:
        variants: what to time.
        device: where.
        dtype: a key of :data:`harness.latency.DTYPES`.
        sizes: feature maps (height, width), in any order; the smallest is always measured.
        backward: time forward and backward instead of forward alone.
        fit_from: smallest N in the fit; recorded for the report.
        max_seconds: longest projected time of a single call that is timed.
        memory_seconds: the same of a call for its peak memory alone, where it is not timed.
        size_seconds: no further round of runs begins after this time at a size.
        min_runs: rounds at least.
        max_runs: rounds at most.
        seed: of weights, inputs and orders.
        command: recorded as what asked for this.
        on_run: told about progress.

    Raises:
        UserError: a dtype that the device does not offer, or nothing to time.
        AttentionError: a bad variant.
    """
    passes = latency.PASSES[backward]
    ordered = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
    latest: dict[int, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    session: dict[str, Any] = {}
    for index, size in enumerate(ordered):
        case = latency.Case("core", passes, *size, dtype=dtype, device=device, seed=seed)
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
            )
            measured = dict(zip(chosen, session["rows"], strict=True))
        latest |= {i: row for i, row in measured.items() if row["median_ms"] is not None}
        for i, seconds in slow.items():
            reason = f"as a call would take {seconds:.3g} s (bound {max_seconds:g})"
            if seconds <= memory_seconds:
                report(0.9, f"{case}: memory of {variants[i].label}")
                measured[i] = latency.memory_row(case, variants[i], f"not timed, {reason}")
            else:
                numbers = latency.without_numbers(f"skipped, {reason}")
                measured[i] = case.row(variants[i]) | numbers
        rows += [measured[i] for i in range(len(variants))]
    if not rows:
        raise UserError("nothing to time: name at least one attention and size")
    settings = session["settings"] | {
        "max_seconds": max_seconds,
        "memory_seconds": memory_seconds,
        "size_seconds": size_seconds,
        "fit_from": fit_from,
    }
    content = {
        "command": command,
        "machine": session["machine"],
        "settings": settings,
        "rows": rows,
    }
    return {"kind": "scaling", "id": record_id(f"{device.type}-{dtype}", content), **content}


def projected_seconds(variant: Variant, row: dict[str, Any], size: tuple[int, int]) -> float:
    """Time of one call at ``size = (height, width)``, in s.

    It is the median of the measured ``row`` times the ratio of the operations that the closed form
    of the variant's core counts at both sizes, or of N where it counts none.
    """
    with torch.random.fork_rng(devices=[]):
        core = create_core(variant)
    before = core.cost(row["height"], row["width"]).executed
    ratio = core.cost(*size).executed / before if before else size[0] * size[1] / positions(row)
    return row["median_ms"] / 1e3 * ratio


@dataclass(kw_only=True)
class Options:
    """Time attention modules from small to large feature maps and fit how their cost grows.

    Examples:
      python -m harness.scaling --rows table5
      python -m harness.scaling --attn nlsa enlca --backward
    """

    attn: tuple[str, ...] = ()
    """Modules, `all`, or your own as package.module:Class; their options follow, e.g. --m 16."""
    rows: TableName | None = None
    """Rows of a table of the paper, or rivals, instead of --attn; table5 if neither is given."""
    sizes: tuple[str, ...] = tuple(f"{height}x{width}" for height, width in SIZES)
    """Feature maps, height x width; the smallest is always measured."""
    backward: bool = False
    """Forward and backward instead of forward alone."""
    fit_from: int = FIT_FROM
    """Smallest number of positions that counts in the fit."""
    max_seconds: float = 20.0
    """A method is skipped at a size where a single call is projected to take longer."""
    memory_seconds: float = 0.0
    """There its peak memory is measured all the same, by one call, if that takes no longer."""
    size_seconds: float = 10.0
    """Time for the runs of all methods at a size; three runs each at least."""
    max_runs: int = MAX_RUNS
    """Most runs of each method at a size."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<n> or mps."""
    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """tf32 needs CUDA."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    results: Path = Path("results")
    """Folder for the record, tables/ and figures/."""
    from_records: bool = False
    """Measure nothing; write table and figure of every scaling record again."""


def run(options: Options, variants: Sequence[Variant], command: str) -> dict[str, Any]:
    """Measure what the options ask for and save the record, which is returned as it is read back.

    Raises:
        UserError: a value out of range, or as :func:`measure`.
    """
    device = machine.pick_device(options.device)
    sizes = [latency.parse_size(text) for text in options.sizes]
    for name in ("fit_from", "max_runs"):
        value, flag = getattr(options, name), name.replace("_", "-")
        if value < 1:
            raise UserError(f"--{flag} must be at least 1, got {value}")
    for name in ("max_seconds", "memory_seconds", "size_seconds"):
        if not 0 <= getattr(options, name) < math.inf:
            flag = name.replace("_", "-")
            raise UserError(
                f"--{flag} must be finite and not negative, got {getattr(options, name)}"
            )
    machine.use_threads(options.threads)
    with latency.progress() as on_run:
        record = measure(
            variants,
            device=device,
            dtype=options.dtype,
            sizes=sizes,
            backward=options.backward,
            fit_from=options.fit_from,
            max_seconds=options.max_seconds,
            memory_seconds=options.memory_seconds,
            size_seconds=options.size_seconds,
            max_runs=options.max_runs,
            command=command,
            on_run=on_run,
        )
    path = save_record(options.results, record)
    return next(r for r in load_records(options.results, "scaling") if r["id"] == path.stem)


@command_line
@resumable("harness.scaling", anew=True)
def main() -> None:
    """Entry point of ``python -m harness.scaling``."""
    argv = sys.argv[1:]
    if not any(word.startswith(("--attn", "--rows")) for word in argv):
        argv = ["--rows", "table5", *argv]
    options, variants = parse(Options, argv, "harness.scaling")
    if options.from_records:
        records = load_records(options.results, "scaling")
        if not records:
            raise UserError(
                f"no scaling records under {options.results / 'records'}; measure first: "
                "python -m harness.scaling"
            )
    else:
        records = [run(options, variants, describe_command("harness.scaling", argv))]
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for record in records:
        for path in write_report(record, options.results):
            console.print(path)
        for line in statements(record):
            console.print(line)


if __name__ == "__main__":
    main()
