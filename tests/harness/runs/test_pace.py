"""Time left of a sweep, from the jobs that have finished."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from harness.config.variants import Variant
from harness.runs.jobs import Job
from harness.runs.pace import Pace
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
