"""Train, measure and tabulate non-local attention modules in one EDSR backbone."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType

# Threads that spin while they wait slow a small network five-fold as soon as anything else uses
# a core; threads that sleep cost a tenth on an idle machine. It is read when torch loads.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    __version__ = version("attention-zoo")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"


def _interrupted(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    """Tell Ctrl-C in a line; Python then ends as by the signal. All else as ever."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


if sys.argv[:1] == ["-m"]:  # python -m harness.…: importing torch takes seconds
    sys.excepthook = _interrupted
