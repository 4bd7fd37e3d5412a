"""A run killed at any moment and started again ends like one that nothing disturbed.

``SURVIVAL_KILLS=200 pytest -m slow -s -k random tests/harness/test_survival.py`` is the longer
campaign.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import run
from harness.config import StartConfig
from harness.data import find_data
from tests.harness.conftest import write_image
from tests.harness.survival import command, differences, outcome
from tests.harness.tiny import make_config

#: Kills of the campaign with real processes.
KILLS = int(os.environ.get("SURVIVAL_KILLS", "25"))

# -- before every single change of the file system ------------------------------------------------

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.truncate"}


def _run(images: Path, results: Path) -> None:
    """ENLCA on from a baseline: two runs, the second begins with the weights of the first."""
    source = find_data(images)
    cache = source.training_images(4)
    options = {"m": 4, "redraw_every": 2}
    start = StartConfig(2, 1e-3, "halving")
    values = {"protocol": "warm-start", "start": start, "steps": 4, "steps_per_epoch": 3}
    config = make_config("enlca", options, **values)
    for one in (config.baseline, config):
        run.run(one, source, cache, results, torch.device("cpu"), "test", save_every=0)


def _in_child(images: Path, results: Path, kill_at: int | None = None) -> int:
    """Run in a forked process; its wait status.

    It kills itself with SIGKILL before the ``kill_at``-th change that it makes under ``results``;
    without one it writes the number of changes to ``results/../changes``.
    """
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        os.dup2(os.open(results.parent / "output", os.O_WRONLY | os.O_CREAT), 1)
        os.dup2(1, 2)
        changes = 0

        def count() -> None:
            nonlocal changes
            if changes == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            changes += 1

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and arguments[2] and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in _CHANGES) and str(arguments[0]).startswith(str(results)):
                count()

        sync = os.fsync

        def counted_sync(descriptor: int) -> None:
            count()
            sync(descriptor)

        os.fsync = counted_sync
        sys.addaudithook(hook)
        _run(images, results)
        (results.parent / "changes").write_text(str(changes))
        status = 0
    finally:
        os._exit(status)


@pytest.fixture
def undisturbed(image_folder: Path, tmp_path: Path) -> tuple[int, dict[str, Any]]:
    """Changes of the file system that a run makes, and how it ends."""
    results = tmp_path / "undisturbed" / "results"
    results.parent.mkdir()
    find_data(image_folder).training_images(4)  # the cache is there
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # what it imports, children inherit
    assert _in_child(image_folder, results) == 0, (results.parent / "output").read_text()
    return int((results.parent / "changes").read_text()), outcome(results)


def _survives(images: Path, folder: Path, points: range, expected: dict[str, Any]) -> int:
    for point in points:
        results = folder / str(point) / "results"
        results.parent.mkdir()
        assert _in_child(images, results, point) == signal.SIGKILL
        assert _in_child(images, results) == 0, (results.parent / "output").read_text()
        assert not differences(outcome(results), expected), f"killed before change {point}"
    return len(points)


def test_killed_before_some_changes_of_the_file_system(
    image_folder: Path, tmp_path: Path, undisturbed: tuple[int, dict[str, Any]]
) -> None:
    changes, expected = undisturbed
    assert _survives(image_folder, tmp_path, range(3, changes, changes // 4), expected) >= 4


@pytest.mark.slow
def test_killed_before_every_change_of_the_file_system(
    image_folder: Path, tmp_path: Path, undisturbed: tuple[int, dict[str, Any]]
) -> None:
    changes, expected = undisturbed
    print(f"{_survives(image_folder, tmp_path, range(changes), expected)} points survived")


# -- at random moments ----------------------------------------------------------------------------


@pytest.fixture
def more_images(tmp_path: Path) -> Path:
    """Enough test images that an evaluation takes as long as a training of some steps."""
    folder = tmp_path / "images"
    for i in range(3):
        write_image(folder / "train" / "Some" / f"t{i}.png", 64, 72, i)
    for i in range(12):
        write_image(folder / "Tiny" / "HR" / f"e{i}.png", 192, 240, 10 + i)
    return folder


@pytest.mark.slow
def test_killed_at_random_moments(more_images: Path, tmp_path: Path) -> None:
    """Real processes, from their start on: imports, training, saving, evaluation, counting."""
    seed = int(os.environ.get("SURVIVAL_SEED", "0"))
    chance = random.Random(seed)
    values = {"steps": 60, "save_every": 0}
    start = time.monotonic()
    _finish(command(more_images, tmp_path / "whole", **values))
    duration = time.monotonic() - start
    expected = outcome(tmp_path / "whole")
    kills = runs = 0
    phases: dict[str, int] = {}
    while kills < KILLS:
        results = tmp_path / f"killed-{runs}"
        words = command(more_images, results, **values)
        while _phase(results) != "done" and kills < KILLS:
            process = subprocess.Popen(
                words,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=_environment(),
            )
            try:
                _, told = process.communicate(timeout=chance.uniform(0, duration))
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
                phase = _phase(results)
                phases[phase] = phases.get(phase, 0) + 1
            else:
                assert process.returncode == 0, told
        _finish(words)
        assert not differences(outcome(results), expected), f"run {runs} of seed {seed}"
        runs += 1
        print(f"{kills} kills in {runs} runs, all ended with the same bits; killed: {phases}")


def _environment() -> dict[str, str]:
    """Somebody may commit while this goes on, and records hold the commit: git finds none here."""
    return os.environ | {"GIT_DIR": os.devnull}


def _finish(words: list[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, env=_environment())


def _phase(results: Path) -> str:
    """How far a killed run had come, by its files."""
    if list(results.glob("records/costs/*.json")):
        return "done"
    if list(results.glob("records/runs/*.json")):
        return "counting"
    if list(results.glob("runs/*/weights.safetensors")):
        return "evaluating"
    if list(results.glob("runs/*/state-*.safetensors")):
        return "training"
    return "starting"
