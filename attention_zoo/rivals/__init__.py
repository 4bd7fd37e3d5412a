"""The other methods, one file each; every file registers its module on import."""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules

for _info in _iter_modules(__path__):
    _import_module(f"{__name__}.{_info.name}")
