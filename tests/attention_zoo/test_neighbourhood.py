"""What is special to the windows of NATTEN; their oracle is in the table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.neighbourhood import nearest_window_attention
from attention_zoo.rivals.nlrn import neighbourhood_attention
from tests.attention_zoo.table import assert_attend_agrees, build
from tests.reference.cases import SIZES, assert_close, random_map, random_qkv


def no_bias(window: int) -> Tensor:
    return torch.zeros(1, 2 * window - 1, 2 * window - 1, dtype=torch.float64)


@pytest.mark.parametrize("dilation", [1, 2])
def test_tiles_in_parts_agree_with_the_oracle(
    dilation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some tiles of a run at a time, and each image alone."""
    monkeypatch.setattr("attention_zoo.cores.softmax.CPU_TILE", 2 * 2 * 2 * 4**2 * 6**2)
    assert_attend_agrees("neighbourhood", (7, 28), window=3, dilation=dilation, heads=2, width=1)


@pytest.mark.parametrize("size", [*SIZES, (9, 4)])
def test_a_window_that_holds_the_map_is_non_local_attention(size: tuple[int, int]) -> None:
    """As large as the map, or larger: then it has all positions there are."""
    q, k, v = random_qkv(1, size)
    out = non_local_attention(q / 2, k, v)
    for window in (9, 11):
        assert_close(nearest_window_attention(q, k, v, no_bias(window)), out, 1e-12)


def test_away_from_the_border_it_is_that_of_nlrn_and_not_at_it() -> None:
    q, k, v = random_qkv(2, (11, 13))
    found, other = (
        nearest_window_attention(q, k, v, no_bias(5)),
        neighbourhood_attention(q / 2, k, v, 5),
    )
    assert_close(found[:, :, 2:-2, 2:-2], other[:, :, 2:-2, 2:-2], 1e-12)
    assert ((found - other).abs().amax(1)[:, [0, 1, -2, -1]] > 1e-6).all()


def test_dilation_is_attention_within_each_phase() -> None:
    q, k, v = random_qkv(3, (7, 10), c_out=6)
    bias = torch.randn(2, 5, 5, dtype=torch.float64)
    found = nearest_window_attention(q, k, v, bias, 3)
    for row in range(3):
        for column in range(3):
            alone = (t[:, :, row::3, column::3] for t in (q, k, v))
            assert_close(
                found[:, :, row::3, column::3], nearest_window_attention(*alone, bias), 1e-12
            )


@pytest.mark.parametrize(
    ("dilation", "at", "reached"),
    [
        (1, 0, range(7)),
        (1, 2, range(7)),
        (1, 4, range(1, 8)),
        (1, 19, range(13, 20)),
        (2, 0, range(0, 14, 2)),
        (2, 9, range(3, 16, 2)),
        (2, 19, range(7, 20, 2)),
        (5, 8, range(3, 20, 5)),  # four, for the window would not fit
        (30, 8, range(8, 9)),
    ],
)
def test_reach(dilation: int, at: int, reached: range) -> None:
    """Seven of seven positions wherever the query is, moved inwards at the border."""
    module = build("neighbourhood", 2, dilation=dilation)
    x = random_map(0, 8, (20, 8), batch=1)
    (gradient,) = torch.autograd.grad(module(x)[0, :, at, 4].sum(), x)
    assert (gradient[0].abs().sum((0, 2)) > 0).nonzero().flatten().tolist() == list(reached)


@pytest.mark.parametrize(
    ("bias", "dilation", "told"),
    [
        ((2, 3, 3), 1, "bias must be"),
        ((2, 5, 9), 1, "bias must be"),
        ((5, 5), 1, "bias must be"),
        ((3, 5, 5), 1, "heads 3 does not divide the 4 channels"),
        ((1, 5, 5), 0, "dilation"),
    ],
)
def test_bad_arguments_are_told(bias: tuple[int, ...], dilation: int, told: str) -> None:
    table = torch.zeros(bias, dtype=torch.float64)
    with pytest.raises(AttentionError, match=told):
        nearest_window_attention(*random_qkv(0, (3, 4)), table, dilation)


def test_the_window_must_be_odd() -> None:
    with pytest.raises(AttentionError, match="window must be odd"):
        create_attention("neighbourhood", channels=8, window=4)


def test_no_second_derivative() -> None:
    qkv = random_qkv(1, (3, 4))
    out = nearest_window_attention(*qkv, no_bias(3)).sum()
    with pytest.raises(RuntimeError, match="nearest_window_attention is once_differentiable"):
        torch.autograd.grad(out, qkv, create_graph=True)


@pytest.mark.parametrize(("window", "core"), [(5, "0.064"), (7, "0.125"), (17, "0.740")])
@pytest.mark.parametrize("dilation", [1, 4])
def test_every_position_has_all_its_neighbours(window: int, core: str, dilation: int) -> None:
    """2 N k² (c + c_out) at 100x100 with 64 channels."""
    module = create_attention("neighbourhood", channels=64, window=window, dilation=dilation)
    cost = module.cost(100, 100)
    assert f"{2 * cost.core / 1e9:.3f}" == core
    assert cost.executed - 100 * 100 * 64**2 < 2.6 * cost.core
