"""Tasks on the command line: options, records, tables, and runs that are resumed."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attention_zoo import find_attention, list_attentions
from harness import figures, run, tables
from harness.base.errors import UserError
from harness.base.signals import Stopped
from harness.config.options import own_options, parse
from harness.config.run import TaskConfig
from harness.network.weights import load_weights
from harness.records.shapes import UNSET, Run, untyped
from harness.records.store import load_records
from harness.reporting.report.page import write_report
from harness.runs.options import RunOptions as Options
from harness.tasks.options import create_task, options_with_task, weighted
from harness.tasks.recall import Recall
from harness.tasks.registry import find_task, tasks
from harness.tasks.sr import SuperResolution
from harness.training.trainer import Trainer
from tests.harness.survival import differences, outcome
from tests.harness.tiny import make_config

TINY = ["--channels", "8", "--steps", "3", "--batch", "2"]
MINE = """
from harness.tasks.recall import Recall

class Mine(Recall):
    def __init__(self, *, pairs: int = 2, cells: int = 6, word: str = "a"):
        super().__init__(pairs=pairs, cells=cells)
        self.word = word
"""
MODULE = """
from attention_zoo.conv import Conv

class Mine(Conv):
    def __init__(self, channels, *, pairs: int = 1):
        super().__init__(channels)
