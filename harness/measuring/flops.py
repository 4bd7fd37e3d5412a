"""Operation counts of an attention module: closed forms beside the results of public counters.

GFLOPs are 2 · multiply-accumulates / 1e9 everywhere. What fvcore and ptflops call flops are MACs;
they are doubled here. Counters see the products of whole matrices that the authors' released code
makes, and not those of tiles written in place or of kernels in C: they count on the implementation
``released`` of each core, or else on ``reference``, whatever runs otherwise.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import math
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import Attention, AttentionError, is_built_in
from attention_zoo.implementations import (
    list_implementations,
    use_implementation,
    watch_implementations,
)

from ..config.variants import CORE_CHANNELS, MODULE_CHANNELS, Variant, create_core

# Counts this close, relative, get no note: ptflops adds one MAC per output for a bias.
_TOLERANCE = 3e-3
# A counter takes a module and its inputs and gives MACs, and facts for the record's notes.
Counter = Callable[[nn.Module, tuple[Tensor, ...]], tuple[float, list[str]]]


class Core(nn.Module):
    """The attention operation alone: ``(q, k, v)`` to ``[B, c_out, H, W]``, no projections.

    A module with a ``recurrence`` is applied that many times in a row.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.passes: int = getattr(attention, "recurrence", 1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        for _ in range(self.passes):
            v = self.attention.attend(q, k, v)
        return v


def check_cost(variant: Variant, channels: int) -> None:
    """Check a module's cost before any work is done.

    Raises:
        AttentionError: a bad name or option; or ``cost()`` fails or gives impossible numbers.
    """
    module = variant.create(channels)
    try:
        cost = module.cost(100, 100)
        sound = all(
            math.isfinite(macs) and macs >= 0
            for macs in (cost.projections, cost.core, cost.executed, cost.saved)
        )
    except AttentionError:
        raise
    except Exception as error:
        if is_built_in(type(module)):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        raise AttentionError(f"cost(100, 100) of {variant.name} fails: {text}") from error
    if not sound:
        raise AttentionError(f"cost(100, 100) of {variant.name} has bad numbers: {cost}")


def count(variant: Variant, height: int = 100, width: int = 100) -> dict[str, Any]:
    """Count one forward pass over one feature map; gives the keys of ``records.shapes.Cost``.

    GFLOPs of the core and of the module: ``paper_gflops`` (closed form in the convention of the
    paper's Table 4), ``executed_gflops`` (closed form of the matrix products really executed) and
    the counts of ``torch``, ``fvcore`` and ``ptflops``; None for a counter that fails. The module
    also has ``inserted_gflops``: as executed, but with every projection over all positions, as the
    method is defined and as the counted implementation does it. The notes say on which
    implementations was counted, why a counter failed, and what each misses.

    Raises:
        AttentionError: a bad name or option, or a feature map too small for the module.
    """
    if not variant.has_core:
        return _count_plain(variant, height, width)
    notes: list[str] = []
    with torch.random.fork_rng(devices=[]):
        core, module = create_core(variant).eval(), variant.create(MODULE_CHANNELS).eval()
        with torch.device("cpu"), torch.no_grad():
            pixels = torch.randn(1, CORE_CHANNELS, height, width)
            qkv = tuple(torch.randn(t.shape) for t in core.project(pixels))
            x = torch.randn(1, MODULE_CHANNELS, height, width)
        if (c := qkv[0].shape[1]) != CORE_CHANNELS and not is_built_in(type(core)):
            notes.append(
                f"core: queries have {c} channels, those of other modules {CORE_CHANNELS}: an "
                "option named reduction, which is set to 1 there, would make them comparable"
            )
        with use_implementation(_counted_implementations(Core(core), qkv)):
            with watch_implementations() as seen:
                parts = {"core": _count_part("core", Core(core), qkv, core, height, width, notes)}
            parts["module"] = _count_part("module", module, (x,), module, height, width, notes)
        if seen:
            ran = ", ".join(f"{core}={name}" for core, name in sorted(seen.items()))
            notes.insert(0, f"counters ran the implementation {ran}")
    parts["module"]["embedding"] = module.project(x[..., :1, :1])[0].shape[1]
    return {
        "variant": variant.to_dict(),
        "height": height,
        "width": width,
        "parts": parts,
        "notes": notes,
    }


def _counted_implementations(core: nn.Module, qkv: tuple[Tensor, ...]) -> str:
    """Implementations that counters see: ``released`` where it can run, else ``reference``."""
    choices = []
    for wanted in (("released", "reference"), ("reference",)):
        pairs = [
            f"{name}={next(one for one in wanted if one in known)}"
            for name, known in list_implementations().items()
            if set(wanted) & set(known)
        ]
        choices.append(",".join(pairs))
    try:
        with use_implementation(choices[0]), torch.no_grad(), _silence():
            _on_meta(core, qkv)
    except AttentionError:  # the released code cannot do this size
        return choices[1]
    except Exception:  # a module may need values; the counters will say so
        pass
    return choices[0]


def count_network(model: nn.Module, height: int, width: int) -> float:
    """GFLOPs of a network for one ``[1, 3, height, width]`` image, by torch's FlopCounterMode.

    The count runs on the meta device; the model keeps its weights, device and mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    model.eval()
    image = torch.empty(1, 3, height, width, dtype=dtype)
    try:
        with torch.no_grad():
            macs, _ = _count_torch(model, (image,))
    finally:
        for module, mode in modes:
            module.training = mode
    return 2 * macs / 1e9


def _count_plain(variant: Variant, height: int, width: int) -> dict[str, Any]:
    """As :func:`count`, of a plain module: of the whole alone, and without a closed form."""
    notes = ["the module is a plain one: torch counted what other modules state in closed form"]
    with torch.random.fork_rng(devices=[]):
        module = variant.create(MODULE_CHANNELS).eval()
        x = torch.randn(1, MODULE_CHANNELS, height, width)
        found = _count_part("module", module, (x,), module, height, width, notes)
    none = dict.fromkeys(["paper_gflops", "executed_gflops", *(f"{c}_gflops" for c in _COUNTERS)])
    return {
        "variant": variant.to_dict(),
        "height": height,
        "width": width,
        "parts": {"core": none | {"channels": CORE_CHANNELS}, "module": found},
        "notes": notes,
    }


def _count_part(
    part: str,
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    attention: Attention,
    height: int,
    width: int,
    notes: list[str],
) -> dict[str, Any]:
    cost = attention.cost(height, width)
    projections = cost.projections if part == "module" else 0
    executed = 2 * (cost.module_executed if part == "module" else cost.executed) / 1e9
    defined = 2 * cost.module / 1e9 if part == "module" else executed
    result: dict[str, Any] = {
        "channels": attention.channels,
        "paper_gflops": 2 * (projections + cost.core) / 1e9,
        "executed_gflops": executed,
    }
    if part == "module":
        result["inserted_gflops"] = defined
        if cost.saved:
            saved = f"{2 * cost.saved / 1e9:.3f}"
            notes.append(
                f"{part}: {saved} GFLOPs of projections are saved by projecting sums, which the "
                "counted implementation does not do"
            )
    for name, counter in _COUNTERS.items():
        gflops, facts = _run_counter(counter, module, inputs)
        if gflops is not None and all(
            abs(gflops - known) > _TOLERANCE * known for known in (executed, defined)
        ):
            facts.insert(0, f"counts {gflops:.3f} GFLOPs, the closed form {defined:.3f}")
        notes += [f"{part}: {name} {fact}" for fact in facts]
        result[f"{name}_gflops"] = gflops
    return result


def _run_counter(
    counter: Counter, module: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[float | None, list[str]]:
    """GFLOPs of a counter, None if it fails, and facts; its output and warnings are dropped."""
    try:
        with _silence(), torch.no_grad():
            macs, facts = counter(module, inputs)
    except Exception as error:  # a counter is another project's code and may fail in any way
        reason = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        return None, [f"failed: {reason[:200]}"]
    return 2 * macs / 1e9, facts


def _count_torch(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, list[str]]:
    """FlopCounterMode on the meta device, where it also counts scaled-dot-product attention."""
    with FlopCounterMode(display=False) as counter:
        _on_meta(module, inputs)
    return counter.get_total_flops() / 2, []


def _on_meta(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    torch.func.functional_call(module, meta, tuple(t.to("meta") for t in inputs))


def _count_fvcore(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, list[str]]:
    """fvcore's FlopCountAnalysis, which traces, and so runs, the module on the CPU."""
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(module, inputs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    macs = analysis.total()
    missed = ", ".join(f"{op} x{times}" for op, times in analysis.unsupported_ops().most_common())
    return macs, [f"has no count for {missed}"] if missed else []


def _count_ptflops(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[float, list[str]]:
    """ptflops with its backend "aten", which sees every kind of matrix product."""
    macs = _ptflops(module, inputs, "aten")
    try:
        default = _ptflops(module, inputs, "pytorch")
    except RuntimeError as error:
        return macs, [f"by its default backend failed: {error}"]
    if abs(default - macs) <= _TOLERANCE * macs:
        return macs, []
    return macs, [f"by its default backend counts {2 * default / 1e9:.3f} GFLOPs"]


def _ptflops(module: nn.Module, inputs: tuple[Tensor, ...], backend: str) -> float:
    from ptflops import get_model_complexity_info

    module = copy.deepcopy(module).to("meta")  # it leaves hooks and attributes behind
    names = inspect.signature(module.forward).parameters
    batch = dict(zip(names, (t.to("meta") for t in inputs), strict=True))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        macs, _ = get_model_complexity_info(
            module,
            (1,),
            input_constructor=lambda _: batch,
            as_strings=False,
            print_per_layer_stat=False,
            backend=backend,
            ost=output,
        )
    if macs is None:  # it prints the exception instead of raising it
        raise RuntimeError(output.getvalue().strip().splitlines()[-1])
    return macs


_COUNTERS: dict[str, Counter] = {
    "torch": _count_torch,
    "fvcore": _count_fvcore,
    "ptflops": _count_ptflops,
}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Silence Python's output streams, warnings and loggers within the block."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(level)
