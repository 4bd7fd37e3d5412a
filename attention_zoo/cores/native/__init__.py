"""Kernels for the CPU in C, compiled for this very processor when they are first asked for.

A C compiler (``cc``, ``gcc``, ``clang``, or the variable ``CC``) is all that they need; where there
is none, :func:`why_not_native` says so, and what is written with torch's operations runs instead.
The compiled library is kept in the user's cache folder, under a name that tells its sources, the
compiler and the processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _python_dispatch

_FOLDER = Path(__file__).parent
_SOURCES = ("enla.c", "nlsa.c", "softmax.c", "winograd.c")
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"),
    *("-shared", "-fPIC"),
)
_COMPILE_SECONDS = 120
_CPU_INFO = Path("/proc/cpuinfo")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Rows that receive gradients must be multiples of this wide: the widest vector.
WIDTH = 16


def why_not_native(*maps: Tensor) -> str | None:
    """Why the kernels cannot run on these tensors; None if they can.

    The first use compiles them, which takes a few seconds.
    """
    first = maps[-1]
    if first.device.type != "cpu":
        return f"the kernels in C are for the CPU, not for {first.device.type}"
    if first.dtype not in _DTYPES:
        return f"the kernels in C do not take {str(first.dtype).removeprefix('torch.')}"
    if _watched(maps):
        return "operations are traced or counted, which sees torch's only"
    found = _library()
    return found if isinstance(found, str) else None


def _watched(maps: Iterable[Tensor]) -> bool:
    return (
        torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or _python_dispatch._get_current_dispatch_mode() is not None
        or any(type(t) not in (Tensor, torch.nn.Parameter) for t in maps)
        or torch._C._functorch.maybe_current_level() is not None
    )


def library() -> Any:
    """The compiled functions.

    Raises:
        RuntimeError: there are none, see :func:`why_not_native`.
    """
    found = _library()
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def compiled_by() -> str | None:
    """The first line of what the compiler says of itself; None where the kernels cannot run."""
    command = _compiler()
    if command is None or isinstance(_library(), str):
        return None
    return (_version(command).splitlines() or [command[0]])[0]


@cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    command = _compiler()
    if command is None:
        return f"no C compiler was found ({', '.join(_COMPILERS)}, or the variable CC)"
    sources = {path.name: path.read_bytes() for path in sorted(_FOLDER.glob("*.[ch]"))}
    made_by = repr((command, _version(command), _FLAGS, _processor()))
    digest = hashlib.sha256(b"\0".join([*sources.values(), made_by.encode()])).hexdigest()[:16]
    try:
        kept = _cache_folder()
        fresh = tempfile.TemporaryDirectory(prefix="attention-zoo-") if kept is None else None
        with fresh or nullcontext(kept) as folder:
            path = Path(str(folder)) / f"native-{digest}.so"
            if not path.exists():
                _compile(command, path)
            return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return f"the kernels in C could not be compiled: {_reason(error)}"


def _compile(command: list[str], path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="compile-") as folder:
        made = Path(folder) / path.name
        sources = [str(_FOLDER / name) for name in _SOURCES]
        subprocess.run(
            [*command, *_FLAGS, "-o", str(made), *sources, "-lm"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECONDS,
        )
        ctypes.CDLL(str(made))  # else nobody shall find it
        made.replace(path)


def _compiler() -> list[str] | None:
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named if shutil.which(named[0]) else None
    return next(([name] for name in _COMPILERS if shutil.which(name)), None)


def _version(command: list[str]) -> str:
    try:
        return subprocess.run(
            [*command, "--version"], capture_output=True, text=True, timeout=_COMPILE_SECONDS
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _processor() -> str:
    """What tells processors apart by their instructions: many machines may share the cache."""
    try:
        first = _CPU_INFO.read_text().split("\n\n")[0].splitlines()
    except OSError:
        first = []
    told = (
        "model name",
        "cpu family",
        "model\t",
        "flags",
        "CPU implementer",
        "CPU part",
        "Features",
    )
    lines = [line for line in first if line.startswith(told)]
    return "\n".join([platform.machine(), platform.processor(), *lines])


def _cache_folder() -> Path | None:
    """This user's folder; None where there is no home, or it cannot be written."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "attention-zoo"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # Python knows no home
        return None
    return folder if os.access(folder, os.W_OK) else None


def _reason(error: Exception) -> str:
    """The first line that tells what is wrong."""
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.splitlines() if "error" in line]
        text = (lines or error.stderr.splitlines() or [text])[0]
    return text.splitlines()[0] if text else type(error).__name__
