"""The ``released`` and ``auto`` implementations, timed in turn, and the machine's limits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import enlca
from attention_zoo.implementations import AUTO, use_implementation

from ..base import machine
from ..base.errors import UserError, is_out_of_memory
from ..base.progress import OnRun
from ..base.signals import KILLED
from ..config.network import NetworkConfig
from ..config.run import AUXILIARY_WEIGHT
from ..config.variants import CORE_CHANNELS, MODULE_CHANNELS, Variant, create_core
from ..network.edsr import EDSR, build_network
from ..records.shapes import Speed
from ..records.store import new_record, record_id
from ..training.trainer import fused_adam
from .apart import ProcessEnded, run_in_subprocess
from .flops import count_network
from .latency import SCALE, Case, without_numbers
from .load import warn_of_load, watch_load
from .memory import peak_memory
from .timing import MAX_RUNS, Timing, median_ratio, sample_in_turn, time_in_turn

#: The sides of a row, as records name them, and their implementations.
_SIDES = {"obvious": "released", "ours": AUTO}
# Large enough that only arithmetic or memory limits them.
_MATMUL_SIDE = {"cpu": 2048, "cuda": 8192}
_COPY_NUMBERS = 2**26


@dataclass(frozen=True)
class Comparison:
    """One computation that is done by the released implementation and by ours, ``auto``.

    Attributes:
        part: "core" (attention at c = c_out = 64) or "module" (as inserted, 256 channels), as in
            :mod:`.latency`; "contrast", the contrastive loss of 64 channels; "step", a training
            step of EDSR x4: forward, L1 + 1e-3 · auxiliary loss, backward, Adam.
        variant: the attention.
        targets: least ratio of the two times on a CPU by pass: "forward", "forward+backward" or,
            for the part of that name, "step"; None for no target.
        memory_mb: largest peak memory of ours in the first pass, on a CPU; None for no target.
        side: height and width of the maps; in a step, of the patches.
        batch: images.
        network: blocks and channels, for a step.
    """

    part: str
    variant: Variant
    targets: Mapping[str, float | None]
    memory_mb: float | None = None
    side: int = 100
    batch: int = 1
    network: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """As it is chosen on the command line, e.g. ``core-nla-100``."""
        if self.part == "step":
            return f"step-{self.network[0]}x{self.network[1]}-{self.variant.name}"
        known = any(self.targets.values())  # of the fixed cases, whose options are understood
        name = self.variant.name if known else self.variant.file_name
        return f"{self.part}-{name}-{self.side}"

    def __str__(self) -> str:
        size = f"{self.side}×{self.side}" + (f", batch {self.batch}" if self.batch > 1 else "")
        if self.part == "step":
            network = f"EDSR {self.network[0]}×{self.network[1]}"
            if self.variant.name != "none":
                network += f" + {self.variant.label}"
            return f"training step, {network}, {size}"
        if self.part == "contrast":
            return f"contrastive loss, {size}"
        return f"{self.part}, {self.variant.label}, {size}"

    def function(
        self, side: str, passes: str, device: torch.device, seed: int = 0
    ) -> Callable[[], Any]:
        """What is timed for the side "obvious" or "ours": the same weights and inputs for both.

        The sides differ in the implementation, and in what surrounds it in the authors' code and
        in ours: NCHW maps and weights and torch's plain Adam, or channels-last maps and weights
        and the fused Adam of the trainer.
        """
        ours = side == "ours"
        memory_format = torch.channels_last if ours else torch.contiguous_format
        if self.part == "step":
            function = self._step(memory_format, device, seed, ours and fused_adam(device))
        elif self.part == "contrast":
            function = self._contrast(memory_format, device, seed)
        else:
            function = Case(
                self.part,
                passes,
                self.side,
                self.side,
                self.batch,
                device=device,
                seed=seed,
                memory_format=memory_format,
            ).function(self.variant)

        def run() -> Any:
            with use_implementation(_SIDES[side]):
                return function()

        return run

    def _contrast(
        self, memory_format: torch.memory_format, device: torch.device, seed: int
    ) -> Callable[[], Any]:
        torch.manual_seed(seed)
        shape = (self.batch, CORE_CHANNELS, self.side, self.side)
        maps = [torch.randn(shape).to(device, memory_format=memory_format) for _ in range(2)]
        for q_or_k in maps:
            q_or_k.requires_grad_()
        return lambda: torch.autograd.grad(enlca.contrastive_loss(*maps), maps)

    def _step(
        self, memory_format: torch.memory_format, device: torch.device, seed: int, fused: bool
    ) -> Callable[[], Any]:
        network = self._network(seed).to(device)
        network.to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = torch.optim.Adam(network.train().parameters(), fused=fused)
        torch.manual_seed(seed)
        sides = (self.side, SCALE * self.side)
        lr, hr = (
            torch.rand(self.batch, 3, s, s).to(device, memory_format=memory_format) for s in sides
        )

        def run() -> Tensor:
            loss = F.l1_loss(network(lr), hr) + AUXILIARY_WEIGHT * network.auxiliary_loss()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)  # now: a call releases no older memory
            return loss.detach()

        return run

    def _network(self, seed: int = 0) -> EDSR:
        return build_network(self.variant, NetworkConfig(*self.network), SCALE, seed=seed)

    def work(self, passes: str) -> tuple[float, float]:
        """Least work: (FLOPs of matrix products, bytes that are read and written once).

        A backward pass has two products for each of the forward's, and reads and writes a
        gradient for each input, parameter and output. Of the contrastive loss's scores only
        2·n1·N a row have a gradient.
        """
        n = self.side**2
        images, factor = self.batch, 1 if passes == "forward" else 3
        if self.part == "contrast":
            macs = self._contrast_macs(CORE_CHANNELS)
            numbers = 2 * CORE_CHANNELS * n
            parameters = 0
        elif self.part == "step":
            network = self._network()
            macs = factor * count_network(network, self.side, self.side) * 1e9 / 2
            if self.variant.name == "enlca":
                embedding = self.network[1] // self.variant.resolved["reduction"]
                macs += len(network.attention_modules) * self._contrast_macs(embedding)
            numbers = 3 * n * (1 + SCALE**2)
            parameters = sum(p.numel() for p in network.parameters())
        else:
            core = self.part == "core"
            module = create_core(self.variant) if core else self.variant.create(MODULE_CHANNELS)
            cost = module.cost(self.side, self.side)
            projections = 0 if core else cost.projections - cost.saved
            macs = factor * (min(cost.core, cost.executed) + projections)
            numbers = (4 * CORE_CHANNELS if core else 2 * MODULE_CHANNELS) * n
            parameters = 0 if core else sum(p.numel() for p in module.parameters())
        touched = images * numbers + parameters
        return 2.0 * images * macs, 4.0 * touched * (1 if passes == "forward" else 2)

    def _contrast_macs(self, embedding: int) -> float:
        n, options = self.side**2, self.variant.resolved
        count, _ = enlca.contrast_groups(n, options["n1"], options["n2"])
        return n * embedding * (n + 4 * count)


def _cases() -> list[Comparison]:
    nla, nlsa, criss_cross, enlca_m128, baseline = (
        Variant("nla"),
        Variant("nlsa", {"rounds": 4}),
        Variant("criss-cross"),
        Variant("enlca", {"m": 128}),
        Variant("none"),
    )

    def both(forward: float, backward: float) -> dict[str, float]:
        return {"forward": forward, "forward+backward": backward}

    backward = {"forward+backward": 4.0}
    # Ratios where the process keeps its memory: page faults would flatter ours.
    return [
        Comparison("core", nla, both(1.5, 1.4), 30),
        Comparison("core", nla, both(1.5, 1.4), 60, side=150),
        Comparison("core", nlsa, both(3, 2.5), 100),
        Comparison("core", criss_cross, both(2.2, 2.5), 30),
        Comparison("core", enlca_m128, both(2.2, 1.9), 24),
        Comparison("module", nla, both(2, 1.8), 100),
        Comparison("module", nlsa, both(4.5, 4)),
        Comparison("module", criss_cross, both(2, 1.8)),
        Comparison("module", enlca_m128, both(1.8, 1.8)),
        # No N x N tensor alive: less than 4 bytes for each of the batch's N² scores.
        Comparison("contrast", enlca_m128, backward, 16 * 28**4 * 4e-6, side=28, batch=16),
        Comparison("contrast", enlca_m128, backward, 100**4 * 4e-6),
        Comparison("step", enlca_m128, {"step": 2.0}, side=28, batch=16, network=(8, 32)),
        Comparison("step", baseline, {"step": 1.3}, side=28, batch=16, network=(8, 32)),
        Comparison("step", baseline, {"step": 1.3}, side=28, batch=16, network=(16, 64)),
    ]


#: What is compared.
CASES = _cases()


def choose(only: Sequence[str]) -> list[Comparison]:
    """The comparisons whose names begin with one of these words; all without a word.

    Raises:
        UserError: no name begins with a word.
    """
    for word in only:
        if not any(one.name.startswith(word) for one in CASES):
            names = ", ".join(one.name for one in CASES)
            raise UserError(f"no case begins with {word!r}: choose from {names}")
    return [one for one in CASES if not only or one.name.startswith(tuple(only))]


def cases_of(variants: Sequence[Variant]) -> list[Comparison]:
    """The cores of these variants at 100 x 100, forward and with backward; without targets.

    Raises:
        AttentionError: a bad option.
    """
    with torch.random.fork_rng(devices=[]):
        for variant in variants:
            create_core(variant)
    return [
        Comparison("core", variant, dict.fromkeys(("forward", "forward+backward")))
        for variant in variants
    ]


def measure(
    comparisons: Sequence[Comparison],
    *,
    device: torch.device,
    max_seconds: float = 10.0,
    min_runs: int = 5,
    max_runs: int = MAX_RUNS,
    seed: int = 0,
    apart: bool = False,
    command: str = "",
    on_run: OnRun | None = None,
) -> Speed:
    """Time the released implementation and ours in turn, and return a speed record.

    Before that the machine's rates of matrix products and of copying are measured, for the limits.
    Everything is float32, without TF32. Memory is the peak of one call above its start, in MB.

    Args:
        comparisons: what to time.
        device: where; targets apply to a CPU.
        max_seconds: for each comparison and pass.
        min_runs: least number of runs of each.
        max_runs: largest number of runs of each.
        seed: of weights, inputs, orders and the bootstrap.
        apart: each comparison and pass in its own process, both sides in the same one. The cost of
            large temporaries on a CPU depends on the memory that a process gave back before.
        command: the command to record.
        on_run: told about progress.
    """
    cuda = device.type == "cuda"
    limits = {
        "warmup": 10 if cuda else 0,  # two runs, that measure memory, come before
        "min_runs": min_runs,
        "max_runs": max_runs,
        "max_seconds": max_seconds,
        "seed": seed,
    }
    cases = [(one, passes) for one in comparisons for passes in one.targets]
    rows = []
    load = watch_load()
    with machine.use_tf32(False), torch.random.fork_rng(devices=[device] if cuda else []):
        described = machine.describe(device)
        rates = machine_limits(device)
        for index, (one, passes) in enumerate(cases):

            def report(share: float, side: str, index: int = index, one: Any = one) -> None:
                if on_run:
                    on_run((index + share) / len(cases), f"{one}: {side}")

            times = _times_apart if apart else _times
            rows.append(
                _head(one, passes, device, rates) | times(one, passes, device, limits, report)
            )
    others = load()
    warn_of_load(others)
    settings = limits | {
        "order": "in turn, newly drawn each round",
        "clock": "CUDA events" if cuda else "host clock, device synchronised",
        "processes": "one for each row" if apart else "one",
        "memory_format": "NCHW for the released implementation, channels-last for ours",
    }
    content = {
        "command": command,
        "machine": described,
        "machine_limits": rates,
        "settings": settings,
        "rows": rows,
        "other_cores": others,
    }
    return new_record(Speed, record_id(f"{device.type}-float32", content), content)


def _head(
    one: Comparison, passes: str, device: torch.device, rates: dict[str, float]
) -> dict[str, Any]:
    """The part of a row that is known before anything is timed."""
    flops, touched = one.work(passes)
    targets = device.type == "cpu"
    return {
        "name": one.name,
        "case": str(one),
        "variant": one.variant.describe(),
        "passes": passes,
        "dtype": "float32",
        "device": device.type,
        "ratio_target": one.targets[passes] if targets else None,
        "memory_target_mb": one.memory_mb
        if targets and passes == next(iter(one.targets))
        else None,
        "gflops": flops / 1e9,
        "megabytes": touched / 1e6,
        "limit_ms": max(
            flops / rates["matmul_gflops"] / 1e6, touched / rates["copy_gb_per_s"] / 1e6
        ),
    }


def _times(
    one: Comparison,
    passes: str,
    device: torch.device,
    limits: dict[str, Any],
    on_run: OnRun,
) -> dict[str, Any]:
    """The rest of a row: time and memory of both sides, and their ratio."""
    times: dict[str, Any] = {}
    functions, peaks = {}, {}
    try:
        for side in _SIDES:
            on_run(0.0, side)
            functions[side] = one.function(side, passes, device, limits["seed"])
            functions[side]()  # what happens once, such as workspaces, is no part of the peak
            peak = peak_memory(functions[side], device)
            peaks[side] = None if peak is None else peak / 1e6
        samples = sample_in_turn(functions, device, **limits, on_run=on_run)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return _out_of_memory()
    ratio, low, high = median_ratio(*(samples[side] for side in _SIDES), seed=limits["seed"])
    for side in _SIDES:
        times[side] = dataclasses.asdict(Timing.of(samples[side])) | {"peak_memory_mb": peaks[side]}
    return times | {"ratio": ratio, "ratio_low": low, "ratio_high": high}


def _times_apart(*case: Any) -> dict[str, Any]:
    *arguments, on_run = case
    try:
        times: dict[str, Any] = run_in_subprocess(_times, *arguments, on_run=on_run)
    except ProcessEnded as error:
        # When memory runs out, Linux kills the largest process so.
        if error.code != KILLED:
            raise
        return _out_of_memory()
    return times


def _out_of_memory() -> dict[str, Any]:
    note = "out of memory"
    nothing = dict.fromkeys(("ratio", "ratio_low", "ratio_high"))
    return dict.fromkeys(_SIDES, without_numbers(note)) | nothing | {"note": note}


def machine_limits(
    device: torch.device, dtype: torch.dtype = torch.float32, max_seconds: float = 2.0
) -> dict[str, float]:
    """Best measured rates: of large matrix products, and of copying (read + write).

    On a CPU products are torch's and oneDNN's, whichever are faster: on some processors torch's own
    take twice the time.
    """
    side = _MATMUL_SIDE.get(device.type, 2048)
    a, out = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source, copy = (torch.randn(_COPY_NUMBERS, device=device, dtype=dtype) for _ in range(2))
    functions: dict[str, Callable[[], Any]] = {
        "matmul": lambda: torch.mm(a, a, out=out),
        "copy": lambda: copy.copy_(source),
    }
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = a.to_mkldnn()
        functions["onednn"] = lambda: F.linear(packed, packed)
    with torch.inference_mode():
        times = time_in_turn(functions, device, max_seconds=max_seconds)
    products = min(times[name].min_ms for name in functions if name != "copy")
    return {
        "matmul_gflops": 2 * side**3 / products / 1e6,
        "copy_gb_per_s": 2 * dtype.itemsize * _COPY_NUMBERS / times["copy"].min_ms / 1e6,
    }


def limit_ms(
    variant: Variant, side: int, passes: str, rates: Mapping[str, float], itemsize: int = 4
) -> float:
    """Least time of a core on square maps: its products, or every number moved once."""
    flops, touched = Comparison("core", variant, {}, side=side).work(passes)
    return max(
        flops / rates["matmul_gflops"] / 1e6,
        touched * itemsize / 4 / rates["copy_gb_per_s"] / 1e6,
    )
