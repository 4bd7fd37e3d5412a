"""Every machine draws the images of the published runs, bit for bit."""

from __future__ import annotations

import json

import pytest

from harness.base.folders import PUBLISHED
from harness.config.profile import PROFILE, ProfileTask
from harness.tasks.base import SyntheticTask
from harness.tasks.registry import find_task


@pytest.mark.parametrize("setting", PROFILE, ids=lambda setting: setting.label)
def test_images_are_those_of_the_published_runs(setting: ProfileTask) -> None:
    task = find_task(setting.task)(**setting.options)
    assert isinstance(task, SyntheticTask)
    paths = (PUBLISHED / "records" / "runs").glob(f"nla-{task.label}-quick-*.json")
    digests = {json.loads(path.read_text())["config"]["data"]["train_sha256"] for path in paths}
    assert digests == {task.sha256}
