"""A task's instrument check: short trainings that must read floor and ceiling."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..config.variants import Variant
from ..measuring.contract import Verdict
from ..measuring.tasks import score
from ..network.weights import Architecture
from ..tasks.base import SyntheticTask
from ..training.trainer import Trainer
from .options import RunOptions, configure_task

#: How far a score may lie from its bound, as a share of ceiling - floor.
NEAR_FLOOR, NEAR_CEILING = 0.05, 0.1


def read_instrument(task: SyntheticTask, *, steps: int | None = None) -> Iterator[Verdict]:
    """Train ``none`` and ``oracle`` on the CPU with seed 0, and compare their scores with bounds.

    In every test set ``none`` must be at the floor or below, ``oracle`` near the ceiling, and both
    at the floor or below on images without references.

    Args:
        task: the task.
        steps: of each training; the preset's by default.

    Raises:
        UserError: a training diverged, or ``steps`` is out of range.
    """
    span = task.ceiling - task.floor
    most, least = task.floor + NEAR_FLOOR * span, task.ceiling - NEAR_CEILING * span
    for name in ("none", "oracle"):
        options = {} if name == "none" else {"res_scale": task.res_scale}
        variant = Variant.of(name, options)
        config = configure_task(RunOptions(steps=steps), task, variant, 0, torch.device("cpu"))
        network = Architecture.of(config).build(config.seed)
        Trainer(config, network, task).train(name)
        reach = config.network.reach
        found = {test_set: score(network, task, test_set, reach) for test_set in task.test_sets}
        told = ", ".join(f"{one.score:.3f} in {test_set}" for test_set, one in found.items())
        scores = [one.score for one in found.values()]
        if name == "none":
            good, check = max(scores) <= most, "none is at the floor"
            hint = f", allowed {most:g}: what lies within reach tells the answer"
        else:
            good, check = min(scores) >= least, "oracle is near the ceiling"
            hint = f", wanted {least:g}: train longer (--steps), or correct the references"
        yield Verdict(check, good, told if good else told + hint)
        deleted = max(one.deleted for one in found.values())
        hint = f", allowed {most:g}: `deleted` still shows the answer"
        check = f"{name} finds nothing in deleted images"
        told = f"at most {deleted:.3f}"
        yield Verdict(check, deleted <= most, told if deleted <= most else told + hint)
