"""Train, measure and tabulate non-local attention modules in one EDSR backbone."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType

# OpenMP threads that spin while they wait make a small network five times slower as soon as
# another process uses a core; sleeping costs a tenth on an idle machine. torch reads it on import.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    __version__ = version("attention-zoo")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"


def _show_ctrl_c_in_a_line(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped by SIGINT", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


#: What a command says whose working directory no longer exists.
DELETED = "the folder in which this runs was deleted: change to another"

if sys.argv[:1] == ["-m"]:  # python -m harness.…: Ctrl-C while modules are imported
    sys.excepthook = _show_ctrl_c_in_a_line
    try:
        Path.cwd()
    except FileNotFoundError:  # torch and its libraries would fail with messages of their own
        print(f"error: {DELETED}", file=sys.stderr)
        raise SystemExit(2) from None
