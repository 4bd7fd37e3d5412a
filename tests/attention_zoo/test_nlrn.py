"""NLRN's neighbourhood attention against its oracle, and against non-local attention."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.nlrn import neighbourhood_attention
from tests.reference import nlrn as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    LargestTensor,
    assert_agrees,
    assert_close,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


def assert_neighbourhoods_agree(qkv: tuple[Tensor, ...], window: int) -> None:
    assert_agrees(
        lambda q, k, v: neighbourhood_attention(q, k, v, window),
        lambda q, k, v: oracle.neighbourhood_attention(q, k, v, window),
        qkv,
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [*SIZES, (13, 11)])
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """One tile, and several: windows that the border cuts, and tiles that see part of the map."""
    qkv = random_qkv(0, size, batch=1, dtype=dtype, memory_format=memory_format)
    assert_neighbourhoods_agree(qkv, 5)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    reach=st.integers(0, 6),
    c=st.integers(1, 5),
    batch=st.integers(1, 3),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], reach: int, c: int, batch: int
) -> None:
    qkv = random_qkv(seed, size, c=c, batch=batch)
    assert_neighbourhoods_agree(qkv, 2 * reach + 1)


def test_gradcheck() -> None:
    qkv = random_qkv(1, (3, 12), c=2, c_out=2, batch=1)
    assert torch.autograd.gradcheck(lambda *t: neighbourhood_attention(*t, 3), qkv)


@pytest.mark.parametrize("size", [(23, 23), (30, 7)])
def test_a_window_that_reaches_everything_is_non_local_attention(size: tuple[int, int]) -> None:
    qkv = random_qkv(2, size)
    wide = neighbourhood_attention(*qkv, 2 * max(size) - 1)
    assert_close(wide, non_local_attention(*qkv), 1e-12)
    if max(size) == 23:
        assert_close(neighbourhood_attention(*qkv), wide, 1e-12)


def test_reach_is_22_by_default_everywhere() -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("nlrn", channels=4).double())
    x = random_map(0, 4, (70, 61), batch=1)
    for row, column in ((0, 0), (35, 30), (9, 10), (69, 60)):
        (gradient,) = torch.autograd.grad(module(x)[0, :, row, column].sum(), x)
        wanted = torch.zeros(70, 61, dtype=torch.bool)
        wanted[max(0, row - 22) : row + 23, max(0, column - 22) : column + 23] = True
        assert torch.equal(gradient[0].abs().sum(0) > 0, wanted)


@pytest.mark.parametrize("options", [{}, {"window": 3, "reduction": 1, "res_scale": 0.3}])
def test_module_agrees_with_the_oracle(options: dict[str, float]) -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("nlrn", channels=8, **options).double())
    window = int(options.get("window", 45))

    def forward(x: Tensor) -> Tensor:
        out = oracle.neighbourhood_attention(*module.project(x), window)
        return x + options.get("res_scale", 0.1) * out

    assert_module_agrees(module, forward, random_map(0, 8, (5, 6)))


def test_memory_is_that_of_the_map_and_a_tile() -> None:
    """Scores of a tile: 100 queries, 54 x 54 keys; unfolded keys would be 8 million numbers."""
    module = create_attention("nlrn", channels=4)
    with LargestTensor() as seen:
        module(random_map(0, 4, (64, 64), batch=1, dtype=torch.float32)).sum().backward()
    assert seen.largest <= 100 * 54**2


@pytest.mark.parametrize(
    ("window", "told"), [(0, "at least 1"), (4, "must be odd"), (2.5, "window"), (-1, "window")]
)
def test_bad_windows_are_refused(window: float, told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        create_attention("nlrn", channels=8, window=window)
    with pytest.raises(AttentionError, match=told):
        neighbourhood_attention(*random_qkv(0, (3, 4)), window)  # type: ignore[arg-type]


def test_core_at_the_papers_setting() -> None:
    """Neighbours at the border of 100x100 are fewer than 45²: (100 · 45 − 22 · 23)² pairs."""
    cost = create_attention("nlrn", channels=64, reduction=1).cost(100, 100)
    assert cost.core == (100 * 45 - 22 * 23) ** 2 * 128
    assert f"{2 * cost.core / 1e9:.2f}" == "4.08"
    assert cost.executed < 1.45 * cost.core
