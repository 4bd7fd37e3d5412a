"""What is special to high-similarity-pass attention; its oracle is in the table."""

from __future__ import annotations

import math

import pytest
import torch

from attention_zoo import AttentionError
from attention_zoo.implementations import use_implementation
from attention_zoo.rivals.hspa import high_similarity_attention, sparsemax
from attention_zoo.rivals.top_k import top_k_attention
from tests.attention_zoo.table import assert_attend_agrees, build_with_inputs
from tests.reference.cases import SIZES, assert_close, random_qkv


@pytest.mark.parametrize("few", [1, 10**6])
def test_agrees_over_several_tiles(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors gathered, and dense products."""
    monkeypatch.setattr("attention_zoo.cores.largest_tiled._FEW", few)
    monkeypatch.setattr("attention_zoo.cores.softmax.CPU_TILE", 500)
    with use_implementation("largest=tiled"):
        assert_attend_agrees("hspa", (9, 12), batch=1, k=8)


@pytest.mark.parametrize(
    ("scores", "weights"),
    [
        ([1.0, 0.8, 0.1], [0.6, 0.4, 0.0]),
        ([5.0, 5.0, 4.5, 4.4], [0.5, 0.5, 0.0, 0.0]),
        ([2.0, 1.0], [1.0, 0.0]),
        ([1e30, 1e30, 0.0, -1e38], [0.5, 0.5, 0.0, 0.0]),
        ([-3.0] * 5, [0.2] * 5),
        ([math.nan, 1.0], [math.nan] * 2),
    ],
)
def test_soft_threshold(scores: list[float], weights: list[float]) -> None:
    found = sparsemax(torch.tensor(scores))
    torch.testing.assert_close(found, torch.tensor(weights), equal_nan=True)


def test_weights_are_the_nearest_distribution() -> None:
    """Sparsemax is the projection on the simplex: no other distribution is as near to the scores.

    So every step from it to a corner of the simplex goes away from the scores, or along them.
    """
    scores = 0.4 * torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    scores = scores.double().sort(descending=True).values
    weights = sparsemax(scores)
    steps = torch.eye(12, dtype=torch.float64) - weights.unsqueeze(1)
    assert (((scores - weights).unsqueeze(1) * steps).sum(-1) <= 1e-12).all()
    assert_close(weights.sum(1), torch.ones(50), 1e-12)
    assert len((weights > 0).sum(1).unique()) > 3


def test_more_positions_than_pass_change_nothing() -> None:
    """Then the threshold is that of the whole row."""
    q, k, v = random_qkv(4, (5, 7))
    whole = high_similarity_attention(q, k, v, 35)
    module, _ = build_with_inputs("hspa", (5, 7), k=35)
    passing = max(
        int((module.attention_weights(q, k, row, column) > 0).sum((1, 2)).max())
        for row in range(5)
        for column in range(7)
    )
    assert 1 < passing < 20
    assert_close(high_similarity_attention(q, k, v, passing), whole, 1e-12)
    assert (high_similarity_attention(q, k, v, passing - 1) - whole).abs().max() > 1e-4


@pytest.mark.parametrize("size", SIZES)
def test_like_scores_are_a_mean_and_distant_ones_a_choice(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(4, size)
    mean = v.flatten(2).mean(2)[..., None, None].expand_as(v)
    assert_close(high_similarity_attention(0 * q, k, v, 35), mean, 1e-12)
    assert_close(high_similarity_attention(1e6 * q, k, v), top_k_attention(q, k, v, 1), 1e-12)


def test_bad_counts_are_refused() -> None:
    with pytest.raises(AttentionError, match="count must be at least 1, got 0"):
        high_similarity_attention(*random_qkv(0, (3, 4)), 0)
