"""What is special to criss-cross attention; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import create_attention
from attention_zoo.criss_cross import criss_cross_attention
from tests.attention_zoo.table import build
from tests.reference.cases import random_map, random_qkv


@pytest.mark.parametrize("size", [(1, 7), (7, 1), (9, 8)])
@pytest.mark.parametrize("factor", [0.1, 1000.0])
def test_what_is_executed_does_not_depend_on_the_scores(
    size: tuple[int, int], factor: float
) -> None:
    q, k, v = random_qkv(0, size, dtype=torch.float32, batch=1, c=4, c_out=5)
    with FlopCounterMode(display=False) as counter:
        criss_cross_attention(factor * q, k, v)
    assert counter.get_total_flops() == 2 * size[0] * size[1] * sum(size) * (4 + 5)


def test_own_position_counts_once() -> None:
    """With equal scores every one of the H + W − 1 positions weighs the same."""
    height, width = 3, 4
    zeros = torch.zeros(1, 2, height, width)
    for position in range(height * width):
        v = torch.zeros(1, 1, height, width)
        v.view(-1)[position] = 1.0
        out = criss_cross_attention(zeros, zeros, v)[0, 0]
        row, column = divmod(position, width)
        wanted = torch.zeros(height, width)
        wanted[row, :] = wanted[:, column] = 1 / (height + width - 1)
        torch.testing.assert_close(out, wanted)


def test_is_the_identity_at_the_start() -> None:
    module = create_attention("criss-cross", channels=16, recurrence=2)
    x = random_map(0, 16, (4, 5), dtype=torch.float32)
    torch.testing.assert_close(module(x), x, rtol=0, atol=0)


def test_two_passes_reach_every_position() -> None:
    """One pass sees column and row only; CCNet's second pass the whole map."""
    reached = []
    for recurrence in (1, 2):
        x = random_map(0, 8, (4, 5), batch=1)
        module = build("criss-cross", 1, recurrence=recurrence)
        (gradient,) = torch.autograd.grad(module(x)[0, :, 0, 0].sum(), x)
        reached.append(int((gradient.abs().sum(dim=1) > 0).sum()))
    assert reached == [4 + 5 - 1, 4 * 5]
