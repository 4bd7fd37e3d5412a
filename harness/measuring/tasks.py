"""Scores of a network in a synthetic task, and of the controls that need no training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch

from attention_zoo.mean import mean_of

from ..base.errors import UserError
from ..network.edsr import EDSR, to_tensor
from ..records.shapes import ItemScore, Score
from ..tasks.base import Floats, Item, SyntheticTask
from ..tasks.base import ItemScore as Scored

#: Images in one forward.
_BATCH = 8


def score(
    network: EDSR, task: SyntheticTask, test_set: str, reach: int, *, validation: bool = False
) -> Score:
    """Score of the network as trained, with its attention replaced, and on deleted inputs.

    Args:
        network: on any device; it stays in evaluation mode.
        task: whose images it is tested on.
        test_set: one of ``task.test_sets``.
        reach: of the backbone's convolutions in input pixels.
        validation: score validation images of this set instead.

    Something in the set must lie beyond ``reach``: see :func:`check_reach`.
    """
    network.eval()
    items = list(task.items(test_set, validation=validation))
    trained = _scored(network, task, items, reach)
    as_mean = None
    if network.attention_modules:
        as_mean = _combined(task, _scored(network, task, items, reach, as_mean=True))
    rows = [
        ItemScore(name=name, score=round(found.score, 6), weight=found.weight)
        for name, found in trained.items()
    ]
    details = next(iter(trained.values())).details
    return Score(
        metric=task.metric,
        score=_combined(task, trained),
        floor=task.floor,
        ceiling=task.ceiling,
        as_mean=as_mean,
        deleted=_combined(task, _scored(network, task, items, reach, deleted=True)),
        details={key: _mean(trained, key) for key in details},
        images=rows,
    )


def check_reach(task: SyntheticTask, reach: int) -> None:
    """Check that every test set has something that the backbone's convolutions cannot see.

    Raises:
        UserError: a test set has nothing beyond ``reach``.
    """
    for name, validation in [*((n, False) for n in task.test_sets), (task.validation_set, True)]:
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
    as_mean: bool = False,
    deleted: bool = False,
) -> dict[str, Scored]:
    """Scores by item, of those that count."""
    with attention_as_mean(network) if as_mean else nullcontext():
        outputs = _outputs(network, items, deleted)
    found = zip(items, outputs, strict=True)
    scores = {item.name: task.score(item, output, reach) for item, output in found}
    return {name: one for name, one in scores.items() if one is not None}


@torch.inference_mode()
def _outputs(network: EDSR, items: Sequence[Item], deleted: bool) -> list[Floats]:
    """The network's output for every item, ``[scale·h, scale·w, 3]``, not clamped."""
    device = next(network.parameters()).device
    outputs: list[Floats] = []
    try:
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            inputs = np.stack([item.deleted if deleted else item.inputs for item in batch])
            references = np.stack([item.references for item in batch])
            network.set_references(torch.from_numpy(references).to(device))
            found = network(to_tensor(inputs, device)).permute(0, 2, 3, 1)
            outputs += list(found.float().cpu().numpy())
    finally:
        network.set_references(None)
    return outputs


def _combined(task: SyntheticTask, scores: dict[str, Scored]) -> float:
    """The set's score, rounded as in records."""
    return round(task.combine(list(scores.values())), 6)


def _mean(scores: dict[str, Scored], detail: str) -> float:
    """Weighted mean of a detail, rounded as in records."""
    values = [one.details[detail] for one in scores.values()]
    return round(float(np.average(values, weights=[one.weight for one in scores.values()])), 6)
