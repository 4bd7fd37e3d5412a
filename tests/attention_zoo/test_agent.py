"""Agent attention against its oracle, and non-local attention applied twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.agent import agent_attention
from tests.reference import agent as oracle
from tests.reference import conv as conv_oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_agrees,
    assert_close,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


def assert_agents_agree(qkv: tuple[Tensor, ...], grid: int) -> None:
    assert_agrees(
        lambda q, k, v: agent_attention(q, k, v, grid),
        lambda q, k, v: oracle.agent_attention(q, k, v, grid),
        qkv,
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """A grid of 3: regions that are whole, that overlap, and fewer of them."""
    assert_agents_agree(random_qkv(0, size, dtype=dtype, memory_format=memory_format), 3)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    grid=st.integers(1, 7),
    c=st.integers(1, 5),
    batch=st.integers(1, 2),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], grid: int, c: int, batch: int
) -> None:
    assert_agents_agree(random_qkv(seed, size, c=c, batch=batch), grid)


def test_gradcheck() -> None:
    qkv = random_qkv(1, (3, 4), c=2, c_out=2, batch=1)
    assert torch.autograd.gradcheck(lambda *t: agent_attention(*t, 2), qkv)


@pytest.mark.parametrize("size", SIZES)
def test_an_agent_for_every_position_is_non_local_attention_twice(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(2, size)
    twice = non_local_attention(q / 2, q, non_local_attention(q / 2, k, v))
    assert_close(agent_attention(q, k, v, 7), twice, 1e-12)


def test_one_agent_gives_every_position_the_same() -> None:
    q, k, v = random_qkv(3, (4, 5))
    mean = q.mean((2, 3), keepdim=True).expand_as(q)
    wanted = non_local_attention(mean / 2, k, v)
    assert_close(wanted, wanted[:, :, :1, :1].expand_as(v), 1e-12)
    assert_close(agent_attention(q, k, v, 1), wanted, 1e-12)


def test_equal_values_come_out_as_they_are() -> None:
    q, k, v = random_qkv(3, (5, 7))
    v = v[:, :, :1, :1].expand_as(v)
    assert_close(agent_attention(q, k, v, 3), v, 1e-12)


@pytest.mark.parametrize("options", [{}, {"grid": 2, "reduction": 1, "res_scale": 0.3}])
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(size: tuple[int, int], options: dict[str, float]) -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("agent", channels=8, **options).double())
    local = module.local

    def forward(x: Tensor) -> Tensor:
        q, k, v = module.project(x)
        alone = [
            conv_oracle.convolution(channel, weight.unsqueeze(0), bias.unsqueeze(0))
            for channel, weight, bias in zip(v.split(1, 1), local.weight, local.bias, strict=True)
        ]
        out = oracle.agent_attention(q, k, v, options.get("grid", 7)) + torch.cat(alone, dim=1)
        return x + options.get("res_scale", 0.1) * out

    assert_module_agrees(module, forward, random_map(0, 8, size))


@pytest.mark.parametrize("grid", [0, -1, 2.5])
def test_bad_grid_is_refused(grid: float) -> None:
    with pytest.raises(AttentionError, match="grid"):
        create_attention("agent", channels=8, grid=grid)


def test_core_at_the_papers_setting() -> None:
    """2 (2 · 49 N (c + c_out) + 9 N C) at 100x100 with 64 channels."""
    cost = create_attention("agent", channels=64, reduction=1).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == "0.262"
