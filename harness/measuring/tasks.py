"""Scores of a network in a synthetic task, and of the controls that need no training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from attention_zoo.mean import mean_of

from ..base.errors import UserError
from ..network.edsr import EDSR, to_tensor
from ..records.shapes import Score
from ..tasks.base import Floats, Item, ItemScore, Positions, SyntheticTask

#: Images in one forward, by type of device: a GPU waits for launches, a CPU for memory.
_BATCH = {"cuda": 32}
_BATCH_ELSEWHERE = 8


def score(
    network: EDSR, task: SyntheticTask, test_set: str, reach: int, *, validation: bool = False
) -> Score:
    """Score of the network as trained, with its attention replaced, and on deleted inputs.

    Args:
        network: on any device; it is left in evaluation mode.
        task: whose images it is tested on.
        test_set: one of ``task.test_sets``.
        reach: of the backbone's convolutions in input pixels.
        validation: score validation images of this set instead.

    Something in the set must lie beyond ``reach``: see :func:`check_reach`.
    """
    items = list(task.items(test_set, validation=validation))
    trained = _scored(network, task, items, reach)
    as_mean = all_references = None
    if network.attention_modules:
        with attention_as_mean(network):
            as_mean = combined(task, _scored(network, task, items, reach))
    alike = [item.all_references for item in items if item.all_references is not None]
    if network.has_oracle and alike:
        told = [
            np.broadcast_to(found, (len(item.references), len(found)))
            for item, found in zip(items, alike, strict=True)
        ]
        all_references = combined(task, _scored(network, task, items, reach, references=told))
    deleted = _scored(network, task, items, reach, inputs=[item.deleted for item in items])
    return Score(
        metric=task.metric,
        score=combined(task, trained),
        floor=task.floor,
        ceiling=task.ceiling,
        as_mean=as_mean,
        deleted=combined(task, deleted),
        all_references=all_references,
        weight=sum(one.weight for one in trained),
        details=_details(trained),
        by_distance=_by_distance(trained),
    )


def validation(task: SyntheticTask, reach: int) -> Callable[[EDSR], float]:
    """What scores a network on validation images alone, for learning curves.

    The images are made once.
    """
    items = list(task.items(task.validation_set, validation=True))
    return lambda network: combined(task, _scored(network, task, items, reach))


def check_reach(task: SyntheticTask, reach: int, test_sets: Sequence[str] | None = None) -> None:
    """Check that every test set has something that the backbone's convolutions cannot see.

    Args:
        task: whose images are looked at.
        reach: of the convolutions in input pixels.
        test_sets: these alone; all of the task's, and the validation images, if None.

    Raises:
        UserError: a test set has nothing beyond ``reach``.
    """
    sets = [(name, False) for name in (task.test_sets if test_sets is None else test_sets)]
    for name, validation in [*sets, *([(task.validation_set, True)] if test_sets is None else [])]:
        items = task.items(name, validation=validation)
        if not any(task.score(item, _blank(task, item), reach) for item in items):
            raise UserError(
                f"nothing in {name} of task {task.name} lies beyond the backbone's reach of "
                f"{reach} pixels: lower --blocks or enlarge the images"
            )


def _blank(task: SyntheticTask, item: Item) -> Floats:
    height, width = item.inputs.shape[:2]
    return np.zeros((task.scale * height, task.scale * width, 3), dtype=np.float32)


@contextmanager
def attention_as_mean(network: EDSR) -> Iterator[None]:
    """Replace the modules' attention by the plain mean of their values within the block."""
    try:
        for module in network.attention_modules:
            module.__dict__["attend"] = lambda q, k, v: mean_of(v)
        yield
    finally:
        for module in network.attention_modules:
            module.__dict__.pop("attend", None)


def _scored(
    network: EDSR,
    task: SyntheticTask,
    items: Sequence[Item],
    reach: int,
    *,
    inputs: Sequence[Floats] | None = None,
    references: Sequence[Positions] | None = None,
) -> list[ItemScore]:
    """Scores of the items that count; ``inputs``, ``references`` stand in place of their own."""
    inputs = inputs or [item.inputs for item in items]
    references = references or [item.references for item in items]
    found = zip(items, network_outputs(network, inputs, references), strict=True)
    scores = (task.score(item, output, reach) for item, output in found)
    return [one for one in scores if one is not None]


@torch.inference_mode()
def network_outputs(
    network: EDSR, inputs: Sequence[Floats], references: Sequence[Positions]
) -> list[Floats]:
    """The network's output for every input, ``[scale·h, scale·w, 3]``, not clamped.

    Raises:
        UserError: an output is not finite.
    """
    network.eval()
    device = next(network.parameters()).device
    outputs: list[Floats] = []
    # Hashing in evaluation draws at random: the same whatever was drawn before.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        try:
            step = _BATCH.get(device.type, _BATCH_ELSEWHERE)
            for start in range(0, len(inputs), step):
                batch = slice(start, start + step)
                told = torch.from_numpy(np.stack(references[batch]))
                network.set_references(told.to(device))
                found = network(to_tensor(np.stack(inputs[batch]), device)).permute(0, 2, 3, 1)
                if not found.isfinite().all():
                    height, width = inputs[start].shape[:2]
                    raise UserError(
                        f"the network's output is not finite on images of {height}x{width} pixels: "
                        "its attention may overflow there; see harness.check"
                    )
                outputs += list(found.float().cpu().numpy())
        finally:
            network.set_references(None)
    return outputs


def combined(task: SyntheticTask, scores: Sequence[ItemScore]) -> float:
    """The set's score, rounded as in records."""
    value = np.average([one.value for one in scores], weights=[one.weight for one in scores])
    return round(task.combine(float(value), _details(scores, 12)), 6)


def _details(scores: Sequence[ItemScore], digits: int = 6) -> dict[str, float]:
    weights = [one.weight for one in scores]
    return {
        key: round(float(np.average([one.details[key] for one in scores], weights=weights)), digits)
        for key in scores[0].details
    }


def _by_distance(scores: Sequence[ItemScore]) -> list[list[float]]:
    """Rows of distance, score and weight: see :class:`harness.records.shapes.Score`."""
    rows = []
    for distance in sorted({key for one in scores for key in one.by_distance}):
        found = [one.by_distance[distance] for one in scores if distance in one.by_distance]
        weight = sum(one[1] for one in found)
        value = sum(one[0] * one[1] for one in found) / weight
        rows.append([distance, round(value, 6), weight])
    return rows
