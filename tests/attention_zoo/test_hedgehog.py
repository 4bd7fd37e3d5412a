"""Hedgehog's features: two known limits, and exponents of any size; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.rivals.hedgehog import learned_feature_attention
from tests.reference.cases import assert_close, random_qkv


def weighted(weights: Tensor, v: Tensor) -> Tensor:
    """Means of the values by weights ``[B, N, N]``."""
    means = torch.matmul(v.flatten(2), (weights / weights.sum(2, keepdim=True)).mT)
    return means.view(v.shape)


def feature_map(m: int, c: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(m // 2, c, generator=generator, dtype=torch.float64)
    return weight, torch.zeros(m // 2, dtype=torch.float64)


def test_one_map_for_both_weighs_by_the_cosh_of_the_sum() -> None:
    """``sum_f exp(w·q) exp(w·k) + exp(-w·q) exp(-w·k) = 2 sum_f cosh(w·(q + k))``."""
    q, k, v = random_qkv(0, (3, 4))
    weight, bias = feature_map(6)
    sums = q.flatten(2).mT.unsqueeze(2) + k.flatten(2).mT.unsqueeze(1)  # [B, N, N, c]
    expected = weighted(torch.cosh(sums @ weight.T).sum(3), v)
    out = learned_feature_attention(q, k, v, (weight, bias), (weight, bias), False)
    assert_close(out, expected, 1e-12)


def test_large_exponents_match_by_the_largest_and_the_smallest_feature() -> None:
    """A saturated softmax is one-hot: keys of the same extreme features share their values."""
    q, k, v = random_qkv(1, (5, 6))
    weight, bias = feature_map(8)
    features = [(t.flatten(2).mT @ weight.T) for t in (q, k)]
    top_q, top_k = (x.argmax(2) for x in features)
    low_q, low_k = (x.argmin(2) for x in features)
    same = (top_q[:, :, None] == top_k[:, None]).double() + (low_q[:, :, None] == low_k[:, None])
    found = same.sum(2) > 0
    assert found.any(1).all()
    sharp = (1e5 * weight, bias)
    out = learned_feature_attention(q, k, v, sharp, sharp)
    expected = weighted(same + 1e-300, v)
    assert_close(out.flatten(2).mT[found], expected.flatten(2).mT[found], 1e-9)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_exponents_of_any_size_give_means_of_the_values(dtype: torch.dtype, softmax: bool) -> None:
    """exp of 1000 is in no dtype; queries and keys may favour opposite features."""
    q, k, v = (t.detach().to(dtype) for t in random_qkv(2, (4, 5)))
    weight, bias = (t.to(dtype) for t in feature_map(6))
    q.requires_grad_()
    for query_map, key_map in ((weight, weight), (weight, -weight), (weight, weight.flip(0))):
        out = learned_feature_attention(
            1000 * q, 1000 * k, v, (query_map, bias), (key_map, bias), softmax
        )
        assert (out.amax((2, 3)) <= v.amax((2, 3)) + 1e-2).all()
        assert (out.amin((2, 3)) >= v.amin((2, 3)) - 1e-2).all()
        (gradient,) = torch.autograd.grad(out.sum(), q)
        assert gradient.isfinite().all()


def test_queries_and_keys_start_with_the_same_orthogonal_features() -> None:
    module = create_attention("hedgehog", channels=16, m=8)
    assert torch.equal(module.query_weight, module.key_weight)
    rows = module.query_weight.detach()
    rows = rows / rows.norm(dim=1, keepdim=True)
    assert_close(rows @ rows.T, torch.eye(4), 1e-5)


@pytest.mark.parametrize("shapes", [((3, 5), (3,)), ((3, 4), (2,)), ((2, 4), (2,))])
def test_feature_maps_of_other_shapes_are_refused(
    shapes: tuple[tuple[int, int], tuple[int]],
) -> None:
    bad = (torch.zeros(shapes[0]), torch.zeros(shapes[1]))
    with pytest.raises(AttentionError, match=r"feature maps must be \[m/2, 4\] and \[m/2\], got"):
        learned_feature_attention(*random_qkv(0, (3, 4)), feature_map(6), bad)
