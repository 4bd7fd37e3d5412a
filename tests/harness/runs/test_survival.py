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
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch

from harness.config.run import StartConfig
from harness.images.inputs import bicubic_quality
from harness.images.sources import find_data
from tests.harness import killable, survival
from tests.harness.conftest import write_images
from tests.harness.killable import PHASES, watch_changes
from tests.harness.survival import differences, outcome
from tests.harness.tiny import make_config, run_tiny

pytestmark = pytest.mark.usefixtures("one_thread")

#: Kills of the campaign with real processes.
KILLS = int(os.environ.get("SURVIVAL_KILLS", "26"))

# -- before every single change of the file system ------------------------------------------------


def _run(images: Path, results: Path) -> None:
    """ENLCA on from a baseline: two runs, the second begins with the weights of the first."""
    options = {"m": 4, "redraw_every": 2}
    start = StartConfig(2, 1e-3, "halving")
    values = {"protocol": "warm-start", "start": start, "steps": 4, "steps_per_epoch": 3}
    config = make_config("enlca", options, **values)
    for one in (config.baseline, config):
        run_tiny(one, images, results, save_every=0)


def _counted_run(images: Path, results: Path, kill_at: int | None) -> None:
    """Run; what it prints, and the number of its changes, go into the folder around ``results``."""
    with (results.parent / "output").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    changes = 0

    def count() -> None:
        nonlocal changes
        if changes == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        changes += 1

    watch_changes(results, count)
    _run(images, results)
    (results.parent / "changes").write_text(str(changes))


def _in_child(images: Path, results: Path, kill_at: int | None = None) -> int:
    """Run in a forked process; its exit status.

    It kills itself with SIGKILL before the ``kill_at``-th change that it makes under ``results``.
    """
    child = ForkProcess(target=_counted_run, args=(images, results, kill_at))
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


@pytest.mark.parametrize("points", [4, pytest.param(None, marks=pytest.mark.slow)])
def test_killed_before_changes_of_the_file_system(
    points: int | None, image_folder: Path, tmp_path: Path
) -> None:
    """Before some of them, and before every one."""
    results = tmp_path / "undisturbed" / "results"
    results.parent.mkdir()
    # The caches are there.
    source = find_data(image_folder)
    source.training_images(4)
    for image in source.test_set("Tiny", 4):
        bicubic_quality(image, 4)
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # what it imports, children inherit
    assert _in_child(image_folder, results) == 0, (results.parent / "output").read_text()
    changes, expected = int((results.parent / "changes").read_text()), outcome(results)
    chosen = range(3, changes, changes // points) if points else range(changes)
    assert len(chosen) >= 4
    for point in chosen:
        results = tmp_path / str(point) / "results"
        results.parent.mkdir()
        assert _in_child(image_folder, results, point) == -signal.SIGKILL
        assert _in_child(image_folder, results) == 0, (results.parent / "output").read_text()
        assert not differences(outcome(results), expected), f"killed before change {point}"
    print(f"{len(chosen)} points survived")


# -- at random moments ----------------------------------------------------------------------------


@pytest.fixture
def more_images(tmp_path: Path) -> Path:
    """Enough test images that an evaluation takes as long as a training of some steps."""
    return write_images(tmp_path / "images", tests=4, height=192, width=240)


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
        enough = kills.total() >= KILLS / 2
        place: tuple[str, int] | tuple[()] = ()
        if at_change and not enough:  # rather an early one: what is resumed makes fewer changes
            place = (phase, int(changes * chance.random() ** 2))
        process = killable.start(folder, words(folder), *place, forked=forked)
        if not place and not enough:
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
