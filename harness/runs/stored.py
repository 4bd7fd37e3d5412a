"""The task that stored weights learned."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.files import read_json
from ..network.weights import TrainedNetwork
from ..records.shapes import UNSET, Run
from ..records.store import load_record, record_path
from ..tasks.base import SyntheticTask
from ..tasks.registry import find_task


@dataclass(frozen=True)
class StoredTask:
    """A task as a run's configuration names it.

    Attributes:
        name: of the task.
        options: all of them with their values.
        sha256: digest of its first images when the run was made.
    """

    name: str
    options: dict[str, Any]
    sha256: str | None = None

    def build(self) -> SyntheticTask:
        """The task; a line on standard error warns if it now draws other images.

        Raises:
            UserError: there is no such task any more, or it refuses the options.
        """
        cls = find_task(self.name)
        if not issubclass(cls, SyntheticTask):
            raise UserError(f"weights of task {self.name} are evaluated by harness.run alone")
        try:
            task = cls(**self.options)
        except TypeError as error:
            raise UserError(
                f"task {self.name} has other options than when the weights were trained ({error}): "
                "name it and its options with --task"
            ) from error
        if self.sha256 and task.sha256 != self.sha256:
            print(
                f"warning: task {self.name} draws other images than when the weights were trained",
                file=sys.stderr,
            )
        return task


def task_of(trained: TrainedNetwork, weights: Path, results: Path) -> StoredTask | None:
    """The task of stored weights; None for super-resolution of bicubic LR images.

    The run's record says it, else the ``config.json`` beside the weights.

    Args:
        trained: what the weight file holds; its name is the run's id.
        weights: the file.
        results: folder of the records.

    Raises:
        UserError: neither is there, and the network has a single module as in synthetic tasks; or
            a file is damaged.
    """
    path = weights.parent / "config.json"
    if record_path(results, Run, trained.name).exists():
        config = load_record(results, Run, trained.name).config
        if config.task is UNSET:
            return None
        sha256 = None if config.data.train_sha256 is UNSET else config.data.train_sha256
        return StoredTask(config.task.name, config.task.options, sha256)
    if path.exists():
        content = read_json(path)
        try:
            task = content["config"].get("task")
            sha256 = content["config"]["data"]["train_sha256"]
            return StoredTask(task["name"], dict(task["options"]), sha256) if task else None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} does not say which task the run learned: {error!r}") from error
    if len(trained.architecture.positions or ()) == 1:  # networks for images have several modules
        raise UserError(
            f"{trained.name} has neither a record under {results} nor a config.json beside its "
            "weights: name the task it learned with --task"
        )
    return None
