"""Criss-cross attention against its oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import AttentionError, create_attention
from attention_zoo.criss_cross import criss_cross_attention
from tests.reference import criss_cross as oracle
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
    assert_agrees(criss_cross_attention, oracle.criss_cross_attention, inputs)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    batch=st.integers(1, 3),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], batch: int
) -> None:
    inputs = random_qkv(seed, size, batch=batch)
    assert_agrees(criss_cross_attention, oracle.criss_cross_attention, inputs)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_large_scores(dtype: torch.dtype) -> None:
    """Scores of ±100 and more: weights near 0 and 1, each by the exact score of its inputs."""
    q, k, v = random_qkv(2, (5, 6), dtype=dtype)
    q.data, k.data = 5 * q.data, 5 * k.data
    value_tolerance, gradient_tolerance = TOLERANCES[dtype]
    assert_agrees(
        criss_cross_attention,
        oracle.criss_cross_attention,
        [q, k, v],
        tolerance=(10 * value_tolerance, 10 * gradient_tolerance),
    )


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (9, 8)])
@pytest.mark.parametrize("factor", [0.1, 1000.0])
def test_what_is_executed_does_not_depend_on_the_scores(
    size: tuple[int, int], factor: float
) -> None:
    q, k, v = random_qkv(0, size, dtype=torch.float32, batch=1, c=4, c_out=5)
    with FlopCounterMode(display=False) as counter:
        criss_cross_attention(factor * q, k, v)
    assert counter.get_total_flops() == 2 * size[0] * size[1] * sum(size) * (4 + 5)


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(criss_cross_attention, random_qkv(1, (2, 3), batch=1))


def test_own_position_counts_once() -> None:
    """With equal scores every one of the H + W − 1 positions weighs the same."""
    height, width = 3, 4
    zeros = torch.zeros(1, 2, height, width)
    for position in range(height * width):
        v = torch.zeros(1, 1, height, width)
        v.view(-1)[position] = 1.0
        out = criss_cross_attention(zeros, zeros, v)[0, 0]
        row, column = divmod(position, width)
        wanted = torch.zeros(height, width)
        wanted[row, :] = wanted[:, column] = 1 / (height + width - 1)
        torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("recurrence", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(size: tuple[int, int], recurrence: int) -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("criss-cross", channels=8, recurrence=recurrence).double())
    gamma = dict(module.named_parameters())["gamma"]

    def forward(x: Tensor) -> Tensor:
        for _ in range(recurrence):
            x = gamma * oracle.criss_cross_attention(*module.project(x)) + x
        return x

    assert_module_agrees(module, forward, random_map(0, 8, size))


def test_is_the_identity_at_the_start() -> None:
    module = create_attention("criss-cross", channels=16, recurrence=2)
    x = random_map(0, 16, (4, 5), dtype=torch.float32)
    torch.testing.assert_close(module(x), x, rtol=0, atol=0)


def test_two_passes_reach_every_position() -> None:
    """One pass sees column and row only; CCNet's second pass the whole map."""
    reached = []
    for recurrence in (1, 2):
        torch.manual_seed(0)
        module = perturb(
            create_attention("criss-cross", channels=8, recurrence=recurrence).double()
        )
        x = random_map(0, 8, (4, 5), batch=1)
        (gradient,) = torch.autograd.grad(module(x)[0, :, 0, 0].sum(), x)
        reached.append(int((gradient.abs().sum(dim=1) > 0).sum()))
    assert reached == [4 + 5 - 1, 4 * 5]


def test_recurrence_below_one_is_refused() -> None:
    with pytest.raises(AttentionError, match="recurrence"):
        create_attention("criss-cross", channels=8, recurrence=0)
