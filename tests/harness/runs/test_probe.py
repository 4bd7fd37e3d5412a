"""The capability profile: its trainings, what is chosen, and what a kill or a failure leaves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import probe
from harness import run as main_job
from harness.base import progress
from harness.base.errors import UserError
from harness.base.names import digest
from harness.config import profile
from harness.config.options import parse
from harness.config.profile import PROFILE, RATES, ProfileTask, best_rate, choose_settings
from harness.records.shapes import Run, untyped
from harness.records.store import load_records, record_path
from harness.reporting import profile as reporting_profile
from harness.reporting.profile import ProfileCell
from harness.reporting.tables import profile as profile_tables
from harness.runs import engines
from harness.runs import sweep as runs_sweep
from harness.runs.jobs import Job
from harness.runs.options import RunOptions, TrainingOptions, configure
from harness.runs.probe import Cell, Cells, find_cells
from harness.runs.run import run
from harness.tasks.options import create_task, options_with_task, weighted
from harness.tasks.recall import Recall
from tests.harness.conftest import Cli, until

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
#: Recall with a tiny network and few images, as a task of one's own.
TASK = """
import itertools
from harness.config.network import NetworkConfig
from harness.config.presets import Preset
from harness.tasks.recall import Recall

class Tiny(Recall):
    name = "tiny"
    presets = {"quick": Preset(
        network=NetworkConfig(blocks=2, channels=8), patch={2: 12}, batch=2, steps=STEPS,
        steps_per_epoch=2, learning_rate=2e-3, schedule="one-cycle", purpose="tests")}

    def __init__(self, *, pairs: int = 4) -> None:
        super().__init__(pairs=pairs)

    @property
    def test_sets(self):
        return ["n6", "n12"]

    def items(self, test_set, *, validation=False):
        return itertools.islice(super().items(test_set, validation=validation), 2)
"""
MODULE = """
import torch
from attention_zoo.conv import Conv

class Mine(Conv):
    label_format = "Mine"

    def __init__(self, channels, *, broken: bool = False):
        super().__init__(channels)
        self.broken = broken

    def forward(self, x):
        return super().forward(x) * (float("nan") if self.broken else 1.0)
"""
TINY = (
    ProfileTask("tiny D=4", "tiny_task:Tiny"),
    ProfileTask("tiny D=3", "tiny_task:Tiny", {"pairs": 3}),
)
RAISES = """
from torch import nn

