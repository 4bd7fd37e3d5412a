"""Restormer's transposed attention against its oracle."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.rivals.mdta import transposed_attention
from tests.reference import conv as conv_oracle
from tests.reference import mdta as oracle
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


def temperatures(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """In value, and in gradients by query, key, value and temperatures."""
    qkv = random_qkv(0, size, c=6, c_out=6, dtype=dtype, memory_format=memory_format)
    t = temperatures(1.5, -2.0, dtype=dtype)
    assert_agrees(transposed_attention, oracle.transposed_attention, [*qkv, t])


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    heads=st.integers(1, 3),
    per_head=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], heads: int, per_head: int, batch: int
) -> None:
    c = heads * per_head
    qkv = random_qkv(seed, size, c=c, c_out=c, batch=batch)
    t = temperatures(*range(1, heads + 1))
    assert_agrees(transposed_attention, oracle.transposed_attention, [*qkv, t])


def test_short_channels_are_divided_by_the_least_norm() -> None:
    q, k, v = random_qkv(1, (3, 4), c=4, c_out=4)
    q.data[:, :2] *= 1e-6
    k.data[:, 1:3] *= 1e-6
    assert_agrees(
        lambda v: transposed_attention(q, k, v, temperatures(3)),
        lambda v: oracle.transposed_attention(q, k, v, temperatures(3)),
        [v],
    )


def test_gradcheck() -> None:
    qkv = random_qkv(1, (2, 3), c=4, c_out=4, batch=1)
    assert torch.autograd.gradcheck(transposed_attention, [*qkv, temperatures(1, 2)])


def test_positions_have_no_order() -> None:
    """Where a position lies does not matter to it: only its channels are compared."""
    q, k, v = random_qkv(2, (4, 5), c=6, c_out=6)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    moved = [t.flatten(2)[:, :, order].unflatten(2, (4, 5)) for t in (q, k, v)]
    out = transposed_attention(q, k, v, temperatures(1, 2)).flatten(2)[:, :, order]
    assert_close(transposed_attention(*moved, temperatures(1, 2)).flatten(2), out, 1e-12)


def test_as_many_heads_as_channels_give_the_value() -> None:
    q, k, v = random_qkv(3, (3, 4), c=5, c_out=5)
    assert_close(transposed_attention(q, k, v, torch.ones(5)), v, 1e-12)


def test_temperature_zero_is_the_mean_of_the_channels() -> None:
    q, k, v = random_qkv(3, (3, 4), c=5, c_out=5)
    mean = v.mean(1, keepdim=True).expand_as(v)
    assert_close(transposed_attention(q, k, v, torch.zeros(1)), mean, 1e-12)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(size: tuple[int, int], heads: int) -> None:
    """The projections too: 1x1, then 3x3 on each channel alone."""
    torch.manual_seed(0)
    module = perturb(create_attention("mdta", channels=8, heads=heads, res_scale=0.3).double())

    def forward(x: Tensor) -> Tensor:
        pointwise = conv_oracle.convolution(x, module.pointwise.weight, None)
        alone = [
            conv_oracle.convolution(channel, weight.unsqueeze(0), None)
            for channel, weight in zip(pointwise.split(1, 1), module.depthwise.weight, strict=True)
        ]
        q, k, v = (torch.cat(alone[i : i + 8], dim=1) for i in (0, 8, 16))
        out = oracle.transposed_attention(q, k, v, module.temperature)
        return x + 0.3 * conv_oracle.convolution(out, module.output.weight, None)

    assert_module_agrees(module, forward, random_map(0, 8, size))


@pytest.mark.parametrize("heads", [0, 3, 16, 1.5])
def test_bad_heads_are_refused(heads: float) -> None:
    with pytest.raises(AttentionError, match="heads"):
        create_attention("mdta", channels=8, heads=heads)


def test_maps_of_different_widths_are_refused() -> None:
    with pytest.raises(AttentionError, match="q and v must have as many, got 4 and 5"):
        transposed_attention(*random_qkv(0, (3, 4)), torch.ones(1))


@pytest.mark.parametrize(("heads", "core"), [(1, "0.164"), (4, "0.041")])
def test_core_at_the_papers_setting(heads: int, core: str) -> None:
    """2 · 2 N C² / heads at 100x100 with 64 channels."""
    cost = create_attention("mdta", channels=64, heads=heads).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == core
