from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from harness import run, sweep
from harness.base.errors import UserError
from harness.config.options import parse
from harness.config.rows import table_rows
from harness.images.sources import DataSource, find_data
from harness.records.shapes import Run
from harness.records.store import load_records, record_path
from harness.runs import engines
from harness.runs import jobs as runs_jobs
from harness.runs import sweep as runs_sweep
from harness.runs.engines import EngineOptions, Local
from harness.runs.jobs import Job, find_jobs, run_job
from harness.runs.options import RunOptions as Options
from harness.runs.options import TrainingOptions, configure
from harness.runs.plan import calibrate
from harness.runs.sweep import BUDGET_STATUS, seconds_of
from tests.harness.tiny import make_config

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
TINY = ["--blocks", "4", "--channels", "8", "--steps", "3", "--batch", "2", "--patch", "8"]
#: Trains for longer than any test lasts.
ENDLESS = [*TINY, "--steps", "1000000"]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, import_folder: Path) -> None:
    """Jobs import this checkout, and modules that the test writes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(import_folder)]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def main(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["harness.sweep", *map(str, words)])
    try:
        sweep.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come about."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def write_killer(folder: Path, until: Path | None = None) -> str:
    """A module whose training kills its process as a lack of memory would, while ``until`` is
    not there; its name for --attn."""
    (folder / "killer.py").write_text(
        "import os, pathlib, signal\n"
        "from attention_zoo.none import Baseline\n"
        "class Killer(Baseline):\n"
        "    '''Kills.\n\n    Args:\n        channels: C.\n    '''\n"
        "    name = ''\n"
        "    label_format = 'Killer'\n"
        "    def forward(self, x):\n"
        f"        if self.training and not pathlib.Path({str(until)!r}).exists():\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().forward(x)\n"
    )
    return "killer:Killer"


# -- the grid -------------------------------------------------------------------------------


def source_of(options: TrainingOptions) -> DataSource:
    return find_data(options.data, train_sets=options.train_sets or None, holdout=options.holdout)


def jobs_of(*words: str | Path) -> list[Job]:
    options, variants = parse(sweep.Options, [str(w) for w in words], "harness.sweep")
    source = source_of(options)
    cache = source.training_images(options.scale)
    return find_jobs(options, variants, CPU, source, cache)


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
    ],
)
def test_a_jobs_command_leads_to_its_run(words: list[str], image_folder: Path) -> None:
    found = jobs_of(*words, *TINY, "--data", image_folder)
    ids = [job.config.run_id for job in found]
    assert len(set(ids)) == len(ids)
    for job in found:
        options, variants = parse(Options, job.words, "harness.run")
        source = source_of(options)
        (variant,), (seed,) = variants, options.seeds
        cache = source.training_images(options.scale)
        assert configure(options, variant, seed, CPU, source, cache) == job.config
    if "warm-start" in words:
        assert found[0].config == found[1].config.baseline
    if "table4" in words:
        labels = [v.label for v in table_rows("table4")]
        assert [str(m) for m in found] == [f"{n}, seed {s}" for s in (0, 7) for n in labels]
    assert len({str(job) for job in found}) == len(found)


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
def grid(tmp_path: Path, image_folder: Path) -> list[Job]:
    """Two seeds of the baseline's start, its continuation and NLA."""
    words = ["--attn", "none", "nla", "--protocol", "warm-start", "--seeds", "0", "1"]
    return jobs_of(*words, *TINY, "--data", image_folder, "--results", tmp_path)


def test_baselines_first_and_finished_ones_never(grid: list[Job]) -> None:
    engine = Fake(lambda _: 0)
    report = runs_sweep.sweep(grid, engine, threading.Event(), at_once=1)
    assert {str(m) for m in report.finished} == set(engine.ran) == {str(m) for m in grid}
    assert len(engine.ran) == 6
    for seed in (0, 1):
        start = engine.ran.index(f"Baseline, seed {seed}")
        assert start < engine.ran.index(f"NLA, warm start, seed {seed}")
    again = Fake(lambda _: 0)
    assert len(runs_sweep.sweep(grid, again, threading.Event()).finished) == 6
    assert again.ran == []


