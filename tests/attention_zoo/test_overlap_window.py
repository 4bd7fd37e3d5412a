"""What is special to overlapping windows; their oracle is in the table."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.overlap_window import overlap_window_attention
from attention_zoo.rivals.window import window_attention
from tests.attention_zoo.table import assert_attend_agrees, build
from tests.reference.cases import SIZES, assert_close, random_map, random_qkv


def test_several_tiles_agree_with_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a run: first, last, cut, and two windows at a time of four in the middle."""
    monkeypatch.setattr("attention_zoo.cores.softmax.CPU_TILE", 2 * 2 * 2 * 2**2 * 4**2)
    assert_attend_agrees("overlap-window", (5, 13), batch=1, window=2, overlap=1.0, heads=2)


@pytest.mark.parametrize("size", [(5, 7), (12, 9)])
def test_no_overlap_is_window_attention(size: tuple[int, int]) -> None:
    qkv = random_qkv(1, size, c_out=6)
    bias = torch.randn(2, 7, 7, dtype=torch.float64)
    assert_close(overlap_window_attention(*qkv, bias, 4), window_attention(*qkv, bias), 1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_keys_that_reach_everything_are_non_local_attention(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(2, size)
    bias = torch.zeros(1, 17, 17, dtype=torch.float64)  # windows of 2 that reach 7 further
    out = overlap_window_attention(q, k, v, bias, 2)
    assert_close(out, non_local_attention(q / 2, k, v), 1e-12)


def test_reach_of_four_around_windows_of_sixteen() -> None:
    """A position sees 24 x 24 around its window, what of them lies in the map."""
    module = build("overlap-window", 2)
    assert module.bias.shape == (4, 39, 39)
    for at, reached in ((0, (0, 20)), (15, (0, 20)), (16, (12, 36)), (40, (28, 41))):
        x = random_map(0, 8, (41, 41), batch=1)
        (gradient,) = torch.autograd.grad(module(x)[0, :, at, 20].sum(), x)
        wanted = torch.zeros(41, 41, dtype=torch.bool)
        wanted[slice(*reached), 12:36] = True
        assert torch.equal(gradient[0].abs().sum(0) > 0, wanted)


@pytest.mark.parametrize(
    ("bias", "window", "told"),
    [
        ((2, 4, 4), 2, "bias must be"),
        ((2, 3, 5), 2, "bias must be"),
        ((2, 3, 3), 3, "bias must be"),
        ((3, 3, 3), 2, "heads 3 does not divide the 4 channels"),
        ((1, 3, 3), 0, "window"),
    ],
)
def test_bad_arguments_are_told(bias: tuple[int, ...], window: int, told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        overlap_window_attention(
            *random_qkv(0, (3, 4)), torch.zeros(bias, dtype=torch.float64), window
        )


@pytest.mark.parametrize(("window", "core"), [(4, "0.092"), (8, "0.369"), (16, "1.475")])
def test_keys_are_a_half_more_on_each_side(window: int, core: str) -> None:
    """2 (1.5 M)² N (c + c_out) at 100x100 with 64 channels; the border leaves less."""
    cost = create_attention("overlap-window", channels=64, window=window).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == core
    assert cost.executed < cost.core + 100 * 100 * 64**2
