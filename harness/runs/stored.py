"""Stored networks, and the tasks that they learned."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import UserError
from ..base.files import read_json
from ..config.network import quarters
from ..config.run import LEAST_TILE
from ..images.sources import DataSource
from ..measuring.references import refuse_oracle
from ..network.weights import TrainedNetwork, find_weights, load_weights
from ..records.shapes import UNSET, Run
from ..records.store import find_record, load_record
from ..tasks.base import SyntheticTask, Task
from ..tasks.images import ImageTask
from ..tasks.options import build
from ..tasks.registry import DEFAULT, find_task


@dataclass(frozen=True)
class StoredTask:
    """A task as a run's configuration names it, or a command.

    Attributes:
        name: of the task.
        options: all of them with their values.
        sha256: digest of the training images when the run was made.
    """

    name: str
    options: dict[str, Any]
    sha256: str | None = None

    @property
    def label(self) -> str:
        """Name and options, e.g. ``denoise (sigma 25)``."""
        return described(self.name, self.options)

    def build(self) -> SyntheticTask:
        """The synthetic task; a line on standard error warns if it now draws other images.

        Raises:
            UserError: there is no such task any more, or it refuses the options.
        """
        cls = find_task(self.name)
        assert issubclass(cls, SyntheticTask)
        self._check_options(cls)
        task = build(cls, self.options)
        if self.sha256 and task.sha256 != self.sha256:
            print(
                f"warning: task {self.name} draws other images than when the weights were trained",
                file=sys.stderr,
            )
        return task

    def build_on(self, source: DataSource | None, scale: int) -> ImageTask:
        """The task on the source's images, or without any.

        Raises:
            UserError: there is no such task any more, or it refuses the options.
        """
        cls = find_task(self.name)
        assert issubclass(cls, ImageTask)
        self._check_options(cls)
        return cls(None, source, scale, **self.options)

    def _check_options(self, cls: type[Task]) -> None:
        if gone := self.options.keys() - cls.options().keys():
            raise UserError(
                f"task {self.name} has other options than when the weights were trained (no "
                f"{', '.join(sorted(gone))}): name it and its options with --task"
            )


def described(name: str, options: Mapping[str, Any]) -> str:
    """A task with its options, e.g. ``denoise (sigma 25)``."""
    shown = (f"{o} {v:g}" if isinstance(v, float) else f"{o} {v}" for o, v in options.items())
    return f"{name} ({', '.join(shown)})"


def task_of(
    trained: TrainedNetwork,
    weights: Path,
    results: Path,
    advice: str = "name the task it learned with --task",
) -> StoredTask | None:
    """The task of stored weights; None for super-resolution from bicubic LR images.

    The run's record says it, else the ``config.json`` beside the weights.

    Args:
        trained: what the weight file holds; its name is the run's id.
        weights: the file.
        results: folder of the records.
        advice: end of the message if nothing says which task it was.

    Raises:
        UserError: neither is there, and the network is one of another task; or a file is damaged.
    """
    path = weights.parent / "config.json"
    if find_record(results, Run, trained.name).exists():
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
    if _of_another_task(trained):
        raise UserError(
            f"{trained.name} is of another task than bicubic super-resolution, and has neither a "
            f"record under {results} nor a config.json beside its weights: {advice}"
        )
    return None


def tile_of(trained: TrainedNetwork, weights: Path, results: Path) -> int | None:
    """Side of the tiles in which the run was evaluated; None for whole images, or if nothing says.

    Args:
        trained, weights, results: as for :func:`task_of`.

    Raises:
        UserError: a file is damaged.
    """
    path = weights.parent / "config.json"
    tile: Any = None
    if find_record(results, Run, trained.name).exists():
        tile = load_record(results, Run, trained.name).config.tile
    elif path.exists():
        content = read_json(path)
        try:
            tile = content["config"].get("tile")
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not say how the run was evaluated: {error!r}") from error
    return tile if type(tile) is int and tile >= LEAST_TILE else None


def _of_another_task(trained: TrainedNetwork) -> bool:
    """Whether the network alone shows that it learned another task than bicubic super-resolution.

    Its scale is 1, or its file names the modules' positions as a run of another task does: the
    usual ones on image files, the middle in a synthetic task.
    """
    architecture = trained.architecture
    blocks = architecture.network.blocks
    return architecture.scale == 1 or architecture.positions in (quarters(blocks), (blocks // 2,))


def load_sr(path: Path, results: Path, command: str) -> TrainedNetwork:
    """A network of bicubic super-resolution, in evaluation mode on the CPU.

    Args:
        path: its weight file.
        results: folder of the records.
        command: what needs it, for the message.

    Raises:
        UserError: it learned another task, the file cannot be loaded, or its record is damaged.
    """
    trained = load_weights(path)
    takes = f"{command} takes networks of super-resolution from bicubic LR images"
    if learned := task_of(trained, path, results, takes):
        raise UserError(f"{trained.name} learned task {learned.label}: {takes}")
    refuse_oracle(trained.network, trained.name, command)
    return trained


def load_networks(names: Sequence[str], results: Path, command: str) -> list[TrainedNetwork]:
    """Networks of super-resolution of one scale, each once, in evaluation mode on the CPU.

    Args:
        names: of option ``--runs``; see :func:`.weights.find_weights`.
        results: folder that holds runs/.
        command: what needs them, for the message.

    Raises:
        UserError: no names, as :func:`load_sr`, or networks of different scales.
    """
    networks = [load_sr(path, results, command) for path in _paths(names, results)]
    _check_scales(networks)
    return networks


def load_of_images(
    names: Sequence[str], results: Path, command: str
) -> tuple[list[TrainedNetwork], StoredTask | None]:
    """As :func:`load_networks`, of any one task on images; with the task, None for bicubic SR.

    Raises:
        UserError: as :func:`load_networks`, or runs of different or of synthetic tasks.
    """
    takes = f"{command} takes networks of tasks on images"
    networks, learned = [], {}
    for path in _paths(names, results):
        trained = load_weights(path)
        task = task_of(trained, path, results, takes)
        if task and not issubclass(find_task(task.name), ImageTask):
            raise UserError(f"{trained.name} learned task {task.label}: {takes}")
        refuse_oracle(trained.network, trained.name, command)
        networks.append(trained)
        learned[trained.name] = task
    _check_scales(networks)
    labels = {name: task.label if task else DEFAULT for name, task in learned.items()}
    if len({*labels.values()}) > 1:
        found = ", ".join(f"{name} {label}" for name, label in labels.items())
        raise UserError(f"the runs learned different tasks ({found}): give runs of one")
    return networks, learned[networks[0].name]


def _paths(names: Sequence[str], results: Path) -> list[Path]:
    """Weight files of option ``--runs``, each once."""
    if not names:
        raise UserError("--runs needs at least one run")
    return [find_weights(name, results) for name in dict.fromkeys(names)]


def _check_scales(networks: Sequence[TrainedNetwork]) -> None:
    scales = {network.name: network.architecture.scale for network in networks}
    if len({*scales.values()}) > 1:
        found = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise UserError(f"the runs are of different scales ({found}): give runs of one")