def test_what_needs_a_failed_baseline_fails_with_it(grid: list[Job]) -> None:
    def outcome(job: Job) -> int:
        return 0 if job.config.seed else -9

    report = runs_sweep.sweep(grid, Fake(outcome), threading.Event())
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

    report = runs_sweep.sweep(grid, Fake(outcome), threading.Event())
    assert len(report.finished) == 4
    assert [reason for _, reason in report.failed] == ["its node went away"] * 2


def test_a_job_that_ends_well_without_a_record_has_failed(grid: list[Job]) -> None:
    engine = Fake(lambda job: 0)
    engine.run = lambda job: 0  # type: ignore[method-assign]
    report = runs_sweep.sweep(grid[:1], engine, threading.Event())
    assert [reason for _, reason in report.failed] == ["exit status 0"]


def test_the_deadline_stops_what_runs_and_begins_nothing(grid: list[Job]) -> None:
    stop = threading.Event()

    def outcome(job: Job) -> int:
        if job.config.seed == 0:
            return 0
        assert stop.wait(20)
        return 143

    report = runs_sweep.sweep(grid, Fake(outcome), stop, at_once=2, deadline=time.monotonic() + 1.0)
    assert [m.config.seed for m in report.finished] == [0, 0, 0]
    assert [m.config.seed for m in report.left] == [1, 1, 1]
    assert report.failed == []


