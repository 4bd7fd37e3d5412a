"""Latency and peak memory of attention modules, timed in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from attention_zoo import Attention
from attention_zoo.implementations import AUTO, chosen_implementation, watch_implementations

from ..base import machine
from ..base.errors import UserError, is_out_of_memory
from ..base.progress import OnRun
from ..config.network import NetworkConfig
from ..config.rows import TABLE5_SIZES
from ..config.run import Precision
from ..config.variants import CORE_CHANNELS, MODULE_CHANNELS, Variant, create_core
from ..network.edsr import build_network
from ..records.shapes import Latency, LatencyRow, RecordedVariant, untyped
from ..records.store import new_record, record_id
from ..training.graphs import captured
from .flops import Core
from .load import warn_of_load, watch_load
from .memory import peak_memory
from .timing import MAX_RUNS, Timing, time_in_turn

Part = Literal["core", "module", "network"]
Passes = Literal["forward", "forward+backward"]
Dtype = Literal[Precision, "float16"]
PARTS: tuple[str, ...] = get_args(Part)
PASSES: tuple[str, ...] = get_args(Passes)
#: "tf32" is float32 with TF32 in matrix products and convolutions.
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
#: Seconds for each part, size and pass elsewhere than on CUDA.
MAX_SECONDS = 20.0
#: Scale of the networks that are timed.
SCALE = 4
_CHANNELS = {"core": CORE_CHANNELS, "module": MODULE_CHANNELS, "network": 3}
_CPU = torch.device("cpu")


def measure(
    variants: Sequence[Variant],
    *,
    device: torch.device,
    dtype: str = "float32",
    sizes: Sequence[tuple[int, int]] = TABLE5_SIZES,
    parts: Sequence[str] | None = None,
    passes: Sequence[str] = PASSES,
    batch: int = 1,
    warmup: int | None = None,
    min_runs: int = 5,
    max_runs: int = MAX_RUNS,
    max_seconds: float | None = None,
    network: NetworkConfig | None = None,
    scale: int = SCALE,
    seed: int = 0,
    graphs: bool = False,
    command: str = "",
    on_run: OnRun | None = None,
    warn: bool = True,
) -> Latency:
    """Time all variants in turn, for each part, size and pass.

    Parts: "core" is ``attend(q, k, v)`` at c = c_out = 64; "module" the whole module as inserted
    at 256 channels; "network" EDSR with five modules, over images of three channels. A forward
    runs in evaluation mode without gradients; forward+backward runs in training mode, without
    the auxiliary loss, and computes the gradients of inputs and parameters.

    Plain modules, which have no core, have no row of that part.

    Inputs are standard normal (images uniform in 0 … 1), channels-last as in the network, and the
    same for every variant. Memory is the peak of one call above its start, in MB (1e6 bytes). A
    variant that runs out of memory gets a row with a note instead of numbers. Each row names the
    implementation that ran; the record's settings name a choice other than auto.

    Args:
        variants: what to time.
        device: where.
        dtype: a key of DTYPES; with "float32" TF32 is off.
        sizes: feature maps (network: images) as (height, width).
        parts: of PARTS; None is core and module, and network if its size is given.
        passes: of PASSES.
        batch: images in a call.
        warmup: untimed runs, after two that check the call and measure memory; None is 10 on CUDA
            and 1 elsewhere.
        min_runs: least number of runs.
        max_runs: largest number of runs.
        max_seconds: per part, size and pass; None is no limit on CUDA and 20 elsewhere.
        network: size of the network.
        scale: of the network.
        seed: of weights, inputs and orders.
        graphs: time replays of CUDA graphs, which exclude the cost of launches. A call that cannot
            be recorded as a graph gets a row with a note.
        command: the command of the record.
        on_run: called with the progress.
        warn: say on standard error if other processes were busy meanwhile; the record tells it.

    Raises:
        UserError: a dtype that the device does not offer, graphs without CUDA, or nothing to time.
        AttentionError: a bad variant.
    """
    cuda = device.type == "cuda"
    limits: dict[str, Any] = {
        "warmup": (10 if cuda else 1) if warmup is None else warmup,
        "min_runs": min_runs,
        "max_runs": max_runs,
        "max_seconds": MAX_SECONDS if max_seconds is None and not cuda else max_seconds,
        "seed": seed,
    }
    if graphs and not cuda:
        raise UserError(f"CUDA graphs need a CUDA device, not {device.type}")
    if parts is None:
        parts = PARTS if network else PARTS[:2]
    cases = [
        Case(part, one, *size, batch, dtype, device, seed, network, scale)
        for part, size, one in itertools.product(parts, sizes, passes)
    ]
    cores = [variant for variant in variants if variant.has_core]
    cases = [case for case in cases if case.part != "core" or cores or not variants]
    if not variants or not cases:
        raise UserError(
            "nothing to time: name at least one attention, part, size and pass; plain modules have "
            "no core"
        )
    rows: list[LatencyRow] = []
    random = torch.random.fork_rng(devices=[device] if cuda else [])
    _check_options(variants, parts, network)
    load = watch_load()
    with precision(dtype, device), random:
        described = machine.describe(device)
        for index, case in enumerate(cases):
            timed = cores if case.part == "core" else variants

            def report(
                share: float,
                name: str,
                index: int = index,
                case: Case = case,
                timed: Sequence[Variant] = timed,
            ) -> None:
                if on_run:
                    label = timed[int(name)].label
                    on_run((index + share) / len(cases), f"{case}: {label}")

            rows += _time_case(case, timed, limits, graphs, report)
    others = load()
    if warn:
        warn_of_load(others)
    settings = limits | {
        "order": "in turn, newly drawn each round",
        "clock": "CUDA events" if cuda else "host clock, device synchronised",
        "l2_flush": False,
        "memory_format": "channels_last",
        "network": _describe(network, scale) if network else None,
    }
    if chosen_implementation() != AUTO:
        settings["implementation"] = chosen_implementation()
    if graphs:
        settings["graphs"] = True
    content = {
        "command": command,
        "machine": described,
        "settings": settings,
        "rows": [untyped(row) for row in rows],
        "other_cores": others,
    }
    return new_record(Latency, record_id(f"{device.type}-{dtype}", content), content)


def _check_options(
    variants: Sequence[Variant], parts: Sequence[str], network: NetworkConfig | None
) -> None:
    """Build each module once, so that a bad option shows before anything is timed."""
    with torch.random.fork_rng(devices=[]):
        for variant in variants:
            if "core" in parts and variant.has_core:
                create_core(variant)
            if "module" in parts:
                variant.create(MODULE_CHANNELS)
            if "network" in parts and network:
                variant.create(network.channels)


def _describe(network: NetworkConfig, scale: int) -> dict[str, Any]:
    """Sizes as in the records of older versions, whose tables print them in this order."""
    sizes = dataclasses.asdict(network)
    return {
        "blocks": sizes.pop("blocks"),
        "channels": sizes.pop("channels"),
        "scale": scale,
    } | sizes


@dataclass(frozen=True)
class Case:
    """One part, pass and size, in which variants are compared; see :func:`measure`."""

    part: str
    passes: str
    height: int
    width: int
    batch: int = 1
    dtype: str = "float32"
    device: torch.device = _CPU
    seed: int = 0
    network: NetworkConfig | None = None
    scale: int = SCALE
    memory_format: torch.memory_format = torch.channels_last

    def __str__(self) -> str:
        return f"{self.part}, {self.passes}, {self.height}x{self.width}"

    def row(self, variant: Variant, **measured: Any) -> LatencyRow:
        """The variant's row, with what was measured."""
        return LatencyRow(
            variant=RecordedVariant(**variant.describe()),
            part=self.part,
            passes=self.passes,
            height=self.height,
            width=self.width,
            batch=self.batch,
            channels=_CHANNELS[self.part],
            dtype=self.dtype,
            device=self.device.type,
            **measured,
        )

    def function(self, variant: Variant) -> Callable[[], Any]:
        """The call to time, without arguments.

        Weights and inputs depend on the seed, with which torch's generators are seeded.
        """
        torch.manual_seed(self.seed)
        model, inputs = self._model(variant)
        model.to(self.device, DTYPES[self.dtype])
        model.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        for module in model.modules():
            if isinstance(module, Attention):
                module.auxiliary_enabled = False
        if self.passes == "forward":
            return _forward(model.eval(), inputs)
        return _forward_backward(model.train(), inputs)

    def _model(self, variant: Variant) -> tuple[nn.Module, list[Tensor]]:
        if self.part == "core":
            attention = create_core(variant)
            with torch.no_grad():
                qkv = attention.project(torch.zeros(1, CORE_CHANNELS, 1, 1))
            normals = (self._normal(t.shape[1], index) for index, t in enumerate(qkv))
            return Core(attention), [self._place(t) for t in normals]
        if self.part == "module":
            return variant.create(MODULE_CHANNELS), [self._place(self._normal(MODULE_CHANNELS))]
        if self.network is None:
            raise ValueError("to time the part 'network', pass its size")
        uniform = torch.special.ndtr(self._normal(_CHANNELS["network"]))
        return build_network(variant, self.network, self.scale), [self._place(uniform)]

    def _normal(self, channels: int, index: int = 0) -> Tensor:
        """Standard normal ``[batch, channels, height, width]``, float32 on the CPU."""
        generator = torch.Generator().manual_seed(self.seed + index)
        return torch.randn(self.batch, channels, self.height, self.width, generator=generator)

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, DTYPES[self.dtype], memory_format=self.memory_format)


