"""Grids of runs: which jobs there are, in what order they run, what stops them, and engines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from harness import sweep
from harness.base import progress
from harness.base.errors import UserError
from harness.config.options import parse
from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.images.sources import find_data
from harness.records.shapes import Run
from harness.records.store import load_records, record_path
from harness.runs import engines
from harness.runs import jobs as runs_jobs
from harness.runs import sweep as runs_sweep
from harness.runs.engines import EngineOptions, Local
from harness.runs.jobs import Job, find_jobs, run_job
from harness.runs.options import RunOptions as Options
from harness.runs.options import TrainingOptions, configure, res_scale_of
from harness.runs.plan import calibrate
from harness.runs.sweep import BUDGET_STATUS, Report, seconds_of
from harness.tasks.options import AnyTask, create_task, options_with_task, weighted
from harness.tasks.sr import SuperResolution
from tests.harness.conftest import Cli, until
from tests.harness.tiny import make_config

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
#: Trains for longer than any test lasts.
ENDLESS = ["--steps", "1000000"]
#: The package that an engine needs.
PACKAGES = {"ray": "ray", "slurm": "submitit"}
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, import_folder: Path) -> None:
    """Jobs import this checkout, and modules that the test writes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(import_folder)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def start(*words: str | Path) -> subprocess.Popen[str]:
    """The command as a process of its own, on the CPU."""
    command = [sys.executable, "-m", "harness.sweep", *map(str, words), "--device", "cpu"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=pipe, stderr=pipe)


def write_killer(folder: Path, until: Path, kill: str = KILL) -> str:
    """A module whose training kills a process as a lack of memory would, while ``until`` is not
    there; its name for --attn."""
    (folder / "killer.py").write_text(
        "import os, pathlib, signal, time\n"
        "from attention_zoo.none import Baseline\n"
        "class Killer(Baseline):\n"
        "    name = ''\n"
        "    label_format = 'Killer'\n"
        "    def forward(self, x):\n"
        f"        until = pathlib.Path({str(until)!r})\n"
        "        if self.training and not until.exists():\n"
        f"            {kill}\n"
        "        return super().forward(x)\n"
    )
    return "killer:Killer"


def tries(results: Path) -> int:
    """How often the only finished run was started, by its log."""
    (record,) = load_records(results, Run)
    log = (results / "runs" / record.id / "log.txt").read_text()
    return log.count("] python -m harness.run")


# -- the grid -------------------------------------------------------------------------------


def typed(
    options: type[TrainingOptions], words: Sequence[str | Path]
) -> tuple[Any, list[Variant], AnyTask]:
    """Options, variants and task of a command line."""
    argv = [str(word) for word in words]
    found, task_class = options_with_task(options, argv)
    values, variants = parse(found, argv, "harness.run")
    task = create_task(task_class, values, argv)
    weight = res_scale_of(values, task)
    variants = [weighted(variant, weight, argv) for variant in variants]
    return values, variants, task


def jobs_of(*words: str | Path) -> list[Job]:
    options, variants, task = typed(sweep.Options, words)
    return find_jobs(options, variants, CPU, task)


