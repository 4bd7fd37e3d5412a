"""What other processes do while something is timed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import psutil

#: Cores that others may keep busy before a measurement is doubted.
MOST_LOAD = 0.1


def watch_load() -> Callable[[], float]:
    """Gives what tells how many cores others kept busy from now on, on average.

    Others are all processes but this one and those that it started; time that a host took from a
    virtual machine counts too. The system counts in hundredths of a second.
    """
    busy, own, began = _busy(), _own(), time.monotonic()

    def cores() -> float:
        seconds = max(time.monotonic() - began, 1e-9)
        return round(max(0.0, (_busy() - busy) - (_own() - own)) / seconds, 3)

    return cores


def warn_of_load(cores: float) -> None:
    """Say on standard error that others were busy, if they were."""
    if cores > MOST_LOAD:
        print(
            f"warning: other processes kept {cores:.2g} cores busy meanwhile; "
            "measure again on an idle machine",
            file=sys.stderr,
        )


def _busy() -> float:
    """Seconds that all cores together were not idle."""
    times = psutil.cpu_times()
    names = ("user", "nice", "system", "irq", "softirq", "steal")
    return sum(float(getattr(times, name, 0.0)) for name in names)


def _own() -> float:
    """Seconds of this process and those that it started."""
    process = psutil.Process()
    spent = sum(process.cpu_times()[:4])  # the last two are those of children that ended
    for child in process.children(recursive=True):
        try:
            spent += sum(child.cpu_times()[:4])
        except psutil.Error:  # it just ended
            continue
    return spent