"""

Main = Callable[..., int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Main:
    """Run ``harness.run``; gives its exit status."""

    def called(*words: str | Path) -> int:
        results = [] if "--results" in words else ["--results", tmp_path]
        monkeypatch.setattr(sys, "argv", [str(w) for w in ("harness.run", *words, *results)])
        try:
            run.main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    return called


def chosen(*words: str) -> Any:
    found, task = options_with_task(Options, words)
    options, _ = parse(found, words, "harness.run")
    return create_task(task, options, words)


def test_the_tasks_and_their_options() -> None:
    assert list(tasks()) == ["sr", "denoise", "phase", "recall", "stack"]
    assert find_task("sr") is SuperResolution
    task = chosen("--task=recall", "--pairs", "16", "--blanks", "0.25")
    assert task.settings == Recall(pairs=16, blanks=0.25).settings
    assert (task.label, task.test_sets) == ("recall-d16-n6-b0.25", ["n6", "n12", "n24"])


def test_no_option_of_a_task_is_one_of_the_command_or_of_a_module() -> None:
    taken = {*own_options(Options)}
    for name in list_attentions(installed=False):
        taken |= find_attention(name).options().keys()
    for task in tasks().values():
        assert not taken & task.options().keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--task", "recal"],
            "unknown task 'recal': choose from sr, denoise, phase, recall, .* did you mean rec",
        ),
        (
            ["--pairs", "4"],
            r"task sr has no option --pairs \(an option of recall\): it takes --degradation, --n",
        ),
        (["--task", "recall", "--paris", "4"], "unknown option --paris"),
        (["--task", "recall", "--m", "4", "--attn", "nla"], "nla has no option --m"),
        (["--task", "recall", "--data", "x"], "--data applies only to --task sr or denoise"),
        (["--task", "recall", "--scale", "2"], "--scale applies only to --task sr"),
        (["--task", "recall", "--skip-training"], "--skip-training applies only to --task sr"),
        (["--task", "recall", "--pairs", "36"], "36 references leave no query"),
        (
            ["--task", "recall", "--cells", "4000"],
            "scoring n16000 of task recall needs about 9,175 GB of memory, .* lower --cells",
        ),
        (["--task", "stack", "--cells", "60"], "scoring n240 of task stack needs about "),
        (["--task", "phase", "--cells", "300"], "scoring n1200 of task phase needs about "),
        (["--task", "recall", "--preset", "base"], "task recall has no preset 'base': choose from"),
        (["--task", "recall", "--blocks", "4"], "nothing in n6 of task recall .* lower --blocks"),
        (["--task", "recall", "--blocks", "0"], "blocks must be at least 1, got 0"),
        (["--task", "no_such:Task"], "cannot import 'no_such' for task 'no_such:Task'"),
        (["--task", "json:JSONDecoder"], "json:JSONDecoder is not a subclass of harness.tasks"),
        (["--task", "json:Nothing"], "module 'json' has no class 'Nothing'"),
        (["--task"], "--task needs a name: choose from sr, denoise, phase, recall, stack"),
    ],
)
def test_mistakes_are_one_line(
    main: Main, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(*words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line), line


def test_help_has_the_options_of_the_task(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("--task", "recall", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "--pairs" in text
    assert "keys with their values in each image" in text


def test_super_resolution_has_the_ids_that_it_had() -> None:
    """The id is published with records: a task that is not there changes nothing."""
    config = make_config("enlca", {"m": 16})
    assert "task" not in config.setting
    assert config.run_id == "enlca-m16-quick-x4-s0-12883a33d5ea"
    other = make_config(task=TaskConfig("recall", {"pairs": 4}, "mse", (1,)))
    assert other.run_id != make_config().run_id


def test_a_run_leaves_a_record_and_tables_of_its_own(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--task", "recall", "--pairs", "3", "--attn", "enlca", "none", "--m", "4", *TINY]
    assert main(*words) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("ENLCA-m4", "R²", "n24", "floor", "ceiling", "1.000"))

    second, first = load_records(tmp_path, Run)
    assert first.config.task is not UNSET
    assert (first.config.task.name, first.config.task.loss) == ("recall", "mse")
    assert first.config.task.options == Recall(pairs=3).settings
    assert [row[0] for row in first.training.curve] == [1, 2, 3]
    assert first.training.curve[-1][1] == first.validation.score  # type: ignore[union-attr]
    assert first.config.task.positions == [1]
    assert first.id.startswith("enlca-m4-recall-d3-n6-quick-x2-s0-")
    assert first.variant.options["res_scale"] == 1.0
    assert first.quality == {}
    assert [*first.scores] == ["n6", "n12", "n24"]
    assert first.scores["n6"].as_mean is not None
    assert second.scores["n6"].as_mean is None
    assert first.validation is not None
    network = load_weights(tmp_path / "runs" / first.id / "weights.safetensors").network
    assert [*network.attention] == ["1"]

    # Again: nothing is trained.
    monkeypatch.setattr("harness.runs.run.Trainer", None)
    assert main(*words) == 0
    monkeypatch.setattr(sys, "argv", ["harness.tables", "--results", str(tmp_path)])
    tables.main()
    paths = [*(tmp_path / "tables").rglob("*.csv")]
    assert {path.name for path in paths} == {"recall.csv"}  # D = 3 is no setting of the profile
    with paths[0].open() as file:
        rows = [*csv.DictReader(file)]
    assert [row["method"] for row in rows[::3]] == ["ENLCA-m4", "Baseline"]
    assert float(rows[1]["score"]) == pytest.approx(first.scores["n12"].score)
    page, _ = write_report(tmp_path)
    assert "Synthetic tasks" in page.read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["harness.figures", "--results", str(tmp_path)])
    with pytest.raises(SystemExit):  # no figure yet, in a line
        figures.main()
    assert "suffice for no figure" in capsys.readouterr().err


def test_res_scale_is_that_of_the_task_unless_given() -> None:
    task = Recall()

    def variants(*words: str) -> list[dict[str, Any]]:
        argv = ["--task", "recall", *words]
        found = parse(options_with_task(Options, argv)[0], argv, "harness.run")[1]
        return [dict(weighted(variant, task.res_scale, argv).options) for variant in found]

    assert variants("--attn", "nla", "criss-cross", "none") == [{"res_scale": 1.0}, {}, {}]
    assert variants("--attn", "nla", "--res-scale", "0.1") == [{}]
    assert variants("--attn", "nla", "--attn-res-scale", "0.5") == [{"res_scale": 0.5}]
    assert variants("--attn", "nla:res_scale=0.1", "nlsa") == [{}, {"res_scale": 1.0}]
    assert variants("--attn", "nla:res_scale=0.5", "nla") == [{"res_scale": s} for s in (0.5, 1.0)]


def _tables(results: Path) -> dict[Path, bytes]:
    paths = (results / "tables").rglob("*.*")
    return {path: path.read_bytes() for path in paths if path.parent.name != "notes"}


def test_tasks_mix_with_no_table_of_super_resolution(
    main: Main, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    tiny = ["--blocks", "4", "--patch", "8", *TINY, "--data", str(image_folder)]
    assert main("--attn", "none", "nla", *tiny, "--skip-latency") == 0
    monkeypatch.setattr(sys, "argv", ["harness.tables", "--results", str(tmp_path)])
    tables.main()
    before = _tables(tmp_path)
    assert main("--task", "recall", "--attn", "none", "nla", *TINY) == 0
    assert main("--task", "recall", "--pairs", "2", "--attn", "none", *TINY) == 0
    tables_before = len(before)
    monkeypatch.setattr(sys, "argv", ["harness.tables", "--results", str(tmp_path)])
    tables.main()
    after = _tables(tmp_path)
    assert before.items() <= after.items()
    stems = ("leaderboard", "profile", "profile-details", "profile-findings", "recall", "recall")
    names = [f"{stem}.{suffix}" for stem in stems for suffix in ("csv", "md")]
    assert sorted(p.name for p in after if p not in before) == sorted(names)
    assert len(after) == tables_before + len(names)


IMAGES = ["--blocks", "4", "--patch", "8", "--data"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "task",
    [
        ["--task", "recall"],
        ["--task", "denoise", *IMAGES],
        ["--degradation", "nearest", "--noise", "5", "--skip-latency", *IMAGES],
    ],
)
def test_a_stopped_run_ends_like_one_that_nothing_disturbed(
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    image_folder: Path,
    task: list[str],
) -> None:
    folder = [str(image_folder)] if task[-1] == "--data" else []
    words = [*task, *folder, "--attn", "enlca", "--m", "4", *TINY, "--save-every", "0"]
    assert main(*words, "--results", tmp_path / "whole") == 0
    step = Trainer.train_step

    def stop(trainer: Trainer) -> float:
        if trainer.step == 2:
            raise Stopped(15)
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stop)
    assert main(*words, "--results", tmp_path / "stopped") != 0
    assert not load_records(tmp_path / "stopped", Run)
    monkeypatch.setattr(Trainer, "train_step", step)
    assert main(*words, "--results", tmp_path / "stopped") == 0
    assert not differences(outcome(tmp_path / "stopped"), outcome(tmp_path / "whole"))


def test_a_users_own_task(main: Main, import_folder: Path, tmp_path: Path) -> None:
    (import_folder / "own_task.py").write_text(MINE)
    assert main("--task", "own_task:Mine", "--word", "b", "--attn", "none", *TINY) == 0
    (record,) = load_records(tmp_path, Run)
    assert record.config.task is not UNSET
    assert record.config.task.name == "own_task:Mine"
    assert record.config.task.options == {"pairs": 2, "cells": 6, "word": "b"}
    assert "own_task" in json.dumps(untyped(record))


def test_a_users_module_may_have_an_option_of_a_task(import_folder: Path) -> None:
    (import_folder / "own_module.py").write_text(MODULE)
    words = ["--attn", "own_module:Mine", "--pairs", "3"]
    found, _ = options_with_task(Options, words)
    (variant,) = parse(found, words, "harness.run")[1]
    assert variant.options == {"pairs": 3}


def test_an_option_of_a_users_task_that_the_command_has_is_refused(import_folder: Path) -> None:
    (import_folder / "own_task.py").write_text(MINE.replace("word", "steps"))
    with pytest.raises(UserError, match="rename the option steps of task own_task:Mine"):
        options_with_task(Options, ["--task", "own_task:Mine"])
