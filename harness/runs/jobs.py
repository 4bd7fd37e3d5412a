"""Jobs of a sweep: one variant with one seed each, run by ``harness.run`` as a process."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from ..base.errors import UserError
from ..base.signals import KILLED
from ..config.labels import row_labels
from ..config.options import module_option, own_options
from ..config.run import RunConfig
from ..config.variants import Variant
from ..records.shapes import Run
from ..records.store import record_path
from ..tasks.images import ImageTask
from .options import RunOptions, TrainingOptions, configure

#: Seconds that a job has for saving its state after SIGTERM.
GRACE = 15.0
#: Seconds between two checks whether a job has ended or is to stop.
_POLL = 0.1
_SIGNALLED = (signal.SIGINT, signal.SIGTERM)
#: Options that a job's command does not copy: it has its own variant and seed, and the engine
#: chooses device and threads.
_OWN = ("attn", "rows", "seeds", "device", "threads", "data", "results")


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        config: the run.
        name: of its variant in tables, with the options that distinguish it from others.
        words: arguments of ``python -m harness.run`` for it, without device and threads.
        results: folder of the records, absolute.
    """

    config: RunConfig
    name: str
    words: tuple[str, ...]
    results: Path

    @property
    def label(self) -> str:
        """For people, without the seed, e.g. ``ENLCA-m16, warm start``."""
        return f"{self.name}, warm start" if self.config.start else self.name

    def __str__(self) -> str:
        return f"{self.label}, seed {self.config.seed}"

    @property
    def finished(self) -> bool:
        """Whether the record exists."""
        return record_path(self.results, Run, self.config.run_id).exists()

    @property
    def log(self) -> Path:
        """File of the job's output, also of earlier tries."""
        return self.results / "runs" / self.config.run_id / "log.txt"


def find_jobs(
    options: TrainingOptions,
    variants: Sequence[Variant],
    device: torch.device,
    task: ImageTask,
) -> list[Job]:
    """The runs of a grid in the order of ``harness.run``; the baselines of warm starts first.

    Raises:
        UserError, AttentionError: as :func:`.options.configure`.
    """
    scratch = dataclasses.replace(
        options,
        steps=options.start_steps,
        protocol="scratch",
        start_steps=None,
        learning_rate=None,
        schedule=None,
    )
    names = row_labels((*variants, Variant("none")))
    baselines, jobs = {}, {}
    for seed in dict.fromkeys(options.seeds):
        for variant in variants:
            config = configure(options, task, variant, seed, device)
            jobs[config.run_id] = _job(config, options, names)
            if config.start:
                start = config.baseline
                baselines[start.run_id] = _job(start, scratch, names)
    return list((baselines | jobs).values())


def _job(config: RunConfig, options: TrainingOptions, names: Mapping[Variant, str]) -> Job:
    words = ["--attn", config.variant.name, *option_words(config.variant)]
    words += ["--seeds", str(config.seed), "--skip-latency"]
    for field in dataclasses.fields(TrainingOptions):
        value = getattr(options, field.name)
        if field.name in _OWN or value == field.default:
            continue
        words += [_flag(field.name), *map(str, value if isinstance(value, tuple) else (value,))]
    # Other machines may start it in another folder.
    results = options.results.absolute()
    if options.data is not None:
        words += ["--data", str(options.data.absolute())]
    return Job(config, names[config.variant], (*words, "--results", str(results)), results)


def option_words(variant: Variant) -> list[str]:
    """A variant's options as ``harness.run`` takes them."""
    words, own = [], own_options(RunOptions)
    for name, value in variant.options.items():
        values = value if isinstance(value, (tuple, list)) else (value,)
        words += [_flag(module_option(name, own)), *map(str, values)]
    return words


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def run_job(
    words: Sequence[str],
    log: Path,
    folder: Path,
    *,
    grace: float = GRACE,
    stop: threading.Event | None = None,
) -> int:
    """Run ``python -m harness.run`` as a process of its own and wait for it.

    SIGTERM stops it when ``stop`` is set, when an exception (such as KeyboardInterrupt) is raised
    here and, on Linux, when this process dies.

    Args:
        words: its arguments.
        log: file to which its output is appended.
        folder: where to start it, if the folder exists.
        grace: seconds from SIGTERM until it is killed.
        stop: set by another thread.

    Returns:
        Its exit status; -n if it was killed by signal n.

    Raises:
        UserError: the log cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise UserError(f"cannot write {log}: {error.strerror}; choose another folder") from error
    with output as file:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = shlex.join(["python", "-m", "harness.run", *words])
        file.write(f"[{now}] {line}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "harness.run", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder if folder.is_dir() else None,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches it only through the sweep
            preexec_fn=_prepare if os.name == "posix" else None,
        )
        try:
            while True:
                try:
                    return process.wait(_POLL)
                except subprocess.TimeoutExpired:
                    if stop is not None and stop.is_set():
                        return _end(process, grace)
        except BaseException:
            _end(process, grace)
            raise


def was_stopped(status: int) -> bool:
    """Whether an exit status is that of a run that was stopped, or killed as it did not stop."""
    return status in (KILLED, *(-s for s in _SIGNALLED), *(128 + s for s in _SIGNALLED))


def describe_status(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _end(process: subprocess.Popen[bytes], grace: float) -> int:
    process.terminate()
    try:
        return process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


# Looked up here, as a child should do little between fork and exec if there are threads.
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _prepare() -> None:
    """In the new process: end with the parent, and ignore the signals that announce preemption."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    for one in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(one, signal.SIG_IGN)
