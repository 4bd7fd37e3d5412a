"""Where the time of a command goes, from its start on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

#: Time before the first phase, and outside of all phases.
START_UP, REST = "start-up", "the rest"


class Phases:
    """Seconds of each phase of this process; phases do not overlap, and a name may come again."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time."""
        if not self._seconds:
            self._seconds[START_UP] = since_start()
        begin = time.monotonic()
        try:
            yield
        finally:
            spent = time.monotonic() - begin
            self._seconds[name] = self._seconds.get(name, 0.0) + spent

    def seconds(self) -> dict[str, float]:
        """Seconds by phase, from the start of the process to now; the rest comes last."""
        rest = since_start() - sum(self._seconds.values())
        return self._seconds | {REST: max(0.0, rest)}

    def __str__(self) -> str:
        found = self.seconds()
        parts = ", ".join(f"{name} {spent:.1f}" for name, spent in found.items())
        return f"{sum(found.values()):.1f} s: {parts}"


def since_start() -> float:
    """Seconds since this process was started, in hundredths."""
    return max(0.0, time.time() - psutil.Process().create_time())
