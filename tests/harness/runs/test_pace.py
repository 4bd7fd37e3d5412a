"""Time left of a sweep, from the jobs that have finished."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.config.variants import Variant
from harness.runs.jobs import Job
from harness.runs.pace import Pace, step_of
from harness.tasks.recall import Recall
from tests.harness.tiny import make_config


def job(name: str, seed: int = 0, data: str = "images") -> Job:
    config = make_config(name, seed=seed)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, name=data))
    return Job(config, name, (), Path("nowhere"), Recall())


def test_a_job_takes_as_long_as_its_like() -> None:
    pace = Pace()
    assert pace.of(job("nla")) is None
    pace.add(job("nla"), 10.0)
    pace.add(job("nla", 1), 20.0)
    pace.add(job("none"), 6.0)
    assert pace.of(job("nla", 2)) == 15.0  # of the variant
    assert pace.of(job("enla")) == 12.0  # of the task
    assert pace.of(job("nla", data="others")) == 12.0  # of all
    assert job("nla").config.variant == Variant("nla")


@pytest.mark.parametrize(
    ("waiting", "running", "at_once", "seconds"),
    [
        (4, [], 1, 40.0),
        (4, [], 2, 20.0),
        (4, [], None, 10.0),
        (0, [4.0], 2, 6.0),
        (0, [25.0], 2, 0.0),  # it takes longer than the others did
        (2, [5.0, 5.0], 2, 15.0),
    ],
)
def test_time_left(waiting: int, running: list[float], at_once: int | None, seconds: float) -> None:
    pace = Pace()
    jobs = [job("nla", seed) for seed in range(waiting)]
    active = [(job("nla", 9), elapsed) for elapsed in running]
    assert pace.left(jobs, active, at_once) is None
    pace.add(job("nla"), 10.0)
    assert pace.left(jobs, active, at_once) == pytest.approx(seconds)


def test_before_any_has_finished_jobs_take_as_long_as_the_guess() -> None:
    pace = Pace()
    pace.guess = 30.0
    assert pace.left([job("nla")], [(job("nla", 1), 10.0)], 1) == 50.0
    pace.add(job("nla", 2), 10.0)
    assert pace.left([job("nla")], [(job("nla", 1), 10.0)], 1) == 10.0


HEAD = "[2026-01-01] python -m harness.run --attn nla\n"


@pytest.mark.parametrize(
    ("lines", "text", "seconds"),
    [
        ("NLA, seed 0: 0 of 8 steps\n", "0 of 8 steps", None),
        (
            "NLA: 0 of 8 steps\nNLA: 6 of 8 steps, 2.0 steps/s, 0:00:05 left, L1 0.25\n",
            "6 of 8 steps, 2.0 steps/s, 0:00:05 left",
            20.0,
        ),
        (
            "NLA: 500 of 1000 steps, 4.5 steps/h, 4 days, 15:00:00 left\n",
            "500 of 1000 steps, 4.5 steps/h, 4 days, 15:00:00 left",
            2 * (4 * 24 + 15) * 3600.0,
        ),
        # A second try goes on from a checkpoint, and says nothing yet.
        (f"NLA: 6 of 8 steps, 2.0 steps/s, 0:00:01 left\n{HEAD}", None, None),
    ],
)
def test_how_far_a_job_is(
    lines: str, text: str | None, seconds: float | None, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    assert step_of(log) is None
    log.write_text(HEAD + lines)
    found = step_of(log)
    assert (found and found.text, found and found.seconds) == (text, seconds)
