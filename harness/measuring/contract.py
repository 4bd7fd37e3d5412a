"""What every synthetic task keeps to, as checks that run on any class, the user's own too.

``python -m harness.check --task my_task:MyTask`` prints their verdicts; this suite's tests run them
on every task of its own.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import math
import random
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from attention_zoo.contract import Broken, NotApplicable, Verdict, verdicts

from ..base.errors import UserError
from ..base.names import canonical_json, slug
from ..tasks.base import Batch, Floats, Images, Item, ItemScore, Positions, SyntheticTask
from ..tasks.registry import find_task
from ..training.trainer import LOSSES
from .apart import run_in_subprocess
from .tasks import check_reach, combined

#: Values of pixels: 0 to 1, with room for noise and for patterns that are added.
RANGE = (-3.0, 4.0)
#: Training images among which no test image may be: of so many seeds, and of their first steps.
SEEDS, STEPS = 3, 10
#: How far a known output's score may lie from the bound, as a share of ceiling - floor.
TOLERANCE = 0.01
_HUGE = 2**32 - 1


@dataclass(frozen=True)
class TaskSubject:
    """A task under test.

    Attributes:
        name: of a task of the suite, or ``package.module:Class``.
        options: the task's own.
        reserved: names of the command's options, which the task's must not be.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reserved: Collection[str] = ()

    @property
    def cls(self) -> type[SyntheticTask]:
        """The task's class.

        Raises:
            UserError: as :func:`find_task`, or it is a task on image files.
        """
        found = find_task(self.name)
        if not issubclass(found, SyntheticTask):
            raise UserError(
                f"task {self.name} works on image files: only synthetic tasks have checks"
            )
        return found

    def build(self, **changed: Any) -> SyntheticTask:
        """A new instance, with some options ``changed``.

        Raises:
            UserError: as :attr:`cls`, or the task refuses an option.
        """
        return self.cls(**{**self.options, **changed})

    @functools.cached_property
    def task(self) -> SyntheticTask:
        """An instance that several checks use."""
        return self.build()

    @functools.cached_property
    def items(self) -> dict[tuple[str, bool], list[Item]]:
        """Items of every test set, and those of validation, by name of the set and which."""
        return _items(self.task)

    def batch(self, seed: int = 0, step: int = 0, count: int = 2) -> Batch:
        """A training batch."""
        return self.task.batch(seed=seed, step=step, batch=count, patch=self.task.patch)

    @property
    def reach(self) -> int:
        """Of the backbone's convolutions in the preset, in input pixels."""
        return self.task.presets["quick"].network.reach


#: The checks by name; each takes a TaskSubject and returns what it saw, in a few words.
CHECKS: dict[str, Callable[[TaskSubject], str]] = {}


def check(function: Callable[[TaskSubject], str]) -> Callable[[TaskSubject], str]:
    """Add a check under its name, in words."""
    CHECKS[function.__name__.replace("_", " ")] = function
    return function


def judge(subject: TaskSubject) -> Iterator[Verdict]:
    """Run every check; whatever the task raises is its verdict, in a line."""
    return verdicts(CHECKS, subject)


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise Broken(problem)


def _items(task: SyntheticTask) -> dict[tuple[str, bool], list[Item]]:
    found = {}
    for key in [*((name, False) for name in task.test_sets), (task.validation_set, True)]:
        found[key] = list(task.items(key[0], validation=key[1]))
        _require(bool(found[key]), f"there are no {_text(key)}")
    return found


def _text(key: tuple[str, bool]) -> str:
    return f"{'validation' if key[1] else 'test'} items of {key[0]}"


# -- the checks -----------------------------------------------------------------------------------


