"""Non-local attention against its oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_zoo import create_attention
from attention_zoo.nla import non_local_attention
from tests.reference import nla as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_agrees,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    inputs = random_qkv(0, size, dtype=dtype, memory_format=memory_format)
    assert_agrees(non_local_attention, oracle.non_local_attention, inputs)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    batch=st.integers(1, 3),
    c=st.integers(1, 4),
    c_out=st.integers(1, 6),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], batch: int, c: int, c_out: int
) -> None:
    inputs = random_qkv(seed, size, batch=batch, c=c, c_out=c_out)
    assert_agrees(non_local_attention, oracle.non_local_attention, inputs)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_large_scores(dtype: torch.dtype) -> None:
    """Scores of ±100 and more: weights near 0 and 1, each by the exact score of its inputs."""
    q, k, v = random_qkv(2, (5, 6), dtype=dtype)
    q.data, k.data = 5 * q.data, 5 * k.data
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    assert_agrees(
        non_local_attention,
        oracle.non_local_attention,
        [q, k, v],
        tolerance=(10 * value_tolerance, 10 * gradient_tolerance),
    )


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(non_local_attention, random_qkv(1, (2, 3), batch=1))


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(size: tuple[int, int], seed: int) -> None:
    torch.manual_seed(seed)
    module = perturb(create_attention("nla", channels=8, res_scale=0.3).double(), seed)
    assert_module_agrees(
        module,
        lambda x: x + 0.3 * oracle.non_local_attention(*module.project(x)),
        random_map(seed, 8, size),
    )


def test_projections_are_linear_one_by_one_convolutions_by_default() -> None:
    module = create_attention("nla", channels=8, reduction=2).double()
    x, y = (random_map(seed, 8, (3, 4)) for seed in (0, 1))
    zero = module.project(torch.zeros_like(x))
    for a, b, both, origin, width in zip(
        module.project(x), module.project(y), module.project(x + y), zero, (4, 4, 8), strict=True
    ):
        assert a.shape == (2, width, 3, 4)
        torch.testing.assert_close(both, a + b - origin)
    assert all(p.shape[2:] == (1, 1) for p in module.parameters() if p.dim() == 4)


def test_released_form_activates_projections_and_scales_the_input() -> None:
    """NLSN's released NLA: PReLU after each projection, y = attention + res_scale · x."""
    module = create_attention("nla", channels=8, released=True, res_scale=0.3).double()
    with torch.no_grad():
        slopes = [p for p in module.parameters() if p.numel() == 1]
        assert len(slopes) == 3
        for slope in slopes:
            slope.zero_()  # PReLU with slope 0 is ReLU
    x = random_map(0, 8, (4, 3))
    q, k, v = module.project(x)
    assert all((t >= 0).all() and (t == 0).any() for t in (q, k, v))
    assert_module_agrees(
        module, lambda x: oracle.non_local_attention(*module.project(x)) + 0.3 * x, x
    )
