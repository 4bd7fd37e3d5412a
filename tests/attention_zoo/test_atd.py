"""What is special to the adaptive token dictionary; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.atd import category_attention, token_attention, token_categories
from tests.attention_zoo.table import build, token_maps
from tests.reference import atd as oracle
from tests.reference.cases import (
    SIZES,
    assert_close,
    random_map,
    random_qkv,
)


def test_categories_are_those_of_the_oracle() -> None:
    module, q = build("atd", 2, tokens=5, heads=2), random_map(0, 4, (5, 7))
    keys, _, scale = token_maps(module)
    categories = token_categories(token_attention(q, *module.token_maps(torch.float64))[1])
    assert categories.tolist() == oracle.token_categories(q, keys, scale)
    assert categories.unique().numel() > 2


@pytest.mark.parametrize("size", SIZES)
def test_a_group_that_holds_the_map_is_non_local_attention(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(4, size)
    categories = torch.arange(2 * size[0] * size[1]).remainder(3).view(2, -1)
    out = category_attention(q, k, v, categories, 1, 35)
    assert_close(out, non_local_attention(q / 2, k, v), 1e-12)


def test_equal_categories_keep_the_order_of_positions() -> None:
    """An unstable sort shows only on longer rows: two alternating codes, 4096 positions."""
    zeros = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    v = torch.arange(4096, dtype=torch.float64).view(1, 1, 64, 64)
    categories = torch.arange(4096).remainder(2).unsqueeze(0)
    out = category_attention(zeros, zeros, v, categories, 1, 16).flatten()
    order = torch.cat([torch.arange(0, 4096, 2), torch.arange(1, 4096, 2)])
    wanted = order.double().view(-1, 16).mean(1, keepdim=True).expand(-1, 16).flatten()
    torch.testing.assert_close(out[order], wanted)


def test_scales_are_clamped() -> None:
    module = create_attention("atd", channels=8, tokens=3)
    module.scale.data = torch.tensor([-1.0, 0.5, 7.0])
    wanted = 1 + torch.tensor([0.0, 0.5, 1.0]) * torch.log(torch.tensor(3.0))
    torch.testing.assert_close(module.token_maps(torch.float32)[2], wanted)


def test_categories_that_do_not_fit_are_refused() -> None:
    q, k, v = random_qkv(0, (3, 4))
    with pytest.raises(AttentionError, match=r"categories must be \[2, 12\], got \[2, 11\]"):
        category_attention(q, k, v, torch.zeros(2, 11, dtype=torch.long), 1)
    with pytest.raises(AttentionError, match="heads 2 does not divide the 5 channels"):
        category_attention(q, k, v, torch.zeros(2, 12, dtype=torch.long), 2)


def test_core_at_the_papers_setting() -> None:
    """2 N (M + n_s)(c + C) at 100x100 with 64 channels; further 64 tokens' maps, and 64² a row."""
    cost = create_attention("atd", channels=64).cost(100, 100)
    assert 2 * cost.core / 1e9 == pytest.approx(0.49152)
    assert cost.executed - cost.core == 64 * 64 * 128 + 100 * 100 * 64**2
