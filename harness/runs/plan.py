"""Time and memory of a sweep, estimated from a few steps of each variant on this machine."""

from __future__ import annotations

import dataclasses
import heapq
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from ..base.machine import synchronise, use_tf32
from ..base.printing import print_table
from ..base.progress import timing_bar
from ..config.run import RunConfig
from ..config.variants import Variant
from ..images.metrics import quality
from ..images.sources import TestSet
from ..measuring.memory import peak_memory
from ..measuring.quality import super_resolve
from ..measuring.references import with_references
from ..measuring.tasks import network_outputs
from ..network.weights import Architecture
from ..tasks.base import SyntheticTask
from ..tasks.images import ImageTask
from ..tasks.options import AnyTask
from ..training.trainer import CURVE_POINTS, Trainer
from .jobs import Job
from .pace import duration

#: Timed steps of each kind: at least two, and no more than fit into so many seconds.
CALIBRATION_SECONDS = 3.0
MAX_STEPS = 10


@dataclass(frozen=True)
class Estimate:
    """Time and memory of one run.

    Attributes:
        plain: seconds of a step before the contrastive loss sets in.
        full: seconds of a step from there on.
        evaluation: seconds for all test images, from the middle-sized one of each set.
        memory: bytes during training, with weights and moments; None if torch does not know.
    """

    plain: float
    full: float
    evaluation: float
    memory: int | None

    def seconds(self, config: RunConfig) -> float:
        """Training and evaluation of the run, without start-up."""
        before = round(config.auxiliary_warmup * config.steps)
        steps = before * self.plain + (config.steps - before) * self.full
        return steps + self.evaluation


def calibrate(config: RunConfig, task: AnyTask) -> Estimate:
    """Time a few steps of a run and the evaluation of an image or two of each test set.

    Raises:
        UserError: an image cannot be used.
    """
    device = torch.device(config.device)
    # Without a start: time and memory do not depend on the weights' values.
    config = dataclasses.replace(config, protocol="scratch", start=None)
    last = config.steps - 1
    # With a new network, so that the step frees nothing that is older than it.
    peak = peak_memory(partial(_train, _trainer(config, task, device), last), device)
    trainer = _trainer(config, task, device)
    plain = _median_seconds(partial(_train, trainer, 0), device)
    full = _median_seconds(partial(_train, trainer, last), device)
    held = 3 * sum(p.nbytes for p in trainer.network.parameters())  # and Adam's two moments
    memory = None if peak is None else held + peak
    evaluation = 0.0
    with use_tf32(False):
        if isinstance(task, ImageTask):
            for name in config.data.test:
                test_set = task.test_set(name)
                evaluation += len(test_set) * _image_seconds(trainer, test_set)
        else:
            evaluation = _scoring_seconds(trainer, task)
    return Estimate(plain, full, evaluation, memory)


def _trainer(config: RunConfig, task: AnyTask, device: torch.device) -> Trainer:
    network = Architecture.of(config).build(config.seed).to(device)
    trainer = Trainer(config, network, task)
    trainer.network.train()
    return trainer


def _train(trainer: Trainer, step: int) -> None:
    trainer.step = step
    trainer.train_step()