@pytest.mark.parametrize(
    "words",
    [
        ["--rows", "table3"],
        ["--rows", "table4", "--seeds", "0", "7", "0"],
        ["--attn", "enlca", "nlsa", "--hinge", "False", "--chunk-size", "16", "--m", "4"],
        ["--rows", "table2", "--protocol", "warm-start", "--start-steps", "2"],
        ["--attn", "none", "nla", "--protocol", "warm-start", "--learning-rate", "3e-4"],
        ["--rows", "rivals"],
        ["--attn", "nystrom", "csnln", "rnan", "--attn-steps", "2", "--attn-blocks", "2"],
        ["--attn", "nla", "--preset", "small", "--schedule", "halving", "--tile", "32"],
        ["--attn", "nla", "--test-sets", "Tiny", "--train-sets", "Some", "--holdout", "3"],
        ["--attn", "nla", "--test-sets", "Holdout", "--holdout", "3", "--holdout-crop", "24"],
        ["--attn", "nla", "--modules", "2", "--learn-res-scale", "--attention-rate", "3"],
        ["--attn", "nla", "none", "--protocol", "warm-start", "--learn-res-scale"],
        ["--attn", "nla", "--task", "denoise", "--modules", "2", "--attention-rate", "0.5"],
        ["--rows", "table6", "--task", "denoise", "--preset", "photographs"],
        ["--attn", "nla", "--task", "denoise", "--preset", "photographs", "--tile", "0"],
        ["--attn", "nla:res_scale=0.1", "--task", "denoise", "--preset", "photographs"],
        ["--attn", "nla", "--degradation", "box", "--noise", "5"],
        ["--attn", "nla", "none", "--task", "denoise", "--sigma", "25", "--protocol", "warm-start"],
    ],
)
def test_a_jobs_command_leads_to_its_run(words: list[str], tiny: list[str]) -> None:
    found = jobs_of(*words, *tiny)
    ids = [job.config.run_id for job in found]
    assert len(set(ids)) == len(ids)
    for job in found:
        options, (variant,), task = typed(Options, job.words)
        (seed,) = options.seeds
        assert configure(options, task, variant, seed, CPU) == job.config
    if "warm-start" in words:
        assert found[0].config == found[1].config.baseline
    if "table4" in words:
        labels = [v.label for v in table_rows("table4")]
        assert [str(m) for m in found] == [f"{n}, seed {s}" for s in (0, 7) for n in labels]
    assert len({str(job) for job in found}) == len(found)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--rows", "controls"], ["Baseline", "Conv", "Mean", "Mean of references", "Oracle"]),
        (["--attn", "nla", "--res-scale", "0.1", "--blanks", "0.5"], ["NLA"]),
        (["--attn", "enlca", "nla", "--m", "4", "--learning-rate", "3e-3"], ["ENLCA-m4", "NLA"]),
        (["--task", "own_task:Own", "--sides", "2", "3", "--wide", "--attn", "nla"], ["NLA"]),
    ],
)
def test_jobs_of_synthetic_tasks(words: list[str], names: list[str], import_folder: Path) -> None:
    (import_folder / "own_task.py").write_text(
        "from harness.tasks.recall import Recall\n"
        "class Own(Recall):\n"
        "    def __init__(self, *, pairs=2, sides: tuple[int, ...] = (1,), wide: bool = False):\n"
        "        super().__init__(pairs=pairs)\n"
        "        self.sides, self.wide = sides, wide\n"
    )
    found = jobs_of("--task", "recall", "--pairs", "3", *words, "--channels", "8")
    assert [job.name for job in found] == names
    for job in found:
        options, (variant,), task = typed(Options, job.words)
        assert configure(options, task, variant, 0, CPU) == job.config
        assert job.config.task is not None
        assert job.config.task.options["pairs"] == 3


def test_durations() -> None:
    assert [seconds_of(t) for t in ("90s", "9m", "1h30m", "0.5d")] == [90, 540, 5400, 43200]
    for bad in ("9", "m", "0m", "9m x", "-9m", "9 m", ""):
        with pytest.raises(UserError, match="90s, 9m or 1h30m"):
            seconds_of(bad)


# -- scheduling, with an engine that runs nothing -------------------------------------------


