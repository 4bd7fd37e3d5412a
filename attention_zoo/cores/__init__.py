"""How the attention operations are computed: one file a method and backend, named after both.

A core imports the file of its formula, never the other way: a formula file only calls
``run(core, …)``. Cores of one method import none of another's; what they share is in ``softmax``
and ``tiles``. Importing this package registers every implementation.

``native`` (C) and ``triton`` hold kernels, and bear the names that ``--impl`` takes. Triton may be
missing: its kernels are imported when they first run.
"""

from importlib import import_module as _import_module
from pkgutil import iter_modules as _iter_modules

for _info in _iter_modules(__path__):
    if not _info.ispkg:
        _import_module(f"{__name__}.{_info.name}")
