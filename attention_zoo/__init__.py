"""Non-local attention modules for image super-resolution behind one interface."""

from importlib import import_module as _import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from pkgutil import iter_modules as _iter_modules

from .base import Attention, AttentionError, Cost
from .registry import (
    check_options,
    create_attention,
    find_attention,
    is_built_in,
    list_attentions,
    register_attention,
)

try:
    __version__ = _version("attention-zoo")
except _PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

# Every file of this package registers its module on import: adding one is adding a file.
for _info in _iter_modules(__path__):
    _import_module(f"{__name__}.{_info.name}")

__all__ = [
    "Attention",
    "AttentionError",
    "Cost",
    "check_options",
    "create_attention",
    "find_attention",
    "is_built_in",
    "list_attentions",
    "register_attention",
]
