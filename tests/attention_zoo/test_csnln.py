"""What is special to cross-scale attention; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from attention_zoo.rivals.csnln import cross_scale_attention
from tests.attention_zoo.table import assert_attend_agrees, build
from tests.reference import csnln as oracle
from tests.reference.cases import (
    assert_close,
    random_map,
    random_qkv,
)


def test_agrees_with_the_oracle_over_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attention_zoo.rivals.csnln._TILE", 0)
    monkeypatch.setattr("attention_zoo.rivals.csnln._LEAST_SIDE", 3)
    assert_attend_agrees("csnln", (7, 8), batch=1, scale=2)


@pytest.mark.parametrize(("scale", "size"), [(2, (4, 6)), (3, (6, 3))])
def test_is_the_published_operation_made_smaller(scale: int, size: tuple[int, int]) -> None:
    """The convolution of s x s acts on blocks: after the attention, as published, or before it."""
    module = build("csnln", 1, scale=scale)
    x = random_map(0, 4, size)
    q, k, v = module.project(x)
    published = oracle.published_and_made_smaller(
        q, k, x, module.value.weight, module.value.bias, scale
    )
    assert_close(module.attend(q, k, v), published, 1e-12)


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


@pytest.mark.parametrize("scale", [0, -1, 1.5])
def test_bad_scales_are_refused(scale: float) -> None:
    with pytest.raises(AttentionError, match="scale"):
        cross_scale_attention(*random_qkv(0, (3, 4)), scale)  # type: ignore[arg-type]


def test_sharing_sums_leaves_a_ninth() -> None:
    """Of 9 N²/4 (c + c_out), but for the borders of tiles."""
    cost = create_attention("csnln", channels=64, reduction=1).cost(100, 100)
    assert 9 * cost.executed < 1.5 * cost.core