class Raises(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        if x.device.type == "meta":
            return x
        raise ValueError("no such\\nkernel")
"""
QUIET = ["--skip-latency", "--workers", "1"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, import_folder: Path) -> None:
    """A profile of tiny trainings; jobs import this checkout, and what the test writes."""
    (import_folder / "tiny_task.py").write_text(TASK.replace("STEPS", "3"))
    (import_folder / "my_module.py").write_text(MODULE)
    for module in (profile, reporting_profile, profile_tables):
        monkeypatch.setattr(module, "PROFILE", TINY)
    monkeypatch.setattr(probe, "PUBLISHED", import_folder / "published")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(import_folder)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def cells_of(
    *words: str, settings: Sequence[ProfileTask] = TINY, results: Path = Path("results")
) -> list[Cell]:
    options, variants = parse(probe.Options, words, "harness.probe")
    training = TrainingOptions(results=results)
    return find_cells(variants, settings, options.seeds, training, CPU, words)


def jobs_of(cells: Sequence[Cell]) -> list[Job]:
    """The first seed's trainings, and those of the others at a rate."""
    return [job for cell in cells for job in (*cell.first, *cell.others(RATES[1]))]


# -- the trainings --------------------------------------------------------------------------


def typed_run(words: Sequence[str]) -> Any:
    """The configuration of the only run of ``python -m harness.run WORDS``."""
    found, task_class = options_with_task(RunOptions, words)
    options, (variant,) = parse(found, words, "harness.run")
    task = create_task(task_class, options, words)
    assert isinstance(task, Recall)
    (seed,) = options.seeds
    return configure(options, task, weighted(variant, task.res_scale, words), seed, CPU)


def test_a_training_is_the_run_that_a_user_types() -> None:
    """Records of harness.run and of the probe are one and the same."""
    (cell, _) = cells_of("--attn", "nla", settings=PROFILE[:2])
    words = "--task recall --pairs 4 --attn nla --learning-rate 0.002 --seeds 0 --threads 1"
    (job,) = [job for job in cell.first if job.config.learning_rate == 0.002]
    assert job.config == typed_run(words.split())
    assert job.config.run_id == typed_run(words.split()).run_id


@pytest.mark.parametrize(
    "words",
    [
        ["--attn", "criss-cross", "none", "oracle", "--recurrence", "2"],
        ["--attn", "enlca", "--m", "16"],
        ["--attn", "nla", "enla", "--res-scale", "0.1"],
        ["--attn", "my_module:Mine", "--broken"],
        ["--rows", "controls"],
    ],
)
def test_a_jobs_command_leads_to_its_run(words: list[str]) -> None:
    jobs = jobs_of(cells_of(*words, "--seeds", "0", "5", settings=(PROFILE[1], TINY[0])))
    assert len({str(job) for job in jobs}) == len({job.config.run_id for job in jobs})
    for job in jobs:
        assert typed_run(job.words) == job.config


def test_all_rows_of_the_profile_can_be_trained() -> None:
    cells = cells_of("--rows", "profile", settings=PROFILE[:1])
    assert len({cell.first[0].config.variant for cell in cells}) == len(cells) > 30


def test_settings_are_chosen_by_label_or_task() -> None:
    assert choose_settings([]) == [*TINY]
    assert choose_settings(["tiny D=3"]) == [TINY[1]]
    assert choose_settings(["tiny_task:Tiny"]) == [*TINY]
    with pytest.raises(UserError, match="no task 'recal': choose from tiny_task:Tiny, tiny D=4"):
        choose_settings(["recal"])


# -- order and choice, with an engine that runs nothing --------------------------------------


class Fake:
    """Writes records with made-up scores."""

    def __init__(
        self, record: Run, validation: Callable[[Job], float | None] = lambda job: 0.5
    ) -> None:
        self.record, self.validation = untyped(record), validation
        self.ran: list[Job] = []

    def run(self, job: Job) -> int:
        self.ran.append(job)
        score = self.validation(job)
        if score is None:
            return 2
        content = json.loads(json.dumps(self.record)) | {"id": job.config.run_id}
        content["config"]["learning_rate"] = job.config.learning_rate
        content["config"]["seed"] = job.config.seed
        content["validation"]["score"] = score
        for one in content["scores"].values():  # the better, the worse on validation images
            one["score"] = 1 - score
        path = record_path(job.results, Run, job.config.run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        content.pop("sha256", None)
        path.write_text(json.dumps(content | {"sha256": digest(content)}))
        return 0


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A record of recall."""
    words = ["--task", "recall", "--attn", "none", "--channels", "8"]
    words += ["--batch", "2", "--steps", "1"]
    task = Recall()
    return run(typed_run(words), task, tmp_path_factory.mktemp("record"), CPU, "test")


def fake_sweep(fake: Fake, cells: list[Cell], at_once: int = 1) -> runs_sweep.Report:
    return runs_sweep.sweep(Cells(cells), fake, threading.Event(), at_once=at_once)


def test_the_rate_is_the_best_on_validation_images(record: Run, results: Path) -> None:
    cells = cells_of("--attn", "none", "nla", "--seeds", "0", "1", "2", results=results)
    best = {cell.first[0].name: RATES[i % 3] for i, cell in enumerate(cells)}
    fake = Fake(record, lambda job: 0.9 if job.config.learning_rate == best[job.name] else 0.1)
    report = fake_sweep(fake, cells)
    assert len(report.finished) == len(fake.ran) == 4 * 5
    for cell in cells:
        of_cell = [job.config for job in fake.ran if job.name == cell.first[0].name]
        assert [(c.seed, c.learning_rate) for c in of_cell[:3]] == [(0, rate) for rate in RATES]
        rate = best[cell.first[0].name]
        assert [(c.seed, c.learning_rate) for c in of_cell[3:]] == [(1, rate), (2, rate)]
    rows = [job.config.variant.name for job in fake.ran]
    assert rows == sorted(rows, key=["none", "nla"].index)  # row by row
    again = fake_sweep(Fake(record, lambda job: None), cells)
    assert ids(again.finished) == ids(report.finished)
    assert again.failed == []


def ids(jobs: Sequence[Job]) -> set[str]:
    return {job.config.run_id for job in jobs}


def test_of_equal_rates_the_smallest() -> None:
    assert best_rate({4e-3: 0.5, 1e-3: 0.5, 2e-3: 0.4}) == 1e-3


def test_a_rate_that_fails_is_not_chosen_and_the_rest_is_finished(
    record: Run, results: Path
) -> None:
    cells = cells_of("--attn", "none", "nla", "--seeds", "0", "1", results=results)

    def validation(job: Job) -> float | None:
        fails = job.config.variant.name == "nla" and "-d4" in job.config.data.name
        return None if fails or job.config.learning_rate == RATES[2] else job.config.learning_rate

    report = fake_sweep(Fake(record, validation), cells, at_once=2)
    assert report.left == []
    failed = [(job.name, job.config.learning_rate) for job, _ in report.failed]
    assert sorted(failed) == sorted(  # all of NLA's in one setting, else the largest
        [("NLA, tiny D=4", rate) for rate in RATES]
        + [(name, RATES[2]) for name in ("Baseline, tiny D=4", "Baseline, tiny D=3")]
        + [("NLA, tiny D=3", RATES[2])]
    )
    second = [job.config.learning_rate for job in report.finished if job.config.seed == 1]
    assert second == [RATES[1]] * 3


def test_where_another_seed_diverges_the_next_best_rate_takes_its_place(
    record: Run, results: Path
) -> None:
    (cell, _) = cells_of("--attn", "none", "--seeds", "0", "1", "2", results=results)

    def validation(job: Job) -> float | None:
        diverges = job.config.seed == 1 and job.config.learning_rate == RATES[2]
        return None if diverges else job.config.learning_rate

    class Diverging(Fake):
        def run(self, job: Job) -> int:
            status = super().run(job)
            if status:
                job.log.parent.mkdir(parents=True, exist_ok=True)
                job.log.write_text("error: training stopped at step 2: the loss has exploded, …\n")
            return status

    def trained(jobs: Sequence[Job]) -> list[tuple[int, float]]:
        return [(job.config.seed, job.config.learning_rate) for job in jobs]

    fake = Diverging(record, validation)
    report = fake_sweep(fake, [cell])
    assert trained([job for job, _ in report.failed]) == [(1, RATES[2])]
    assert trained(fake.ran)[3:] == [(1, RATES[2]), (1, RATES[1]), (2, RATES[1])]
    # The same command again: the seed diverges again, and nothing else is left to do.
    again = Diverging(record, validation)
    report = fake_sweep(again, [cell])
    assert trained(again.ran) == [(1, RATES[2])]
    runs = {(run.config.learning_rate, run.config.seed): run for run in load_records(results, Run)}
    assert ProfileCell(runs).rate == RATES[1]
    assert ProfileCell(runs).finished


def test_the_total_counts_seeds_whose_rate_is_not_known(record: Run, results: Path) -> None:
    cells = cells_of("--attn", "none", "--seeds", "0", "1", "2", results=results)
    queue = Cells(cells)
    assert len(queue.later()) == 2 * 5
    fake = Fake(record)
    for job in cells[0].first:
        fake.run(job)
    queue = Cells(cells)
    assert (len(queue.finished), len(queue.later())) == (3, 7)
    fake.run(cells[0].others(RATES[0])[0])
    queue = Cells(cells)
    assert (len(queue.finished), len(queue.later())) == (4, 6)


def test_without_a_terminal_lines_say_how_far_it_is(
    record: Run, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(Fake):
        def run(self, job: Job) -> int:
            time.sleep(0.4)  # longer than between two looks at it
            return super().run(job)

    monkeypatch.setattr(progress, "FIRST_LINE", 0.02)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.02)
    fake_sweep(Slow(record), cells_of("--attn", "none", "--seeds", "0", "1", results=results))
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("Runs: ")]
    told = [int(count) for count in re.findall(r"Runs: (\d) of 8 runs", "\n".join(lines))]
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0, 8)
    assert any("running: Baseline, tiny D=4, rate " in line for line in lines)
    assert any(line.endswith(" left") for line in lines)


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """Jobs run in this process, one at a time: a process of their own takes seconds to begin."""

    def run_here(words: Sequence[str], log: Path, *_: object, **__: object) -> int:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["harness.run", *words])
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                try:
                    main_job.main()
                except SystemExit as stop:
                    return int(stop.code or 0)
        return 0

    monkeypatch.setattr(engines, "run_job", run_here)


@pytest.mark.usefixtures("here")
def test_a_users_module_beside_the_published_rows(
    cli: Cli, results: Path, import_folder: Path, record: Run
) -> None:
    published = cells_of("--attn", "nla", results=import_folder / "published")
    words = ["--attn", "my_module:Mine", "--tasks", "tiny D=4", *QUIET, "--results", results]
    cli("probe --attn nla none --tasks tiny_task:Tiny", *QUIET, "--results", results)
    path = import_folder / "published" / "records"
    path.parent.mkdir(exist_ok=True)
    (results / "records").rename(path)
    assert all(job.finished for job in jobs_of(published))

    printed = cli("probe", *words, "--seeds", "0", "1").out
    assert "4 of 4 runs are finished." in printed
    rows = [line.split()[0] for line in printed.splitlines() if re.match(r"(NLA|Mine|Base)", line)]
    assert "Mine" in rows
    assert "NLA" in rows
    assert "Baseline" not in rows  # published, but not beside
    records = load_records(results, Run)
    assert {(r.config.seed, r.variant.name) for r in records} == {
        (0, "my_module:Mine"),
        (1, "my_module:Mine"),
    }
    # Again, after the module has changed: its old results are not taken for its own.
    with (import_folder / "my_module.py").open("a") as file:
        file.write("# changed\n")
    assert "the file of my_module:Mine has changed since" in cli.refused("probe", *words)


@pytest.mark.usefixtures("here")
def test_a_module_that_diverges_is_reported_and_the_rest_finished(cli: Cli, results: Path) -> None:
    words = ["--attn", "my_module:Mine", "none", "--broken", "--tasks", "tiny D=3", *QUIET]
    printed = cli("probe", *words, "--results", results, status=1)
    assert "3 of 6 runs are finished." in printed.out
    failed = [line for line in printed.err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == len(RATES)
    for rate, line in zip(RATES, sorted(failed), strict=True):
        assert f"Mine (broken=True), tiny D=3, rate {rate:g}, seed 0 (training stopped" in line
        assert "loss or gradient is not finite" in line
    assert "Baseline" in printed.out


def test_the_plan_says_what_is_left_and_trains_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, results: Path, record: Run
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    cells = cells_of("--attn", "nla", results=results)
    Fake(record).run(cells[0].first[1])
    before = sorted(results.rglob("*"))
    words = ["--attn", "nla", "--seeds", "0", "1", "2", "--plan", *QUIET, "--results", results]
    printed = cli("probe", *words).out
    assert "9 of 10 runs to do" in printed
    (row,) = [line.split() for line in printed.splitlines() if "NLA, tiny D=4" in line]
    assert row[3:7] == ["5", "1", "0", "3"]
    assert sorted(results.rglob("*")) == before


@pytest.mark.slow
def test_a_killed_probe_goes_on(results: Path, import_folder: Path, cli: Cli) -> None:
    """The whole command is killed within a training; the second call ends as if nothing was."""
    (import_folder / "tiny_task.py").write_text(TASK.replace("STEPS", "100"))
    words = ["--attn", "none", "--tasks", "tiny D=4", *QUIET, "--workers", "1", "--seeds", "0", "1"]
    words += ["--save-every", "0", "--results", str(results)]
    start = (
        "import sys; from harness.config import profile as p; from harness import probe;"
        "import harness.reporting.profile as a, harness.reporting.tables.profile as b;"
        "p.PROFILE = (p.ProfileTask('tiny D=4', 'tiny_task:Tiny'),);"
        "a.PROFILE = b.PROFILE = p.PROFILE; probe.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, *words], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    until(lambda: bool(list(results.glob("runs/*/*state*"))))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not load_records(results, Run)
    until(lambda: not any_locked(results))
    assert "4 of 4 runs are finished." in cli("probe", *words).out
    found = {r.id: (r.training.log, untyped(r)["scores"]) for r in load_records(results, Run)}
    whole = results.parent / "whole"
    cli("probe", *words[:-1], whole)
    assert found == {r.id: (r.training.log, untyped(r)["scores"]) for r in load_records(whole, Run)}


def any_locked(results: Path) -> bool:
    """Whether a training is still there: its parent's end stops it."""
    import psutil  # type: ignore[import-untyped]

    lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    return any("harness.run" in line and str(results) in line for line in lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "sr"], "the profile has no task 'sr': choose from"),
        (["--attn", "nla", "--m", "3"], "nla has no option --m"),
        (["--attn", "all", "--m", "3"], "--attn all fixes the modules' options"),
        (["--attn", "no_such:Module"], "no_such"),
        (["--seeds"], "--seeds needs at least one number"),
        (["--seeds", "-1"], "seed must be 0 to"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--budget", "9"], "90s, 9m or 1h30m"),
        (["--save-every", "-1"], "--save-every must be at least 0 seconds"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--data", "x"], "unknown option --data"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, cli: Cli, results: Path) -> None:
    assert message in cli.refused("probe", *words, "--results", results)
    assert not results.exists()


def test_a_plan_names_what_fails_and_goes_on(cli: Cli, results: Path, import_folder: Path) -> None:
    (import_folder / "raises.py").write_text(RAISES)
    words = "probe --plan --attn raises:Raises none --tasks tiny_task:Tiny --results"
    out, err = cli(words, results, status=1)
    told = "its first steps failed, ValueError: no such kernel"
    assert err.splitlines()[-2:] == [f"Raises, tiny D={d}: {told}" for d in (4, 3)]
    assert re.search(r"Raises, tiny D=4 .* failed *$", out, re.MULTILINE)
    assert re.search(r"Baseline, tiny D=4 +3 .* (s|min|h) ", out)
    assert "6 of 12 runs to do, without those that failed: " in out
    assert not results.exists()