@check
def options_have_defaults(subject: TaskSubject) -> str:
    """The task can be built from its options alone, which have names of their own."""
    options = subject.cls.options()
    for parameter in [*inspect.signature(subject.cls.__init__).parameters.values()][1:]:
        positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        hint = f"__init__(self, *, {parameter.name}, …)"
        _require(not positional, f"{parameter.name} must be keyword-only to be an option: {hint}")
    for name, parameter in options.items():
        has_default = parameter.default is not parameter.empty
        _require(has_default, f"the option {name} needs a default")
    if taken := sorted({*options} & {*subject.reserved}):
        raise Broken(f"rename the option {', '.join(taken)}: harness.run has one of this name")
    subject.build()
    return ", ".join(options) or "no options"


@check
def settings_are_kept(subject: TaskSubject) -> str:
    """Every option is an attribute, JSON can hold it, and the settings give the same task."""
    task = subject.task
    for name in task.options():
        _require(hasattr(task, name), f"the option {name} is not kept: set self.{name} in __init__")
    try:
        settings = json.loads(canonical_json(task.settings))
    except (TypeError, ValueError) as error:
        problem = f"JSON cannot hold the settings ({error}): keep options as numbers, text or lists"
        raise Broken(problem) from error
    again = subject.cls(**settings)
    same = json.loads(canonical_json(again.settings)) == settings and again.sha256 == task.sha256
    _require(same, "a task built from `settings` differs: keep each option's value as it is given")
    return json.dumps(settings)


@check
def settings_tell_tasks_apart(subject: TaskSubject) -> str:
    """With another value of any option, the settings differ: a run gets another id."""
    told: list[str] = []
    hidden: list[str] = []
    for name in subject.task.options():
        if (other := _changed(subject, name)) is None:
            continue
        differ = other.settings != subject.task.settings
        _require(differ, f"the option {name} is lost: set self.{name} to the value that is given")
        (told if other.label != subject.task.label else hidden).append(name)
    _require(slug(subject.task.label) != "", "the label needs letters: it names files")
    silent = f"; not {', '.join(hidden)}, of which ids and tables tell" if hidden else ""
    return f"{subject.task.label} shows {', '.join(told) or 'no option'}{silent}"


def _changed(subject: TaskSubject, name: str) -> SyntheticTask | None:
    """The task with another value of an option; None if no value is found that it takes."""
    value = getattr(subject.task, name)
    if isinstance(value, bool):
        candidates: list[Any] = [not value]
    elif isinstance(value, (int, float)):
        kind = type(value)
        candidates = [kind(x) for x in (value + 1, value - 1, 2 * value, value / 2, value + 0.1)]
    else:
        hint = typing.get_type_hints(subject.cls.__init__).get(name)
        candidates = list(typing.get_args(hint)) if isinstance(value, str) else []
    for candidate in candidates:
        if candidate != value:
            try:
                return subject.build(**{name: candidate})
            except UserError:
                continue
    return None


@check
def names_and_bounds_are_set(subject: TaskSubject) -> str:
    """Metric, loss, scale, floor, ceiling and test sets."""
    task = subject.task
    _require(isinstance(task.metric, str) and task.metric != "", "`metric` must name the score")
    losses = f"`loss` must be {' or '.join(LOSSES)}, not {task.loss!r}"
    _require(task.loss in LOSSES, losses)
    _require(task.scale in (1, 2, 3, 4), f"`scale` must be 1, 2, 3 or 4, not {task.scale!r}")
    bounds = math.isfinite(task.floor) and math.isfinite(task.ceiling)
    ordered = bounds and task.floor < task.ceiling
    _require(ordered, f"`floor` {task.floor} must be below `ceiling` {task.ceiling}, both finite")
    names = task.test_sets
    unique = len({*names}) == len(names) > 0
    _require(unique, f"`test_sets` must be one name or more, each once, not {names}")
    chosen = task.validation_set
    _require(chosen in names, f"`validation_set` must be one of {names}, not {chosen!r}")
    return f"{task.metric} from {task.floor:g} to {task.ceiling:g}, x{task.scale}"


