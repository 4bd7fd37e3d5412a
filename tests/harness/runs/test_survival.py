"""A run killed at any moment and started again ends like one that nothing disturbed.

``SURVIVAL_KILLS=200 pytest -m slow -s -k random tests/harness/runs/test_survival.py`` is the longer
campaign; ``SURVIVAL_SEED=1`` gives another one.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.run import StartConfig
from harness.images.sources import find_data
from harness.measuring.quality import bicubic_quality
from harness.runs import run
from harness.tasks.sr import SuperResolution
from tests.harness import killable, survival
from tests.harness.conftest import write_image
from tests.harness.killable import PHASES, watch_changes
from tests.harness.survival import differences, outcome
from tests.harness.tiny import make_config

pytestmark = pytest.mark.usefixtures("one_thread")

#: Kills of the campaign with real processes.
KILLS = int(os.environ.get("SURVIVAL_KILLS", "26"))

# -- before every single change of the file system ------------------------------------------------


def _run(images: Path, results: Path) -> None:
    """ENLCA on from a baseline: two runs, the second begins with the weights of the first."""
    source = find_data(images)
    cache = source.training_images(4)
    options = {"m": 4, "redraw_every": 2}
    start = StartConfig(2, 1e-3, "halving")
    values = {"protocol": "warm-start", "start": start, "steps": 4, "steps_per_epoch": 3}
    config = make_config("enlca", options, **values)
    for one in (config.baseline, config):
        run.run(
            one, SuperResolution(cache, source), results, torch.device("cpu"), "test", save_every=0
        )


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

        watch_changes(results, count)
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
    # The caches are there.
    source = find_data(image_folder)
    source.training_images(4)
    for image in source.test_set("Tiny", 4):
        bicubic_quality(image, 4)
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
    for i in range(4):
        write_image(folder / "Tiny" / "HR" / f"e{i}.png", 192, 240, 10 + i)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("redraw_every", [0, 2])
def test_killed_at_random_moments(redraw_every: int, more_images: Path, tmp_path: Path) -> None:
    """Real processes, killed at any time and right before changes of files.

    Projections are redrawn every epoch, and in one of the two campaigns every second forward too.
    """
    chance = random.Random(f"{os.environ.get('SURVIVAL_SEED', '0')} {redraw_every}")

    def words(folder: Path) -> list[str]:
        values = {"steps": 16, "save_every": 0, "redraw_every": redraw_every}
        return survival.words(more_images, folder / "results", **values)

    whole = tmp_path / "whole"
    assert killable.start(whole, words(whole)).wait() == 0, (whole / "told").read_text()
    measured = json.loads((whole / "measured.json").read_text())
    expected = outcome(whole / "results")
    kills: Counter[str] = Counter()
    before_changes, of_forked, runs, wrong, ended = 0, 0, 0, [], True
    while kills.total() < KILLS / 2 or not ended:
        if ended:
            runs += 1
            folder = tmp_path / f"killed-{runs}"
        phase = chance.choice(PHASES)
        changes, seconds = measured["changes"][phase], measured["seconds"][phase]
        at_change = changes > 0 and chance.random() < 0.5
        # The first seconds of a process are the same each time: most are spared them.
        forked = phase != "importing" and chance.random() < 0.9
        change = -1
        if at_change:  # rather one of the first: what is resumed makes fewer of them
            change = int(changes * chance.random() ** 2)
        if kills.total() >= KILLS / 2:
            process = killable.start(folder, words(folder), forked=forked)
        elif at_change:
            process = killable.start(folder, words(folder), phase, change, forked=forked)
        else:
            process = killable.start(folder, words(folder), forked=forked)
            killable.send(process, folder, phase, chance.uniform(0, seconds), signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL), (folder / "told").read_text()
        ended = process.returncode == 0
        if not ended:
            kills[killable.phase_of(folder)] += 1
            before_changes += at_change
            of_forked += forked
            print(".", end="", flush=True)
            continue
        wrong += [f"run {runs} {x}" for x in differences(outcome(folder / "results"), expected)]
        shutil.rmtree(folder)
        told = f"{kills.total()} kills ({before_changes} right before changes of files, "
        told += f"{of_forked} of forked processes) and as many resumes in {runs} runs, "
        told += f"{len(wrong)} differences to the undisturbed run; killed while {dict(kills)}"
        print(f"\nredraw_every {redraw_every}: {told}", flush=True)
    assert not wrong