def _forward(model: nn.Module, inputs: list[Tensor]) -> Callable[[], Any]:
    def run() -> Tensor:
        with torch.inference_mode():
            return model(*inputs)

    return run


def _forward_backward(model: nn.Module, inputs: list[Tensor]) -> Callable[[], Any]:
    with torch.no_grad():
        grad = torch.randn_like(model(*inputs))
    wanted = [*(t.requires_grad_() for t in inputs), *model.parameters()]

    def run() -> Any:
        output = model(*inputs)
        if not output.requires_grad:  # the core of the baseline depends on nothing
            return output
        return torch.autograd.grad(output, wanted, grad, allow_unused=True)

    return run


def _time_case(
    case: Case,
    variants: Sequence[Variant],
    limits: dict[str, Any],
    graphs: bool,
    on_run: OnRun,
) -> list[LatencyRow]:
    measured: list[dict[str, Any]] = []
    functions = {}
    for index, variant in enumerate(variants):
        on_run(0.0, str(index))
        row: dict[str, Any] = {}
        measured.append(row)
        try:
            function = case.function(variant)
            with watch_implementations() as row["implementation"]:
                function()  # what happens once, such as workspaces, is no part of the peak
            peak = peak_memory(function, case.device)
            if graphs:
                function = captured(function, case.device)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                row |= without_numbers("out of memory")
            elif graphs:
                row |= without_numbers(f"no CUDA graph: {str(error).splitlines()[0][:200]}")
            else:
                raise
        else:
            row["peak_memory_mb"] = None if peak is None else peak / 1e6
            functions[str(index)] = function
            continue
        gc.collect()
        if case.device.type == "cuda":
            torch.cuda.empty_cache()
    for name, timing in time_in_turn(functions, case.device, **limits, on_run=on_run).items():
        measured[int(name)] |= dataclasses.asdict(timing)
    return [case.row(variant, **row) for variant, row in zip(variants, measured, strict=True)]


