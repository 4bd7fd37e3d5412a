"""The interface of a task: what a network learns, and how it is scored.

A task's options are the keyword-only parameters of its ``__init__``, on the command line too.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from ..config.presets import Preset

Floats = NDArray[np.float32]
#: Pixels of a batch, ``[B, H, W, 3]``: uint8, or float32 where 1 stands for 255.
Images = NDArray[np.uint8] | Floats
Positions = NDArray[np.int64]


class Batch(NamedTuple):
    """Training images of one step.

    Attributes:
        inputs: ``[B, h, w, 3]``.
        targets: ``[B, scale·h, scale·w, 3]``.
        references: ``[B, h·w, R]``, for each position of the input the R positions, in row-major
            order, that an oracle attends to; None where the task does not know them.
    """

    inputs: Images
    targets: Images
    references: Positions | None = None


class Task(ABC):
    """Training batches. A batch depends on the task's options, seed and step alone."""

    #: Name on the command line and in records.
    name: ClassVar[str]
    #: Loss between output and target: ``l1`` or ``mse``.
    loss: ClassVar[str] = "l1"
    #: Enlargement: the output is ``scale`` times as large as the input.
    scale: int

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The task's options: keyword-only parameters of ``__init__``, in order."""
        parameters = inspect.signature(cls.__init__).parameters.values()
        return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}

    def with_references(self, reach: int) -> Self:
        """This task with references in its batches, which lie beyond ``reach`` where it finds them.

        Args:
            reach: of the backbone's convolutions in input pixels.
        """
        return self

    @abstractmethod
    def batch(self, *, seed: int, step: int, batch: int, patch: int) -> Batch:
        """The images of one step.

        Args:
            seed, step: integers >= 0, the key of the random generator.
            batch: number of images.
            patch: side of an input in pixels.
        """


@dataclass(frozen=True)
class Item:
    """One test image.

    Attributes:
        name: unlike that of any other item of its set.
        inputs: ``[h, w, 3]``.
        deleted: the input without what the task asks the network to find, ``[h, w, 3]``.
        references: as in :class:`Batch`, ``[h·w, R]``.
        truth: what :meth:`SyntheticTask.score` compares the output with.
        all_references: ``[R']``, every position that anything may refer to, as many in each item
            of a set; None if the task has no use for the control *all references alike*.
    """

    name: str
    inputs: Floats
    deleted: Floats
    references: Positions
    truth: Any
    all_references: Positions | None = None


class ItemScore(NamedTuple):
    """What an output is worth on one item.

    Attributes:
        value: its mean over a set's items, weighted by ``weight``, gives the set's score:
            :meth:`SyntheticTask.combine`.
        weight: how much of the item counts, above 0.
        details: further measures, averaged likewise.
        by_distance: value and weight of what lies up to so many input pixels from what it needs,
            and farther than the next smaller key; here nothing is left out as within reach.
    """

    value: float
    weight: float
    details: Mapping[str, float] = MappingProxyType({})
    by_distance: Mapping[int, tuple[float, float]] = MappingProxyType({})


class SyntheticTask(Task):
    """A task that draws its images and knows its own floor and ceiling.

    It inserts one attention module in the middle of the backbone.
    """

    loss: ClassVar[str] = "mse"
    #: Weight of every attention module's output, unless the command gives ``--res-scale``.
    res_scale: ClassVar[float] = 1.0
    #: What the score is called in tables.
    metric: ClassVar[str]
    #: Score of a network that finds nothing, and of one that finds everything.
    floor: ClassVar[float] = 0.0
    ceiling: ClassVar[float] = 1.0
    presets: ClassVar[Mapping[str, Preset]]

    @property
    @abstractmethod
    def label(self) -> str:
        """Name with the options that set this task apart, e.g. ``recall-d4-n6``."""

    @property
    @abstractmethod
    def patch(self) -> int:
        """Side of a training input in pixels."""

    @property
    @abstractmethod
    def test_sets(self) -> list[str]:
        """Names of the test sets."""

    @abstractmethod
    def items(self, test_set: str, *, validation: bool = False) -> Iterator[Item]:
        """The items of a test set, the same whenever asked; others for validation."""

    @abstractmethod
    def score(self, item: Item, output: Floats, reach: int) -> ItemScore | None:
        """Score of an output ``[scale·h, scale·w, 3]``; None if nothing of the item counts.

        Args:
            item: as :meth:`items` gives it.
            output: the network's, not clamped.
            reach: how far the backbone's convolutions see, in input pixels; what lies within
                their reach does not count.
        """

    def ceiling_output(self, item: Item) -> Floats | None:
        """The output that scores the ceiling, ``[scale·h, scale·w, 3]``; None where unknown."""
        return None

    def floor_output(self, item: Item) -> Floats | None:
        """The output that scores the floor, ``[scale·h, scale·w, 3]``; None where unknown."""
        return None

    def combine(self, value: float, details: Mapping[str, float]) -> float:
        """A set's score, of the weighted means over its items."""
        return value

    @property
    def scoring_bytes(self) -> int:
        """Memory in which the largest test set is scored, roughly; 0 where it does not matter."""
        return 0

    @property
    def validation_set(self) -> str:
        """Where learning rates are chosen: validation items of this test set."""
        return self.test_sets[0]

    @property
    def settings(self) -> dict[str, Any]:
        """All options with their values."""
        return {name: getattr(self, name) for name in self.options()}

    @functools.cached_property
    def sha256(self) -> str:
        """Digest of a training batch and of a test item: of how images are drawn."""
        first = self.batch(seed=0, step=0, batch=2, patch=self.patch)
        item = next(iter(self.items(self.test_sets[0])))
        digest = hashlib.sha256()
        for pixels in (first.inputs, first.targets, item.inputs):
            digest.update(np.ascontiguousarray(pixels).data)
        return digest.hexdigest()


def generator(*key: int) -> np.random.Generator:
    """A generator whose draws depend on two integers, 0 to 2^64 - 1, alone."""
    return np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
