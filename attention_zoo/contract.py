"""What every module keeps to, as checks that run on any class, the user's own too.

``python -m harness.check`` prints their verdicts; this suite's tests run them on every registered
module.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from .base import Attention, AttentionError, Cost
from .registry import create_attention

#: Heights and widths: one position, a row, a column, odd, H ≠ W both ways, more than one tile.
SIZES = ((1, 1), (1, 7), (6, 1), (5, 7), (14, 9), (48, 47))
FORMATS = (torch.contiguous_format, torch.channels_last)
LOWER = (torch.bfloat16, torch.float16)
#: Side of the map on which the largest tensor is looked for.
LARGE = 72

T = TypeVar("T")


class Broken(Exception):
    """The module does not keep to the contract; one line says how."""


class NotApplicable(Exception):
    """There is nothing to check; one line says why."""


@dataclass(frozen=True)
class Subject:
    """A module under test.

    Attributes:
        name: a registered name, or ``package.module:Class``.
        options: the module's own.
        channels: channels C of most checks.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    channels: int = 16

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float64, **sizes: int) -> Attention:
        """In evaluation mode, every parameter moved off its initial value: gates are open."""
        torch.manual_seed(seed)
        module = create_attention(self.name, sizes.get("channels", self.channels), **self.options)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter.dtype))
        return module.to(dtype).eval()

    def features(
        self, size: tuple[int, int], *, batch: int = 2, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Gaussian ``[B, C, H, W]``, a leaf that wants a gradient."""
        generator = torch.Generator().manual_seed(1)
        shape = (batch, self.channels, *size)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()


@dataclass(frozen=True)
class Verdict:
    """Of one check: ``passed`` is None where there was nothing to check."""

    check: str
    passed: bool | None
    detail: str


#: The checks by name; each takes a Subject and returns what it saw, in a few words.
CHECKS: dict[str, Callable[[Subject], str]] = {}


def check(function: Callable[[Subject], str]) -> Callable[[Subject], str]:
    """Add a check under its name, in words."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


def judge(subject: Subject) -> Iterator[Verdict]:
    """Run every check; whatever the module raises is its verdict, in a line."""
    return verdicts(CHECKS, subject)


def verdicts(checks: Mapping[str, Callable[[T], str]], subject: T) -> Iterator[Verdict]:
    """Run checks of any subject; whatever it raises is the verdict, in a line."""
    for name, function in checks.items():
        try:
            yield Verdict(name, True, function(subject))
        except NotApplicable as reason:
            yield Verdict(name, None, str(reason))
        except Broken as problem:
            yield Verdict(name, False, str(problem))
        except Exception as error:
            yield Verdict(name, False, _raised(error))


def _raised(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {text[:200]}"


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise Broken(problem)


def _require_close(actual: Tensor, wanted: Tensor, tolerance: float, what: str) -> float:
    """The largest error over the largest wanted magnitude, or 1."""
    _require(actual.shape == wanted.shape, f"{what}: {list(actual.shape)} is not {_list(wanted)}")
    _require(bool(actual.isfinite().all()), f"{what}: not finite")
    if not actual.numel():
        return 0.0
    largest = max(1.0, wanted.double().abs().max().item())
    error = (actual.double() - wanted.double()).abs().max().item() / largest
    _require(error <= tolerance, f"{what}: off by {error:.2g}, allowed {tolerance:.2g}")
    return error


def _list(x: Tensor) -> str:
    return str(list(x.shape))


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _require_core(module: Attention) -> None:
    if not module.has_core:
        raise NotApplicable("a plain module has no query, key and value to look at")


# -- the checks -----------------------------------------------------------------------------------


@check
def any_size(subject: Subject) -> str:
    """``[B, C, H, W]`` to the same, finite, for any H, W >= 1, in training and evaluation."""
    for training in (False, True):
        module = subject.build().train(training)
        for i, size in enumerate(SIZES):
            x = subject.features(size, batch=i % 3 + 1)
            where = f"{_text(size)}, batch {len(x)}, {'training' if training else 'evaluation'}"
            try:
                y = module(x)
            except Exception as error:
                raise Broken(f"{where}: {_raised(error)}") from error
            _require(y.shape == x.shape, f"{where}: gives {_list(y)} for {_list(x)}")
            _require(y.dtype == x.dtype, f"{where}: gives {y.dtype} for {x.dtype}")
            _require(bool(y.isfinite().all()), f"{where}: not finite")
    return ", ".join(map(_text, SIZES))


@check
def forward_is_project_attend_residual(subject: Subject) -> str:
    """What is timed and counted as the core is what the module does."""
    module = subject.build()
    _require_core(module)
    worst = 0.0
    for size in SIZES[:5]:
        x = subject.features(size)
        q, k, v = module.project(x)
        out = module.attend(q, k, v)
        _require(q.shape == k.shape, f"query {_list(q)} and key {_list(k)} differ in shape")
        _require(out.shape == x.shape, f"attend gives {_list(out)}, not {_list(x)}")
        if getattr(module, "recurrence", 1) > 1:
            raise NotApplicable("the module is applied several times in a row")
        worst = max(worst, _require_close(module.residual(x, out), module(x), 1e-10, _text(size)))
    return f"to {worst:.1g}"


@check
def images_are_independent(subject: Subject) -> str:
    """An image's result does not depend on the others in its batch."""
    module = subject.build()
    x = subject.features((6, 7), batch=3)
    together = module(x)
    worst = 0.0
    for i in range(3):
        alone = module(x[i : i + 1])
        worst = max(worst, _require_close(alone, together[i : i + 1], 1e-12, f"image {i}"))
    return f"to {worst:.1g}"


@check
def gradients_reach_everything(subject: Subject) -> str:
    """Input and every parameter get a finite gradient, every matrix one that is not zero."""
    module = subject.build().train()
    x = subject.features((6, 7))
    y = module(x)
    ((y * torch.randn_like(y)).sum() + module.auxiliary_loss()).backward()
    for name, leaf in [("x", x), *module.named_parameters()]:
        _require(leaf.grad is not None, f"{name} gets no gradient")
        assert leaf.grad is not None
        _require(bool(leaf.grad.isfinite().all()), f"gradient of {name} is not finite")
        # A key's bias adds the same to all scores of a row: its gradient may be zero.
        nonzero = leaf.dim() < 2 or bool(leaf.grad.any())
        _require(nonzero, f"gradient of {name} is zero")
    return f"x and {len(list(module.parameters()))} parameters"


@check
def gradients_are_derivatives(subject: Subject) -> str:
    """In float64, along a random direction, against a central difference; in training too."""
    errors = [_error_of_slope(subject.build().train(mode), subject) for mode in (False, True)]
    return f"to {max(errors):.1g}, in evaluation and in training"


def _error_of_slope(module: Attention, subject: Subject) -> float:
    def forward() -> Tensor:
        torch.manual_seed(5)  # the same draws in each
        return module(x)

    x = subject.features((5, 6))
    leaves = [x, *module.parameters()]
    weights = torch.randn_like(x)
    gradients = torch.autograd.grad((forward() * weights).sum(), leaves, allow_unused=True)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    slope = sum(
        (g * d).sum().item() for g, d in zip(gradients, directions, strict=True) if g is not None
    )
    step, ends = 1e-6, []
    with torch.no_grad():
        for sign in (1, -1):
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.add_(sign * step * direction)
            ends.append((forward() * weights).sum().item())
            for leaf, direction in zip(leaves, directions, strict=True):
                leaf.sub_(sign * step * direction)
    wanted = (ends[0] - ends[1]) / (2 * step)
    error = abs(slope - wanted) / max(1.0, abs(wanted))
    mode = "training" if module.training else "evaluation"
    _require(error <= 1e-5, f"{mode}: {slope:.8g} by autograd, {wanted:.8g} by difference")
    return error


@check
def evaluation_is_deterministic(subject: Subject) -> str:
    """Whatever the global seed; the global random state is left alone, and copies agree."""
    module = subject.build()
    x = subject.features((6, 7))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = module(x)
    _require(torch.equal(torch.get_rng_state(), state), "draws from the global generator")
    torch.manual_seed(2)
    _require(torch.equal(module(x), first), "differs from call to call")
    _require(torch.equal(copy.deepcopy(module)(x), first), "differs from its copy")
    return "to the last bit"


@check
def training_is_reproducible(subject: Subject) -> str:
    """The same global seed gives the same output and auxiliary loss."""
    found = []
    for _ in range(2):
        module = subject.build().train()
        torch.manual_seed(7)
        y = module(subject.features((6, 7)))
        found.append((y, module.auxiliary_loss()))
    same = torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    _require(same, "the same seed gives other results: draw from torch's global generator")
    return "to the last bit"


@check
def auxiliary_loss_is_of_the_last_training_forward(subject: Subject) -> str:
    """A finite scalar; zero before, after an evaluation, and when it is switched off."""
    module, x = subject.build(), subject.features((6, 7))
    module(x)
    _require(module.auxiliary_loss().shape == (), "it is no scalar")
    _require(module.auxiliary_loss().item() == 0, "an evaluation leaves a loss")
    module.train()(x)
    loss = module.auxiliary_loss()
    _require(loss.shape == () and bool(loss.isfinite()), "a training forward leaves no finite loss")
    module.auxiliary_enabled = False
    module(x)
    _require(module.auxiliary_loss().item() == 0, "it is there although switched off")
    module.auxiliary_enabled = True
    module(x)
    module.eval()(x)
    _require(module.auxiliary_loss().item() == 0, "it outlives the next evaluation")
    return f"{loss.item():.3g}"


@check
def state_dict_holds_all(subject: Subject) -> str:
    """Another module with the same state gives the same result."""
    module, other = subject.build(seed=0), subject.build(seed=1)
    other.load_state_dict(module.state_dict())
    x = subject.features((6, 7))
    _require(torch.equal(other(x), module(x)), "something is kept outside parameters and buffers")
    return f"{len(module.state_dict())} tensors"


@check
def checkpoint_changes_no_gradient(subject: Subject) -> str:
    """``torch.utils.checkpoint`` frees what the forward saved, and repeats it for the backward."""
    found = []
    for kept in (True, False):
        module, x = subject.build().train(), subject.features((6, 7))
        torch.manual_seed(7)
        y = module(x) if kept else checkpoint(module, x, use_reentrant=False)
        leaves = [x, *module.parameters()]
        loss = (y * y).sum() + module.auxiliary_loss()
        found.append(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    same = all(map(torch.equal, *found))
    _require(same, "gradients differ: does a training forward change what the next one computes?")
    return "to the last bit"


@check
def copies_after_a_training_step(subject: Subject) -> str:
    """Deep copies, which averages of weights start from, compute the same."""
    module, x = subject.build().train(), subject.features((6, 7))
    (module(x).sum() + module.auxiliary_loss()).backward()
    other = copy.deepcopy(module).eval()
    _require(torch.equal(other(x), module.eval()(x)), "differs from its copy")
    return "to the last bit"


@check
def memory_format_changes_nothing(subject: Subject) -> str:
    """Contiguous and channels-last."""
    x = subject.features((6, 7)).detach()
    wanted = subject.build()(x)
    for layout in FORMATS:
        module = subject.build().to(memory_format=layout)  # type: ignore[call-overload]
        _require_close(module(x.contiguous(memory_format=layout)), wanted, 1e-12, str(layout))
    return "contiguous, channels-last"


@check
def lower_precision_is_close(subject: Subject) -> str:
    """float32, bfloat16 and float16, cast as a whole: on average, as hash codes may flip."""
    x = subject.features((9, 8)).detach()
    wanted, found = subject.build()(x), []
    for dtype, allowed in ((torch.float32, 1e-5), *((t, 0.02) for t in LOWER)):
        y = subject.build(dtype=dtype)(x.to(dtype))
        _require(y.dtype == dtype, f"gives {y.dtype} for {dtype}")
        _require(bool(y.isfinite().all()), f"{dtype}: not finite")
        error = (y.double() - wanted).abs().mean().item()
        _require(error < allowed, f"{dtype}: off by {error:.2g} on average, allowed {allowed:.2g}")
        found.append(f"{error:.1g}")
    return f"mean error {', '.join(found)}"


@check
def extreme_features_stay_finite(subject: Subject) -> str:
    """Huge, tiny, constant and zero features in bfloat16 and float16: output and gradients."""
    for dtype in LOWER:
        for kind, factor in (("huge", 1e4), ("tiny", 2.0**-20), ("zero", 0.0), ("constant", 1.0)):
            module = subject.build(dtype=dtype).train()
            x = subject.features((6, 7)).detach().sign() * factor
            x = (x[:, :, :1, :1].expand_as(x) if kind == "constant" else x).to(dtype)
            x.requires_grad_()
            y = module(x)
            loss = module.auxiliary_loss()
            _require(bool(y.isfinite().all()), f"{kind}, {dtype}: output not finite")
            _require(bool(loss.isfinite()), f"{kind}, {dtype}: auxiliary loss not finite")
            ((y * 2.0**-10).float().sum() + loss * 2.0**-10).backward()
            for name, leaf in [("x", x), *module.named_parameters()]:
                finite = leaf.grad is None or bool(leaf.grad.isfinite().all())
                _require(finite, f"{kind}, {dtype}: gradient of {name} not finite")
    return "huge, tiny, constant, zero"


@check
def autocast_is_close(subject: Subject) -> str:
    """bfloat16 autocast in training and evaluation, with finite gradients."""
    for training in (False, True):
        module = subject.build(dtype=torch.float32).train(training)
        x = subject.features((9, 8), dtype=torch.float32)
        torch.manual_seed(3)
        wanted = module(x)
        torch.manual_seed(3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)
            loss = module.auxiliary_loss()
        error = (y.float() - wanted).abs().mean().item()
        _require(error < 0.02, f"off by {error:.2g} on average, allowed 0.02")
        (y.float().square().mean() + loss).backward()
        for name, leaf in [("x", x), *module.named_parameters()]:
            finite = leaf.grad is None or bool(leaf.grad.isfinite().all())
            _require(finite, f"gradient of {name} not finite")
    return f"mean error {error:.1g}"


@check
def cost_equals_the_counter(subject: Subject) -> str:
    """``cost()`` against torch's FlopCounterMode on the meta device, to the last MAC."""
    for channels in (subject.channels, 64):
        module = subject.build(dtype=torch.float32, channels=channels).to("meta")
        if not module.has_core:
            raise NotApplicable(_counted(module.cost(100, 100)))
        for size in (*SIZES, (100, 100)):
            cost = module.cost(*size)
            x = torch.empty(1, channels, *size, device="meta")
            with torch.no_grad():
                projections = _count(module.project, x)
                whole = _count(module, x)
            where = f"{channels} channels, {_text(size)}"
            said = f"cost says {cost.module_executed:,} MACs"
            _require(whole == cost.module_executed, f"{where}: {said}, the counter {whole:,}")
            said = f"cost says {cost.projections:,} MACs of projections"
            passes = getattr(module, "recurrence", 1)
            _require(
                passes * projections == cost.projections,
                f"{where}: {said}, the counter {projections:,}",
            )
            proper = math.isfinite(cost.core) and cost.core >= 0
            _require(proper, f"{where}: cost says {cost.core} MACs of the core")
    formula, executed = (f"{2 * macs / 1e9:.3g}" for macs in (cost.core, cost.executed))
    inserted = f"{2 * cost.module / 1e9:.3g} GFLOPs at 100x100, 64 channels"
    return (
        f"{inserted}; its attention {executed} as executed, {formula} by the formula of the tables"
    )


def _counted(cost: Cost) -> str:
    gflops = f"{2 * cost.module / 1e9:.3g} GFLOPs at 100x100"
    return f"a plain module's cost is counted, not stated: {gflops}"


def _count(function: Callable[[Tensor], Any], x: Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        function(x)
    return counter.get_total_flops() // 2


class _LargestTensor(TorchDispatchMode):
    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@check
def no_tensor_of_all_pairs(subject: Subject) -> str:
    """Forward and backward on 48x48 and 72x72 positions: none has half of N², or grows as N²."""
    small = Subject(subject.name, subject.options, 8)
    module = small.build(dtype=torch.float32)
    sizes = []
    for side in (LARGE * 2 // 3, LARGE):
        x = small.features((side, side), batch=1, dtype=torch.float32)
        with _LargestTensor() as seen:
            module(x).sum().backward()
        sizes.append(seen.largest)
    share = sizes[1] / LARGE**4
    # N² in a number of parts that does not grow with N grows as N² too; small ones are left alone.
    growth = math.log(sizes[1] / sizes[0]) / math.log(1.5**2)
    all_pairs = share >= 0.5 or (share > 0.02 and growth > 1.75)
    _require(
        not all_pairs,
        f"a tensor of {share:.2g} N²: N = 65,536 would take {share * 17:.1f} GB for it",
    )
    return f"the largest has {share:.2g} N² numbers"


@check
def correlation_is_the_attention(subject: Subject) -> str:
    """Weights of a position are a distribution that sums the values to its output."""
    module = subject.build()
    _require_core(module)
    worst = 0.0
    for size in SIZES[:4]:
        x = subject.features(size, batch=1)
        q, k, v = module.project(x)
        out = module.attend(q, k, v)
        for row, column in ((0, 0), (size[0] - 1, size[1] - 1), (size[0] // 2, size[1] // 2)):
            try:
                weights = module.correlation(x, (row, column))
            except AttentionError as error:
                if "no weights over positions" in str(error):
                    raise NotApplicable("it has no weights over positions") from None
                raise
            where = f"{_text(size)} at ({row}, {column})"
            _require(weights.shape == size, f"{where}: weights are {_list(weights)}")
            proper = bool((weights >= 0).all()) and math.isclose(weights.sum().item(), 1)
            _require(proper, f"{where}: weights are no distribution")
            summed = torch.einsum("hw,chw->c", weights, v[0])
            worst = max(worst, _require_close(summed, out[0, :, row, column], 1e-9, where))
    return f"to {worst:.1g}"


@check
def bad_input_is_told_in_a_line(subject: Subject) -> str:
    """A map of other dimensions, channels or no position is an AttentionError of one line."""
    module, c = subject.build(), subject.channels
    for shape in ((c, 4, 4), (1, c - 1, 4, 4), (1, c, 0, 4), (1, c, 4, 4, 1)):
        try:
            module(torch.zeros(shape, dtype=torch.float64))
        except AttentionError as error:
            _require("\n" not in str(error), f"{list(shape)}: the message has several lines")
            _require(str(list(shape)) in str(error), f"{list(shape)}: not named in the message")
        else:
            raise Broken(f"{list(shape)} is taken")
    return "four shapes"
