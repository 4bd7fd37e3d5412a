"""How the operations of the modules are computed, one file a method and backend.

Every file registers its implementations on import; the folders (``native``, ``triton``) are
imported by whoever needs them.
"""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules

for _info in _iter_modules(__path__):
    if not _info.ispkg:
        _import_module(f"{__name__}.{_info.name}")
