"""Closed-form costs: the paper's Table 4, the design's figures, and a counter's exact count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attention_zoo import create_attention, find_attention, list_attentions
from attention_zoo.rivals.nystrom import NystromAttention
from tests.attention_zoo.table import ORACLES, channels_of
from tests.reference.cases import counted_macs

TABLE_4 = [
    ("none", {}, "0.00"),
    ("nla", {"reduction": 1}, "25.60"),
    ("conv", {}, "0.74"),
    ("nlsa", {"reduction": 1, "rounds": 4}, "5.08"),
    *(
        ("enlca", {"reduction": 1, "m": m}, gflops)
        for m, gflops in [
            (256, "1.31"),
            (128, "0.66"),
            (64, "0.33"),
            (32, "0.16"),
            (16, "0.08"),
            (8, "0.04"),
            (4, "0.02"),
            (2, "0.01"),
        ]
    ),
]


@pytest.mark.parametrize(("name", "options", "gflops"), TABLE_4)
def test_core_prints_table_4(name: str, options: dict[str, Any], gflops: str) -> None:
    cost = create_attention(name, channels=64, **options).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.2f}" == gflops


@pytest.mark.parametrize(
    ("name", "options", "core"),
    [
        ("nla", {}, 25.6),
        ("conv", {}, 0.73728),
        ("nlsa", {}, 5.07904),
        ("enlca", {"m": 256}, 1.31328),
        ("enla", {"m": 2}, 0.01026),
        ("criss-cross", {}, 0.512),
    ],
)
def test_core_is_the_formula_of_the_design(name: str, options: dict[str, Any], core: float) -> None:
    if name != "conv":
        options = {**options, "reduction": 1}
    cost = create_attention(name, channels=64, **options).cost(100, 100)
    assert 2 * cost.core / 1e9 == pytest.approx(core, rel=1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_core_of_every_module(name: str) -> None:
    """At 100x100 with 64 channels, in query and key too."""
    options = {"reduction": 1} if "reduction" in find_attention(name).options() else {}
    cost = create_attention(name, channels=64, **options).cost(100, 100)
    gflops = ORACLES[name].gflops
    assert f"{2 * cost.core / 1e9:.{len(gflops.partition('.')[2])}f}" == gflops


@pytest.mark.parametrize("name", ["nystrom", "rnan"])
def test_nothing_but_the_core_is_executed(name: str) -> None:
    cost = create_attention(name, channels=64, reduction=1).cost(100, 100)
    assert cost.core == cost.executed


def test_executed_operations_of_nlsa() -> None:
    """70 buckets and 70 chunks of 144, 80 of their entries padding."""
    cost = create_attention("nlsa", channels=64, reduction=1).cost(100, 100)
    assert f"{2 * cost.executed / 1e9:.3f}" == "4.638"


@pytest.mark.parametrize(
    ("name", "gflops"),
    [("nla", "65.97"), ("nlsa", "15.59"), ("enlca", "3.61"), ("criss-cross", "2.79")],
)
def test_module_as_inserted(name: str, gflops: str) -> None:
    """256 channels, each module's own embedding width, projections included."""
    cost = create_attention(name, channels=256).cost(100, 100)
    assert f"{2 * cost.module / 1e9:.2f}" == gflops


def assert_counter_agrees(
    name: str, channels: int, height: int, width: int, **options: Any
) -> None:
    cost = create_attention(name, channels=channels, **options).cost(height, width)
    attend, module = counted_macs(name, channels, height, width, **options)
    passes = options.get("recurrence", 1)  # attend is one pass of them
    assert attend * passes == cost.executed
    assert module == cost.module_executed == cost.module - cost.saved
    assert cost.module == cost.projections + cost.executed


@pytest.mark.parametrize("name", list_attentions())
@settings(max_examples=12, suppress_health_check=[HealthCheck.differing_executors])
@given(
    data=st.data(),
    width=st.sampled_from([1, 2, 5, 8, 16, 40]),
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_executed_operations_equal_the_counters(
    name: str, data: st.DataObject, width: int, size: tuple[int, int]
) -> None:
    options = data.draw(st.fixed_dictionaries(ORACLES[name].drawn if name in ORACLES else {}))
    assert_counter_agrees(name, channels_of(name, width, **options), *size, **options)


@pytest.mark.parametrize("name", list_attentions())
@pytest.mark.parametrize("size", [(1, 1), (1, 200), (48, 47), (100, 100)])
def test_executed_operations_equal_the_counters_at_real_sizes(
    name: str, size: tuple[int, int]
) -> None:
    """As inserted into the paper's network, and in the 64-channel setting of its Table 4."""
    assert_counter_agrees(name, 256, *size)
    if "reduction" in type(create_attention(name, channels=64)).options():
        assert_counter_agrees(name, 64, *size, reduction=1)


@pytest.mark.parametrize("name", list_attentions())
def test_costs_grow_with_the_area_and_are_whole_numbers(name: str) -> None:
    module = create_attention(name, channels=16)
    small, large = module.cost(24, 36), module.cost(48, 72)  # whole chunks of NLSA
    fixed = module.cost(0, 0)  # what works on no position: weights of channels, learned tokens
    if isinstance(module, NystromAttention):  # and what landmarks do among themselves
        macs = module.landmark_macs(module.grid**2)
        fixed = replace(fixed, core=macs, executed=macs)
    for part in ("projections", "core", "executed", "module"):
        of_small, of_large = (getattr(cost, part) - getattr(fixed, part) for cost in (small, large))
        assert of_large >= 4 * of_small
    assert isinstance(small.projections, int)
    assert isinstance(small.executed, int)
    assert module.cost(20, 30) == module.cost(30, 20)


@pytest.mark.parametrize("name", list_attentions())
def test_costs_are_the_same_on_every_processor(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """They ask neither for the compiler, nor the cache, vector instructions or threads."""
    module = create_attention(name, channels=16)

    def fail(*_: Any) -> None:
        pytest.fail("the cost depends on the processor")

    for asked in (
        "attention_zoo.cores.native._library",
        "attention_zoo.cores.tiles._level_2",
        "torch.backends.cpu.get_cpu_capability",
        "torch.get_num_threads",
    ):
        monkeypatch.setattr(asked, fail)
    assert module.cost(20, 30).executed >= 0
