"""``harness.evaluate`` with weights that were trained on a synthetic task."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.measuring.tasks import score
from harness.network.weights import Architecture, load_weights, save_weights
from harness.records.shapes import Run, untyped
from harness.records.store import load_records
from harness.tasks import recall
from harness.tasks.recall import Recall
from tests.harness.conftest import Cli, copied, train

TINY = ["--channels", "8", "--steps", "2", "--batch", "2"]
OWN_TASK = """
from harness.tasks.recall import Recall

class Mine(Recall):
    def __init__(self, *, word: int = 2):
        super().__init__(pairs=word)
        self.word = word
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two runs of recall with three pairs: an oracle and the baseline."""
    results = tmp_path_factory.mktemp("trained[") / "x]"  # no markup, though printed
    train(results, f"--task recall --pairs 3 --attn oracle none {' '.join(TINY)}")
    return results


@pytest.fixture
def results(trained: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return copied(trained, tmp_path)


def evaluated(
    cli: Cli, results: Path, line: str, run: str = "oracle"
) -> tuple[dict[str, Any], str]:
    """The file that a command writes, and what it prints."""
    path = results / "out.json"
    printed = cli(f"evaluate --weights {run} {line}", "--results", results, "--output", path).out
    return json.loads(path.read_text()), printed


@pytest.mark.parametrize("source", ["the record", "config.json"])
def test_without_a_task_it_is_the_runs_own_with_the_same_scores(
    source: str, cli: Cli, results: Path
) -> None:
    for record in load_records(results, Run):
        if source == "config.json":
            (results / "records" / "runs" / f"{record.id}.json").unlink()
        else:
            (results / "runs" / record.id / "config.json").unlink()
        found, printed = evaluated(cli, results, "", record.id)
        assert found["scores"] == {name: untyped(one) for name, one in record.scores.items()}
        assert found["task"]["options"] == Recall(pairs=3).settings
        assert found["trained_on"] == {"name": "recall", "options": Recall(pairs=3).settings}
        assert ("all references" in printed) == (record.variant.name == "oracle")
        assert f"{record.scores['n12'].deleted:.3f}" in printed
        last = record.scores["n24"].by_distance[-1]
        assert f"{last[0]} pixels" in printed
        assert f"{last[1]:.3f}" in printed


def test_another_task_is_what_the_command_says(cli: Cli, trained: Path) -> None:
    found, printed = evaluated(
        cli, trained, "--task recall --pairs 16 --cells 5 --key-noise 0.1 --test-sets n10 n10"
    )
    task = Recall(pairs=16, cells=5, key_noise=0.1)
    (path,) = (trained / "runs").glob("oracle*/weights.safetensors")
    network = load_weights(path)
    reach = network.architecture.network.reach
    assert found["scores"] == {"n10": untyped(score(network.network, task, "n10", reach))}
    assert found["task"] == {"name": "recall", "options": task.settings, "sha256": task.sha256}
    assert found["trained_on"]["options"] == Recall(pairs=3).settings
    assert "pairs 16, cells 5" in " ".join(printed.split())


def test_the_locality_control_counts_near_queries(cli: Cli, trained: Path) -> None:
    found, _ = evaluated(
        cli, trained, "--task recall --most-distance 1 --test-sets n12", "baseline"
    )
    weights = [row[2] for row in found["scores"]["n12"]["by_distance"]]
    assert [row[0] for row in found["scores"]["n12"]["by_distance"]] == [8]
    assert found["scores"]["n12"]["weight"] == sum(weights)


def test_weights_alone_need_a_task(cli: Cli, trained: Path, tmp_path: Path) -> None:
    (weights,) = (trained / "runs").glob("oracle*/weights.safetensors")
    path = shutil.copy(weights, tmp_path / "oracle.safetensors")
    line = cli.refused(f"evaluate --weights {path}", "--results", tmp_path)
    assert "neither a record under" in line
    assert line.endswith("name the task it learned with --task")
    cli(f"evaluate --weights {path} --task recall --test-sets n6", "--results", tmp_path)


def test_a_task_that_draws_other_images_now_warns(
    cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("evaluate --weights oracle --test-sets n6", "--results", trained)
    assert not cli(*words).err
    monkeypatch.setattr(recall, "CONTRAST", 0.3)
    (line,) = cli(*words).err.splitlines()
    assert line == "warning: task recall draws other images than when the weights were trained"


def test_a_users_task_whose_options_changed(cli: Cli, import_folder: Path, tmp_path: Path) -> None:
    path = import_folder / "own_task.py"
    path.write_text(OWN_TASK)
    cli("run --task own_task:Mine --word 3 --attn none", *TINY, "--results", tmp_path)
    found, _ = evaluated(cli, tmp_path, "--test-sets n6", "baseline")
    assert found["task"]["options"] == {"word": 3}
    del sys.modules["own_task"]
    path.write_text(OWN_TASK.replace("word", "pages"))
    line = cli.refused("evaluate --weights baseline", "--results", tmp_path)
    assert "task own_task:Mine has other options than when the weights were trained" in line


def test_mistakes_are_one_line(cli: Cli, results: Path) -> None:
    architecture = Architecture(Variant("none"), NetworkConfig(4, 8), 4)
    sr = results / "x4.safetensors"
    save_weights(sr, architecture.build(), architecture, "sr-x4")
    for line, message in [
        (
            f"--weights {sr} --task recall",
            "x4 has scale 4, but task recall has scale 2: give",
        ),
        ("--weights oracle --test-sets n7", "task recall has no test set n7: choose from n6, n12"),
        ("--weights oracle --tile 32", "--tile applies only to tasks on images"),
        ("--weights oracle --chop", "--chop applies only to super-resolution"),
        ("--weights oracle --task recall --data x", "--data applies only to tasks on images"),
        ("--weights oracle --task recall --cells 3", "nothing in n3 of task recall lies beyond"),
        ("--weights oracle --task recal", "did you mean recall?"),
        ("--weights oracle --pairs 3", "--pairs is an option of recall: name the task with --task"),
        ("--weights oracle --noise 3", "--noise is an option of sr, phase, stack: name the task"),
        ("--weights oracle --oops 3", "unknown option --oops"),
        ("--weights oracle --task recall --pairs 99", "99 references leave no query"),
    ]:
        assert message in cli.refused(f"evaluate {line}", "--results", results)
    (config,) = (results / "runs").glob("oracle*/config.json")
    (results / "records" / "runs" / f"{config.parent.name}.json").unlink()
    for text in ("[]", '{"config": {}}', '{"config": {"data": {"train_sha256": ""}, "task": 1}}'):
        config.write_text(text)
        line = cli.refused("evaluate --weights oracle", "--results", results)
        assert "config.json does not say which task the run learned" in line