class Fake:
    """Finishes, fails or raises as it is told."""

    def __init__(self, outcome: Callable[[Job], int]) -> None:
        self.outcome, self.ran = outcome, list[str]()

    def run(self, job: Job) -> int:
        self.ran.append(str(job))
        status = self.outcome(job)
        if status == 0:
            path = record_path(job.results, Run, job.config.run_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return status


@pytest.fixture
def grid(tiny: list[str]) -> list[Job]:
    """Two seeds of the baseline's start, its continuation and NLA."""
    return jobs_of("--attn", "none", "nla", "--protocol", "warm-start", "--seeds", "0", "1", *tiny)


def swept(
    grid: list[Job], outcome: Callable[[Job], int] = lambda _: 0, **options: Any
) -> tuple[Report, list[str]]:
    """What comes of a grid, and the jobs that were run."""
    engine = Fake(outcome)
    options.setdefault("stop", threading.Event())
    return runs_sweep.sweep(grid, engine, **options), engine.ran


def test_baselines_first_and_finished_ones_never(grid: list[Job]) -> None:
    report, ran = swept(grid, at_once=1)
    assert {str(m) for m in report.finished} == set(ran) == {str(m) for m in grid}
    assert len(ran) == 6
    for seed in (0, 1):
        start = ran.index(f"Baseline, seed {seed}")
        assert start < ran.index(f"NLA, warm start, seed {seed}")
    report, ran = swept(grid)
    assert (len(report.finished), ran) == (6, [])


def test_what_needs_a_failed_baseline_fails_with_it(grid: list[Job]) -> None:
    report, _ = swept(grid, lambda job: 0 if job.config.seed else -9)
    assert [m.config.seed for m in report.finished] == [1, 1, 1]
    reasons = {str(m): reason for m, reason in report.failed}
    assert reasons.pop("Baseline, seed 0") == "killed by SIGKILL (out of memory?)"
    assert set(reasons.values()) == {f"its baseline failed: {grid[0].log}"}
    assert report.left == []


def test_an_engine_that_loses_a_job_does_not_end_the_sweep(grid: list[Job]) -> None:
    def outcome(job: Job) -> int:
        if job.label == "NLA, warm start":
            raise RuntimeError("its node\nwent away")
        return 0

    report, _ = swept(grid, outcome)
    assert len(report.finished) == 4
    assert [reason for _, reason in report.failed] == ["its node went away"] * 2


def test_the_end_of_a_traceback_is_the_reason(
    grid: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    def outcome(job: Job) -> int:
        job.log.parent.mkdir(parents=True)
        job.log.write_text("Traceback (most recent call last):\nRuntimeError: no [/x] here\n")
        return 1

    report, _ = swept(grid[:1], outcome)
    assert [reason for _, reason in report.failed] == ["RuntimeError: no [/x] here"]
    assert "no [/x] here" in capsys.readouterr().err


def test_before_a_run_has_ended_its_log_tells_rate_and_time_left(
    grid: list[Job], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST_LINE", 0.05)
    monkeypatch.setattr(runs_sweep, "_ESTIMATE_EVERY", 0.0)

    def outcome(job: Job) -> int:
        job.log.parent.mkdir(parents=True)
        line = f"{job}: 100 of 800 steps, 2.0 steps/s, 0:05:50 left, L1 0.5\n"
        job.log.write_text(f"[now] python -m harness.run\n{line}")
        time.sleep(1.0)
        return 0

    swept(grid[:1], outcome)
    line = next(line for line in capsys.readouterr().err.splitlines() if "100 of 800" in line)
    assert line.startswith("Runs: 0 of 1 runs, running: Baseline, seed 0 (100 of 800 steps, ")
    assert line.endswith("2.0 steps/s, 0:05:50 left), about 6.7 min left")


def test_nothing_is_said_of_the_time_left_once_all_has_stopped(
    grid: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    report, _ = swept(grid, deadline=time.monotonic())
    assert len(report.left) == len(grid)
    assert "left" not in capsys.readouterr().err


def test_a_job_that_ends_well_without_a_record_has_failed(
    grid: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "run", lambda self, job: 0)
    report, _ = swept(grid[:1])
    assert [reason for _, reason in report.failed] == ["exit status 0"]


def test_the_deadline_stops_what_runs_and_begins_nothing(grid: list[Job]) -> None:
    stop = threading.Event()

    def outcome(job: Job) -> int:
        if job.config.seed == 0:
            return 0
        assert stop.wait(20)
        return 143

    report, _ = swept(grid, outcome, stop=stop, at_once=2, deadline=time.monotonic() + 1.0)
    assert [m.config.seed for m in report.finished] == [0, 0, 0]
    assert [m.config.seed for m in report.left] == [1, 1, 1]
    assert report.failed == []


def test_an_interrupt_stops_the_jobs_first(grid: list[Job]) -> None:
    stop, ended = threading.Event(), []

    def outcome(job: Job) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(20)
        ended.append(job)
        return 130

    with pytest.raises(KeyboardInterrupt):
        swept(grid, outcome, stop=stop, at_once=1)
    assert len(ended) == 1


# -- real jobs ---------------------------------------------------------------------------


def test_a_sweep_survives_a_killed_job_and_goes_on_later(
    cli: Cli, tiny: list[str], results: Path, tmp_path: Path, import_folder: Path
) -> None:
    mended = tmp_path / "mended"
    words = ["--attn", write_killer(import_folder, mended), "none", *tiny, "--threads", "1"]
    printed = cli("sweep", *words, status=1)
    assert "1 of 2 runs are finished." in printed.out
    (line,) = [x for x in printed.err.splitlines() if x.startswith("failed: ")]
    assert line.startswith("failed: Killer, seed 0 (killed by SIGKILL (out of memory?)); log: ")
    log = Path(line.partition("log: ")[2])
    assert "python -m harness.run --attn killer:Killer --seeds 0" in log.read_text()
    assert [r.variant.label for r in load_records(results, Run)] == ["Baseline"]

    mended.touch()
    before = {p: p.stat().st_mtime_ns for p in (results / "records" / "runs").iterdir()}
    cli("sweep", *words)
    assert len(load_records(results, Run)) == 2
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["scratch", "warm-start"])
def test_a_sweep_gives_the_runs_of_the_main_job(
    protocol: str, cli: Cli, tiny: list[str], tmp_path: Path
) -> None:
    words = ["--rows", "table2", "--protocol", protocol, *tiny, "--seeds", "0", "1"]
    if protocol == "warm-start":
        words += ["--start-steps", "2"]
    places = [tmp_path / "sweep", tmp_path / "run"]
    cli("sweep", *words, "--workers", "2", "--threads", "2", "--results", places[0])
    cli("run", *words, "--threads", "1", "--skip-latency", "--results", places[1])
    found = [
        {r.id: (r.quality, r.training.log) for r in load_records(place, Run)} for place in places
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 10 + 2 * (protocol == "warm-start")


@pytest.mark.slow
def test_a_sweep_of_a_task_gives_the_runs_of_the_main_job(cli: Cli, tmp_path: Path) -> None:
    words = ["--task", "recall", "--rows", "controls", "--channels", "8", "--batch", "2"]
    words += ["--steps", "2", "--learning-rate", "3e-3", "--threads", "1", "--seeds", "0", "1"]
    places = [tmp_path / "sweep", tmp_path / "run"]
    for command, place in zip(("sweep", "run"), places, strict=True):
        cli(command, *words, "--results", place)
    found = [
        {r.id: (r.scores, r.training.log) for r in load_records(place, Run)} for place in places
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "modules", "budget", "limit"),
    [
        ("local", ["none", "conv", "--threads", "1"], 60, 60),
        *((engine, ["none"], 45, 55) for engine in PACKAGES),  # Ray itself takes seconds to end
    ],
)
def test_a_budget_is_kept_and_the_rest_goes_on(
    engine: str, modules: list[str], budget: int, limit: int, tiny: list[str], results: Path
) -> None:
    """As a process: the budget counts from its start."""
    pytest.importorskip(PACKAGES.get(engine, "torch"))
    words = ["--attn", *modules, *tiny, *ENDLESS, "--engine", engine, "--budget", f"{budget}s"]
    begin = time.monotonic()
    process = start(*words)
    out, err = process.communicate()
    assert time.monotonic() - begin < limit
    assert process.returncode == BUDGET_STATUS, err
    assert "Time budget used up" in out
    assert f"0 of {1 + ('conv' in modules)} runs are finished." in out
    (log,) = results.glob("runs/baseline-*/log.txt")
    assert list(log.parent.glob("*state*")), "the job did not save its state"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_dies_leaves_no_job_behind(
    sent: signal.Signals, tiny: list[str], results: Path
) -> None:
    def alive() -> bool:
        return bool(psutil.wait_procs(jobs, timeout=0)[1])

    process = start("--attn", "none", *tiny, *ENDLESS, "--threads", "1")
    until(lambda: any(results.glob("runs/*/config.json")))
    jobs = psutil.Process(process.pid).children(recursive=True)
    assert alive()
    process.send_signal(sent)
    process.communicate(timeout=60)
    assert process.returncode == (143 if sent == signal.SIGTERM else -9)
    until(lambda: not alive())


def test_a_job_is_told_to_stop_and_killed_if_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = tmp_path / "python"
    stubborn.write_text("#!/bin/sh\ntrap '' TERM\necho here\nwhile :; do sleep 0.1; done\n")
    stubborn.chmod(0o755)
    monkeypatch.setattr(runs_jobs.sys, "executable", str(stubborn))
    log, stop = tmp_path / "log.txt", threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    assert run_job(["--steps", "3"], log, tmp_path, grace=0.3, stop=stop) == -signal.SIGKILL
    lines = log.read_text().splitlines()
    assert lines[0].endswith("python -m harness.run --steps 3")
    assert lines[1:] == ["here"]


# -- engines --------------------------------------------------------------------------------


def test_local_jobs_share_threads_and_gpus(
    grid: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, str]] = []
    barrier = threading.Barrier(3)

    def record(words: tuple[str, ...], *_: object, **__: object) -> int:
        barrier.wait(20)
        seen.append((words[words.index("--device") + 1], words[words.index("--threads") + 1]))
        return 0

    monkeypatch.setattr(engines, "run_job", record)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    engine = Local(EngineOptions(device=torch.device("cuda"), workers=3, threads=8))
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(engine.run, grid[:3])) == [0, 0, 0]
    assert sorted(seen) == [("cuda:0", "2"), ("cuda:0", "2"), ("cuda:1", "2")]


@pytest.mark.parametrize("engine", PACKAGES)
def test_an_engine_that_is_not_installed_is_named(
    engine: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tiny: list[str]
) -> None:
    package = PACKAGES[engine]
    monkeypatch.setitem(sys.modules, package, None)
    line = cli.refused("sweep", "--attn", "none", *tiny, "--engine", engine)
    needs = f"--engine {engine} needs {package}: pip install -e '.[{engine}]'"
    assert line == f"error: {needs}"


@pytest.mark.slow
@pytest.mark.parametrize("engine", PACKAGES)
def test_other_engines_run_fail_and_finish_like_the_local_one(
    engine: str, cli: Cli, tiny: list[str], results: Path, import_folder: Path
) -> None:
    pytest.importorskip(PACKAGES[engine])
    killer = write_killer(import_folder, results / "never")
    words = ["--attn", killer, "none", "nla", *tiny, "--engine", engine, "--device", "cpu"]
    words += ["--protocol", "warm-start", "--start-steps", "2", "--workers", "2"]
    printed = cli("sweep", *words, status=1)
    assert "3 of 4 runs are finished." in printed.out
    assert "failed: Killer, warm start, seed 0 (killed by SIGKILL" in printed.err
    labels = [r.variant.label for r in load_records(results, Run)]
    assert sorted(labels) == ["Baseline", "Baseline", "NLA"]


@pytest.mark.slow
def test_ray_starts_a_job_again_whose_worker_died(
    cli: Cli, tiny: list[str], results: Path, tmp_path: Path, import_folder: Path
) -> None:
    """The first attempt kills the worker, the job's parent."""
    pytest.importorskip("ray")
    kill = "until.touch(); os.kill(os.getppid(), signal.SIGKILL); time.sleep(60)"
    orphan = write_killer(import_folder, tmp_path / "once", kill)
    cli("sweep", "--attn", orphan, *tiny, "--engine", "ray", "--device", "cpu")
    assert tries(results) == 2


@pytest.mark.slow
def test_a_job_whose_machine_dies_goes_on_at_another_of_the_cluster(
    tiny: list[str], results: Path
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    words = ["--attn", "none", *tiny, "--steps", "3000", "--engine", "ray"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        machine = cluster.add_node(num_cpus=1)
        process = start(*words, "--ray-address", cluster.address)
        until(lambda: any(results.glob("runs/*/config.json")))
        cluster.remove_node(machine, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    finally:
        cluster.shutdown()
    assert tries(results) == 2


@pytest.mark.slow
def test_a_ray_cluster_that_does_not_answer_is_named(cli: Cli, tiny: list[str]) -> None:
    pytest.importorskip("ray")
    words = ["--attn", "none", *tiny, "--engine", "ray", "--ray-address", "127.0.0.1:1"]
    assert (
        cli("sweep", *words, status=2)
        .err.strip()
        .splitlines()[-1]
        .startswith("error: no Ray cluster answers at 127.0.0.1:1")
    )


@pytest.mark.slow
def test_a_preempted_job_is_queued_again(tiny: list[str], results: Path, tmp_path: Path) -> None:
    submitit = pytest.importorskip("submitit")
    (job,) = jobs_of("--attn", "none", *tiny, "--steps", "3000")
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5)
    submitted = executor.submit(engines.Submission(job.words, job.log, ROOT, 15.0))
    until((job.log.parent / "config.json").exists)
    time.sleep(1.0)
    (task,) = psutil.Process(int(submitted.job_id)).children()
    task.send_signal(signal.SIGUSR2)  # as Slurm warns of preemption
    assert submitted.result() == 0
    assert job.finished
    assert tries(results) == 2


# -- the command line -----------------------------------------------------------------------


def test_the_plan_runs_nothing(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tiny: list[str], results: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = ["--attn", "none", "enlca", "--m", "4", *tiny, "--seeds", "0", "1", "--threads", "1"]
    printed = cli("sweep", *words, "--plan").out
    assert "4 of 4 runs to do" in printed
    assert "CPU-hours" in printed
    (row,) = [x.split() for x in printed.splitlines() if x.split()[:1] == ["ENLCA-m4"]]
    assert row[1:5] == ["2", "0", "0", "3"]
    assert row[-1] == "MB"
    words = ["--task", "recall", "--attn", "nla", "--channels", "8", "--threads", "1"]
    printed = cli("sweep", *words, "--results", results, "--plan").out
    assert "1 of 1 runs to do" in printed
    assert not results.exists()


def test_the_calibration_is_of_the_run(image_folder: Path) -> None:
    task = SuperResolution(None, find_data(image_folder), 4)
    small = calibrate(make_config("none", steps=10), task)
    large = calibrate(make_config("none", steps=10, channels=64, batch=8), task)
    assert large.full > small.full > 0
    assert large.evaluation > small.evaluation > 0
    assert large.memory is not None
    assert small.memory is not None
    assert large.memory > 4 * small.memory
    config = make_config(steps=100, auxiliary_warmup=0.25)
    assert small.seconds(config) == pytest.approx(
        25 * small.plain + 75 * small.full + small.evaluation
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--budget", "9"], "90s, 9m or 1h30m"),
        (["--workers", "0"], "--workers must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--engine", "ray", "--gpus", "0"], "--gpus must be a share of a GPU"),
        (["--engine", "ray", "--device", "cuda:1"], "give cpu or cuda"),
        (["--engine", "pbs"], "--engine"),
        (["--seeds"], "--seeds"),
        (["--skip-latencies"], "unknown option --skip-latencies (did you mean --skip-latency?)"),
        (["--task", "recall", "--skip-latency"], "--skip-latency applies only to --task sr"),
        (["--gpus", "0.5"], "--gpus applies only to --engine ray, not local"),
        (["--engine", "ray", "--slurm", "a=1"], "--slurm applies only to --engine slurm, not ray"),
        (["--ray-address", "auto"], "--ray-address applies only to --engine ray, not local"),
        (["--pairs", "3"], "task sr has no option --pairs"),
        (["--task", "recall", "--data", "x"], "--data applies only to --task"),
        (["--task", "recall", "--blocks", "4"], "lies beyond the backbone's reach"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["--protocol", "cold"], "--protocol"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str], told: str, cli: Cli, results: Path
) -> None:
    assert told in cli.refused("sweep", *words, "--results", results)
    assert not results.exists()
