"""What every registered module keeps to, beyond the contract: see test_contract.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import Attention, AttentionError, create_attention, list_attentions
from tests.reference.cases import (
    FORMATS,
    SIZES,
    LargestTensor,
    assert_close,
    perturb,
    random_map,
)

CHANNELS = 16

pytestmark = pytest.mark.parametrize("name", list_attentions())


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Attention:
    """A module in evaluation mode whose gates are open."""
    torch.manual_seed(seed)
    module = create_attention(name, channels=CHANNELS).to(dtype)
    perturb(module, seed)
    return module.eval()


@settings(max_examples=10, suppress_health_check=[HealthCheck.differing_executors])
@given(
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    batch=st.integers(1, 3),
    training=st.booleans(),
)
def test_any_shape_in_the_same_shape_out(
    name: str, size: tuple[int, int], batch: int, training: bool
) -> None:
    module = build(name).train(training)
    x = random_map(0, CHANNELS, size, batch=batch)
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.isfinite(y).all()


def weights_of(module: Attention, x: Tensor, position: tuple[int, int]) -> Tensor:
    try:
        return module.correlation(x, position)
    except AttentionError as error:
        if "no weights over positions" not in str(error):
            raise
        pytest.skip(f"{module.name} has no weights over positions")


@pytest.mark.parametrize("size", SIZES)
def test_correlation_is_the_weights_of_the_attention(name: str, size: tuple[int, int]) -> None:
    """Every position's weights are a distribution, and sum the values to its output."""
    module = build(name)
    x = random_map(0, CHANNELS, size, batch=1)
    q, k, v = module.project(x)
    out = module.attend(q, k, v)
    for row in range(size[0]):
        for column in range(size[1]):
            weights = weights_of(module, x, (row, column))
            assert weights.shape == size
            assert not weights.requires_grad
            assert (weights >= 0).all()
            assert abs(weights.sum().item() - 1) < 1e-9
            summed = torch.einsum("hw,chw->c", weights, v[0])
            assert_close(summed, out[0, :, row, column], 1e-9)


@pytest.mark.parametrize("position", [(-1, 0), (0, -1), (3, 0), (0, 4)])
def test_correlation_outside_the_map_is_refused(name: str, position: tuple[int, int]) -> None:
    with pytest.raises(AttentionError, match="outside"):
        build(name).correlation(torch.zeros(1, CHANNELS, 3, 4).double(), position)


def test_correlation_takes_one_image(name: str) -> None:
    with pytest.raises(AttentionError, match="batch of 2"):
        build(name).correlation(torch.zeros(2, CHANNELS, 3, 4).double(), (0, 0))


@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((1, 4, 3, 4), (1, 4, 4, 3), (1, 16, 3, 4)),
        ((1, 4, 3, 4), (1, 5, 3, 4), (1, 16, 3, 4)),
        ((2, 4, 3, 4), (2, 4, 3, 4), (1, 16, 3, 4)),
        ((1, 4, 3, 4), (1, 4, 3, 4), (1, 16, 4, 3)),
        ((1, 4, 12), (1, 4, 12), (1, 16, 12)),
    ],
)
def test_maps_that_do_not_fit_are_refused(name: str, q: Any, k: Any, v: Any) -> None:
    module = build(name)
    x = torch.zeros(1, CHANNELS, 1, 1).double()
    if module.project(x)[0] is module.project(x)[2]:
        pytest.skip(f"{name} attends to its value alone")
    with pytest.raises(AttentionError):
        module.attend(*(torch.zeros(shape).double() for shape in (q, k, v)))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reduction", [None, 1])
def test_no_tensor_of_all_pairs(
    name: str, reduction: int | None, memory_format: torch.memory_format
) -> None:
    """Forward and backward at 72x72: 27 million pairs of positions, half of that is allowed."""
    module = create_attention(name, channels=8).eval()
    if reduction is not None:
        if "reduction" not in module.options():
            pytest.skip(f"{name} has no embedding")
        module = create_attention(name, channels=8, reduction=reduction).eval()
    x = random_map(0, 8, (72, 72), batch=1, dtype=torch.float32, memory_format=memory_format)
    with LargestTensor() as seen:
        module(x).sum().backward()
    assert seen.largest < 72**4 / 2
