"""The capability profile: on which synthetic tasks a module is tried, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class ProfileTask:
    """One setting of the profile.

    Attributes:
        label: column head in tables.
        task: name on the command line.
        options: those of the task that are not at their defaults.
    """

    label: str
    task: str
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


#: The settings, in the order of the tables' columns.
PROFILE = (
    ProfileTask("recall D=4", "recall", MappingProxyType({"pairs": 4})),
    ProfileTask("recall D=16", "recall", MappingProxyType({"pairs": 16})),
    ProfileTask("phase", "phase"),
    ProfileTask("stack", "stack"),
)
#: Preset of the tasks; it fixes network, batch and steps.
PROFILE_PRESET = "quick"
#: Learning rates tried with the first seed. The best on validation images trains the other seeds.
RATES = (2e-3, 4e-3, 8e-3)
SEEDS = (0, 1, 2)
