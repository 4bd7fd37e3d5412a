"""Where the jobs of a sweep run: in processes here, as tasks of Ray, or as jobs of Slurm.

Other machines need this package and the folders of data and results under the same paths. An
engine's ``run`` waits for one job and gives its exit status; a sweep calls it from several threads
at once. A job that dies ends no other.
"""

from __future__ import annotations

import importlib
import os
import queue
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ..base.errors import UserError
from ..base.extras import install_extra
from ..base.machine import usable_cores
from .jobs import GRACE, Job, run_job

#: How often Ray starts a job again whose worker or machine died.
RAY_RETRIES = 3
#: Seconds between two checks of a task or job.
_POLL = 0.5


@dataclass(kw_only=True)
class EngineOptions:
    """Options of all engines.

    Attributes:
        device: where jobs train; its index is not used.
        workers: jobs at once; None is 1 on this machine and all elsewhere.
        threads: CPU threads, of all jobs together on this machine, of each elsewhere.
        gpus: share of a GPU for a job, with Ray.
        address: of a Ray cluster; None starts one here.
        slurm: parameters of submitit's executor, as name=value.
        grace: seconds that jobs have for saving their state when they are to stop.
        stop: set when they are to stop.
    """

    device: torch.device
    workers: int | None = None
    threads: int | None = None
    gpus: float = 1.0
    address: str | None = None
    slurm: Sequence[str] = ()
    grace: float = GRACE
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def threads_each(self) -> int:
        """CPU threads of a job on this machine."""
        return max(1, (self.threads or usable_cores()) // (self.workers or 1))


class Engine(Protocol):
    """See the module's text."""

    def run(self, job: Job) -> int:
        """Run a job and wait for it; gives its exit status.

        Raises:
            Exception: the engine could not run it or lost it; the message says why.
        """


class Local:
    """Processes of this machine, which share its threads, and its GPUs in turn."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(options.workers or 1):
            self._slots.put(slot)

    def run(self, job: Job) -> int:
        options, slot = self.options, self._slots.get()
        device = options.device.type
        if device == "cuda":
            device = f"cuda:{slot % torch.cuda.device_count()}"
        words = (*job.words, "--device", device, "--threads", str(options.threads_each))
        try:
            return run_job(
                words, job.log, Path.cwd(), grace=options.grace, stop=options.stop, warm=True
            )
        finally:
            self._slots.put(slot)


class Ray:
    """Tasks of a Ray cluster; a task whose worker dies is started again and resumes."""

    def __init__(self, options: EngineOptions) -> None:
        ray = _import("ray", "ray")
        self.options, self._ray = options, ray
        self._threads = options.threads or 1
        address = options.address or os.environ.get("RAY_ADDRESS")
        try:
            _knock(address)
            ray.init(
                address=address,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (OSError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            source = "--ray-address" if options.address else "RAY_ADDRESS"
            where = f" at {address} ({source})" if address else ""
            raise UserError(f"no Ray cluster answers{where}: {reason}") from error
        self._task = ray.remote(
            num_cpus=self._threads,
            num_gpus=options.gpus if options.device.type == "cuda" else 0,
            max_retries=RAY_RETRIES,
        )(run_job)

    def run(self, job: Job) -> int:
        ray, options = self._ray, self.options
        words = (
            *job.words,
            *("--device", options.device.type),
            *("--threads", str(self._threads)),
        )
        task = self._task.remote(words, job.log, Path.cwd(), grace=options.grace)
        while not ray.wait([task], timeout=_POLL)[0]:
            if options.stop.is_set():
                ray.cancel(task)  # raises KeyboardInterrupt in the task, which stops its job
                if not ray.wait([task], timeout=options.grace)[0]:
                    ray.cancel(task, force=True)
                return _STOPPED
        try:
            status: int = ray.get(task)
        except ray.exceptions.RayError as error:
            last = str(error).strip().splitlines()[-1]
            raise RuntimeError(f"Ray lost it ({type(error).__name__}): {last}") from error
        return status

    def close(self) -> None:
        self._ray.shutdown()


class Slurm:
    """Jobs of Slurm through submitit, or of submitit's local executor if there is no Slurm."""

    def __init__(self, options: EngineOptions, folder: Path) -> None:
        submitit = _import("submitit", "slurm")
        self.options = options
        self._threads = options.threads or 1
        self._submit_lock = threading.Lock()
        if shutil.which("srun") is None:
            print("Slurm is not installed here: submitit's local executor runs the jobs.")
        self._executor = submitit.AutoExecutor(folder=folder)
        parameters: dict[str, Any] = {
            "name": "attention-zoo",
            "timeout_min": 24 * 60,
            "cpus_per_task": self._threads,
            "gpus_per_node": 1 if options.device.type == "cuda" else 0,
        }
        for word in options.slurm:
            name, equals, value = word.partition("=")
            if not equals:
                raise UserError(f"--slurm takes name=value, got {word!r}")
            parameters[name] = int(value) if value.isdecimal() else value
        try:
            self._executor.update_parameters(**parameters)
        except (NameError, TypeError, AssertionError) as error:
            raise UserError(f"--slurm: {' '.join(str(error).split())}") from error

    def run(self, job: Job) -> int:
        options = self.options
        words = (
            *job.words,
            *("--device", options.device.type),
            *("--threads", str(self._threads)),
        )
        with self._submit_lock:
            task = self._executor.submit(Submission(words, job.log, Path.cwd(), options.grace))
        while not task.done():
            if options.stop.wait(_POLL):
                task.cancel(check=False)
                end = time.monotonic() + options.grace
                while not task.done() and time.monotonic() < end:
                    time.sleep(_POLL)
                return _STOPPED
        status: int = task.result()
        return status


@dataclass(frozen=True)
class Submission:
    """What Slurm runs for a job; queued again if it is preempted or runs out of time."""

    words: tuple[str, ...]
    log: Path
    folder: Path
    grace: float

    def __call__(self) -> int:
        return run_job(self.words, self.log, self.folder, grace=self.grace)

    def checkpoint(self) -> Any:
        """What submitit submits next: the same, which resumes from its checkpoint."""
        return _import("submitit", "slurm").helpers.DelayedSubmission(self)


#: Exit status of a job that its engine stopped.
_STOPPED = 143


@contextmanager
def open_engine(name: str, options: EngineOptions, results: Path) -> Iterator[Engine]:
    """The engine of that name: local, ray or slurm.

    Raises:
        UserError: its package is not installed, or its cluster does not answer.
    """
    if name == "local":
        yield Local(options)
    elif name == "slurm":
        yield Slurm(options, results / "runs" / ".jobs")
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        engine = Ray(options)
        try:
            yield engine
        finally:
            engine.close()


def _knock(address: str | None) -> None:
    """Connect to ``host:port``, if the address is one; Ray itself would try for minutes.

    Raises:
        OSError: no answer.
    """
    found = re.fullmatch(r"([^/]+):(\d+)", address or "")
    if found:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()


def _import(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f"--engine {extra} needs {package}: {install_extra(extra)}") from None
