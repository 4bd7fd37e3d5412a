"""What is special to permuted windows; their oracle is in the table."""

from __future__ import annotations

import math

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.permuted_window import cells_of, permuted_window_attention
from tests.attention_zoo.table import assert_attend_agrees, build
from tests.reference.cases import assert_close, random_map, random_qkv


@pytest.mark.parametrize(("heads", "width"), [(1, 4), (1, 8), (2, 6)])
def test_heads_of_any_number_agree_with_the_oracle(heads: int, width: int) -> None:
    """Fewer than four, so that a head has channels of several positions of a cell."""
    assert_attend_agrees("permuted-window", (5, 7), width=width, window=4, heads=heads)


def test_several_tiles_agree_with_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two windows at a time, out of six whole ones."""
    monkeypatch.setattr("attention_zoo.cores.softmax.CPU_TILE", 2 * 2 * 4 * 4**2 * 2**2)
    assert_attend_agrees("permuted-window", (8, 13), batch=1, width=1, window=4)


def test_channels_of_a_cell_are_those_of_its_positions_in_order() -> None:
    x = torch.arange(12.0).view(1, 1, 3, 4)
    assert cells_of(x)[0, :, 0, 1].tolist() == [2, 3, 6, 7]
    assert cells_of(x)[0, :, 1, 0].tolist() == [8, 9, 8, 9]  # the last row, repeated
    assert cells_of(x.mT)[0, :, 0, 1].tolist() == [8, 8, 9, 9]
    assert cells_of(x[..., :1, :1])[0, :, 0, 0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (3, 8), (7, 6)])
def test_a_window_that_holds_the_map_is_attention_to_a_map_of_half_size(
    size: tuple[int, int],
) -> None:
    """Of each 2x2 queries those at one corner: NLA on the map of cells."""
    q, k, v = random_qkv(1, size, c=8, c_out=3)
    keys, values = cells_of(k[:, :2]), cells_of(v)
    out = permuted_window_attention(q, k[:, :2], v, torch.zeros(1, 15, 15, dtype=torch.float64))
    corner = q[:, :, ::2, ::2] / math.sqrt(8)
    assert_close(out[:, :, ::2, ::2], non_local_attention(corner, keys, values), 1e-12)


def test_with_four_heads_each_sees_one_of_four_positions() -> None:
    module = build("permuted-window", 2, window=4)
    q, k, v = (random_map(i, c, (4, 4), batch=1) for i, c in enumerate((8, 2, 2)))
    out = permuted_window_attention(q, k, v, module.bias)
    for head, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        part = slice(2 * head, 2 * head + 2)
        (gradient,) = torch.autograd.grad(out[:, part].sum(), v, retain_graph=True)
        wanted = torch.zeros(4, 4, dtype=torch.bool)
        wanted[row::2, column::2] = True
        assert torch.equal(gradient[0].abs().sum(0) > 0, wanted)


def test_reach_is_the_window() -> None:
    module = build("permuted-window", 2)
    for start, stop in ((0, 24), (24, 31)):
        x = random_map(0, 8, (31, 9), batch=1)
        (gradient,) = torch.autograd.grad(module(x)[0, :, stop - 1, 4].sum(), x)
        wanted = torch.zeros(31, 9, dtype=torch.bool)
        wanted[start:stop] = True
        assert torch.equal(gradient[0].abs().sum(0) > 0, wanted)


@pytest.mark.parametrize(
    ("widths", "bias", "told"),
    [
        ((8, 3, 3), (1, 3, 3), "q and k must be"),
        ((8, 2, 3), (1, 4, 4), "bias must be"),
        ((8, 2, 3), (1, 3, 5), "bias must be"),
        ((8, 2, 3), (8, 3, 3), "heads 8 does not divide the 12 channels"),
    ],
)
def test_bad_arguments_are_told(
    widths: tuple[int, int, int], bias: tuple[int, ...], told: str
) -> None:
    q, k, v = (torch.zeros(1, width, 3, 4) for width in widths)
    with pytest.raises(AttentionError, match=told):
        permuted_window_attention(q, k, v, torch.zeros(bias))


def test_channels_and_window_must_divide() -> None:
    with pytest.raises(AttentionError, match="channels must be a multiple of 4, got 6"):
        create_attention("permuted-window", channels=6, heads=1)
    with pytest.raises(AttentionError, match="window must be even"):
        create_attention("permuted-window", channels=8, window=5)


@pytest.mark.parametrize(("window", "core"), [(12, "0.092"), (24, "0.369"), (32, "0.655")])
def test_scores_are_a_quarter_of_those_of_a_window(window: int, core: str) -> None:
    """2 N M²/4 · 2 C at 100x100 with 64 channels: those of a plain window of half the side."""
    cost = create_attention("permuted-window", channels=64, window=window).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == core
    assert (
        cost.core == create_attention("window", channels=64, window=window // 2).cost(100, 100).core
    )
    assert cost.executed < cost.core + 3 * 100 * 100 * 64**2 / 2
