"""What the selective scan is; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError
from attention_zoo.cores.scans import CHUNK
from attention_zoo.rivals.selective_scan import selective_scan
from tests.attention_zoo.table import assert_attend_agrees
from tests.reference.cases import assert_close, random_map, random_qkv

RATES = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
NO_SKIP = torch.zeros(1, dtype=torch.float64)


def random_steps(seed: int, size: tuple[int, int], scale: float = 1.0) -> Tensor:
    return scale * random_map(seed, 4, size, batch=1).detach().exp()


def test_many_tiles_agree_with_the_oracle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk is a tile of its own."""
    monkeypatch.setattr("attention_zoo.cores.scans.CPU_TILE", 1)
    assert_attend_agrees("selective-scan", (5, 13), seed=2, state=3, heads=2)


@pytest.mark.parametrize("size", [(3, 5), (5, CHUNK)])
def test_it_is_linear_attention_with_decays(size: tuple[int, int]) -> None:
    """All pairs at once: ``exp(−a sum of steps between) (1 − exp(−a Δ_j)) / a  c_i·b_j``."""
    q, k, v = random_qkv(0, size, batch=1)
    steps = random_steps(9, size, 0.1)
    wanted = torch.zeros_like(v)
    for direction in range(4):
        by_column, backward = direction >= 2, direction % 2

        def sequence(x: Tensor, turn: int = by_column, back: int = backward) -> Tensor:
            x = (x.mT if turn else x).flatten(2)[0]
            return x.flip(1) if back else x

        rate, step = RATES[direction], sequence(steps[:, [direction]])[0]
        since = torch.cumsum(rate * step, 0)
        decays = torch.exp(since - since[:, None]).tril()
        c, b = (torch.nn.functional.normalize(sequence(t), dim=0) for t in (q, k))
        weights = decays * (c.mT @ b) * (1 - torch.exp(-rate * step)) / rate
        out = sequence(v) @ weights.mT
        out = (out.flip(1) if backward else out)[None]
        turned = out.unflatten(2, size[::-1] if by_column else size)
        wanted = wanted + (turned.mT if by_column else turned) / 4
    assert_close(selective_scan(q, k, v, steps, RATES, NO_SKIP), wanted, 1e-12)


def test_no_step_leaves_the_skip_and_endless_ones_the_own_input() -> None:
    q, k, v = random_qkv(1, (5, 9), batch=1)
    steps, skip = torch.zeros(1, 4, 5, 9, dtype=torch.float64), NO_SKIP + 0.7
    assert_close(selective_scan(q, k, v, steps, RATES, skip), 0.7 * v, 1e-12)
    cosines = torch.cosine_similarity(q, k, dim=1).unsqueeze(1)
    out = selective_scan(q, k, v, steps + 1e9, RATES, skip)
    assert_close(out, (0.7 + (1 / RATES).mean() * cosines) * v, 1e-12)


@pytest.mark.parametrize("step", [1e-4, 0.03, 5.0])
def test_outputs_stay_within_the_range_of_the_inputs(step: float) -> None:
    """Weights of a direction sum to at most 1/a: a constant map comes near, none exceeds it."""
    size = (30, 30)
    ones = torch.ones(1, 1, *size, dtype=torch.float64)
    out = selective_scan(ones, ones, ones, step * ones.expand(1, 4, *size), RATES, NO_SKIP)
    limit = (1 / RATES).mean()
    assert (out <= limit + 1e-12).all()
    assert (out > 0).all()
    if step > 1:
        inner = out[..., 10:20, 10:20]
        assert_close(inner, limit.expand_as(inner), 1e-6)


def test_a_turned_map_gives_the_turned_result() -> None:
    """Transposed, rows and columns change places; upside down, forward and backward do."""
    q, k, v = random_qkv(3, (9, 6), batch=1)
    steps, rates = random_steps(5, (9, 6)), RATES
    out = selective_scan(q, k, v, steps, rates, NO_SKIP)
    places = [2, 3, 0, 1]
    maps = (t.mT for t in (q, k, v, steps[:, places]))
    assert_close(selective_scan(*maps, rates[places], NO_SKIP).mT, out, 1e-12)
    places = [1, 0, 3, 2]
    maps = (t.flip(2, 3) for t in (q, k, v, steps[:, places]))
    assert_close(selective_scan(*maps, rates[places], NO_SKIP).flip(2, 3), out, 1e-12)


def test_a_strong_decay_does_not_blur_the_weak_ones_after_it() -> None:
    """Sums of logarithms in float32: they are differences, of numbers that stay bounded."""
    size = (32, 32)
    q, k, v = (t.detach() for t in random_qkv(4, size, batch=1))
    steps = random_steps(6, size, 1e-3)
    steps[..., ::5] = 1e6
    inputs = [q, k, v, steps, RATES, NO_SKIP]
    out = selective_scan(*(t.float() for t in inputs))  # type: ignore[arg-type]
    assert_close(out, selective_scan(*inputs), 1e-4)  # type: ignore[arg-type]


def test_every_position_is_reached_by_every_other() -> None:
    q, k, v = random_qkv(5, (8, 13), batch=1)
    out = selective_scan(q, k, v, random_steps(7, (8, 13), 0.01), RATES, NO_SKIP)
    (gradient,) = torch.autograd.grad(out[..., 3, 4].sum(), v)
    assert (gradient != 0).all()


@pytest.mark.parametrize(
    ("shape", "heads", "directions", "told"),
    [
        ((2, 4, 3, 4), 1, 1, "directions must be 2"),
        ((2, 4, 4, 3), 1, 4, r"steps must be \[2, 4, 3, 4\] and rates \[4\] for 1 heads"),
        ((2, 2, 3, 4), 1, 2, r"got \[2, 2, 3, 4\] and \[4\]"),
        ((2, 8, 3, 4), 2, 4, "heads 2 does not divide the 5 channels"),
    ],
)
def test_bad_arguments_are_told(
    shape: tuple[int, ...], heads: int, directions: int, told: str
) -> None:
    steps, skip = torch.zeros(shape, dtype=torch.float64), NO_SKIP.expand(heads)
    with pytest.raises(AttentionError, match=told):
        selective_scan(*random_qkv(0, (3, 4)), steps, RATES, skip, directions)
