"""Which implementation of a core runs: chosen by a rule, or by name; never a silent fallback.

A core is a function on (q, k, v) such as :func:`.nla.non_local_attention`. Its formula file calls
:func:`run`; its implementations, of the same mathematics, register themselves in :mod:`.cores`. All
give the values and gradients of the oracle:

- ``reference``: whole matrices, plain operations, autograd; runs everywhere, slow.
- ``tiled``: tile by tile, O(N) memory, own backward pass; runs everywhere.
- ``native``: own kernels in C for the CPU, O(N) memory, in float32; needs a C compiler.
- ``sdpa``: torch's fused kernel (NLA).
- ``triton``: own kernels for CUDA (NLSA, ENLA).
- ``released``: the authors' published code, tensor by tensor; never what ``auto`` means.

``auto``, the default, is a rule by device, dtype and width, see :func:`register_core`.

``torch.compile`` leaves cores out of its graphs, see :func:`outside_graphs`. ``torch.export`` and
``torch.func`` see into ``reference`` and ``released`` only.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from .base import AttentionError

AUTO = "auto"
#: Implementations with a backward pass of their own, by tiles or kernels.
_OWN_BACKWARD = ("native", "tiled", "triton")
#: torch's own kernel; on the CPU its backward pass is ours.
_FUSED = "sdpa"
_FUNC = "torch.func"

P = ParamSpec("P")
R = TypeVar("R")

#: Gives a tensor, or several, as its formula file says.
Core = Callable[..., Any]
#: Takes what the core takes; why the implementation cannot run on that, None if it can.
WhyNot = Callable[..., str | None]


@dataclass
class _Registered:
    rule: Callable[..., str]
    auxiliary: bool = False
    functions: dict[str, Core] = field(default_factory=dict)
    why_not: dict[str, WhyNot] = field(default_factory=dict)


_cores: dict[str, _Registered] = {}
_choice: ContextVar[str] = ContextVar("implementation", default=AUTO)
_watch: ContextVar[dict[str, str] | None] = ContextVar("implementations in use", default=None)


def register_core(core: str, rule: Callable[..., str], *, auxiliary: bool = False) -> None:
    """Make a core known.

    Args:
        core: its name, that of the attention where there is one: ``nla``, ``enla``, …
        rule: takes what the core takes; gives the name of the implementation that ``auto`` means
            for it, which can run on it.
        auxiliary: whether it runs beside an attention, as a loss or a convolution does. A name
            chosen for all cores is not asked of it where it has none of that name, or that cannot
            run.
    """
    known = _registered(core)
    known.rule, known.auxiliary = rule, auxiliary


def implementation(core: str, name: str, why_not: WhyNot | None = None) -> Callable[[Core], Core]:
    """Decorate an implementation of a core.

    Args:
        core: as in :func:`register_core`.
        name: of the implementation.
        why_not: if given, says why it cannot run on the arguments, or None if it can.
    """

    def register(function: Core) -> Core:
        known = _registered(core)
        known.functions[name] = function
        if why_not is not None:
            known.why_not[name] = why_not
        return function

    return register


def outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate what ``torch.compile`` calls as it is, between two graphs.

    Loops over tiles would be unrolled, kernels in C and memory that threads keep are not torch's.
    Unlike ``torch.compiler.disable`` this does not load the compiler where nobody compiles.
    """
    disabled = torch._disable_dynamo(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return call


@outside_graphs
def run(core: str, *args: Any) -> Any:
    """Run the chosen implementation of a core; gives what its formula file says, mostly a tensor.

    Raises:
        AttentionError: the chosen one does not exist, or cannot run on these arguments.
    """
    known = _cores[core]
    choice = _choice.get()
    name = AUTO if choice == AUTO else _parse(choice).get(core, AUTO)
    if known.auxiliary and name == choice and why_not(core, name, *args):
        name = AUTO  # chosen for all cores
    if name == AUTO:
        name = known.rule(*args)
    elif name not in known.functions:
        raise AttentionError(
            f"{core} has no implementation {name!r}: choose from {', '.join(_names(core))}"
        )
    elif reason := why_not(core, name, *args):
        raise AttentionError(f"implementation {name!r} of {core} cannot run here: {reason}")
    if (name in _OWN_BACKWARD or name == _FUSED) and (caller := plain_operations_only()):
        instead = "use attention_zoo.implementations.use_implementation('reference')"
        text = f"{caller} takes plain operations, which implementation {name!r} of {core} is not"
        if name in _OWN_BACKWARD:
            raise AttentionError(f"{text}: {instead}")
        # On CUDA it is torch's alone, and torch.export takes it everywhere.
        if caller == _FUNC and args[0].device.type == "cpu":
            raise AttentionError(f"{text}: {instead}, and nla in place of nla-flash")
    watch = _watch.get()
    if watch is not None:
        watch[core] = name
    return known.functions[name](*args)


def plain_operations_only() -> str | None:
    """Which of torch's transformations asks for plain operations now; None if none does."""
    if torch.compiler.is_compiling():  # outside of torch.compile's graphs this means torch.export
        return "torch.export"
    if torch._C._functorch.maybe_current_level() is not None:
        return _FUNC
    return None


def refuse_transforms(name: str) -> None:
    """Refuse torch.func for a module without plain operations.

    Raises:
        AttentionError: one of its transformations is under way.
    """
    if plain_operations_only() == _FUNC:
        raise AttentionError(
            f"{_FUNC} takes plain operations, of which {name} has no form: use torch.autograd.grad "
            "or another module"
        )


def why_not(core: str, name: str, *args: Any) -> str | None:
    """Why an implementation cannot run on these arguments of the core; None if it can."""
    reason = _cores[core].why_not.get(name)
    return None if reason is None else reason(*args)


def list_implementations() -> dict[str, list[str]]:
    """The names of every core's implementations, ``auto`` first."""
    return {core: _names(core) for core in sorted(_cores)}


def choose_implementation(choice: str) -> None:
    """Run these implementations from now on, in this thread and context.

    Args:
        choice: a name, for all cores, or pairs such as ``enla=triton,contrast=tiled``. Cores that
            are not named take ``auto``; so does an auxiliary core that has none of that name.

    Raises:
        AttentionError: an unknown core or name.
    """
    _parse(choice)
    _choice.set(choice)


def chosen_implementation() -> str:
    """What was chosen, ``auto`` if nothing was."""
    return _choice.get()


@contextmanager
def use_implementation(choice: str) -> Iterator[None]:
    """:func:`choose_implementation` within the block."""
    _parse(choice)
    token = _choice.set(choice)
    try:
        yield
    finally:
        _choice.reset(token)


@contextmanager
def watch_implementations() -> Iterator[dict[str, str]]:
    """Gives a dictionary that tells which implementation each core ran last in the block."""
    token = _watch.set({})
    try:
        seen = _watch.get()
        assert seen is not None
        yield seen
    finally:
        _watch.reset(token)


def _registered(core: str) -> _Registered:
    # An implementation may be registered before its core.
    return _cores.setdefault(core, _Registered(rule=lambda *_: "reference"))


def _hint(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _names(core: str) -> list[str]:
    return [AUTO, *sorted(_cores[core].functions)]


def _parse(choice: str) -> dict[str, str]:
    """The name for each core."""
    if "=" not in choice:
        if choice not in {name for core in _cores for name in _names(core)}:
            every = sorted({name for core in _cores for name in _names(core)})
            raise AttentionError(
                f"unknown implementation {choice!r}: choose from {', '.join(every)}"
                f"{_hint(choice, every)}"
            )
        return {
            core: choice
            for core, known in _cores.items()
            if choice in known.functions or not known.auxiliary
        }
    chosen = {}
    for pair in choice.split(","):
        core, _, name = pair.partition("=")
        if core not in _cores:
            raise AttentionError(
                f"unknown core {core!r} in {choice!r}: choose from {', '.join(sorted(_cores))}"
                f"{_hint(core, sorted(_cores))}"
            )
        if name not in _names(core):
            raise AttentionError(
                f"{core} has no implementation {name!r}: choose from {', '.join(_names(core))}"
                f"{_hint(name, _names(core))}"
            )
        chosen[core] = name
    return chosen
