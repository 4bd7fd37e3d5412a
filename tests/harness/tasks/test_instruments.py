"""Whether each synthetic task reads its floor and its ceiling: short trainings."""

from __future__ import annotations

import pytest

from harness.config.run import TaskConfig
from harness.config.variants import Variant
from harness.measuring.tasks import score
from harness.network.edsr import build_network
from harness.tasks.base import SyntheticTask
from harness.tasks.phase import Phase
from harness.tasks.recall import Recall
from harness.tasks.stack import Stack
from harness.training.trainer import Trainer
from tests.harness.tiny import make_config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "name", "steps", "low", "high"),
    [
        (Recall(), "none", 600, -0.05, 0.02),
        (Recall(), "oracle", 600, 0.95, 1),
        (Phase(), "none", 1000, -0.1, 0.02),
        (Phase(), "oracle", 1000, 0.6, 1),
        (Phase(), "nla", 3000, 0.3, 0.9),
        (Stack(), "none", 1500, -0.1, 0.02),
        (Stack(), "oracle", 1500, 0.85, 1),
        (Stack(), "nla", 3000, 0.3, 0.9),
    ],
)
def test_the_instrument_reads_floor_and_ceiling(
    task: SyntheticTask, name: str, steps: int, low: float, high: float
) -> None:
    """``none`` is at the floor, ``oracle`` near the ceiling, and exact attention learns to match.

    On validation images alone; without its references every row is at or below the floor.
    """
    preset = task.presets["quick"]
    options = {"res_scale": task.res_scale} if name != "none" else {}
    network = build_network(Variant(name, options), preset.network, task.scale, positions=(1,))
    config = make_config(
        name,
        scale=task.scale,
        steps=steps,
        batch=preset.batch,
        patch=task.patch,
        learning_rate=preset.learning_rate,
        task=TaskConfig(task.name, task.settings, task.loss, (1,)),
    )
    Trainer(config, network, task).train(name)
    for test_set in task.test_sets:
        found = score(network, task, test_set, preset.network.reach, validation=True)
        assert low <= found.score <= high, test_set
        assert found.deleted <= 0.02
        # Without matching: the mean over references has 1/D of recall, and nothing elsewhere.
        unmatched = 1 / task.pairs + 0.03 if isinstance(task, Recall) else 0.02
        for control in (found.as_mean, found.all_references):
            assert control is None or control <= unmatched
