"""Every built-in module against its oracle in the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import create_attention, find_attention, is_built_in, list_attentions
from tests.attention_zoo.table import ORACLES, assert_attend_agrees, build, build_with_inputs
from tests.reference.cases import (
    SIZES,
    TOLERANCES,
    LargestTensor,
    assert_all_close,
    assert_module_agrees,
    random_map,
    with_gradients,
)
from tests.reference.conv import convolve


def test_every_module_has_an_oracle() -> None:
    built_in = {n for n in list_attentions(installed=False) if is_built_in(find_attention(n))}
    missing = ", ".join(built_in - set(ORACLES))
    assert not missing, f"tests/attention_zoo/table.py has no oracle for {missing}"
    assert set(ORACLES) == built_in


@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [
        pytest.param(name, size, dtype, id=f"{name}-{size[0]}x{size[1]}-{dtype}")
        for name, oracle in ORACLES.items()
        for size in oracle.sizes
        for dtype in oracle.dtypes
    ],
)
def test_attend_agrees(name: str, size: tuple[int, int], dtype: torch.dtype) -> None:
    batch = 2 if size in SIZES else 1
    assert_attend_agrees(name, size, batch=batch, dtype=dtype, **ORACLES[name].options)


@pytest.mark.parametrize("name", ORACLES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.differing_executors])
@given(data=st.data(), seed=st.integers(0, 1000), width=st.integers(1, 5), batch=st.integers(1, 3))
def test_attend_agrees_for_drawn_shapes_and_options(
    name: str, data: st.DataObject, seed: int, width: int, batch: int
) -> None:
    oracle = ORACLES[name]
    size = data.draw(st.tuples(*(st.integers(1, max(6, side)) for side in oracle.sizes[-1])))
    options = data.draw(st.fixed_dictionaries(oracle.drawn))
    assert_attend_agrees(name, size, width=width, seed=seed, batch=batch, **options)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", ["nla", "criss-cross"])
def test_attend_agrees_for_large_scores(name: str, dtype: torch.dtype) -> None:
    """Of ±100 and more: weights near 0 and 1, each by the exact score of its inputs."""
    assert_attend_agrees(name, (5, 6), seed=2, dtype=dtype, factor=5, condition=10)


@pytest.mark.parametrize("name", ORACLES)
def test_gradcheck(name: str) -> None:
    """By query, key, value and every parameter, which it changes in place."""
    module, qkv = build_with_inputs(name, (3, 4), width=2, batch=1, **ORACLES[name].options)
    leaves = [*qkv, *module.parameters()]
    assert torch.autograd.gradcheck(lambda *_: module.attend(*qkv), leaves)


@pytest.mark.parametrize(("size", "training"), [((5, 7), False), *((size, True) for size in SIZES)])
@pytest.mark.parametrize("name", ORACLES)
def test_module_agrees(name: str, size: tuple[int, int], training: bool) -> None:
    options = dict(ORACLES[name].options)
    if "res_scale" in find_attention(name).options():
        options["res_scale"] = 0.3
    assert_whole_module_agrees(name, size, training, **options)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [name for name, oracle in ORACLES.items() if oracle.defaults])
def test_module_agrees_by_default(name: str, size: tuple[int, int]) -> None:
    assert_whole_module_agrees(name, size, training=True)


def assert_whole_module_agrees(
    name: str, size: tuple[int, int], training: bool, **options: Any
) -> None:
    module, _ = build_with_inputs(name, size, **options)
    module.train(training)

    def forward(x: Tensor) -> Tensor:
        torch.manual_seed(1)  # what one draws, the other does
        return ORACLES[name].forward(module, x)

    torch.manual_seed(1)
    assert_module_agrees(module, forward, random_map(0, module.channels, size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["nla", "criss-cross", "enla", "nlsa", "mdta"])
def test_projections_agree(name: str, size: tuple[int, int]) -> None:
    """Those of 1x1 and 3x3, on all channels or each alone, are zero-padded convolutions."""
    module = build(name)
    names, leaves = zip(
        ("x", random_map(0, module.channels, size)), *module.named_parameters(), strict=True
    )
    x = leaves[0]
    if name == "mdta":
        wanted = [convolve(module.depthwise, convolve(module.pointwise, x))]
    else:
        layers = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        wanted = [convolve(layer, x) for layer in (layers[0], *layers[-2:])]  # NLSA has two
    found = (torch.cat(maps, dim=1) for maps in (module.project(x), wanted))
    actual, expected = (with_gradients(out, leaves) for out in found)
    assert_all_close(actual, expected, names, (1e-10, 1e-9))


def test_the_baseline_is_the_identity() -> None:
    module, x = build("none"), random_map(0, 3, (3, 4))
    assert torch.equal(module(x), x)
    assert not list(module.parameters())


@pytest.mark.parametrize("name", [name for name, oracle in ORACLES.items() if oracle.memory])
def test_memory_is_that_of_the_map_and_a_tile(name: str) -> None:
    side, elements, options = ORACLES[name].memory
    module = create_attention(name, channels=8, **options)
    with LargestTensor() as seen:
        module(random_map(0, 8, (side, side), batch=1, dtype=torch.float32)).sum().backward()
    assert seen.largest <= elements
