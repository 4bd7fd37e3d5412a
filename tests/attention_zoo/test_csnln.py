"""CSNLN's cross-scale attention against its oracles: value by value, and as published."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.rivals.csnln import cross_scale_attention
from tests.reference import csnln as oracle
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


def assert_scales_agree(qkv: tuple[Tensor, ...], scale: int, sharpness: float = 10.0) -> None:
    assert_agrees(
        lambda q, k, v: cross_scale_attention(q, k, v, scale, sharpness),
        lambda q, k, v: oracle.cross_scale_attention(q, k, v, scale, sharpness),
        qkv,
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Blocks that the border cuts among them. Half precision sees scores of 10 · norm 6."""
    qkv = random_qkv(0, size, batch=1, dtype=dtype, memory_format=memory_format)
    assert_scales_agree(qkv, 2, 1.0)


@settings(max_examples=10)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    scale=st.integers(1, 4),
    c=st.integers(1, 4),
    batch=st.integers(1, 2),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], scale: int, c: int, batch: int
) -> None:
    assert_scales_agree(random_qkv(seed, size, c=c, batch=batch), scale, 3.0)


def test_agrees_with_the_oracle_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_zoo.rivals.csnln._TILE", 0)
    monkeypatch.setattr("attention_zoo.rivals.csnln._LEAST_SIDE", 3)
    assert_scales_agree(random_qkv(0, (7, 8), batch=1), 2)


def test_gradcheck() -> None:
    qkv = random_qkv(1, (3, 4), c=2, c_out=2, batch=1)
    assert torch.autograd.gradcheck(lambda *t: cross_scale_attention(*t, 2, 3.0), qkv)


@pytest.mark.parametrize(("scale", "size"), [(2, (4, 6)), (3, (6, 3))])
def test_is_the_published_operation_made_smaller(scale: int, size: tuple[int, int]) -> None:
    """The convolution of s x s acts on blocks: after the attention, as published, or before it."""
    torch.manual_seed(0)
    module = perturb(create_attention("csnln", channels=4, scale=scale).double())
    x = random_map(0, 4, size)
    q, k, v = module.project(x)
    published = oracle.published_and_made_smaller(
        q, k, x, module.value.weight, module.value.bias, scale
    )
    assert_close(module.attend(q, k, v), published, 1e-12)


def test_module_agrees_with_the_oracle() -> None:
    torch.manual_seed(0)
    options = {"scale": 3, "sharpness": 4.0, "reduction": 2, "res_scale": 0.3}
    module = perturb(create_attention("csnln", channels=4, **options).double())

    def forward(x: Tensor) -> Tensor:
        out = oracle.cross_scale_attention(*module.project(x), 3, 4.0)
        return x + 0.3 * out

    assert_module_agrees(module, forward, random_map(0, 4, (5, 4)))


def test_a_pattern_finds_itself_at_twice_the_size() -> None:
    """What is wanted of it: small stripes, and the same larger by 2 elsewhere in the map."""
    stripes = torch.tensor([1.0, -1.0, -1.0, 1.0, 1.0, 1.0, -1.0, 1.0])
    large = stripes.repeat_interleave(2)
    x = torch.zeros(1, 1, 6, 24, dtype=torch.float64)
    x[0, 0, :, :8], x[0, 0, :, 8:] = stripes, large
    q = k = v = x
    found = cross_scale_attention(q, k, v, 2, 1000.0)
    # Patch 3 … 5 of the small stripes is that of blocks 3 … 5 of the large ones.
    assert_close(found[0, 0, 2:4, 3:6], stripes[3:6].double().expand(2, 3), 1e-6)


def test_memory_is_that_of_the_map_and_a_tile() -> None:
    """Scores of all patches with a quarter as many would be 84 million numbers."""
    module = create_attention("csnln", channels=4)
    with LargestTensor() as seen:
        module(random_map(0, 4, (136, 136), batch=1, dtype=torch.float32)).sum().backward()
    assert seen.largest <= 2**21


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_bad_scales_are_refused(scale: float) -> None:
    with pytest.raises(AttentionError, match="scale"):
        create_attention("csnln", channels=8, scale=scale)
    with pytest.raises(AttentionError, match="scale"):
        cross_scale_attention(*random_qkv(0, (3, 4)), scale)  # type: ignore[arg-type]


def test_core_at_the_papers_setting() -> None:
    """9 N²/4 (c + c_out) at 100x100 with 64 channels, of which sharing sums leaves a ninth."""
    cost = create_attention("csnln", channels=64, reduction=1).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.1f}" == "57.6"
    assert 9 * cost.executed < 1.5 * cost.core
