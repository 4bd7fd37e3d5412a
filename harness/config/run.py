"""The configuration of a run."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ..base.errors import UserError
from ..base.names import digest
from .variants import Variant

#: ``attention_zoo.implementations.AUTO``, which would bring torch.
AUTO = "auto"


@dataclass(frozen=True)
class DataConfig:
    """The images of a run, without a path: two machines with the same images agree."""

    name: str
    train: list[str]
    train_images: int
    train_sha256: str
    test: list[str]


@dataclass(frozen=True)
class StartConfig:
    """Training of the baseline that the runs of protocol ``warm-start`` begin with."""

    steps: int
    learning_rate: float
    schedule: str


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result. Equal configurations have equal ids.

    Protocol ``scratch`` has no ``start``. In ``warm-start`` the backbone begins with the weights
    of :attr:`baseline`, the same for every variant of a seed, and trains ``steps`` further.
    ``implementation`` is a choice of ``attention_zoo.implementations``; ``auto`` is left out of
    records and ids.
    """

    variant: Variant
    preset: str
    protocol: str
    scale: int
    seed: int
    blocks: int
    channels: int
    block_res_scale: float
    patch: int
    batch: int
    steps: int
    steps_per_epoch: int
    learning_rate: float
    schedule: str
    betas: tuple[float, float]
    auxiliary_weight: float
    auxiliary_warmup: float
    precision: str
    device: str
    tile: int | None
    data: DataConfig
    start: StartConfig | None = None
    implementation: str = AUTO

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(
                f"unknown protocol {self.protocol!r}: choose from {', '.join(PROTOCOLS)}"
            )
        if self.start is not None:
            _ = self.baseline  # its values are checked too
        for name in ("blocks", "channels", "patch", "batch", "steps", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.blocks < 4:
            raise UserError(
                f"blocks must be at least 4 (attention follows each quarter), got {self.blocks}"
            )
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed must be 0 to {2**32 - 1}, got {self.seed}")
        if not math.isfinite(self.block_res_scale):
            raise UserError(f"block res scale must be finite, got {self.block_res_scale}")
        if not 0 <= self.auxiliary_weight < math.inf:
            raise UserError(
                f"auxiliary weight must be a finite number, at least 0, got {self.auxiliary_weight}"
            )
        if self.scale not in (2, 3, 4):
            raise UserError(f"scale must be 2, 3 or 4, got {self.scale}")
        if not 0 < self.learning_rate < float("inf"):
            raise UserError(
                f"learning rate must be a finite number above 0, got {self.learning_rate}"
            )
        if not 0 <= self.auxiliary_warmup <= 1:
            raise UserError(
                f"auxiliary warm-up must be a share, 0 to 1, got {self.auxiliary_warmup}"
            )
        if self.schedule not in SCHEDULES:
            raise UserError(
                f"unknown schedule {self.schedule!r}: choose from {', '.join(SCHEDULES)}"
            )
        if self.precision not in PRECISIONS:
            raise UserError(
                f"unknown precision {self.precision!r}: choose from {', '.join(PRECISIONS)}"
            )
        if self.tile is not None and self.tile < 16:
            raise UserError(f"tile must be at least 16 LR pixels, got {self.tile}")

    @property
    def setting(self) -> dict[str, Any]:
        """The configuration without its variant: what records hold as ``config``."""
        values = dataclasses.asdict(self)
        del values["variant"]
        if self.start is None:
            del values["start"]
        if self.implementation == AUTO:
            del values["implementation"]
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
            **dataclasses.asdict(self.start),
        )

    @property
    def run_id(self) -> str:
        """Readable name with a hash of the full configuration."""
        content = {"variant": self.variant.to_dict(), "config": self.setting}
        head = f"{self.variant.file_name}-{self.preset}-x{self.scale}-s{self.seed}"
        return f"{head}-{digest(content)[:12]}"


PROTOCOLS = ("scratch", "warm-start")
PRECISIONS = ("float32", "tf32", "bfloat16")
SCHEDULES = ("halving", "one-cycle")
