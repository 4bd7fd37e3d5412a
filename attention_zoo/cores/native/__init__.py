"""Kernels in C for the CPU, compiled for this very processor on first use.

They need only a C compiler (``cc``, ``gcc``, ``clang``, or the variable ``CC``). Where there is
none, :func:`why_not_native` says so, and torch's operations run instead. A compiled library is kept
in the user's cache folder, under a name made from its sources, the compiler and the processor.
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
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _python_dispatch

_FOLDER = Path(__file__).parent
#: The C files of one library; none are those of this folder.
Sources = tuple[Path, ...]
_COMPILERS = ("cc", "gcc", "clang")
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno"),
    *("-shared", "-fPIC", "-pthread"),
)
_COMPILE_SECONDS = 120
_CPU_INFO = Path("/proc/cpuinfo")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: The width of rows that receive gradients must be a multiple of this: the widest vector.
WIDTH = 16


def why_not_native(*maps: Tensor, sources: Sources = ()) -> str | None:
    """Why the kernels cannot run on these tensors; None if they can.

    The first use compiles them, which takes a few seconds.

    Args:
        maps: the tensors; the last decides on device and dtype.
        sources: C files of the kernels, elsewhere than here; they may include ``vectors.h``.
    """
    first = maps[-1]
    if first.device.type != "cpu":
        return f"the kernels in C are for the CPU, not for {first.device.type}"
    if first.dtype not in _DTYPES:
        return f"the kernels in C do not take {str(first.dtype).removeprefix('torch.')}"
    if _watched(maps):
        return "operations are traced or counted, which sees only torch's"
    found = _library(sources)
    return found if isinstance(found, str) else None


def _watched(maps: Iterable[Tensor]) -> bool:
    return (
        torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or _python_dispatch._get_current_dispatch_mode() is not None
        or any(type(t) not in (Tensor, torch.nn.Parameter) for t in maps)
        or torch._C._functorch.maybe_current_level() is not None
    )


def library(*sources: Path) -> Any:
    """The compiled functions of these C files; of the files in this folder if none are named.

    Raises:
        RuntimeError: they cannot be compiled, see :func:`why_not_native`.
    """
    found = _library(sources)
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


class Job(ctypes.Structure):
    """A ``struct`` of a C file, whose comments say what each field is."""

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """From tensors and numbers by field, tuples of them for arrays; those left out are 0.

        It does not keep the tensors alive.
        """
        types: dict[str, Any] = {name: kind for name, kind, *_ in cls._fields_}
        return cls(
            **{
                name: types[name](*map(_plain, x)) if isinstance(x, tuple) else _plain(x)
                for name, x in fields.items()
            }
        )


def _plain(x: Any) -> Any:
    return x.data_ptr() if isinstance(x, Tensor) else x


def call(name: str, job: Job, workspace: Tensor | None = None) -> None:
    """Call a function of this folder's library that takes a job and, if given, memory.

    Args:
        name: of the C function.
        job: what to do, and where results go.
        workspace: :func:`workspace_of` numbers in float32 for each worker, overwritten.
    """
    memory = () if workspace is None else (ctypes.c_void_p(workspace.data_ptr()),)
    getattr(library(), name)(ctypes.byref(job), *memory)


def workspace_of(name: str, *sizes: int) -> int:
    """Numbers of memory that each worker takes, which the C function of that name tells."""
    function = getattr(library(), name)
    function.restype = ctypes.c_ssize_t
    return int(function(*map(ctypes.c_ssize_t, sizes)))


def padded(width: int) -> int:
    """The next multiple of :data:`WIDTH`."""
    return width + -width % WIDTH


def float_rows(x: Tensor, multiple: int = 1) -> Tensor:
    """Rows ``[…, w]`` in float32, contiguous, padded with zeros to a multiple of the width."""
    missing = -x.shape[-1] % multiple
    x = x.to(torch.float32)
    return (F.pad(x, (0, missing)) if missing else x).contiguous()


def compiled_by() -> str | None:
    """The first line of the compiler's version text; None where the kernels cannot run."""
    command = _compiler()
    if command is None or isinstance(_library(()), str):
        return None
    return (_version(command).splitlines() or [command[0]])[0]


@cache
def _library(sources: Sources) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    command = _compiler()
    if command is None:
        return f"no C compiler was found ({', '.join(_COMPILERS)}, or the variable CC)"
    sources = sources or tuple(sorted(_FOLDER.glob("*.c")))
    content = [path.read_bytes() for path in (*sources, *sorted(_FOLDER.glob("*.h")))]
    made_by = repr((command, _version(command), _FLAGS, _processor()))
    digest = hashlib.sha256(b"\0".join([*content, made_by.encode()])).hexdigest()[:16]
    try:
        kept = _cache_folder()
        fresh = tempfile.TemporaryDirectory(prefix="attention-zoo-") if kept is None else None
        with fresh or nullcontext(kept) as folder:
            path = Path(str(folder)) / f"native-{digest}.so"
            if not path.exists():
                _compile(command, sources, path)
            return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return f"the kernels in C could not be compiled: {_reason(error)}"


def _compile(command: list[str], sources: Sources, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="compile-") as folder:
        made = Path(folder) / path.name
        subprocess.run(
            [*command, *_FLAGS, "-I", str(_FOLDER), "-o", str(made), *map(str, sources), "-lm"],
            check=True,
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECONDS,
        )
        ctypes.CDLL(str(made))  # a library that cannot be loaded must not be found
        made.replace(path)


def _compiler() -> list[str] | None:
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # quotes that do not close
        return None
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
    """What distinguishes processors by their instructions: many machines may share the cache."""
    try:
        first = _CPU_INFO.read_text().split("\n\n")[0].splitlines()
    except OSError:
        first = []
    names = (
        "model name",
        "cpu family",
        "model\t",
        "flags",
        "CPU implementer",
        "CPU part",
        "Features",
    )
    lines = [line for line in first if line.startswith(names)]
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
    """The first line that names the error."""
    text = str(error)
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in error.stderr.splitlines() if "error" in line]
        text = (lines or error.stderr.splitlines() or [text])[0]
    return text.splitlines()[0] if text else type(error).__name__
