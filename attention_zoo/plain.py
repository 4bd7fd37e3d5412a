"""A plain ``nn.Module``, such as most published attention modules, as one of this suite's."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .base import Attention, AttentionError, Cost

#: Types of defaults that make a parameter an option: what records hold.
_VALUES = (bool, int, float, str, tuple, list)

#: The classes that :func:`adapt` made, so that one module is one class.
_adapted: dict[tuple[type[nn.Module], str], type[PlainModule]] = {}


class PlainModule(Attention):
    """``y = module(x)``: the whole module as it is, its residual included.

    It has no query, key and value that this suite could see: no core, no correlation map, no
    auxiliary loss, nothing to redraw. Its cost is counted by torch.

    Args:
        channels: channels C of input and output.
        **options: the plain module's parameters that have a default.
    """

    source: ClassVar[str] = "plain module"
    has_core: ClassVar[bool] = False

    #: The plain module's class.
    target: ClassVar[type[nn.Module]]

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels)
        self._counted: dict[tuple[int, int], int] = {}
        self.module = self._build(options)

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """Parameters of the plain module, but for channels, that a record can hold."""
        hints = cls.target.__init__.__annotations__
        return {
            p.name: p.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for p in others_of(cls.target)
            if isinstance(p.default, _VALUES) or (p.default is None and p.name in hints)
        }

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, H, W]``, by the plain module.

        Raises:
            AttentionError: x has another shape, or the module gives anything but such a map.
        """
        self._check_input(x)
        y: object = self.module(x)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            found = list(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
            raise AttentionError(f"{self.name} gives {found}, not one map {list(x.shape)}")
        # Under autocast, the precision is PyTorch's choice.
        if y.device != x.device or not (
            y.dtype == x.dtype
            or (y.is_floating_point() and torch.is_autocast_enabled(x.device.type))
        ):
            kinds = f"{y.dtype} on {y.device}, not {x.dtype} on {x.device}".replace("torch.", "")
            raise AttentionError(f"{self.name} gives {kinds}, as its input is")
        return y

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """There is none: AttentionError."""
        raise AttentionError(
            f"{self.name} is a plain module: it has no query, key and value to look at; subclass "
            "attention_zoo.Attention to give it some"
        )

    def cost(self, height: int, width: int) -> Cost:
        """MACs of the whole module, as torch's FlopCounterMode counts matrix products.

        Raises:
            AttentionError: the module does not give a map.
        """
        size = (height, width)
        if size not in self._counted:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                try:
                    self._counted[size] = self._count(size, "meta")
                except (RuntimeError, NotImplementedError):  # it looks at numbers
                    self._counted[size] = self._count(size, "cpu")
        macs = self._counted[size]
        return Cost(projections=0, core=macs, executed=macs, counted=True)

    def _count(self, size: tuple[int, int], device: str) -> int:
        options = {name: value for name, value in self._given.items() if name != "channels"}
        module = type(self)(self.channels, **options).to(device).eval()
        with FlopCounterMode(display=False) as counter:
            module(torch.zeros(1, self.channels, *size, device=device))
        return counter.get_total_flops() // 2

    def _build(self, options: dict[str, Any]) -> nn.Module:
        channels = channels_of(self.target)
        if channels.kind is inspect.Parameter.POSITIONAL_ONLY:
            return self.target(self.channels, **options)
        return self.target(**{channels.name: self.channels}, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _empty, (self.target, self.name), self.__getstate__()


def adapt(target: type[nn.Module], name: str) -> type[PlainModule]:
    """The class of this suite that builds and calls a plain module's class.

    Its first parameter, or the one named ``channels``, is the number of channels of input and
    output. Parameters with a default that a record can hold are options; others keep theirs.

    Raises:
        AttentionError: it takes no channels, or another parameter has no default.
    """
    if (target, name) in _adapted:
        return _adapted[target, name]
    channels_of(target)
    for parameter in others_of(target):
        if parameter.default is inspect.Parameter.empty:
            raise AttentionError(f"{name}: the option {parameter.name} needs a default")

    @wraps(target.__init__)  # types of options are read from it
    def __init__(self: PlainModule, channels: int, **options: Any) -> None:
        PlainModule.__init__(self, channels, **options)

    content = {
        "__init__": __init__,
        "__module__": target.__module__,
        "__qualname__": target.__qualname__,
        "__doc__": target.__doc__,
        "label_format": target.__name__,
        "name": name,
        "target": target,
    }
    _adapted[target, name] = type(target.__name__, (PlainModule,), content)
    return _adapted[target, name]


def channels_of(target: type[nn.Module]) -> inspect.Parameter:
    """The parameter that takes the channels; AttentionError if there is none."""
    parameters = _parameters(target)
    if not parameters:
        raise AttentionError(
            f"{target.__module__}:{target.__qualname__} must take channels first: "
            "__init__(self, channels, …)"
        )
    return next((p for p in parameters if p.name == "channels"), parameters[0])


def others_of(target: type[nn.Module]) -> list[inspect.Parameter]:
    """All other parameters."""
    channels = channels_of(target)
    return [p for p in _parameters(target) if p.name != channels.name]


def _parameters(target: type[nn.Module]) -> list[inspect.Parameter]:
    found = [*inspect.signature(target.__init__).parameters.values()][1:]
    return [p for p in found if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _empty(target: type[nn.Module], name: str) -> PlainModule:
    cls = adapt(target, name)
    return cls.__new__(cls)
