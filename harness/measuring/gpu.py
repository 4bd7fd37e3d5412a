"""Everything that needs a CUDA device, in pieces of some minutes each."""

from __future__ import annotations

import copy
import gc
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention_zoo.implementations import (
    use_implementation,
    watch_implementations,
)
from attention_zoo.nla import non_local_attention

from ..base import machine
from ..base.errors import UserError, is_out_of_memory
from ..config.rows import rows_to_run
from ..config.run import PRECISIONS, DataConfig, RunConfig
from ..config.variants import CORE_CHANNELS, Variant, create_core
from ..images.cache import TrainingCache
from ..network.edsr import build_network
from ..records.origin import made_here
from ..records.shapes import Gpu, Latency, Machine, Scaling
from ..records.store import load_records, new_record, record_id
from ..tasks.sr import SuperResolution
from ..training.graphs import captured
from ..training.trainer import Trainer
from . import latency, scaling
from .by_implementation import CORES, by_implementation
from .flops import Core
from .latency import DTYPES, PASSES, SCALE, Case, precision
from .load import watch_load
from .speed import limit_ms, machine_limits
from .timing import MAX_RUNS, time_in_turn

_PRESETS = ("base", "paper")
# Target on an H200: milliseconds of a forward core at 100x100.
_TARGETS = {"ENLCA-m128": 0.06, "NLSA-r4": 0.5}
# Target: time of NLA over that of the plain flash kernel, at 100x100 in bfloat16.
_FLASH_TARGET = 1.5
# Steps of training that are not timed: workspaces, tuning, compilation.
_WARMUP_STEPS = 5
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Conditions:
    """What all pieces share.

    Attributes:
        device: where; any device but CUDA only serves to try the code.
        seconds: of measuring, for each piece.
        sizes: feature maps (height, width), square.

    Raises:
        UserError: a size is not square.
    """

    device: torch.device
    seconds: float
    sizes: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        for height, width in self.sizes:
            if height != width:
                raise UserError(f"sizes must be square here, got {height}x{width}")


