"""Speed of the attention modules at 100x100, side by side: ``pytest benchmarks --benchmark-only``.

For a look while working on a module, and to compare two versions of it (``--benchmark-compare``).
All times are in ms. Table 5 comes from ``python -m harness.latency``, which times in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from attention_zoo import list_attentions
from harness.config.rows import table_rows
from harness.config.variants import Variant
from harness.measuring.latency import Case

# They do next to nothing, and all else would be compared with that.
_CONTROLS = {"none", "mean", "reference-mean", "oracle"}
#: Table 5's rows, then every other module with its default options.
VARIANTS = [
    variant
    for variant in dict.fromkeys((*table_rows("table5"), *map(Variant, list_attentions())))
    if variant.name not in _CONTROLS
]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.label)
def variant(request: pytest.FixtureRequest) -> Variant:
    return request.param


@pytest.mark.parametrize(
    ("part", "passes"),
    [("core", "forward"), ("core", "forward+backward"), ("module", "forward")],
    ids=lambda value: value,
)
def test_speed(benchmark: BenchmarkFixture, variant: Variant, part: str, passes: str) -> None:
    benchmark.name = variant.label  # pytest escapes what is not ASCII in its ids
    benchmark.group = f"{part}, {passes}, 100x100"
    function: Callable[[], Any] = Case(part, passes, 100, 100).function(variant)
    benchmark.extra_info["threads"] = torch.get_num_threads()
    begin = time.perf_counter()
    function()  # warm-up
    rounds = int(1 / (time.perf_counter() - begin))  # for about a second
    benchmark.pedantic(function, rounds=min(max(rounds, 3), 50))
