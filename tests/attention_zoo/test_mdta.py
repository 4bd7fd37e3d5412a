"""Transposed attention against its oracle."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import AttentionError, create_attention
from attention_zoo.mdta import transposed_attention
from tests.reference import mdta as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_agrees,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("heads", [1, 2])
def test_agrees_with_the_oracle(
    size: tuple[int, int], heads: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    inputs = random_qkv(0, size, c=4, c_out=4, dtype=dtype, memory_format=memory_format)
    temperature = torch.linspace(0.5, 3, heads, dtype=torch.float64)
    assert_agrees(
        lambda q, k, v: transposed_attention(q, k, v, temperature),
        lambda q, k, v: oracle.transposed_attention(q, k, v, temperature),
        inputs,
    )


def test_module_agrees_with_the_oracle() -> None:
    module = perturb(create_attention("mdta", channels=8, heads=2).double())

    def forward(x: torch.Tensor) -> torch.Tensor:
        qkv = (branch[1](branch[0](x)) for branch in (module.query, module.key, module.value))
        return x + 0.1 * module.out(oracle.transposed_attention(*qkv, module.temperature))

    assert_module_agrees(module, forward, random_map(0, 8, (5, 4)))


def test_length_of_queries_and_keys_does_not_matter() -> None:
    q, k, v = random_qkv(0, (5, 6), c=4, c_out=4)
    once = transposed_attention(q, k, v, torch.ones(1))
    torch.testing.assert_close(transposed_attention(7 * q, k / 3, v, torch.ones(1)), once)


def test_temperature_zero_is_the_mean_of_a_heads_channels() -> None:
    q, k, v = random_qkv(0, (5, 6), c=4, c_out=4)
    out = transposed_attention(q, k, v, torch.zeros(2))
    wanted = v.unflatten(1, (2, 2)).mean(2).repeat_interleave(2, dim=1)
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize(("channels", "heads"), [(8, 1), (40, 1), (64, 1), (96, 2), (256, 4)])
def test_heads_have_about_48_channels(channels: int, heads: int) -> None:
    assert create_attention("mdta", channels=channels).heads == heads


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(AttentionError, match="heads 3 does not divide the 64 channels"):
        create_attention("mdta", channels=64, heads=3)
    q, k, v = random_qkv(0, (2, 3), c=4, c_out=4)
    with pytest.raises(AttentionError, match="3 heads"):
        transposed_attention(q, k, v, torch.ones(3))
    with pytest.raises(AttentionError, match="same channels"):
        transposed_attention(q[:, :2], k[:, :2], v, torch.ones(2))
