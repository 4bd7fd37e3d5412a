"""What the convolution of rank-enhanced linear attention is for; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch

from attention_zoo.rivals.rela import rectified_linear_attention
from tests.attention_zoo.table import build
from tests.reference.cases import assert_close, random_qkv


def test_the_convolution_mends_the_rank_of_the_weights() -> None:
    """N x N weights of 20 positions: rank c = 3 without the convolution, 20 with it."""
    module = build("rela", 3)
    n = 20
    q, k, _ = random_qkv(0, (4, 5), c=3, batch=n)
    q, k = (t[:1].abs().expand(n, 3, 4, 5) for t in (q, k))
    unit = torch.eye(n, dtype=torch.float64).view(n, 1, 4, 5)  # one value at one position each
    v = unit.expand(n, module.channels, 4, 5)
    alone = rectified_linear_attention(q, k, v)
    with torch.no_grad():
        whole = module.attend(q, k, v)
        module.local.weight.zero_()
        module.local.bias.zero_()
        assert torch.equal(module.attend(q, k, v), alone)
    matrices = (t[:, 0].flatten(1) for t in (alone, whole))
    assert [torch.linalg.matrix_rank(t, rtol=1e-9).item() for t in matrices] == [3, n]


def test_a_query_that_shares_no_feature_takes_nothing() -> None:
    q, k, v = (t.detach() for t in random_qkv(1, (3, 4)))
    q, k = q.abs(), k.abs()
    q[:, :2], k[:, 2:] = -1, -1
    for queries, keys in ((q, k), (-q.abs(), k), (q, -k.abs()), (0 * q, 0 * k)):
        queries = queries.clone().requires_grad_()
        out = rectified_linear_attention(queries, keys, v)
        assert torch.equal(out, torch.zeros_like(v))
        (gradient,) = torch.autograd.grad(out.sum(), queries)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("scale", [2.0**-4, 2.0**14])
def test_products_do_not_leave_the_range_of_the_dtype(dtype: torch.dtype, scale: float) -> None:
    """A common scale of queries, or of keys, cancels but for the 1e-6."""
    q, k, v = (t.detach().to(dtype) for t in random_qkv(2, (4, 5)))
    q[:, 0] = k[:, 0] = 1
    out = rectified_linear_attention(q * scale, k * scale, v)
    assert_close(out, rectified_linear_attention(q, k, v), 2e-3 if dtype.itemsize == 2 else 2e-5)
