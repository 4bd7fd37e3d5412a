"""The contract of tasks: every task of the suite keeps it, and every planted fault is caught."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.measuring.contract import CHECKS, TaskSubject, judge
from harness.tasks.base import Batch, Floats, Item, ItemScore, SyntheticTask, generator
from harness.tasks.recall import Recall
from harness.tasks.registry import tasks

SYNTHETIC = [name for name, cls in tasks().items() if issubclass(cls, SyntheticTask)]
SIDE = 12


@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_task_of_the_suite_keeps_the_contract(name: str) -> None:
    found = {verdict.check: verdict for verdict in judge(TaskSubject(name))}
    assert [*found] == [*CHECKS]
    assert not [verdict for verdict in found.values() if verdict.passed is False]


class Faulty(SyntheticTask):
    """Copies the image; a pixel refers to the next one. One ``fault`` at a time.

    Args:
        fault: the one to plant; none by default.
        size: of a training input in pixels.
    """

    metric = "R²"
    scale = 2
    presets = Recall.presets

    def __init__(self, *, fault: str = "", size: int = SIDE) -> None:
        if size < 10:
            raise UserError(f"--size must be at least 10, got {size}")
        self.fault, self.size, self.drawn = fault, size, 0
        if fault == "lost option":
            self.size = SIDE
        if fault == "rebuilt otherwise":
            self.size = 2 * size
        if fault == "not kept":
            del self.size
        if fault == "no JSON":
            self.size = np.float64("nan")  # type: ignore[assignment]
        if fault == "scale":
            self.scale = 5
        if fault == "bounds":
            self.floor = 1.0  # type: ignore[misc]
        if fault == "loss":
            self.loss = "l2"  # type: ignore[misc]
        if fault == "no preset":
            self.presets = {}  # type: ignore[misc]
        if fault == "preset of another scale":
            presets = {"quick": dataclasses.replace(Recall.presets["quick"], patch={3: SIDE})}
            self.presets = presets  # type: ignore[misc]
        if fault == "far reach":
            network = NetworkConfig(blocks=20, channels=8)
            presets = {"quick": dataclasses.replace(Recall.presets["quick"], network=network)}
            self.presets = presets  # type: ignore[misc]

    @property
    def label(self) -> str:
        return "" if self.fault == "no label" else f"faulty-{getattr(self, 'size', 0)}"

    @property
    def patch(self) -> int:
        return self.size

    @property
    def test_sets(self) -> list[str]:
        return ["a", "a"] if self.fault == "sets" else ["a", "b"]

    @property
    def validation_set(self) -> str:
        return "c" if self.fault == "validation set" else "a"

    def batch(self, *, seed: int, step: int, batch: int, patch: int) -> Batch:
        self.drawn += 1
        match self.fault:
            case "process":
                rng = generator(seed + os.getpid() * 2**33, step)
            case "order":
                rng = generator(seed + self.drawn * 2**33, step)
            case "step":
                rng = generator(seed, 0)
            case "global generator":
                rng = generator(seed, step + np.random.randint(1000) * 2**33)  # noqa: NPY002
            case _:
                rng = generator(seed, step)
        inputs, targets, references = self.draw(rng, batch, patch)
        match self.fault:
            case "target":
                targets = inputs
            case "float64":
                inputs = inputs.astype(np.float64)
            case "range":
                inputs, targets = 255 * inputs, 255 * targets
            case "nan":
                inputs[0, 0, 0, 0] = np.nan
            case "out of range":
                references = references + patch**2
            case "references":
                references = references[..., 0]
            case "no references":
                return Batch(inputs, targets)
            case "bytes":
                as_bytes = [np.uint8(255 * x) for x in (inputs, targets)]
                return Batch(*as_bytes, references)
        return Batch(inputs, targets, references)

    def draw(self, rng: np.random.Generator, count: int, side: int) -> tuple[Any, ...]:
        inputs = rng.random((count, side, side, 3), dtype=np.float32)
        others = np.roll(np.arange(side**2), 1)[:, None]
        references = np.broadcast_to(others, (count, side**2, 1)).copy()
        return inputs, inputs.repeat(2, 1).repeat(2, 2), references

    def items(self, test_set: str, *, validation: bool = False) -> Iterator[Item]:
        word = 2**40 + (validation and self.fault != "same validation")
        if self.fault == "changing items":
            self.drawn += 1
            word += 2 * self.drawn
        step = ord(test_set)
        rng = generator(1, 3) if self.fault == "test in training" else generator(word, step)
        inputs, targets, references = self.draw(rng, 4, self.size)
        if self.fault == "own references":
            references[:] = np.arange(self.size**2)[:, None]
        if self.fault == "item out of range":
            references -= 1
        for i in range(0 if self.fault == "no items" else 4):
            deleted = inputs[i] if self.fault == "not deleted" else 0 * inputs[i]
            everywhere = np.arange(2 + i) if self.fault == "all references" else None
            yield Item(
                name="x" if self.fault == "names" else str(i),
                inputs=inputs[i, : 10 + i] if self.fault == "ragged" else inputs[i],
                deleted=deleted[1:] if self.fault == "deleted shape" else deleted,
                references=references[i],
                truth=targets[i],
                all_references=everywhere,
            )

    def score(self, item: Item, output: Floats, reach: int) -> ItemScore | None:
        if reach >= self.size:
            return None
        error = ((output - item.truth) ** 2).mean(dtype=np.float64)
        value = float(1 - error / (item.truth**2).mean(dtype=np.float64))
        details: Mapping[str, float] = {item.name: 1.0} if self.fault == "details" else {}
        match self.fault:
            case "weight":
                return ItemScore(value, 0.0)
            case "numpy's weight":
                return ItemScore(value, np.int64(1))  # type: ignore[arg-type]
            case "infinite":
                return ItemScore(np.inf, 1.0)
            case "distance":
                return ItemScore(value, 1.0, {}, {3: (np.nan, 1.0)})
        return ItemScore(value, 1.0, details)

    def ceiling_output(self, item: Item) -> Floats:
        return item.truth * np.float32(0.9 if self.fault == "ceiling" else 1)

    def floor_output(self, item: Item) -> Floats:
        return item.truth * np.float32(0.1 if self.fault == "floor" else 0)


class Positional(Faulty):
    def __init__(self, size: int = SIDE) -> None:
        super().__init__(size=size)


class Numbered(Faulty):
    """Its first option has no default: asked directly, as find_task refuses it."""

    def __init__(self, *, size: int) -> None:
        super().__init__(size=size)


#: Check, planted fault, and what its line must say.
FAULTS = [
    ("settings are kept", "not kept", "option size is not kept: set self.size in __init__"),
    ("settings are kept", "no JSON", "JSON cannot hold the settings"),
    ("settings are kept", "rebuilt otherwise", "keep each option's value as it is given"),
    ("settings tell tasks apart", "lost option", "option size is lost: set self.size to the value"),
    ("settings tell tasks apart", "no label", "the label needs letters"),
    ("names and bounds are set", "bounds", "`floor` 1.0 must be below `ceiling` 1.0"),
    ("names and bounds are set", "scale", "`scale` must be 1, 2, 3 or 4, not 5"),
    ("names and bounds are set", "loss", "`loss` must be l1 or mse, not 'l2'"),
    ("names and bounds are set", "sets", "`test_sets` must be one name or more, each once"),
    ("names and bounds are set", "validation set", "`validation_set` must be one of"),
    ("the preset fits", "no preset", "`presets` needs one named quick"),
    ("the preset fits", "preset of another scale", "no patch for scale 2: give it one"),
    ("batches have the right shapes", "target", "targets are [1, 12, 12, 3], not [1, 24, 24, 3]"),
    ("batches have the right shapes", "float64", "inputs are float64, not float32 or uint8"),
    ("batches have the right shapes", "range", "float32 images are about 0 to 1"),
    ("batches have the right shapes", "nan", "inputs are not finite"),
    ("references are positions", "out of range", "are 144 to 287: indices must be 0 to 143"),
    (
        "references are positions",
        "item out of range",
        "of test items of a, 0 are -1 to 142: indices",
    ),
    ("references are positions", "references", "are [2, 144], not [2, 144, R]"),
    ("references are positions", "no references", "give them, or no oracle can learn"),
    ("references are positions", "own references", "every position refers to itself"),
    ("references are positions", "all references", "all_references of test items of a must have"),
    ("batches depend on seed and step alone", "order", "the same seed and step give another batch"),
    ("batches depend on seed and step alone", "step", "seed 0, step 7 gives the batch of seed 0"),
    ("batches depend on seed and step alone", "global generator", "from a global generator: draw"),
    ("items are the same whenever asked", "changing items", "differ from call to call"),
    ("items are the same whenever asked", "names", "test items of a have names that are not uni"),
    ("items are the same whenever asked", "no items", "there are no test items of a"),
    ("items are the same whenever asked", "ragged", "are [11, 12, 3], not [10, 12, 3]"),
    ("a fresh process draws the same", "process", "another process draws other images: use no"),
    ("test images are in no training", "test in training", "is the image of test items of a"),
    ("test images are in no training", "same validation", "validation items of a, 0 is the image"),
    ("deleted images lack something", "not deleted", "is the input: take away what"),
    ("deleted images lack something", "deleted shape", "are [11, 12, 3], not [12, 12, 3]"),
    ("scores are numbers", "weight", "has weight 0.0: give None where nothing counts"),
    ("scores are numbers", "numpy's weight", "numpy's types: use float() or int()"),
    ("scores are numbers", "infinite", "is not finite"),
    ("scores are numbers", "distance", "is not finite"),
    ("scores are numbers", "details", "must have the same details"),
    ("known outputs have the bounds as scores", "ceiling", "ceiling_output scores 0.99 in a, not"),
    ("known outputs have the bounds as scores", "floor", "floor_output scores 0.19 in a, not 0"),
    ("something lies beyond the reach", "far reach", "nothing in a of task"),
]


def faulty(fault: str = "", name: str = "Faulty") -> TaskSubject:
    return TaskSubject(f"{__name__}:{name}", {"fault": fault} if fault else {})


def test_every_check_has_a_fault_to_catch() -> None:
    # The first check has tests of its own below: its faults are of classes.
    assert [*CHECKS] == ["options have defaults", *dict.fromkeys(check for check, *_ in FAULTS)]


@pytest.mark.parametrize("fault", ["", "bytes"])
def test_a_sound_task_passes(fault: str) -> None:
    assert not [verdict for verdict in judge(faulty(fault)) if not verdict.passed]


@pytest.mark.parametrize(("check", "fault", "line"), FAULTS)
def test_a_fault_is_caught_by_its_check_in_one_line(check: str, fault: str, line: str) -> None:
    verdicts = {}
    with pytest.MonkeyPatch.context() as patch:
        if check != "a fresh process draws the same":  # a process takes a second
            others = {name: one for name, one in CHECKS.items() if "fresh process" not in name}
            patch.setattr("harness.measuring.contract.CHECKS", others)
        verdicts = {verdict.check: verdict for verdict in judge(faulty(fault))}
    assert verdicts[check].passed is False
    assert line in verdicts[check].detail
    assert all("\n" not in verdict.detail for verdict in verdicts.values())


def test_a_test_image_in_training_is_named() -> None:
    subject = faulty("test in training")
    items = {("a", False): subject.items["a", False]}
    subject.__dict__["items"] = items  # of one set alone
    (verdict,) = (v for v in judge(subject) if v.check == "test images are in no training")
    # 2 images of a batch and 4 items are drawn in one go, so the first few agree.
    assert verdict.passed is False
    assert "seed 1, step 3 trains on test items of a, 0: draw items from" in verdict.detail


def test_options_must_be_keyword_only_with_defaults_and_names_of_their_own() -> None:
    def line(name: str, **values: Any) -> str:
        subject = TaskSubject(f"{__name__}:{name}", **values)
        return next(v.detail for v in judge(subject) if v.check == "options have defaults")

    assert line("Positional").startswith("size must be keyword-only to be an option: __init__(self")
    assert "the option size needs a default" in line("Numbered")
    taken = line("Faulty", reserved=["steps", "size"])
    assert taken == "rename the option size: harness.run has one of this name"


def test_a_task_on_image_files_has_no_contract() -> None:
    with pytest.raises(UserError, match="task sr works on image files"):
        TaskSubject("sr").build()


def test_global_generators_are_left_as_they_were() -> None:
    np.random.seed(3)  # noqa: NPY002
    wanted = np.random.rand(3)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    assert CHECKS["batches depend on seed and step alone"](faulty())
    assert np.array_equal(np.random.rand(3), wanted)  # noqa: NPY002
