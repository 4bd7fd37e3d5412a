"""The capability profile: on which synthetic tasks a module is tried, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..base.errors import UserError
from ..base.names import did_you_mean


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


def best_rate(validation: Mapping[float, float]) -> float:
    """The rate with the best validation score; of equal ones the smallest.

    Args:
        validation: score by rate, at least one.
    """
    return min(validation, key=lambda rate: (-validation[rate], rate))


def choose_settings(names: Sequence[str]) -> list[ProfileTask]:
    """Settings of the profile by label or task; all of them if none is named.

    Raises:
        UserError: the profile has no such setting.
    """
    known = {name: None for one in PROFILE for name in (one.task, one.label)}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(
                f"the profile has no task {name!r}: choose from {', '.join(known)}{hint}"
            )
    return [one for one in PROFILE if not names or {one.task, one.label} & {*names}]
