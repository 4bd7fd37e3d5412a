"""Find and build attention modules by name."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from importlib.metadata import entry_points
from typing import Any, TypeVar

import torch
from torch import nn

from .base import Attention, AttentionError
from .plain import adapt

_registry: dict[str, type[Attention]] = {}
ENTRY_POINT_GROUP = "attention_zoo"

T = TypeVar("T", bound=type[Attention])


def register_attention(name: str) -> Callable[[T], T]:
    """Class decorator that makes a module known under ``name``.

    Raises:
        AttentionError: the name is taken by another class.
    """

    def register(cls: T) -> T:
        known = _registry.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise AttentionError(
                f"attention {name!r} is registered already, by {known.__qualname__}"
            )
        cls.name = name
        _registry[name] = cls
        return cls

    return register


def list_attentions(
    filter: str | Sequence[str] = "",
    exclude_filters: str | Sequence[str] = "",
    *,
    installed: bool = True,
) -> list[str]:
    """Names of all modules: this package's, registered ones, and those of installed entry points.

    Args:
        filter: only names that match this pattern, or one of these, such as ``"enl*"``.
        exclude_filters: no name that matches one of these.
        installed: whether entry points are among them; they are listed without being imported.
    """
    others = entry_points(group=ENTRY_POINT_GROUP) if installed else ()
    names = sorted({*_registry, *(e.name for e in others)})
    wanted, refused = (
        [patterns] if isinstance(patterns, str) else [*patterns]
        for patterns in (filter or "*", exclude_filters or ())
    )

    def matches(name: str, patterns: list[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return [name for name in names if matches(name, wanted) and not matches(name, refused)]


def find_attention(name: str) -> type[Attention]:
    """Class of a registered name, an entry point, or ``package.module:Class``.

    A plain ``nn.Module`` is adapted, see :mod:`.plain`.

    Raises:
        AttentionError: nothing of that name, it cannot be imported, or is no module.
    """
    if name in _registry:
        return _registry[name]
    if ":" in name:
        return _import(name, name)
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return _import(name, f"{entry.module}:{entry.attr}")
    near = difflib.get_close_matches(name, list_attentions(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise AttentionError(
        f"unknown attention {name!r}: choose from {', '.join(list_attentions())}, "
        f"or name your own as package.module:Class{hint}"
    )


def create_attention(name: str, channels: int, **options: Any) -> Attention:
    """Build a module.

    Args:
        name: a name of :func:`list_attentions`, or ``package.module:Class``.
        channels: channels C of input and output.
        **options: the module's own, see :meth:`Attention.options`.

    Raises:
        AttentionError: unknown name, an option the module does not have, or a bad value; any
            error in building a module of somebody else's, sys.exit() too, but for lack of memory.
    """
    cls = find_attention(name)
    check_options(name, options)
    try:
        return cls(channels, **options)
    except (AttentionError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        if is_built_in(cls):
            raise
        raise AttentionError(
            f"{name} cannot be built with {channels} channels: {_reason(error)}"
        ) from error


def is_built_in(cls: type[Attention]) -> bool:
    """Whether a module is this package's own, not one of a user's or of an installed package."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def check_options(name: str, options: dict[str, Any]) -> None:
    """Raise AttentionError if an option is not one of the module's."""
    valid = find_attention(name).options()
    for option in options:
        if option not in valid:
            takes = ", ".join(valid) if valid else "no options"
            raise AttentionError(f"{name} has no option {option!r}: it takes {takes}")


def _import(name: str, path: str) -> type[Attention]:
    module_name, _, class_name = path.partition(":")
    asked = repr(path) if name == path else f"{name!r}, an installed entry point"
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # it runs the user's file
        raise AttentionError(
            f"cannot import {module_name!r} for attention {asked}: {_reason(error)}"
        ) from error
    try:
        cls = getattr(module, class_name)
    except AttributeError:
        raise AttentionError(
            f"module {module_name!r} has no class {class_name!r}, for attention {asked}"
        ) from None
    return _check_class(name, cls)


def _reason(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return f"it calls sys.exit({code}); raise an error there instead"
    kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split()).rstrip(": ")


def _check_class(name: str, cls: Any) -> type[Attention]:
    if isinstance(cls, type) and issubclass(cls, nn.Module) and not issubclass(cls, Attention):
        return adapt(cls, name)
    if not (isinstance(cls, type) and issubclass(cls, Attention)) or cls is Attention:
        raise AttentionError(
            f"{name} is not a subclass of attention_zoo.Attention, nor of torch.nn.Module"
        )
    parameters = [*inspect.signature(cls.__init__).parameters.values()][1:]
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise AttentionError(f"{name} must take channels first: __init__(self, channels, *, …)")
    for parameter in parameters[1:]:
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            raise AttentionError(
                f"{name}: {parameter.name} must be keyword-only to be an option: "
                f"__init__(self, {parameters[0].name}, *, {parameter.name}, …)"
            )
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            raise AttentionError(f"{name}: the option {parameter.name} needs a default")
    if not vars(cls).get("name"):  # it may inherit that of a registered class
        cls.name = name
    return cls
