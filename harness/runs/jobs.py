"""Jobs of a sweep: one variant with one seed each, run by ``harness.run`` as a process."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..base.errors import UserError
from ..base.signals import KILLED
from ..config.labels import row_labels
from ..config.options import module_option, own_options
from ..config.run import RunConfig
from ..config.sources import check_source
from ..config.variants import Variant
from ..records.changed import changed_sets
from ..records.shapes import Run
from ..records.store import find_record, load_record
from ..tasks.images import ImageTask
from ..tasks.registry import DEFAULT
from .options import RunOptions, TrainingOptions, configure, res_scale_of
from .warm import Forked, can_fork

if TYPE_CHECKING:
    from ..tasks.options import AnyTask

#: Seconds that a job has for saving its state after SIGTERM.
GRACE = 15.0
#: Seconds between two checks whether a job has ended or is to stop.
_POLL = 0.1
_SIGNALLED = (signal.SIGINT, signal.SIGTERM)
#: Options that a job's command does not copy: it has its own variant, seed and task, and the engine
#: chooses device and threads.
_OWN = ("attn", "rows", "seeds", "task", "device", "threads", "data", "results")


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        config: the run.
        name: of its variant in tables, with the options that distinguish it from others.
        words: arguments of ``python -m harness.run`` for it, without device and threads.
        results: folder of the records, absolute.
        task: what it learns; it stays on this machine.
        note: what else tells it apart, such as its learning rate.
    """

    config: RunConfig
    name: str
    words: tuple[str, ...]
    results: Path
    task: AnyTask = field(compare=False, repr=False)
    note: str = ""

    @property
    def label(self) -> str:
        """For people, without note and seed, e.g. ``ENLCA-m16, warm start``."""
        return f"{self.name}, warm start" if self.config.start else self.name

    def __str__(self) -> str:
        return ", ".join(filter(None, [self.label, self.note, f"seed {self.config.seed}"]))

    @property
    def finished(self) -> bool:
        """Whether the record exists, and its test images are those that are there now."""
        if not find_record(self.results, Run, self.config.run_id).exists():
            return False
        if not isinstance(self.task, ImageTask):
            return True
        with contextlib.suppress(UserError):  # a bad record or image is named by who needs it
            return not changed_sets(load_record(self.results, Run, self.config.run_id), self.task)
        return True

    @property
    def log(self) -> Path:
        """File of the job's output, also of earlier tries."""
        return self.results / "runs" / self.config.run_id / "log.txt"


def find_jobs(
    options: TrainingOptions,
    variants: Sequence[Variant],
    device: torch.device,
    task: AnyTask,
) -> list[Job]:
    """The runs of a grid in the order of ``harness.run``; the baselines of warm starts first.

    The variants have the ``res_scale`` of task or preset: see ``tasks.options.weighted``.

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
        learn_res_scale=False,
        attention_rate=1.0,
    )
    names = job_names((*variants, Variant("none")), res_scale_of(options, task))
    baselines, jobs = {}, {}
    for seed in dict.fromkeys(options.seeds):
        for variant in variants:
            config = configure(options, task, variant, seed, device)
            jobs[config.run_id] = make_job(config, names[variant], options, task)
            if config.start:
                start = config.baseline
                name = names[start.variant]
                baselines[start.run_id] = make_job(start, name, scratch, task)
    return list((baselines | jobs).values())


def job_names(variants: Sequence[Variant], res_scale: float | None) -> dict[Variant, str]:
    """Row label of each variant; a weight that task or preset gives all modules is not shown."""
    if res_scale is None:
        return row_labels(variants)
    plain = {variant: variant.without_weight for variant in variants}
    labels = row_labels(plain.values())
    return {variant: labels[one] for variant, one in plain.items()}


def make_job(config: RunConfig, name: str, options: TrainingOptions, task: AnyTask) -> Job:
    """The job of a run that ``options`` lead to, apart from its variant, seed and task."""
    variant, resolved = config.variant, config.variant.resolved
    # Else task or preset would give its own.
    if res_scale_of(options, task) is not None and "res_scale" in resolved:
        variant = Variant(variant.name, {**variant.options, "res_scale": resolved["res_scale"]})
    words = ["--attn", variant.name, *option_words(variant), "--seeds", str(config.seed)]
    words += task_words(task)
    if task.name == DEFAULT:
        words += ["--skip-latency"]
    for option in dataclasses.fields(TrainingOptions):
        value = getattr(options, option.name)
        if option.name in _OWN or value == option.default:
            continue
        if isinstance(value, bool):
            words.append(_flag(option.name))
            continue
        words += [_flag(option.name), *map(str, value if isinstance(value, tuple) else (value,))]
    # Other machines may start it in another folder.
    results = options.results.absolute()
    if options.data is not None:
        words += ["--data", str(options.data.absolute())]
    return Job(config, name, (*words, "--results", str(results)), results, task)


def task_words(task: AnyTask) -> list[str]:
    """A task, and its options that are not at their defaults, as ``harness.run`` takes them."""
    words = [] if task.name == DEFAULT else ["--task", task.name]
    for name, parameter in task.options().items():
        value = getattr(task, name)
        if value == parameter.default:
            continue
        if isinstance(value, bool):
            words.append(_flag(name if value else f"no_{name}"))
        else:
            values = value if isinstance(value, (tuple, list)) else (value,)
            words += [_flag(name), *map(str, values)]
    return words


def option_words(variant: Variant) -> list[str]:
    """A variant's options as ``harness.run`` takes them."""
    words, own = [], own_options(RunOptions)
    for name, value in variant.options.items():
        values = value if isinstance(value, (tuple, list)) else (value,)
        words += [_flag(module_option(name, own)), *map(str, values)]
    return words


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_sources(jobs: Sequence[Job]) -> None:
    """Check that users' modules have not changed since these finished jobs were run.

    Raises:
        UserError: a module's file has changed.
    """
    for job in jobs:
        if job.config.variant.source_sha256 is not None:
            record = load_record(job.results, Run, job.config.run_id)
            path = find_record(job.results, Run, job.config.run_id)
            check_source(record.source_sha256, job.config.variant, path)


def run_job(
    words: Sequence[str],
    log: Path,
    folder: Path,
    *,
    grace: float = GRACE,
    stop: threading.Event | None = None,
    warm: bool = False,
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
        warm: begin with everything imported, where that is possible; see :mod:`.warm`.

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
        process: subprocess.Popen[bytes] | Forked
        if warm and can_fork():
            process = Forked("harness.run", words, log, folder)
        else:
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


def _end(process: subprocess.Popen[bytes] | Forked, grace: float) -> int:
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
