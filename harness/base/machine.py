"""Devices, threads and precision; the machine and software that a measurement was made with.

torch is imported where it is used: commands that only read records do not need it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from .. import __version__
from .errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")

#: More than the cores of any machine; OpenMP ends the process when it cannot start its threads.
MAX_THREADS = 1024
#: Variables with which glibc keeps what is freed, if they are large when a process begins.
KEEP_MEMORY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
# Settings of glibc and torch that decide whether large blocks of memory are new or reused.
_ALLOCATION = (
    *KEEP_MEMORY,
    "MALLOC_TOP_PAD_",
    "GLIBC_TUNABLES",
    "THP_MEM_ALLOC_ENABLE",
)
_PACKAGES = ("torch", "numpy", "pillow", "scikit-image", "fvcore", "ptflops")


def pick_device(name: str) -> torch.device:
    """The device of a name: ``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``mps``, ``cuda[:n]``.

    Raises:
        UserError: an unknown name, or a device that this machine does not have.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UserError(f"unknown device {name!r}: choose auto, cpu, cuda, cuda:<number> or mps")
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device 'mps' is not available here; choose auto or cpu")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = device.index or 0
        if index >= count:
            has = f"this machine has {count} CUDA device{'s' * (count != 1)}"
            raise UserError(f"device {name!r} is not available here: {has}; choose auto or cpu")
        return torch.device("cuda", index)
    return device


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_threads(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Like ``map``, on one thread per core: results in order, few items ahead of the consumer."""
    workers = usable_cores()
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def use_threads(threads: int | None) -> None:
    """Let torch use this many CPU threads; None leaves its default, all cores.

    Raises:
        UserError: less than one, or more than :data:`MAX_THREADS`.
    """
    if threads is None:
        return
    if not 1 <= threads <= MAX_THREADS:
        least, most = "at least 1", f"at most {MAX_THREADS}"
        raise UserError(f"--threads must be {least if threads < 1 else most}, got {threads}")
    import torch

    torch.set_num_threads(threads)


@contextlib.contextmanager
def use_tf32(enabled: bool) -> Iterator[None]:
    """Allow or forbid TF32 in float32 matrix products and convolutions on CUDA in the block."""
    import torch

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse TF32 where float32 would be computed and called TF32.

    Args:
        precision: of training, such as ``tf32``.
        device: where it trains; this machine may lack it.

    Raises:
        UserError: the device has no TF32: it is not CUDA, or older than Ampere.
    """
    import torch

    if precision != "tf32":
        return
    here = device.type == "cuda" and torch.cuda.is_available()
    if device.type != "cuda" or (here and torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError(
            f"--precision tf32 needs a CUDA device with TF32 (Ampere or later), not {device}: "
            "use float32"
        )


def synchronise(device: torch.device) -> None:
    """Wait until everything queued on ``device`` is done."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def describe(device: torch.device) -> dict[str, Any]:
    """What a reader needs to judge or repeat a measurement on ``device``, ready for JSON.

    Sizes are in GB (1e9 bytes). It holds no host name, user name or path. ``gpu`` is None
    when ``device`` is the CPU; so is whatever cannot be found out.
    """
    import torch

    from attention_zoo.cores.native import compiled_by

    return {
        "device": device.type,
        "cpu": {
            "model": _cpu_model(),
            "architecture": platform.machine(),
            "physical_cores": psutil.cpu_count(logical=False),
            "logical_cores": psutil.cpu_count(),
            "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        },
        "gpu": _gpu(device),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "torch": {
            "threads": torch.get_num_threads(),
            "interop_threads": torch.get_num_interop_threads(),
            "wait_policy": wait_policy(),
            "allocator": allocator(),
            "blas": _build_setting("BLAS_INFO"),
            "lapack": _build_setting("LAPACK_INFO"),
            "mkl": torch.backends.mkl.is_available(),
            "onednn": torch.backends.mkldnn.is_available(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_deterministic": torch.backends.cudnn.deterministic,
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        },
        # Of the attention's kernels in C; None where torch's operations replace them.
        "compiler": compiled_by(),
        "code": {"version": __version__, "commit": _commit(Path(__file__).resolve().parents[2])},
    }


def wait_policy() -> str | None:
    """How OpenMP's threads wait, from the environment; None if it does not say."""
    policy, spins = (os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    said = [policy or "", f"GOMP_SPINCOUNT={spins}" if spins else ""]
    return ", ".join(filter(None, said)) or None


def allocator() -> str | None:
    """How memory is allocated on the CPU, from the environment; None if it does not say.

    Preloaded libraries such as tcmalloc, by file name, and glibc's settings: if every call gets
    new memory for its large temporaries, they may take twice the time.
    """
    preloaded = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    said = [Path(name).name for name in preloaded]
    said += [f"{name}={os.environ[name]}" for name in _ALLOCATION if os.environ.get(name)]
    return ", ".join(said) or None


def _cpu_model() -> str | None:
    if platform.system() == "Linux":
        with contextlib.suppress(OSError):
            for line in Path("/proc/cpuinfo").read_text().splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or None


def _gpu(device: torch.device) -> dict[str, Any] | None:
    if device.type == "mps":
        return {"name": f"{_cpu_model()} (MPS)"}
    if device.type != "cuda":
        return None
    import torch

    properties = torch.cuda.get_device_properties(device)
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "driver": driver.splitlines()[0] if driver else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _build_setting(name: str) -> str | None:
    import torch

    found = re.search(rf"\b{name}=([^,\s]+)", torch.__config__.show())
    return found[1] if found else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit(root: Path) -> str | None:
    """``git describe`` of the source tree at ``root``; None unless it is a repository itself."""
    if not (root / ".git").exists():  # e.g. installed, in whatever repository holds the environment
        return None
    return _output("git", "-C", str(root), "describe", "--always", "--dirty")


def _output(*command: str) -> str | None:
    """Standard output of a command, stripped; None if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
