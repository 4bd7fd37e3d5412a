"""Region-level attention: the oracle of non-local attention in each region."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.region import region_attention
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


def by_region(q: Tensor, k: Tensor, v: Tensor, grid: int) -> Tensor:
    """Which region a position lies in is found position by position."""
    height, width = v.shape[2:]
    region = torch.tensor(
        [
            [r // -(-height // grid) * grid + c // -(-width // grid) for c in range(width)]
            for r in range(height)
        ]
    )
    out = torch.zeros_like(v)
    for one in region.unique():
        here = region == one
        parts = (t[:, :, here].unsqueeze(2) for t in (q, k, v))
        out = out.masked_scatter(here, oracle.non_local_attention(*parts))
    return out


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    inputs = random_qkv(0, size, batch=1, dtype=dtype, memory_format=memory_format)
    assert_agrees(
        lambda q, k, v: region_attention(q, k, v, 2),
        lambda q, k, v: by_region(q, k, v, 2),
        inputs,
    )


@pytest.mark.parametrize("grid", [1, 3, 9])
def test_any_grid(grid: int) -> None:
    inputs = random_qkv(0, (5, 7), batch=1)
    assert_agrees(
        lambda q, k, v: region_attention(q, k, v, grid),
        lambda q, k, v: by_region(q, k, v, grid),
        inputs,
    )


def test_one_region_is_non_local_attention() -> None:
    inputs = random_qkv(0, (6, 7))
    torch.testing.assert_close(region_attention(*inputs, 1), non_local_attention(*inputs))


def test_module_agrees_with_the_oracle() -> None:
    module = perturb(create_attention("region", channels=8, grid=3).double())

    def forward(x: Tensor) -> Tensor:
        return x + 0.1 * by_region(module.query(x), module.key(x), module.value(x), 3)

    assert_module_agrees(module, forward, random_map(0, 8, (5, 4), batch=1))


def test_a_quarter_of_the_positions_costs_a_quarter() -> None:
    whole = create_attention("nla", channels=64).cost(100, 100)
    quarters = create_attention("region", channels=64).cost(100, 100)
    assert 4 * quarters.core == whole.core
    assert quarters.projections == whole.projections


def test_bad_grid_is_refused() -> None:
    with pytest.raises(AttentionError, match="grid must be at least 1"):
        create_attention("region", channels=8, grid=0)
