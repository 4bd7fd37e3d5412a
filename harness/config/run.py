"""The configuration of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..base.errors import UserError
from ..base.names import digest, slug, task_label
from .network import NetworkConfig
from .presets import Preset, Schedule, find_preset
from .variants import Variant

Protocol = Literal["scratch", "warm-start"]
Precision = Literal["float32", "tf32", "bfloat16"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)
SCHEDULES: tuple[str, ...] = get_args(Schedule)
PRECISIONS: tuple[str, ...] = get_args(Precision)
#: The paper's weight of the contrastive loss, and share of the steps before it sets in.
AUXILIARY_WEIGHT, AUXILIARY_WARMUP = 1e-3, 0.15
#: Smallest tile of an evaluation, in LR pixels.
LEAST_TILE = 16
#: Seconds between checkpoints of a training.
SAVE_EVERY = 60.0
#: ``attention_zoo.implementations.AUTO``, which would import torch.
AUTO = "auto"
#: What concerns the attention modules alone, at its default: a network without any ignores it.
_OF_MODULES: dict[str, Any] = {"learn_res_scale": False, "attention_rate": 1.0}
#: Fields that records and ids leave out at these values.
_LEFT_OUT: dict[str, Any] = {"positions": None, **_OF_MODULES}


@dataclass(frozen=True)
class DataConfig:
    """The images of a run, without a path: two machines with the same images agree."""

    name: str
    train: list[str]
    train_images: int
    train_sha256: str
    test: list[str]
    #: Side in HR pixels of the centre crops that stand for held-out images; None for whole images.
    holdout_crop: int | None = None


@dataclass(frozen=True)
class StartConfig:
    """Training of the baseline that the runs of protocol ``warm-start`` begin with."""

    steps: int
    learning_rate: float
    schedule: Schedule


@dataclass(frozen=True)
class TaskConfig:
    """What a network learns, unless it is super-resolution of bicubic LR images.

    Attributes:
        name: of the task.
        options: all of them with their values.
        loss: ``l1`` or ``mse``.
        positions: of the attention modules, each the number of blocks before it.
    """

    name: str
    options: dict[str, Any]
    loss: str
    positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's result. Equal configurations have equal ids.

    Protocol ``scratch`` has no ``start``. In ``warm-start`` the backbone begins with the weights
    of :attr:`baseline`, the same for every variant of a seed, and trains ``steps`` further.
    ``implementation`` is a choice of ``attention_zoo.implementations``; records and ids leave out
    ``auto``, and ``task`` where it is super-resolution of bicubic LR images (None). They also leave
    out the last three fields at their defaults.

    Attributes:
        positions: of the attention modules where ``task`` is None; each quarter of the blocks if
            None. A task has its own.
        learn_res_scale: whether the weight of every module is trained, from its ``res_scale``.
        attention_rate: factor on the learning rate of the modules' parameters.

    Raises:
        UserError: a value is out of range.
        AttentionError: unknown module or option.
    """

    variant: Variant
    preset: str
    protocol: Protocol = "scratch"
    scale: int
    seed: int
    network: NetworkConfig
    patch: int
    batch: int
    steps: int
    steps_per_epoch: int
    learning_rate: float
    schedule: Schedule
    betas: tuple[float, float] = (0.9, 0.99)
    auxiliary_weight: float = AUXILIARY_WEIGHT
    auxiliary_warmup: float = AUXILIARY_WARMUP
    precision: Precision = "float32"
    device: str
    tile: int | None = None
    data: DataConfig
    start: StartConfig | None = None
    implementation: str = AUTO
    task: TaskConfig | None = None
    positions: tuple[int, ...] | None = None
    learn_res_scale: bool = False
    attention_rate: float = 1.0

    @classmethod
    def of_preset(
        cls, preset: str, *, scale: int, found: Preset | None = None, **values: Any
    ) -> RunConfig:
        """The configuration of a preset; ``values`` that are not None override the preset's.

        Args:
            preset: its name.
            scale: scale factor.
            found: the preset itself, if it is a task's own.
            values: fields of the class.

        Raises:
            UserError: unknown preset or scale, or as for the class.
            AttentionError: as for the class.
        """
        found = found or find_preset(preset)
        if scale not in found.patch:
            raise UserError(f"scale must be {_one_of(found.patch)}, got {scale}")
        names = ("network", "batch", "steps", "steps_per_epoch", "learning_rate", "schedule")
        own = {name: getattr(found, name) for name in names} | {"patch": found.patch[scale]}
        given = {name: value for name, value in values.items() if value is not None}
        return cls(preset=preset, scale=scale, **own | given)

    def __post_init__(self) -> None:
        self.variant.check()
        _check_choice("protocol", self.protocol, PROTOCOLS)
        if self.start is not None:
            _ = self.baseline  # its values are checked too
        places = self.places
        # Of less than four blocks two quarters would end at one place.
        self.network.check(quarters=places is None or len(set(places)) < len(places))
        for name in ("patch", "batch", "steps", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be 0 to {2**32 - 1}, got {self.seed}")
        if not 0 <= self.auxiliary_weight < math.inf:
            raise UserError(
                f"auxiliary weight must be a finite number, at least 0, got {self.auxiliary_weight}"
            )
        scales = (2, 3, 4) if self.task is None else (1, 2, 3, 4)
        if self.scale not in scales:
            raise UserError(f"scale must be {_one_of(scales)}, got {self.scale}")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(
                f"learning rate must be a finite number above 0, got {self.learning_rate}"
            )
        if not 0 < self.attention_rate < math.inf:
            raise UserError(
                f"attention rate must be a finite number above 0, got {self.attention_rate}"
            )
        if not 0 <= self.auxiliary_warmup <= 1:
            raise UserError(
                f"auxiliary warm-up must be a share, 0 to 1, got {self.auxiliary_warmup}"
            )
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("precision", self.precision, PRECISIONS)
        if self.tile is not None and self.tile < LEAST_TILE:
            raise UserError(f"tile must be at least {LEAST_TILE} LR pixels, got {self.tile}")

    @property
    def places(self) -> tuple[int, ...] | None:
        """Positions of the attention modules; None: each quarter of the blocks."""
        return self.task.positions if self.task else self.positions

    @property
    def setting(self) -> dict[str, Any]:
        """The configuration without its variant, as records hold it: ``records.shapes.Config``."""
        values = dataclasses.asdict(self)
        del values["variant"]
        values |= values.pop("network")
        if self.start is None:
            del values["start"]
        if self.implementation == AUTO:
            del values["implementation"]
        if self.task is None:
            del values["task"]
        for name, default in _LEFT_OUT.items():
            if values[name] == default:
                del values[name]
        if self.data.holdout_crop is None:
            del values["data"]["holdout_crop"]
        values["betas"] = list(self.betas)
        return values

    @property
    def baseline(self) -> RunConfig:
        """The run whose weights a warm start begins with: plain EDSR, trained from scratch."""
        if self.start is None:
            raise ValueError("a run from scratch has no baseline to begin with")
        return dataclasses.replace(
            self,
            variant=Variant("none"),
            protocol="scratch",
            start=None,
            **_OF_MODULES,
            **dataclasses.asdict(self.start),
        )

    @property
    def run_id(self) -> str:
        """Readable name with a hash of the full configuration."""
        content = {"variant": self.variant.to_dict(), "config": self.setting}
        what = self.preset
        if self.task:
            # The data of a synthetic task, which has no images, bear the task's label.
            images = self.data.train_images
            label = task_label(self.task.name, self.task.options) if images else self.data.name
            what = f"{slug(label)}-{what}"
        head = f"{self.variant.file_name}-{what}-x{self.scale}-s{self.seed}"
        return f"{head}-{digest(content)[:12]}"


def _one_of(values: Iterable[int]) -> str:
    """The values in words: ``2, 3 or 4``."""
    *most, last = values
    return f"{', '.join(map(str, most))} or {last}" if most else str(last)


def _check_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"unknown {what} {value!r}: choose from {', '.join(choices)}")
