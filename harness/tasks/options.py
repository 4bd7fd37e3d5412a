"""Options of tasks on the command line, taken from their signatures."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import inspect
import typing
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, TypeVar

import psutil
import tyro

from ..base.commands import usage_errors
from ..base.errors import UserError
from ..config.entries import typed_entries
from ..config.options import argument_help, chosen_options, own_options, settings_of
from ..config.variants import Variant
from ..images.sources import DataSource, find_data
from .base import SyntheticTask, Task
from .images import ImageTask
from .registry import DEFAULT, find_task, tasks

T = TypeVar("T")
AnyTask = SyntheticTask | ImageTask


def options_with_task(cls: type[T], argv: Sequence[str]) -> tuple[type[T], type[Task]]:
    """A command's options with those of the task that ``--task`` names, and the task's class.

    Raises:
        UserError: an unknown task, an option of another task, or a task whose option has the name
            of one of the command's.
    """
    task = find_task(_chosen(argv))
    own, mine = own_options(cls), task.options()
    for flag in sorted(_flags(argv) - own - mine.keys()):
        owners = [name for name, other in tasks().items() if flag in other.options()]
        if owners and flag not in chosen_options(argv):  # a user's module may have it too
            takes = ", ".join(f"--{_dashed(option)}" for option in mine) or "no options"
            raise UserError(
                f"task {task.name} has no option --{_dashed(flag)} (an option of "
                f"{', '.join(owners)}): it takes {takes}"
            )
    if taken := own & mine.keys():
        raise UserError(
            f"rename the option {', '.join(sorted(taken))} of task {task.name}: the command has "
            "one of this name"
        )
    hints = typing.get_type_hints(task.__init__)
    words = argument_help(inspect.getdoc(task) or "")
    fields = []
    for option, parameter in mine.items():
        kind: Any = hints.get(option, type(parameter.default))
        text = f"{words.get(option, '')} ({task.name}: {parameter.default})".strip()
        annotation = Annotated[kind, tyro.conf.arg(help=text, help_behavior_hint="")]
        default = functools.partial(copy.copy, parameter.default)  # it may be a list
        fields.append((option, annotation, dataclasses.field(default_factory=default)))
    # Without a docstring of its own it would get a signature for one.
    space = {"__doc__": cls.__doc__}
    made = dataclasses.make_dataclass(
        cls.__name__, fields, bases=(cls,), namespace=space, kw_only=True
    )
    return made, task


def parse_task(
    cls: type[T], argv: Sequence[str], module: str
) -> tuple[T, type[Task], dict[str, Any]]:
    """Parse a command line that names a task and no modules; gives its class and options too.

    Args:
        cls, argv, module: as for :func:`parse_with_task`.

    Raises:
        UserError: as :func:`options_with_task`, or a bad argument.
    """
    found, task = options_with_task(cls, argv)
    with usage_errors(found):
        values = tyro.cli(
            found, args=argv, prog=f"python -m {module}", description=inspect.getdoc(cls)
        )
    return values, task, {option: getattr(values, option) for option in task.options()}


def parse_with_task(cls: type[T], argv: Sequence[str], module: str) -> tuple[T, SyntheticTask]:
    """Parse a command line that names a synthetic task and no modules; gives the task too.

    Args:
        cls: dataclass of the command's own options, with a field ``task``.
        argv: arguments, without the program's name; the task's options are among them.
        module: what is typed after ``python -m``.

    Raises:
        UserError: as :func:`parse_task`, a task on image files, or the task refuses an option.
    """
    _, task = options_with_task(cls, argv)
    if not issubclass(task, SyntheticTask):
        synthetic = [name for name, cls in tasks().items() if issubclass(cls, SyntheticTask)]
        raise UserError(
            f"{module} --task takes a synthetic task ({', '.join(synthetic)}, or your own), not "
            f"{task.name}, which works on image files"
        )
    values, _, options = parse_task(cls, argv, module)
    return values, build(task, options)


def build(task: type[SyntheticTask], options: dict[str, Any]) -> SyntheticTask:
    """The synthetic task with these options.

    Raises:
        UserError: the task refuses an option.
    """
    try:
        return task(**options)
    except UserError:
        raise
    except Exception as error:  # it runs the user's file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"task {task.name} cannot be built with {options}: {reason}") from error


def refuse_options(cls: type, argv: Sequence[str]) -> None:
    """Refuse options of tasks in a command line without ``--task``.

    Args:
        cls: dataclass of the command's own options.
        argv: arguments, without the program's name.

    Raises:
        UserError: a task has an option of this name, and the command has none.
    """
    for flag in sorted(_flags(argv) - own_options(cls)):
        if owners := [name for name, task in tasks().items() if flag in task.options()]:
            raise UserError(
                f"--{_dashed(flag)} is an option of {', '.join(owners)}: name the task with --task"
            )


def has_task(argv: Sequence[str]) -> bool:
    """Whether ``--task`` is among the arguments."""
    return "task" in _flags(argv)


def refuse(argv: Sequence[str], options: Iterable[str], owner: str) -> None:
    """Refuse options that do not apply beside ``--task``.

    Raises:
        UserError: one of ``options`` is given; the line says to what it applies: ``owner``.
    """
    given = _flags(argv)
    for option in options:
        if option in given:
            raise UserError(f"--{_dashed(option)} applies only to {owner}: leave it out")


def create_task(task: type[Task], values: Any, argv: Sequence[str]) -> AnyTask:
    """The task with its options among the parsed ``values``.

    A task on image files finds them, but decodes none; with ``--skip-training`` it has none.

    Raises:
        UserError: the task refuses an option, an option is given that is not of this task, there
            are no images, or memory is too small: see :func:`check_memory`.
    """
    given = _flags(argv)
    options = {option: getattr(values, option) for option in task.options()}
    if issubclass(task, ImageTask):
        _refuse(given, _OF_SR if task.fixed_scale else ())
        source = None if getattr(values, "skip_training", False) else find_images(values)
        return task(None, source, task.fixed_scale or values.scale, **options)
    assert issubclass(task, SyntheticTask)
    _refuse(given, _OF_IMAGES + _OF_SR)
    created = task(**options)
    check_memory(created)
    return created


def check_memory(task: SyntheticTask) -> None:
    """Check that there is memory for scoring the task's largest test set.

    Raises:
        UserError: there is not.
    """
    need, free = task.scoring_bytes, psutil.virtual_memory().available
    if need > free:
        raise UserError(
            f"scoring {task.test_sets[-1]} of task {task.name} needs about {need / 1e9:,.0f} GB of "
            f"memory, and {free / 1e9:,.1f} GB are free: lower --cells, or what else makes the "
            "images large"
        )


def find_images(values: Any) -> DataSource:
    """The images that a command's options name.

    Raises:
        UserError: as :func:`harness.images.sources.find_data`.
    """
    sets = values.train_sets or None
    crop = values.holdout_crop
    return find_data(values.data, train_sets=sets, holdout=values.holdout, holdout_crop=crop)


def weighted(variant: Variant, res_scale: float | None, argv: Sequence[str]) -> Variant:
    """The variant with this ``res_scale``, where it has one and the command gives none.

    The command may give the module's default, which the variant does not hold.

    Args:
        variant: as the command names it.
        res_scale: that of the task or of the preset; None leaves the module's own.
        argv: the command line.
    """
    if res_scale is None or "res_scale" in variant.options:
        return variant
    if "res_scale" not in variant.resolved:
        return variant
    set_by = (
        e for e in typed_entries(argv) if e.name == variant.name and "res_scale" in e.settings
    )
    given = any(settings_of(e)["res_scale"] == variant.resolved["res_scale"] for e in set_by)
    if given or _flags(argv) & {"res_scale", "attn_res_scale"}:
        return variant
    return Variant.of(variant.name, {**variant.options, "res_scale": res_scale})


#: Options of ``harness.run`` that a synthetic task has no use for.
_OF_IMAGES = (
    *("data", "train_sets", "test_sets", "holdout", "holdout_crop", "modules", "patch", "tile"),
    *("protocol", "start_steps"),
)
#: Those of super-resolution alone: other tasks fix the scale, and time nothing.
_OF_SR = ("scale", "skip_training", "skip_latency")


def _refuse(given: Collection[str], options: Sequence[str]) -> None:
    for option in options:
        if option in given:
            owners = [name for name, task in tasks().items() if issubclass(task, ImageTask)]
            owner = DEFAULT if option in _OF_SR else " or ".join(owners)
            raise UserError(f"--{_dashed(option)} applies only to --task {owner}")


def _chosen(argv: Sequence[str]) -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--task", default=DEFAULT)
    try:
        known, _ = parser.parse_known_args(list(argv))
    except (argparse.ArgumentError, SystemExit):
        raise UserError(f"--task needs a name: choose from {', '.join(tasks())}") from None
    name: str = known.task
    return name


def _flags(argv: Sequence[str]) -> set[str]:
    """Names of the options given."""
    words = (word[2:].partition("=")[0] for word in argv if word.startswith("--"))
    return {word.replace("-", "_") for word in words}


def _dashed(option: str) -> str:
    return option.replace("_", "-")
