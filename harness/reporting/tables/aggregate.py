"""What the tables of the capability profile say alike: the aggregate, a score, the trainings."""

from __future__ import annotations

from ...config.profile import PROFILE
from ...records.origin import plural
from ..profile import Profile
from ..statistics import Estimate

AGGREGATE = (
    "Aggregate: the score of each setting is the mean over its test sets of 2n and 4n of (score - "
    "floor) / (ceiling - floor), clipped to 0 ... 1; the aggregate is the plain mean over the "
    f"{len(PROFILE)} settings, of rows that have all."
)


def score_cell(found: Estimate | None, digits: int = 2) -> str:
    """Mean, and half of the interval where there are several seeds; "" for None."""
    if found is None:
        return ""
    reach = "" if found.high is None else f" ± {found.reach:.{digits}f}"
    return f"{found.mean:.{digits}f}{reach}"


def profile_text(profile: Profile) -> str:
    """Sizes, steps, seeds, device and dtype of the profile's runs."""
    configs = [run.config for runs in profile.runs.values() for run in runs]
    config = configs[0]
    devices = " and ".join(sorted({one.device for one in configs}))
    dtype = config.precision or "float32"
    seeds = sorted({len(cell.chosen) for row in profile.rows for cell in row.cells.values()})
    count = plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    size = f"{config.blocks} blocks × {config.channels} channels, {config.steps} steps"
    return f"{size}, {count}, device {devices}, {dtype}"