@check
def the_preset_fits(subject: TaskSubject) -> str:
    """There is one of the name ``quick``, of the task's scale, with a network that can be built."""
    task = subject.task
    _require("quick" in task.presets, "`presets` needs one named quick, the default of --preset")
    for name, preset in task.presets.items():
        fits = task.scale in preset.patch
        _require(fits, f"preset {name} has no patch for scale {task.scale}: give it one")
        try:
            preset.network.check(quarters=False)
        except UserError as error:
            raise Broken(f"preset {name}: {error}") from error
    return ", ".join(task.presets)


@check
def batches_have_the_right_shapes(subject: TaskSubject) -> str:
    """Inputs ``[B, h, w, 3]``, targets ``scale`` times as large; float32 or uint8, finite."""
    task = subject.task
    for count in (1, 3):
        batch = subject.batch(count=count)
        side, large = task.patch, task.scale * task.patch
        _check_images("inputs", batch.inputs, (count, side, side, 3))
        _check_images("targets", batch.targets, (count, large, large, 3))
    first = subject.batch()
    return f"{list(first.inputs.shape)} to {list(first.targets.shape)}, {first.inputs.dtype}"


def _check_images(what: str, images: Images, shape: tuple[int, ...]) -> None:
    found = np.asarray(images)
    _require(found.shape == shape, f"{what} are {list(found.shape)}, not {list(shape)}")
    kinds = "float32 or uint8"
    _require(found.dtype in (np.float32, np.uint8), f"{what} are {found.dtype}, not {kinds}")
    if found.dtype == np.uint8:
        return
    _require(bool(np.isfinite(found).all()), f"{what} are not finite")
    low, high = float(found.min()), float(found.max())
    good = RANGE[0] <= low and high <= RANGE[1]
    _require(good, f"{what} reach from {low:.3g} to {high:.3g}: float32 images are about 0 to 1")


@check
def references_are_positions(subject: TaskSubject) -> str:
    """``[B, h·w, R]`` in batches, ``[h·w, R]`` in items, indices of input positions."""
    batch = subject.batch()
    if batch.references is None:
        raise Broken("batches have no references: give them, or no oracle can learn from them")
    height, width = batch.inputs.shape[1:3]
    _check_positions("references of batches", batch.references, (2, height * width), height * width)
    for key, items in subject.items.items():
        for item in items:
            where = f"references of {_text(key)}, {item.name}"
            positions = item.inputs.shape[0] * item.inputs.shape[1]
            _check_positions(where, item.references, (positions,), positions)
            if item.all_references is not None:
                where = f"all_references of {_text(key)}, {item.name}"
                _check_positions(where, item.all_references, (), positions)
        own = np.arange(len(items[0].references))[:, None]
        elsewhere = any((item.references != own).any() for item in items)
        _require(elsewhere, f"in {_text(key)} every position refers to itself: name what it needs")
        for name in ("references", "all_references"):
            shapes = {np.shape(getattr(item, name)) for item in items}
            same = len(shapes) == 1
            _require(same, f"{name} of {_text(key)} must have one shape, not {sorted(shapes)}")
    return f"{batch.references.shape[-1]} of each position"


def _check_positions(what: str, found: Positions, shape: tuple[int, ...], count: int) -> None:
    found = np.asarray(found)
    wanted = [*shape, "R"]
    good = found.shape[:-1] == shape and found.ndim == len(wanted) and found.size > 0
    _require(good, f"{what} are {list(found.shape)}, not {str(wanted).replace(chr(39), '')}")
    _require(found.dtype == np.int64, f"{what} are {found.dtype}, not int64")
    inside = found.min() >= 0 and found.max() < count
    span = f"{found.min()} to {found.max()}"
    _require(bool(inside), f"{what} are {span}: indices must be 0 to {count - 1}, in rows")