def _tests(conditions: Conditions) -> Rows:
    """The tests that need a CUDA device.

    Raises:
        UserError: a test failed, or there is no source tree.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "tests").is_dir():
        raise UserError("piece tests needs the source tree: run it in a clone of the repository")
    parallel = ("-n", str(min(8, machine.usable_cores()))) if find_spec("xdist") else ()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-rfE", *parallel, "tests"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()]
    if done.returncode != 0:
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise UserError(f"tests of CUDA failed: {'; '.join(failed[:5]) or lines[-1]}")
    return [{"name": "tests", "result": lines[-1].strip("= ")}]


def _limits(conditions: Conditions, dtype: str) -> Rows:
    """Each core of Table 5: its times, the device's limit, its error against the reference."""
    device, variants = conditions.device, rows_to_run("table5")
    cases = [(v, *size, p) for v in variants for size in conditions.sizes for p in PASSES]
    rows = []
    with precision(dtype, device):
        rates = machine_limits(device, DTYPES[dtype])
        for variant, height, width, passes in cases:
            row: dict[str, Any] = {
                "name": f"{variant.label}, {height}x{width}, {passes}",
                "variant": variant.describe(),
                "height": height,
                "width": width,
                "passes": passes,
                "dtype": dtype,
            }
            size = DTYPES[dtype].itemsize
            row |= {"limit_ms": limit_ms(variant, height, passes, rates, size), **rates}
            try:
                case = Case("core", passes, height, width, dtype=dtype, device=device)
                with watch_implementations() as row["implementation"]:
                    functions = {"median_ms": case.function(variant)}
                    functions["median_ms"]()
                if device.type == "cuda":
                    row |= _add_graph(functions, device)
                times = time_in_turn(
                    functions,
                    device,
                    warmup=3,
                    max_runs=MAX_RUNS,
                    max_seconds=conditions.seconds / 2 / len(cases),
                )
                row |= {name: timing.median_ms for name, timing in times.items()}
                best = min(timing.median_ms for timing in times.values())
                row |= {"runs": times["median_ms"].runs, "share": row["limit_ms"] / best}
                if passes == PASSES[-1]:
                    row |= _errors(variant, height, width, dtype, device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                row["note"] = "out of memory"
            if _is_h200(device) and (height, width, passes) == (100, 100, PASSES[0]):
                row["target_ms"] = _TARGETS.get(variant.label)
            rows.append(row)
            _release(device)
    return rows


def _add_graph(functions: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, Any]:
    """Add the same call as a CUDA graph; gives a note if it cannot be recorded."""
    try:
        functions["graph_ms"] = captured(functions["median_ms"], device)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        return {"graph_note": str(error).splitlines()[0][:200]}
    return {}


def _errors(
    variant: Variant, height: int, width: int, dtype: str, device: torch.device
) -> dict[str, float]:
    """Error of value and gradients against ``reference`` in float64 on the same inputs.

    ``rms`` is relative to the root mean square of the reference, ``max`` to its largest magnitude.
    """
    torch.manual_seed(0)
    core = create_core(variant).eval().to(device, DTYPES[dtype])
    with torch.no_grad():
        widths = [t.shape[1] for t in core.project(_normal(CORE_CHANNELS, 1, 1, core))]
    inputs = [_normal(c, height, width, core).requires_grad_() for c in widths]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    found = _value_and_gradients(Core(core), inputs)
    with use_implementation("reference"):
        wanted = _value_and_gradients(Core(copy.deepcopy(core).double()), exact)
    errors: dict[str, float] = {}
    for what, pairs in (
        ("value", [(found[0], wanted[0])]),
        ("gradient", list(zip(found[1:], wanted[1:], strict=True))),
    ):
        square = sum(float((a.double() - b).square().sum()) for a, b in pairs)
        size = sum(float(b.square().sum()) for _, b in pairs)
        errors[f"{what}_rms_error"] = (square / max(size, 1e-300)) ** 0.5
        errors[f"{what}_max_error"] = max(
            float((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-300)) for a, b in pairs
        )
    return errors


def _normal(channels: int, height: int, width: int, like: torch.nn.Module) -> Tensor:
    parameter = next(iter([*like.parameters(), *like.buffers()]))
    shape = (1, channels, height, width)
    x = torch.randn(shape).to(parameter.device, parameter.dtype)
    return x.to(memory_format=torch.channels_last)


def _value_and_gradients(core: Core, inputs: Sequence[Tensor]) -> list[Tensor]:
    out = core(*inputs)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
    gradients = torch.autograd.grad(out, inputs, weights, allow_unused=True)
    zeros = (torch.zeros_like(t) for t in inputs)
    filled = (z if g is None else g for g, z in zip(gradients, zeros, strict=True))
    return [out.detach(), *filled]


def _flash(conditions: Conditions) -> Rows:
    """NLA beside torch's flash kernel alone, whose inputs are prepared beforehand, in turn."""
    rows = []
    for height, width in conditions.sizes:
        generator = torch.Generator().manual_seed(0)
        shape = (1, CORE_CHANNELS, height, width)
        maps = [
            torch.randn(shape, generator=generator)
            .to(conditions.device, torch.bfloat16)
            .to(memory_format=torch.channels_last)
            for _ in range(3)
        ]
        q, k, v = (t.permute(0, 2, 3, 1).reshape(1, 1, height * width, -1) for t in maps)

        def flash(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            with torch.inference_mode():
                return F.scaled_dot_product_attention(q, k, v, scale=1.0)

        def nla(maps: list[Tensor] = maps) -> Tensor:
            with torch.inference_mode():
                return non_local_attention(*maps)

        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            times = time_in_turn(
                {"flash": flash, "nla": nla},
                conditions.device,
                warmup=3,
                max_seconds=min(30.0, conditions.seconds / len(conditions.sizes)),
            )
        ours, plain = times["nla"].median_ms, times["flash"].median_ms
        at_target = _is_h200(conditions.device) and (height, width) == (100, 100)
        rows.append(
            {
                "name": f"NLA, {height}x{width}, bfloat16",
                "height": height,
                "width": width,
                "flash_ms": plain,
                "nla_ms": ours,
                "ratio": ours / plain,
                "ratio_target": _FLASH_TARGET if at_target else None,
            }
        )
    return rows


def _implementations(conditions: Conditions, dtype: str) -> Rows:
    """Every implementation of every core, in turn: the records that ``auto`` follows.

    Median times in ms by implementation, of a call and of its CUDA graph.
    """
    device, rows = conditions.device, []
    variants = {core: Variant(name) for core, name in CORES.items()}
    cases = list(itertools.product(variants, conditions.sizes, PASSES))
    seconds = conditions.seconds / 2 / len(cases)
    with precision(dtype, device):
        for core, (height, width), passes in cases:
            case = Case("core", passes, height, width, dtype=dtype, device=device)
            functions, notes = by_implementation(core, variants[core], case)
            if device.type == "cuda":
                for name in list(functions):
                    try:
                        functions[f"{name} graph"] = captured(functions[name], device)
                    except RuntimeError as error:
                        notes[name] = str(error).splitlines()[0][:200]
            times = time_in_turn(
                functions, device, warmup=3, min_runs=3, max_runs=MAX_RUNS, max_seconds=seconds
            )
            rows.append(
                {
                    "name": f"{variants[core].label}, {height}x{width}, {passes}",
                    "variant": variants[core].describe(),
                    "height": height,
                    "width": width,
                    "passes": passes,
                    "dtype": dtype,
                    "runs": min(one.runs for one in times.values()),
                    "notes": notes,
                }
                | {name: timing.median_ms for name, timing in times.items()}
            )
            del functions
            _release(device)
    return rows


def _train(conditions: Conditions, preset: str, dtype: str) -> Rows:
    """Steps per second of a preset's network with each module, and the whole schedule's cost."""
    variants = [v for v in rows_to_run("table6") if v.name != "nla"] + [Variant("nla")]
    rows = []
    for variant in variants:
        row: dict[str, Any] = {"name": f"{preset}, {variant.label}, {dtype}"}
        try:
            row |= _train_rates(conditions, variant, preset, dtype, len(variants))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            row["note"] = "out of memory"
        rows.append(row)
        _release(conditions.device)
    return rows


def _train_rates(
    conditions: Conditions, variant: Variant, preset: str, dtype: str, share: int
) -> dict[str, Any]:
    """Whole steps, drawing of patches included, before and after the contrastive loss sets in."""
    device = conditions.device
    config = RunConfig.of_preset(
        preset,
        variant=variant,
        scale=SCALE,
        seed=0,
        precision=dtype,
        device=device.type,
        data=DataConfig("random", [], 0, "", []),
    )
    cache = _random_images(config.patch)
    phases = (1.0, 0.0) if variant.name == "enlca" else (1.0,)
    rates = []
    with watch_implementations() as seen:
        for warmup in phases:
            network = build_network(variant, config.network, SCALE).to(device)
            timed = replace(config, auxiliary_warmup=warmup)
            trainer = Trainer(timed, network.train(), SuperResolution(cache))
            budget = conditions.seconds / 2 / share / len(phases)
            rates.append(_steps_per_second(trainer, budget))
    # The contrastive loss is on after its share of the steps.
    share_before = config.auxiliary_warmup
    per_step = share_before / rates[0] + (1 - share_before) / rates[-1]
    return {
        "variant": variant.describe(),
        "preset": preset,
        "dtype": dtype,
        "implementation": dict(seen),
        "steps_per_second_before_auxiliary": rates[0],
        "steps_per_second": rates[-1],
        "steps_per_gpu_hour": 3600 / per_step,
        "schedule_steps": config.steps,
        "projected_gpu_hours": config.steps * per_step / 3600,
    }


def _steps_per_second(trainer: Trainer, seconds: float) -> float:
    for _ in range(_WARMUP_STEPS):
        trainer.train_step()
    machine.synchronise(trainer.device)
    begin, first = time.perf_counter(), trainer.step
    while trainer.step < first + 5 or time.perf_counter() - begin < seconds:
        trainer.train_step()  # waits for the device: it gives the loss
    return (trainer.step - first) / (time.perf_counter() - begin)


def _random_images(patch: int) -> TrainingCache:
    """Images of noise: a step's time does not depend on what they show."""
    rng = np.random.default_rng(0)
    side = patch + 20
    lr, hr = (
        [rng.integers(0, 256, (s, s, 3), dtype=np.uint8) for _ in range(4)]
        for s in (side, side * SCALE)
    )
    return TrainingCache(SCALE, [f"random/{i}" for i in range(4)], hr, lr, "")


def _is_h200(device: torch.device) -> bool:
    return device.type == "cuda" and "H200" in torch.cuda.get_device_name(device)


def _release(device: torch.device) -> None:
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


#: Pieces that give rows of a "gpu" record, by name.
PIECES: dict[str, Callable[[Conditions], Rows]] = {
    "tests": _tests,
    "flash": _flash,
    **{f"implementations-{d}": partial(_implementations, dtype=d) for d in PRECISIONS},
    **{f"limits-{d}": partial(_limits, dtype=d) for d in PRECISIONS},
    **{f"train-{p}-{d}": partial(_train, preset=p, dtype=d) for p in _PRESETS for d in PRECISIONS},
}
#: Pieces that give a latency record, and so a Table 5: rows and dtype.
LATENCIES = {
    **{f"table5-{dtype}": ("table5", dtype) for dtype in PRECISIONS},
    **{f"rivals-{dtype}": ("rivals", dtype) for dtype in ("float32", "bfloat16")},
}
#: Pieces that give a scaling record, to 512 x 512: dtype.
SCALINGS = {f"scaling-{dtype}": dtype for dtype in ("float32", "bfloat16")}
#: All pieces in the order of their value, with the share of a time budget that each may measure.
SHARES = {
    "tests": 0.0,
    "table5-float32": 3.0,
    "implementations-float32": 2.0,
    "limits-float32": 2.0,
    "table5-bfloat16": 2.0,
    "table5-tf32": 2.0,
    "flash": 0.5,
    "limits-bfloat16": 1.5,
    "train-base-float32": 1.5,
    "train-paper-float32": 1.5,
    "scaling-float32": 2.0,
    "implementations-bfloat16": 1.5,
    "train-paper-bfloat16": 1.5,
    "limits-tf32": 1.5,
    "rivals-float32": 2.0,
    "train-base-bfloat16": 1.0,
    "train-paper-tf32": 1.0,
    "train-base-tf32": 1.0,
    "implementations-tf32": 1.0,
    "scaling-bfloat16": 2.0,
    "rivals-bfloat16": 1.5,
}
# Share of a piece's time that it may spend on measuring: the rest goes into preparing its calls.
_MEASURING = 0.5


def list_pieces() -> list[str]:
    """All pieces, in the order in which they run: that of their value."""
    return list(SHARES)


def share_of(piece: str, later: Sequence[str], seconds: float) -> float:
    """Seconds of measuring for a piece, where so many are left for it and for those after it."""
    whole = sum(SHARES[name] for name in (piece, *later))
    return _MEASURING * seconds * SHARES[piece] / whole if whole else 0.0


def choose(only: Sequence[str]) -> list[str]:
    """The pieces whose names begin with one of these words; all without a word.

    Raises:
        UserError: no name begins with a word.
    """
    names = list_pieces()
    for word in only:
        if not any(name.startswith(word) for name in names):
            raise UserError(f"no piece begins with {word!r}: choose from {', '.join(names)}")
    return [name for name in names if not only or name.startswith(tuple(only))]


def measure(piece: str, conditions: Conditions) -> Latency | Gpu | Scaling:
    """Measure one piece: a latency or scaling record for those that have one, else a gpu record."""
    device, command, load = conditions.device, _command(piece, conditions), watch_load()
    with _random_state(device):
        if piece in LATENCIES:
            rows, dtype = LATENCIES[piece]
            cases = 2 * len(PASSES) * len(conditions.sizes)
            return latency.measure(
                rows_to_run(rows),
                device=device,
                dtype=dtype,
                sizes=conditions.sizes,
                max_seconds=conditions.seconds / cases,
                command=command,
            )
        if piece in SCALINGS:
            sizes = scaling.SIZES if device.type == "cuda" else conditions.sizes
            return scaling.measure(
                rows_to_run("table5"),
                device=device,
                dtype=SCALINGS[piece],
                sizes=sizes,
                size_seconds=conditions.seconds / len(sizes),
                command=command,
            )
        content: dict[str, Any] = {
            "command": command,
            "machine": machine.describe(device),
            "piece": piece,
            "settings": {
                "seconds": conditions.seconds,
                "sizes": [list(size) for size in conditions.sizes],
            },
            "rows": PIECES[piece](conditions),
        }
        content["other_cores"] = load()
    return new_record(Gpu, record_id(f"{piece}-{device.type}", content), content)


@contextmanager
def _random_state(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _command(piece: str, conditions: Conditions) -> str:
    sizes = " ".join(f"{height}x{width}" for height, width in conditions.sizes)
    return (
        f"python -m harness.gpu --only {piece} --device {conditions.device.type} "
        f"--seconds {conditions.seconds:g} --sizes {sizes}"
    )


def find_record(
    results: Path, piece: str, conditions: Conditions, any_time: bool = False
) -> Latency | Gpu | Scaling | None:
    """A record of the piece by the same command, on the same device and version of the code.

    Args:
        results: folder with records.
        piece: its name.
        conditions: those of the command.
        any_time: the seconds of measuring may differ.
    """
    here = msgspec.convert(machine.describe(conditions.device), Machine)
    kind: type[Latency] | type[Gpu] | type[Scaling] = (
        Latency if piece in LATENCIES else Scaling if piece in SCALINGS else Gpu
    )

    def plain(command: str) -> str:
        return re.sub(r" --seconds \S+", "", command) if any_time else command

    wanted = plain(_command(piece, conditions))
    for record in load_records(results, kind):
        if plain(record.command) == wanted and made_here(record, here):
            return record
    return None