def memory_row(case: Case, variant: Variant, note: str) -> LatencyRow:
    """A row of peak memory alone, for a call that is too slow to time; the note says why.

    The peak is that of the first call, so it includes what happens once, such as workspaces.
    """
    row = without_numbers(note)
    devices = [case.device] if case.device.type == "cuda" else []
    with precision(case.dtype, case.device), torch.random.fork_rng(devices=devices):
        try:
            function = case.function(variant)
            with watch_implementations() as row["implementation"]:
                peak = peak_memory(function, case.device)
            row["peak_memory_mb"] = None if peak is None else peak / 1e6
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            row["note"] = f"{note}; out of memory"
    return case.row(variant, **row)


def without_numbers(note: str) -> dict[str, Any]:
    """A row's times and memory where nothing was measured: None, and a note that says why."""
    names = [field.name for field in dataclasses.fields(Timing)]
    return dict.fromkeys([*names, "peak_memory_mb"]) | {"note": note}


@contextlib.contextmanager
def precision(dtype: str, device: torch.device) -> Iterator[None]:
    """Switch TF32 on or off in matrix products and convolutions within the block.

    Raises:
        UserError: an unknown dtype, or one that the device does not offer.
    """
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    tf32 = dtype == "tf32"
    if tf32 and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError("dtype tf32 needs a CUDA device with TF32 (Ampere or later); use float32")
    with machine.use_tf32(tf32):
        yield
