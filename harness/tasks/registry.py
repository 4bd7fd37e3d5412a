"""Find tasks by name. Every file of this folder that holds a task's class registers it."""

from __future__ import annotations

import functools
import importlib
import inspect
from pkgutil import iter_modules

from ..base.errors import UserError
from ..base.names import nearest
from .base import SyntheticTask, Task

#: What ``--task`` is by default.
DEFAULT = "sr"
_HERE = __name__.rpartition(".")[0]


@functools.cache
def tasks() -> dict[str, type[Task]]:
    """The suite's tasks by name, the default first; interfaces have no name."""
    folder = importlib.import_module(_HERE).__path__
    found = {
        cls.name: cls
        for info in iter_modules(folder)
        for cls in vars(importlib.import_module(f"{_HERE}.{info.name}")).values()
        if isinstance(cls, type) and issubclass(cls, Task) and hasattr(cls, "name")
    }
    return dict(sorted(found.items(), key=lambda entry: (entry[0] != DEFAULT, entry[0])))


def find_task(name: str) -> type[Task]:
    """Class of a task of the suite, or of a user's own: ``package.module:Class``.

    Raises:
        UserError: no such task, it cannot be imported, or is not a SyntheticTask.
    """
    if name in tasks():
        return tasks()[name]
    if ":" in name:
        return _import(name)
    near = nearest(name, tasks())
    hint = f"; did you mean {near}?" if near else ""
    raise UserError(
        f"unknown task {name!r}: choose from {', '.join(tasks())}, "
        f"or name your own as package.module:Class{hint}"
    )


def _import(name: str) -> type[SyntheticTask]:
    module_name, _, class_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # it runs the user's file
        reason = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
        if isinstance(error, SystemExit):
            reason = "it calls sys.exit(); raise an error there instead"
        raise UserError(f"cannot import {module_name!r} for task {name!r}: {reason}") from error
    cls = getattr(module, class_name, None)
    if cls is None:
        raise UserError(f"module {module_name!r} has no class {class_name!r}, for task {name!r}")
    if not (isinstance(cls, type) and issubclass(cls, SyntheticTask)) or inspect.isabstract(cls):
        raise UserError(
            f"{name} is not a subclass of harness.tasks.base.SyntheticTask with all its methods"
        )
    for option, parameter in cls.options().items():
        if parameter.default is parameter.empty:
            raise UserError(f"{name}: the option {option} needs a default")
    cls.name = name
    return cls