@check
def batches_depend_on_seed_and_step_alone(subject: TaskSubject) -> str:
    """Not on global random states, nor on what was drawn before; other keys give others."""
    first, hint = _digest(subject.batch(0, 5)), "draw from generator(seed, step) alone"
    with _other_random_states() as untouched:
        again = _digest(subject.batch(0, 5))
        _require(untouched(), f"a batch draws from a global generator: {hint}")
        _require(again == first, f"the same seed and step give another batch: {hint}")
    task = subject.build()
    for seed, step in ((0, 7), (3, 1), (_HUGE, 0)):
        found = _digest(task.batch(seed=seed, step=step, batch=2, patch=task.patch))
        _require(found != first, f"seed {seed}, step {step} gives the batch of seed 0, step 5")
    late = _digest(task.batch(seed=0, step=5, batch=2, patch=task.patch))
    _require(late == first, f"a batch depends on those drawn before it: {hint}")
    return "the same again, in any order"


@contextmanager
def _other_random_states() -> Iterator[Callable[[], bool]]:
    """Seed every global generator anew for the block; gives whether nothing has drawn since."""
    before = _random_states()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    seeded = _random_states()
    try:
        yield lambda: all(map(_same_state, _random_states(), seeded))
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _random_states() -> tuple[Any, Any, Any]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(_same_state, a, b))
    return bool(np.array_equal(a, b))


@check
def items_are_the_same_whenever_asked(subject: TaskSubject) -> str:
    """From another instance and after other draws; named once each, of one shape in a set."""
    task = subject.build()
    task.batch(seed=9, step=9, batch=1, patch=task.patch)
    for name, which in subject.items:
        next(iter(task.items(name, validation=which)), None)
    again = _items(task)
    for key, items in subject.items.items():
        where = _text(key)
        names = [item.name for item in items]
        _require(len({*names}) == len(names), f"{where} have names that are not unique")
        height, width = items[0].inputs.shape[:2]
        for item in items:
            _check_images(f"inputs of {where}", item.inputs, (height, width, 3))
        good = [*map(_item_digest, items)] == [*map(_item_digest, again[key])]
        _require(good, f"{where} differ from call to call: draw them from a fixed generator")
    return ", ".join(f"{len(items)} {_text(key)}" for key, items in subject.items.items())


@check
def a_fresh_process_draws_the_same(subject: TaskSubject) -> str:
    """Batches and items do not depend on this process, its hashes or its memory."""
    here = _fingerprint(subject.name, dict(subject.options))
    there = run_in_subprocess(_fingerprint, subject.name, dict(subject.options))
    _require(here == there, "another process draws other images: use no hash(), time or set order")
    return "to the last bit"


def _fingerprint(name: str, options: dict[str, Any], _on_run: Any = None) -> list[str]:
    subject = TaskSubject(name, options)
    items = [next(iter(subject.task.items(test_set))) for test_set in subject.task.test_sets]
    return [_digest(subject.batch(1, 2)), *(_pixels(item.inputs) for item in items)]


@check
def test_images_are_in_no_training(subject: TaskSubject) -> str:
    """Validation items are others than test items, and training draws neither."""
    seen: dict[str, str] = {}
    for key, items in subject.items.items():
        for item in items:
            pixels, where = _pixels(item.inputs), f"{_text(key)}, {item.name}"
            other = seen.setdefault(pixels, where)
            hint = "draw each set from a generator of its own"
            _require(other == where, f"{where} is the image of {other}: {hint}")
    count = subject.task.presets["quick"].batch
    for seed in range(SEEDS):
        for step in range(STEPS):
            for image in subject.batch(seed, step, count).inputs:
                found = seen.get(_pixels(image))
                hint = "draw items from a generator whose first number is 2**40 or more"
                _require(found is None, f"seed {seed}, step {step} trains on {found}: {hint}")
    return f"{len(seen)} items, {SEEDS * STEPS * count} training images"