def test_an_interrupt_stops_the_jobs_first(
    grid: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, ended = threading.Event(), []

    def outcome(job: Job) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.wait(20)
        ended.append(job)
        return 130

    with pytest.raises(KeyboardInterrupt):
        runs_sweep.sweep(grid, Fake(outcome), stop, at_once=1)
    assert len(ended) == 1


# -- real jobs ---------------------------------------------------------------------------


def test_a_sweep_survives_a_killed_job_and_goes_on_later(
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
    import_folder: Path,
) -> None:
    mended = tmp_path / "mended"
    killer = write_killer(import_folder, mended)
    words = ["--attn", killer, "none", *TINY, "--data", image_folder, "--threads", "1"]
    results = tmp_path / "results"
    assert main(monkeypatch, *words, "--results", results) == 1
    printed = capsys.readouterr()
    assert "1 of 2 runs are finished." in printed.out
    (line,) = [x for x in printed.err.splitlines() if x.startswith("failed: ")]
    assert line.startswith("failed: Killer, seed 0 (killed by SIGKILL (out of memory?)); log: ")
    log = Path(line.partition("log: ")[2])
    assert "python -m harness.run --attn killer:Killer --seeds 0" in log.read_text()
    assert [r.variant.label for r in load_records(results, Run)] == ["Baseline"]

    mended.touch()
    before = {p: p.stat().st_mtime_ns for p in (results / "records" / "runs").iterdir()}
    assert main(monkeypatch, *words, "--results", results) == 0
    assert len(load_records(results, Run)) == 2
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["scratch", "warm-start"])
def test_a_sweep_gives_the_runs_of_the_main_job(
    protocol: str,
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    image_folder: Path,
) -> None:
    words = ["--rows", "table2", "--protocol", protocol, *TINY, "--data", image_folder]
    words += ["--seeds", "0", "1"]
    if protocol == "warm-start":
        words += ["--start-steps", "2"]
    workers = ["--workers", "2", "--threads", "2"]
    assert main(monkeypatch, *words, *workers, "--results", tmp_path / "sweep") == 0
    one = [*words, "--threads", "1", "--skip-latency", "--results", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", ["harness.run", *map(str, one)])
    run.main()
    found = [
        {r.id: (r.quality, r.training.log) for r in load_records(place, Run)}
        for place in (tmp_path / "sweep", tmp_path / "run")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 10 + 2 * (protocol == "warm-start")


@pytest.mark.slow
def test_a_budget_is_kept_and_the_rest_goes_on(
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    """As a process: the budget counts from its start."""
    words = ["--attn", "none", "conv", *ENDLESS, "--data", image_folder, "--results", tmp_path]
    command = [sys.executable, "-m", "harness.sweep", *map(str, words), "--threads", "1"]
    begin = time.monotonic()
    done = subprocess.run(
        [*command, "--budget", "60s"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert time.monotonic() - begin < 60
    assert done.returncode == BUDGET_STATUS, done.stderr
    assert "Time budget used up" in done.stdout
    assert "0 of 2 runs are finished." in done.stdout
    (folder,) = [p.parent for p in tmp_path.glob("runs/baseline-*/log.txt")]
    assert list(folder.glob("*state*")), "the job did not save its state"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_dies_leaves_no_job_behind(
    sent: signal.Signals, environment: None, tmp_path: Path, image_folder: Path
) -> None:
    words = ["--attn", "none", *ENDLESS, "--data", image_folder, "--results", tmp_path]
    command = [sys.executable, "-m", "harness.sweep", *map(str, words), "--threads", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def alive() -> list[str]:
        done = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
        return [x for x in done.stdout.splitlines() if "harness.run" in x and str(tmp_path) in x]

    until(lambda: bool(list(tmp_path.glob("runs/*/config.json"))))
    process.send_signal(sent)
    assert process.wait(60) == (143 if sent == signal.SIGTERM else -9)
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
    threads = [threading.Thread(target=engine.run, args=[m]) for m in grid[:3]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [("cuda:0", "2"), ("cuda:0", "2"), ("cuda:1", "2")]


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed_is_named(
    engine: str,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    words = ["--attn", "none", *TINY, "--data", image_folder, "--results", tmp_path]
    assert main(monkeypatch, *words, "--engine", engine) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    needs = f"--engine {engine} needs {package}: pip install 'attention-zoo[{engine}]'"
    assert line == f"error: {needs}"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_other_engines_run_fail_and_finish_like_the_local_one(
    engine: str,
    environment: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
    import_folder: Path,
) -> None:
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[engine])
    killer = write_killer(import_folder)
    words = ["--attn", killer, "none", "nla", *TINY, "--data", image_folder, "--engine", engine]
    words += ["--protocol", "warm-start", "--start-steps", "2", "--workers", "2"]
    assert main(monkeypatch, *words, "--device", "cpu", "--results", tmp_path) == 1
    printed = capsys.readouterr()
    assert "3 of 4 runs are finished." in printed.out
    assert "failed: Killer, warm start, seed 0 (killed by SIGKILL" in printed.err
    labels = [r.variant.label for r in load_records(tmp_path, Run)]
    assert sorted(labels) == ["Baseline", "Baseline", "NLA"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_other_engines_stop_in_time(
    engine: str, environment: None, tmp_path: Path, image_folder: Path
) -> None:
    pytest.importorskip({"ray": "ray", "slurm": "submitit"}[engine])
    words = ["--attn", "none", *ENDLESS, "--data", image_folder, "--results", tmp_path]
    words += ["--engine", engine, "--device", "cpu", "--budget", "45s"]
    command = [sys.executable, "-m", "harness.sweep", *map(str, words)]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert time.monotonic() - begin < 55  # Ray itself takes seconds to end
    assert done.returncode == BUDGET_STATUS, done.stderr
    assert list(tmp_path.glob("runs/baseline-*/*state*")), "the job did not save its state"


@pytest.mark.slow
def test_ray_starts_a_job_again_whose_worker_died(
    environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    pytest.importorskip("ray")
    # The first attempt kills the worker, the job's parent.
    words = ["--attn", "none", *TINY, "--data", image_folder, "--results", tmp_path]
    folder = Path(os.environ["PYTHONPATH"].split(os.pathsep)[1])
    (folder / "orphan.py").write_text(
        "import os, pathlib, signal, time\n"
        "from attention_zoo.none import Baseline\n"
        "class Orphan(Baseline):\n"
        "    '''Kills its parent once.\n\n    Args:\n        channels: C.\n    '''\n"
        "    name = ''\n"
        "    label_format = 'Orphan'\n"
        "    def forward(self, x):\n"
        f"        once = pathlib.Path({str(tmp_path / 'once')!r})\n"
        "        if self.training and not once.exists():\n"
        "            once.touch()\n"
        "            os.kill(os.getppid(), signal.SIGKILL)\n"
        "            time.sleep(60)\n"
        "        return super().forward(x)\n"
    )
    words[1] = "orphan:Orphan"
    assert main(monkeypatch, *words, "--engine", "ray", "--device", "cpu") == 0
    (record,) = load_records(tmp_path, Run)
    log = (tmp_path / "runs" / record.id / "log.txt").read_text()
    assert log.count("] python -m harness.run") == 2


@pytest.mark.slow
def test_a_job_whose_machine_dies_goes_on_at_another_of_the_cluster(
    environment: None, tmp_path: Path, image_folder: Path
) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    words = ["--attn", "none", *TINY, "--steps", "3000", "--data", image_folder]
    words += ["--results", tmp_path, "--engine", "ray", "--device", "cpu"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        machine = cluster.add_node(num_cpus=1)
        command = [sys.executable, "-m", "harness.sweep", *map(str, words)]
        process = subprocess.Popen([*command, "--ray-address", cluster.address], cwd=ROOT)
        until(lambda: bool(list(tmp_path.glob("runs/*/config.json"))))
        cluster.remove_node(machine, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert process.wait(200) == 0
    finally:
        cluster.shutdown()
    (record,) = load_records(tmp_path, Run)
    log = (tmp_path / "runs" / record.id / "log.txt").read_text()
    assert log.count("] python -m harness.run") == 2


@pytest.mark.slow
def test_a_ray_cluster_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    pytest.importorskip("ray")
    words = ["--attn", "none", *TINY, "--data", image_folder, "--results", tmp_path]
    words += ["--engine", "ray", "--ray-address", "127.0.0.1:1"]
    assert main(monkeypatch, *words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: no Ray cluster answers at 127.0.0.1:1")


@pytest.mark.slow
def test_a_preempted_job_is_queued_again(
    environment: None, tmp_path: Path, image_folder: Path
) -> None:
    submitit = pytest.importorskip("submitit")
    (job,) = jobs_of(
        "--attn", "none", *TINY, "--steps", "3000", "--data", image_folder, "--results", tmp_path
    )
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5)
    submitted = executor.submit(engines.Submission(job.words, job.log, ROOT, 15.0))
    until((job.log.parent / "config.json").exists)
    time.sleep(1.0)
    (task,) = psutil.Process(int(submitted.job_id)).children()
    task.send_signal(signal.SIGUSR2)  # as Slurm warns of preemption
    assert submitted.result() == 0
    assert job.finished
    assert job.log.read_text().count("] python -m harness.run") == 2


# -- the command line -----------------------------------------------------------------------


def test_the_plan_runs_nothing(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    words = ["--attn", "none", "enlca", "--m", "4", *TINY, "--data", image_folder, "--seeds", "0"]
    words += ["1", "--threads", "1", "--results", tmp_path / "results", "--plan"]
    assert main(monkeypatch, *words) == 0
    printed = capsys.readouterr().out
    assert "4 of 4 runs to do" in printed
    assert "CPU-hours" in printed
    (row,) = [x.split() for x in printed.splitlines() if x.split()[:1] == ["ENLCA-m4"]]
    assert row[1:5] == ["2", "0", "0", "3"]
    assert row[-1] == "MB"
    assert not (tmp_path / "results").exists()


def test_the_calibration_is_of_the_run(image_folder: Path) -> None:
    source = find_data(image_folder)
    cache = source.training_images(4)
    small = calibrate(make_config("none", steps=10), source, cache)
    large = calibrate(make_config("none", steps=10, channels=64, batch=8), source, cache)
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
        (["--skip-latency"], "unknown option --skip-latency"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
        (["--protocol", "cold"], "--protocol"),
    ],
)
def test_mistakes_are_told_in_one_line(
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    assert main(monkeypatch, *words, "--results", tmp_path / "results") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert told in line
    assert not (tmp_path / "results").exists()
