"""What is special to window attention; its oracle is in the table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.window import window_attention
from tests.attention_zoo.table import assert_attend_agrees, build
from tests.reference.cases import (
    SIZES,
    assert_close,
    random_map,
    random_qkv,
)


def random_bias(heads: int, window: int) -> Tensor:
    side = 2 * window - 1
    generator = torch.Generator().manual_seed(heads * 100 + window)
    return torch.randn(heads, side, side, generator=generator, dtype=torch.float64)


def test_many_tiles_agree_with_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three windows at a time, out of eight."""
    monkeypatch.setattr("attention_zoo.cores.softmax.CPU_TILE", 2 * 3 * 2 * 9**2)
    assert_attend_agrees("window", (6, 12), seed=2, batch=1, window=3, heads=2)


def test_no_second_derivative() -> None:
    qkv = random_qkv(1, (3, 4))
    out = window_attention(*qkv, random_bias(1, 2)).sum()
    with pytest.raises(RuntimeError, match="window_attention is once_differentiable"):
        torch.autograd.grad(out, qkv, create_graph=True)


@pytest.mark.parametrize("shift", [0, 2, 3])
@pytest.mark.parametrize("size", [(4, 4), (8, 12)])
def test_equals_the_papers_cyclic_shift_with_masks(size: tuple[int, int], shift: int) -> None:
    """Roll, cut into whole windows, mask what was not adjacent, roll back."""
    window, heads = 4, 2
    q, k, v = (t.detach() for t in random_qkv(3, size, c_out=6))
    bias = random_bias(heads, window)

    def windows(x: Tensor) -> Tensor:  # [B, windows, 16, channels]
        x = x.roll((-shift, -shift), (2, 3))
        x = x.unfold(2, window, window).unfold(3, window, window)
        return x.permute(0, 2, 3, 4, 5, 1).flatten(3, 4).flatten(1, 2)

    bands = [torch.zeros(length, dtype=torch.long) for length in size]
    if shift:
        for band in bands:
            band[-window:-shift], band[-shift:] = 1, 2
    region = (3 * bands[0][:, None] + bands[1]).view(1, 1, *size)
    region = region.roll((shift, shift), (2, 3))  # regions are those of the rolled map
    regions = windows(region)
    masked = regions != regions.mT

    y, x = (i.flatten() for i in torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij"))
    by_pair = bias[:, y[:, None] - y + window - 1, x[:, None] - x + window - 1]
    outs = []
    for head in range(heads):
        one, two, three = (windows(t.chunk(heads, 1)[head]) for t in (q, k, v))
        scores = one @ two.mT / math.sqrt(one.shape[-1]) + by_pair[head]
        outs.append(scores.masked_fill(masked, -torch.inf).softmax(-1) @ three)
    out = torch.cat(outs, -1).unflatten(1, (size[0] // window, -1)).unflatten(3, (window, window))
    out = out.permute(0, 5, 1, 3, 2, 4).reshape(v.shape).roll((shift, shift), (2, 3))
    assert_close(window_attention(q, k, v, bias, shift), out, 1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_window_that_holds_the_map_is_non_local_attention(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(4, size)
    bias = torch.zeros(1, 13, 13, dtype=torch.float64)
    assert_close(window_attention(q, k, v, bias), non_local_attention(q / 2, k, v), 1e-12)


@pytest.mark.parametrize(
    ("name", "reached"),
    [("window", [(0, 8), (8, 16), (16, 18)]), ("shifted-window", [(0, 4), (4, 12), (12, 18)])],
)
def test_reach(name: str, reached: list[tuple[int, int]]) -> None:
    """A position sees the window it lies in and nothing else; nothing wraps around."""
    module = build(name, 2)
    for start, stop in reached:
        x = random_map(0, 8, (18, 18), batch=1)
        (gradient,) = torch.autograd.grad(module(x)[0, :, start, stop - 1].sum(), x)
        wanted = torch.zeros(18, 18, dtype=torch.bool)
        wanted[start:stop, start:stop] = True
        assert torch.equal(gradient[0].abs().sum(0) > 0, wanted)


@pytest.mark.parametrize(
    ("bias", "shift", "told"),
    [
        ((2, 4, 4), 0, "bias must be"),
        ((2, 3, 5), 0, "bias must be"),
        ((3, 3), 0, "bias must be"),
        ((3, 3, 3), 0, "heads 3 does not divide the 4 channels"),
        ((2, 3, 3), 0, "heads 2 does not divide the 5 channels"),
        ((1, 3, 3), 2, "shift must be 0 … 1 for windows of 2, got 2"),
        ((1, 3, 3), -1, "shift"),
    ],
)
def test_bad_arguments_are_told(bias: tuple[int, ...], shift: int, told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        window_attention(*random_qkv(0, (3, 4)), torch.zeros(bias, dtype=torch.float64), shift)


@pytest.mark.parametrize(("window", "core"), [(8, "0.164"), (16, "0.655")])
def test_core_at_the_papers_setting(window: int, core: str) -> None:
    """2 M² N (c + c_out) at 100x100 with 64 channels; windows that the border cuts are smaller."""
    for name in ("window", "shifted-window"):
        cost = create_attention(name, channels=64, window=window).cost(100, 100)
        assert f"{2 * cost.core / 1e9:.3f}" == core
        assert cost.executed < cost.core + 100 * 100 * 64**2
    whole = create_attention("window", channels=64, window=window).cost(96, 96)
    assert whole.executed == whole.core + 96 * 96 * 64**2