@check
def deleted_images_lack_something(subject: TaskSubject) -> str:
    """``deleted`` has the input's shape and differs from it."""
    for key, items in subject.items.items():
        for item in items:
            where = f"deleted of {_text(key)}, {item.name}"
            _check_images(where, item.deleted, item.inputs.shape)
            differs = bool((item.deleted != item.inputs).any())
            _require(differs, f"{where} is the input: take away what the network has to find")
    share = np.mean([(item.deleted != item.inputs).mean() for item in items])
    return f"{share:.1%} of the numbers change"


@check
def scores_are_numbers(subject: TaskSubject) -> str:
    """Of any output: finite, of weight above 0, with the same details for all items."""
    task, rng = subject.task, np.random.default_rng(0)
    counted = total = 0
    for key, items in subject.items.items():
        details = set()
        for item in items:
            height, width = (task.scale * side for side in item.inputs.shape[:2])
            found = task.score(
                item, rng.random((height, width, 3), dtype=np.float32), subject.reach
            )
            total += 1
            if found is None:
                continue
            counted += 1
            _check_score(f"the score of {_text(key)}, {item.name}", found)
            details.add(tuple(found.details))
        _require(len(details) <= 1, f"scores of {_text(key)} must have the same details")
    return f"{counted} of {total} items count"


def _check_score(what: str, found: ItemScore) -> None:
    numbers = [found.value, *found.details.values(), *(v for v, _ in found.by_distance.values())]
    finite = all(math.isfinite(number) for number in numbers)
    _require(finite, f"{what} is not finite")
    weights = [found.weight, *(weight for _, weight in found.by_distance.values())]
    plain = all(isinstance(number, (int, float)) for number in [*weights, *found.by_distance])
    _require(plain, f"{what} has a weight or distance of numpy's types: use float() or int()")
    good = all(math.isfinite(weight) and weight > 0 for weight in weights)
    _require(good, f"{what} has weight {min(weights)}: give None where nothing counts")


@check
def known_outputs_have_the_bounds_as_scores(subject: TaskSubject) -> str:
    """The output that ``ceiling_output`` gives, and that of ``floor_output``."""
    task, told = subject.task, []
    for bound in ("ceiling", "floor"):
        output_of, wanted = getattr(task, f"{bound}_output"), getattr(task, bound)
        for name in task.test_sets:
            scores = []
            for item in subject.items[name, False]:
                output: Floats | None = output_of(item)
                if output is None:
                    break
                height, width = (task.scale * side for side in item.inputs.shape[:2])
                _check_images(f"{bound}_output", output, (height, width, 3))
                found = task.score(item, output, subject.reach)
                scores += [found] if found else []
            else:
                _require(bool(scores), f"no item of {name} counts: enlarge its images")
                value = combined(task, scores)
                close = abs(value - wanted) <= TOLERANCE * (task.ceiling - task.floor)
                problem = f"{bound}_output scores {value:g} in {name}, not {wanted:g}"
                _require(close, f"{problem}: correct `score`, `{bound}` or that output")
                told.append(f"{bound} {value:.3g} in {name}")
    if not told:
        raise NotApplicable("the task has neither ceiling_output nor floor_output")
    return ", ".join(told)


@check
def something_lies_beyond_the_reach(subject: TaskSubject) -> str:
    """Every test set has something that the backbone's convolutions cannot see."""
    try:
        check_reach(subject.task, subject.reach)
    except UserError as error:
        raise Broken(str(error)) from error
    return f"{subject.reach} pixels with preset quick"


def _pixels(images: Images) -> str:
    """Digest of the values, whichever of the two types they have."""
    found = images / np.float32(255) if images.dtype == np.uint8 else images
    return hashlib.sha256(np.ascontiguousarray(found, dtype=np.float32).data).hexdigest()


def _item_digest(item: Item) -> str:
    return _arrays_digest(item.inputs, item.deleted, item.references, item.all_references)


def _digest(batch: Batch) -> str:
    return _arrays_digest(*batch)


def _arrays_digest(*arrays: Images | Positions | None) -> str:
    digest = hashlib.sha256()
    for part in arrays:
        if part is not None:
            digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()
