"""What is special to top-k attention; its oracle is in the table."""

from __future__ import annotations

import math

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from attention_zoo.cores.largest import largest
from attention_zoo.implementations import use_implementation
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.top_k import top_k_attention
from tests.attention_zoo.table import assert_attend_agrees
from tests.reference.cases import SIZES, assert_agrees, random_qkv


@pytest.mark.parametrize("few", [1, 10**6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_agrees_over_several_tiles(
    dtype: torch.dtype, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors gathered, and dense products; maxima of groups of scores decide among groups."""
    monkeypatch.setattr("attention_zoo.cores.largest_tiled._FEW", few)
    monkeypatch.setattr("attention_zoo.cores.softmax.CPU_TILE", 500)
    with use_implementation("largest=tiled"):
        assert_attend_agrees("top-k", (9, 12), dtype=dtype, k=4)


@pytest.mark.parametrize("size", SIZES)
def test_all_positions_are_non_local_attention(size: tuple[int, int]) -> None:
    def attend(*qkv: torch.Tensor) -> torch.Tensor:
        return top_k_attention(*qkv, count=size[0] * size[1])

    assert_agrees(attend, non_local_attention, random_qkv(4, size))


def test_shared_embeddings_of_all_positions_are_those_of_nla() -> None:
    ours = create_attention("top-k", 8, k=35, shared=True).double()
    theirs = create_attention("nla", 8, shared=True).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    assert ours.cost(5, 7).projections == theirs.cost(5, 7).projections


def test_one_position_is_the_most_similar() -> None:
    q, k, v = random_qkv(4, (5, 7))
    best = torch.einsum("bci,bcj->bij", q.flatten(2), k.flatten(2)).argmax(2)
    wanted = v.flatten(2).gather(2, best.unsqueeze(1).expand(-1, v.shape[1], -1))
    torch.testing.assert_close(top_k_attention(q, k, v, 1), wanted.view(v.shape))


def test_positions_that_nobody_chose_get_no_gradient() -> None:
    q, k, v = random_qkv(4, (5, 7), batch=1)
    top_k_attention(q, k, v, 2).sum().backward()
    scores = torch.einsum("ci,cj->ij", q[0].flatten(1), k[0].flatten(1))
    chosen = scores.topk(2).indices.unique()
    assert 1 < len(chosen) < 35
    for leaf in (k, v):
        assert torch.equal(leaf.grad[0].flatten(1).any(0).nonzero().flatten(), chosen)


@pytest.mark.parametrize("numpy", [True, False])
@pytest.mark.parametrize(("length", "count"), [(1, 1), (7, 7), (30, 4), (400, 9), (4000, 60)])
def test_the_largest_are_found(
    length: int, count: int, numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among equal, infinite and very small scores too."""
    monkeypatch.setattr("attention_zoo.cores.largest.has_vector_sort", lambda: numpy)
    generator = torch.Generator().manual_seed(length)
    rows = torch.randn(7, length, generator=generator)
    rows[1] = rows[1].round()
    rows[2] = -3.0
    rows[3] = rows[3].relu() * 1e-42
    rows[4, ::2] = -math.inf
    rows[5] *= 1e37
    rows[6] = -rows[6].relu()
    values, at = largest(rows.view(1, 7, -1), count)
    torch.testing.assert_close(values[0], rows.topk(count).values, rtol=0, atol=0)
    torch.testing.assert_close(rows.gather(1, at[0]), values[0], rtol=0, atol=0)
    assert all(len(row.unique()) == count for row in at[0])


def test_neighbours_may_all_be_chosen() -> None:
    """The largest scores of a row side by side, as in a flat region of an image."""
    rows = torch.linspace(0, 1, 800).sin()[None]
    assert largest(rows, 16)[1].tolist() == [list(range(799, 783, -1))]


def test_bad_counts_are_refused() -> None:
    with pytest.raises(AttentionError, match="count must be at least 1, got 0"):
        top_k_attention(*random_qkv(0, (3, 4)), 0)
