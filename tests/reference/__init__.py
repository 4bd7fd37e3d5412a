"""Slow, obvious oracles: literal loops in float64, written from the papers and read by eye.

All are imported with the package, so that the table of modules can name any of them.
"""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules

for _info in _iter_modules(__path__):
    _import_module(f"{__name__}.{_info.name}")
