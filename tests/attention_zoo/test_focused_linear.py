"""What the features of focused linear attention do; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch

from attention_zoo.rivals.focused_linear import focused_features, focused_linear_attention
from tests.reference.cases import (
    assert_close,
    random_map,
    random_qkv,
)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [2.0**-6, 2.0**13])
def test_powers_do_not_leave_the_range_of_the_dtype(dtype: torch.dtype, scale: float) -> None:
    """The cube of 8192 is not in float16; a common scale of queries, or of keys, cancels."""
    q, k, v = (t.to(dtype) for t in random_qkv(2, (4, 5)))
    q[:, 0] = k[:, 0] = 1  # pairs that share no feature are weighed by 1e-18
    out = focused_linear_attention(q * scale, k * scale, v)
    assert_close(out, focused_linear_attention(q, k, v), 2e-3 if dtype.itemsize == 2 else 1e-6)


def test_no_feature_in_common_and_none_at_all_stay_finite() -> None:
    q, k, v = (t.detach().float() for t in random_qkv(2, (4, 5)))
    q, k = q.abs(), k.abs()
    q[:, :2], k[:, 2:] = -1, -1
    for queries, keys in ((1e15 * q, 1e15 * k), (-q.abs(), k), (q, -k.abs()), (0 * q, 0 * k)):
        queries.requires_grad_()
        out = focused_linear_attention(queries, keys, v)
        assert (out.amax((2, 3)) <= v.amax((2, 3)) + 1e-5).all()
        assert (out.amin((2, 3)) >= v.amin((2, 3)) - 1e-5).all()
        (gradient,) = torch.autograd.grad(out.sum(), queries)
        assert gradient.isfinite().all()


def test_focusing_keeps_lengths_and_sharpens_directions() -> None:
    """``|phi(x)| = |relu(x)|``; near pairs come nearer, far ones go apart as p grows."""
    x = random_map(0, 6, (4, 5)).detach().abs()
    for focus in (1.0, 3.0, 8.0):
        powers, factors = focused_features(x, focus)
        lengths = torch.linalg.vector_norm(powers * factors, dim=1)
        assert_close(lengths, torch.linalg.vector_norm(x.flatten(2), dim=1), 1e-12)
    a = torch.tensor([1.0, 0.2, 0.4, 0.1]).double()
    near, far = torch.tensor([0.9, 0.3, 0.2, 0.3]).double(), torch.tensor([0.2, 1, 0.1, 0.3])
    for other, sign in ((near, 1), (far.double(), -1)):
        cosines = []
        for focus in (1.0, 3.0, 6.0):
            one, two = (focused_features(t.view(1, 4, 1, 1), focus)[0] for t in (a, other))
            cosines.append(sign * torch.cosine_similarity(one, two).item())
        assert cosines == sorted(cosines)