def _median_seconds(function: Callable[[], Any], device: torch.device) -> float:
    function()
    times: list[float] = []
    while len(times) < 2 or (len(times) < MAX_STEPS and sum(times) < CALIBRATION_SECONDS):
        synchronise(device)
        begin = time.perf_counter()
        function()
        synchronise(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _image_seconds(trainer: Trainer, test_set: TestSet) -> float:
    """Seconds for the test set's image of middle size."""

    def pixels(index: int) -> int:
        with Image.open(test_set.images.paths[index]) as image:
            return image.width * image.height

    middle = sorted(range(len(test_set)), key=pixels)[len(test_set) // 2]
    images = dataclasses.replace(test_set.images, paths=(test_set.images.paths[middle],))
    (image,) = dataclasses.replace(test_set, images=images)
    begin = time.perf_counter()
    for one in with_references(trainer.network, [image]):
        sr = super_resolve(trainer.network, one.lr, test_set.scale, trainer.config.tile)
        quality(sr, one.hr, test_set.scale)
    return time.perf_counter() - begin


def _scoring_seconds(trainer: Trainer, task: SyntheticTask) -> float:
    """Seconds for all scores of a run and its curve, from two images of each set."""
    network = trainer.network
    # As trained and deleted, and with the attention replaced, or all references alike, or both.
    passes = 2 + bool(network.attention_modules) + network.has_oracle
    curve = min(CURVE_POINTS, trainer.config.steps)
    sets = [(name, False, passes) for name in task.test_sets]
    seconds = 0.0
    for name, validation, times in [*sets, (task.validation_set, True, passes + curve)]:
        begin = time.perf_counter()
        items = list(task.items(name, validation=validation))
        drawn, few = time.perf_counter() - begin, items[:2]
        inputs, references = [i.inputs for i in few], [i.references for i in few]
        begin = time.perf_counter()
        network_outputs(network, inputs, references)
        each = (time.perf_counter() - begin) / len(few)
        seconds += times * each * len(items) + drawn * (curve if validation else 1)
    return seconds


def print_plan(
    jobs: Sequence[Job],
    device: torch.device,
    at_once: int | None,
    gpus: float = 1.0,
    start_up: float = 0.0,
) -> None:
    """Print jobs, steps, time, memory and GPU-hours of the runs that are not finished.

    Args:
        jobs: all of them.
        device: where to calibrate.
        at_once: jobs at once; None is all.
        gpus: share of a GPU for each job.
        start_up: seconds until a job's first step.

    A line names a run whose first steps fail; the others are estimated all the same.

    Raises:
        SystemExit: steps of a run failed (status 1).
    """
    kind = "GPU" if device.type == "cuda" else "CPU"
    estimates: dict[tuple[Variant, str], Estimate | str] = {}
    seconds: list[float] = []
    failed: list[str] = []
    groups: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.label, job.config.steps), []).append(job)
    table = Table(box=SIMPLE_HEAD)
    for column in ("run", "runs", "finished", "started", "steps", "s/step", "time each", "memory"):
        table.add_column(column, justify="left" if column == "run" else "right")
    with timing_bar() as on_run:
        for index, ((label, steps), group) in enumerate(groups.items()):
            config = group[0].config
            finished = sum(job.finished for job in group)
            started = sum(job.log.exists() and not job.finished for job in group)
            row: list[str | Text] = [
                Text(label),
                str(len(group)),
                str(finished),
                str(started),
                str(steps),
            ]
            if finished < len(group):
                # The two protocols of a variant take the same time.
                key = (config.variant, config.data.name)
                if key not in estimates:
                    on_run(index / len(groups), label)
                    estimates[key] = _try(config, group[0].task)
                found = estimates[key]
                if isinstance(found, str):
                    failed.append(f"{label}: its first steps failed, {found}")
                    table.add_row(*row, "failed")
                    continue
                each = found.seconds(config) + start_up
                seconds += [each] * (len(group) - finished)
                memory = "" if found.memory is None else f"{found.memory / 1e6:,.0f} MB"
                row += [f"{found.full:.3g}", duration(each), memory]
            table.add_row(*row)
    print_table(table)
    without = ", without those that failed" if failed else ""
    print(
        f"{len(seconds)} of {len(jobs)} runs to do{without}: {sum(seconds) * gpus / 3600:.3g} "
        f"{kind}-hours, about {duration(_longest(seconds, at_once))} with "
        f"{at_once or len(seconds)} at once.",
    )
    print(
        "Estimated from a few steps of each variant, one at a time, and an image or two of each "
        "test set. Unfinished runs count in full. Nothing was run.",
    )
    for line in failed:
        print(line, file=sys.stderr)
    if failed:
        raise SystemExit(1)


def _try(config: RunConfig, task: AnyTask) -> Estimate | str:
    """:func:`calibrate`, or what went wrong in it: it runs users' modules."""
    try:
        return calibrate(config, task)
    except SystemExit as stop:
        return f"it calls sys.exit({'' if stop.code is None else repr(stop.code)})"
    except Exception as error:
        kind = type(error).__name__
        # The first two are one line by themselves.
        text = f"{error}" if kind in ("UserError", "AttentionError") else f"{kind}: {error}"
        return " ".join(text.split())


def _longest(seconds: Sequence[float], at_once: int | None) -> float:
    """Seconds until the last run ends, if each starts as soon as there is room."""
    ends = [0.0] * (at_once or max(1, len(seconds)))
    for one in seconds:
        heapq.heappush(ends, heapq.heappop(ends) + one)
    return max(ends)
