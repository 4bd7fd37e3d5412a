"""How pytest-benchmark prints the times."""

from __future__ import annotations

from typing import Any


def pytest_benchmark_scale_unit(unit: str, **_: Any) -> tuple[str, float]:
    """Milliseconds in every group, whatever is fast in it; other units as they are."""
    return ("m", 1e3) if unit == "seconds" else ("", 1.0)
