"""What is special to differential attention; its oracle is in the table."""

from __future__ import annotations

import math

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.differential import differential_attention
from tests.attention_zoo.table import build_with_inputs
from tests.reference.cases import SIZES, assert_close, random_map, random_qkv


@pytest.mark.parametrize("size", SIZES)
def test_without_weight_it_is_the_attention_of_the_first_half(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(4, size, c=6, c_out=4)
    wanted = non_local_attention(q[:, :3] / math.sqrt(3), k[:, :3], v)
    assert_close(differential_attention(q, k, v, 0.0), wanted, 1e-12)


def test_what_both_softmaxes_see_cancels() -> None:
    """At equal halves and weight 1 nothing is left; at any weight, 1 - weight of it."""
    half_q, half_k, v = random_qkv(1, (5, 7), c=2, c_out=4)
    q, k = torch.cat([half_q, half_q], dim=1), torch.cat([half_k, half_k], dim=1)
    assert_close(differential_attention(q, k, v, 1.0), torch.zeros_like(v), 1e-14)
    wanted = non_local_attention(half_q / math.sqrt(2), half_k, v)
    assert_close(differential_attention(q, k, v, 0.75), 0.25 * wanted, 1e-12)


def test_every_two_heads_are_one_difference() -> None:
    q, k, v = random_qkv(2, (4, 5), c=8, c_out=4)
    parts = [
        differential_attention(q[:, i : i + 4], k[:, i : i + 4], v[:, i // 2 : i // 2 + 2], 0.3)
        for i in (0, 4)
    ]
    assert_close(differential_attention(q, k, v, 0.3, heads=4), torch.cat(parts, dim=1), 1e-12)


def test_weight_is_lambda_init_where_the_vectors_are_alike() -> None:
    module = create_attention("differential", channels=16, lambda_init=0.5)
    module.vectors.data.copy_(torch.tensor([[0.3], [0.2], [0.2], [0.3]]))
    torch.testing.assert_close(module.weight(torch.float64).item(), 0.5)
    module.vectors.data[0] *= 2
    wanted = math.exp(2 * 0.12) - math.exp(2 * 0.06) + 0.5
    assert module.weight(torch.float64).item() == pytest.approx(wanted, rel=1e-6)


def test_the_norm_leaves_every_head_one_minus_lambda_init() -> None:
    """Before the last convolution, whatever the size of the values."""
    module, (q, k, v) = build_with_inputs("differential", (5, 7), heads=4)
    module.output, module.gain.data[:] = torch.nn.Identity(), 1.0
    for factor in (1.0, 1e3):
        out = module.attend(q, k, factor * v).unflatten(1, (2, -1))
        rms = out.square().mean(2).sqrt()
        assert_close(rms, torch.full_like(rms, 0.2), 1e-2 / factor)


def test_small_differences_keep_their_digits_in_half_precision() -> None:
    """Alike halves at weight 0.99 leave a hundredth, about what bfloat16 rounds off."""
    q, k, v = (t.detach().bfloat16() for t in random_qkv(3, (5, 7), c=2, c_out=4))
    q, k = torch.cat([q, q], dim=1), torch.cat([k, k], dim=1)
    found = differential_attention(q, k, v, 0.99)
    wanted = differential_attention(q.double(), k.double(), v.double(), 0.99)
    assert found.dtype == torch.bfloat16
    assert (found - wanted).abs().max() < 2**-8 * wanted.abs().max()


def test_bad_options_are_refused() -> None:
    with pytest.raises(AttentionError, match="heads must be even, two for each difference, got 3"):
        create_attention("differential", channels=12, heads=3)
    with pytest.raises(AttentionError, match="heads 2 does not divide the 5 channels"):
        differential_attention(*random_qkv(0, (3, 4)), 0.5)
    with pytest.raises(AttentionError, match="no weights over positions"):
        build_with_inputs("differential", (3, 4))[0].correlation(
            random_map(0, 24, (3, 4), batch=1), (0, 0)
        )
