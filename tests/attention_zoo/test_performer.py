"""The Performer's attention: unbiased kernel, convergence to softmax attention."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.enla import orthogonal_gaussian
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.performer import positive_feature_attention
from tests.attention_zoo.table import build
from tests.reference import performer as oracle
from tests.reference.cases import (
    assert_agrees,
    assert_close,
    random_map,
    random_qkv,
)


def drawn(m: int, c: int, seed: int = 0) -> Tensor:
    return orthogonal_gaussian(m, c, torch.Generator().manual_seed(seed)).double()


def test_long_embeddings_do_not_underflow_in_float32() -> None:
    """exp(Fu − |u|²/2) far below the smallest float32: what is subtracted must cancel."""
    q, k, v = random_qkv(0, (4, 5), dtype=torch.float32)
    q, k = (x.detach() * 8 for x in (q, k))
    projection = drawn(6, 4).float()
    exponents = k.double().square().sum(1) / 4  # |u|²/2
    assert exponents.max() > 104
    assert_agrees(
        lambda v: positive_feature_attention(q, k, v, projection),
        lambda v: oracle.positive_feature_attention(q, k, v, projection),
        [v],
        tolerance=(1e-4, 1e-4),
    )


def test_the_kernel_is_unbiased() -> None:
    """Mean over 4000 draws of 4 rows, in standard errors: 5 are exceeded in 6e-7 of cases."""
    c, draws = 4, 4000
    q, k = (random_map(i, c, (1, 1), batch=1).detach().flatten() for i in (0, 1))
    generator = torch.Generator().manual_seed(0)
    found = torch.stack(
        [oracle.kernel(q, k, orthogonal_gaussian(4, c, generator)) for _ in range(draws)]
    )
    error = (found.mean() - torch.exp(q @ k / 2)) / (found.std() / math.sqrt(draws))
    assert error.abs() < 5


def test_converges_to_softmax_attention_as_one_over_the_root_of_m() -> None:
    """16 times the features, a quarter of the error (root of the mean square over 40 draws)."""
    q, k, v = (t.detach() for t in random_qkv(3, (6, 6), c=8, batch=1))
    q, k = q / 2, k / 2  # the variance grows with exp(|q + k|² / sqrt(c))
    exact = non_local_attention(q / math.sqrt(8), k, v)
    errors = []
    for m in (128, 2048):
        outs = [positive_feature_attention(q, k, v, drawn(m, 8, seed)) for seed in range(40)]
        errors.append((torch.stack(outs) - exact).square().mean().sqrt().item())
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)
    assert errors[1] < 0.1


def test_equal_keys_give_the_mean_of_the_values() -> None:
    q, k, v = random_qkv(2, (3, 4))
    k = k[:, :, :1, :1].expand_as(k)
    mean = v.mean((2, 3), keepdim=True).expand_as(v)
    assert_close(positive_feature_attention(q, k, v, drawn(6, 4)), mean, 1e-12)


def test_redraw_takes_a_new_projection_in_place_from_the_global_generator() -> None:
    module = build("performer", 2, m=6)
    before = module.projection.clone()
    x = random_map(0, 8, (3, 4))
    module(x)
    assert torch.equal(module.projection, before)  # a forward draws nothing
    torch.manual_seed(5)
    module.redraw()
    first = module.projection.clone()
    torch.manual_seed(5)
    module.redraw()
    assert torch.equal(module.projection, first)
    assert not torch.equal(first, before)
    assert (first.dtype, first.shape) == (before.dtype, before.shape)


def test_exact_weights_are_the_softmax_that_the_features_approximate() -> None:
    torch.manual_seed(0)
    module = create_attention("performer", channels=8, m=20_000).eval()
    q, k, _ = module.project(torch.randn(1, 8, 4, 5))
    exact = module.exact_weights(q, k, 1, 2)
    assert torch.allclose(exact.sum(), torch.tensor(1.0))
    assert torch.allclose(exact, module.attention_weights(q, k, 1, 2), atol=0.01)


def test_a_projection_of_another_width_is_refused() -> None:
    with pytest.raises(AttentionError, match=r"projection must be \[m, 4\], got \[6, 5\]"):
        positive_feature_attention(*random_qkv(0, (3, 4)), drawn(6, 5))


def test_core_is_that_of_enla() -> None:
    performer, enla = (create_attention(name, channels=64) for name in ("performer", "enla"))
    assert performer.cost(100, 100) == enla.cost(100, 100)
