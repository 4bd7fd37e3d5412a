"""Presets: sizes of network and training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base.errors import UserError
from ..base.names import did_you_mean
from .network import MODULES, NetworkConfig

Schedule = Literal["halving", "one-cycle"]


@dataclass(frozen=True)
class Preset:
    """Size of network and training; each value can be overridden on the command line.

    Attributes:
        patch: side of an LR patch in pixels, by scale.
        batch: patches in a batch.
        steps_per_epoch: steps between redraws of random projections.
        modules: number of attention modules in a task on images.
        res_scale: their weight in a task on images; None for each module's own.
        tile: side in LR pixels of the tiles that test images are cut into; None for whole images.
    """

    network: NetworkConfig
    patch: dict[int, int]
    batch: int
    steps: int
    steps_per_epoch: int
    learning_rate: float
    schedule: Schedule
    purpose: str
    modules: int = MODULES
    res_scale: float | None = None
    tile: int | None = None


#: Name of the preset of some tasks in which attention shows on photographs (docs/photographs.md).
PHOTOGRAPHS = "photographs"

PRESETS = {
    "quick": Preset(
        network=NetworkConfig(blocks=8, channels=32),
        patch={2: 28, 3: 28, 4: 28},
        batch=16,
        steps=300,
        steps_per_epoch=100,
        learning_rate=1e-3,
        schedule="one-cycle",
        purpose="a newcomer: embedded images, under 5 minutes on 2 cores",
    ),
    "small": Preset(
        network=NetworkConfig(blocks=8, channels=32),
        patch={2: 28, 3: 28, 4: 28},
        batch=16,
        steps=1000,
        steps_per_epoch=100,
        learning_rate=1e-3,
        schedule="one-cycle",
        purpose="a real image folder on a laptop or in CI",
    ),
    "base": Preset(
        network=NetworkConfig(blocks=16, channels=64),
        patch={2: 48, 3: 48, 4: 48},
        batch=16,
        steps=50_000,
        steps_per_epoch=1000,
        learning_rate=4e-4,
        schedule="halving",
        purpose="DIV2K or a real folder, one GPU, minutes to an hour a variant",
    ),
    "paper": Preset(
        network=NetworkConfig(blocks=32, channels=256, block_res_scale=0.1),
        patch={2: 46, 3: 28, 4: 28},
        batch=16,
        steps=1_000_000,
        steps_per_epoch=1000,
        learning_rate=1e-4,
        schedule="halving",
        purpose="the ENLCA paper: DIV2K, 1000 epochs of 1000 steps",
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        hint = did_you_mean(name, PRESETS)
        raise UserError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}{hint}")
    return PRESETS[name]
