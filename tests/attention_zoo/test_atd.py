"""The adaptive token dictionary's attentions against their oracles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.nla import non_local_attention
from attention_zoo.rivals.atd import category_attention, token_attention, token_categories
from tests.reference import atd as oracle
from tests.reference import conv as conv_oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_agrees,
    assert_close,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


def random_tokens(count: int, c: int, c_out: int) -> list[Tensor]:
    """Keys ``[M, c]``, values ``[M, c_out]`` and scales ``[M]`` of tokens."""
    generator = torch.Generator().manual_seed(count)
    shapes = [(count, c), (count, c_out), (count,)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]


def random_categories(seed: int, batch: int, n: int, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(count, (batch, n), generator=generator)


def assert_category_attention_agrees(
    qkv: tuple[Tensor, ...], categories: Tensor, heads: int, size: int
) -> None:
    assert_agrees(
        lambda *qkv: category_attention(*qkv, categories, heads, size),
        lambda *qkv: oracle.category_attention(*qkv, categories.tolist(), heads, size),
        qkv,
    )


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_token_attention_agrees_with_the_oracle(
    size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    """In value, and in gradients by query, keys, values and scales."""
    q = random_map(0, 4, size, memory_format=memory_format)
    assert_agrees(
        lambda *args: token_attention(*args)[0],
        oracle.token_attention,
        [q, *random_tokens(5, 4, 6)],
    )


def test_categories_are_those_of_the_oracle() -> None:
    q = random_map(0, 4, (5, 7))
    keys, values, scale = random_tokens(5, 4, 6)
    _, scores = token_attention(q, keys, values, scale)
    categories = token_categories(scores)
    assert categories.tolist() == oracle.token_categories(q, keys, scale)
    assert categories.unique().numel() > 2


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_category_attention_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Groups of 8: whole ones, a broken last one, and fewer positions than that."""
    qkv = random_qkv(0, size, c_out=6, dtype=dtype, memory_format=memory_format)
    categories = random_categories(0, 2, size[0] * size[1])
    assert_category_attention_agrees(qkv, categories, heads=2, size=8)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    group=st.integers(1, 14),
    heads=st.sampled_from([1, 2]),
    batch=st.integers(1, 3),
)
def test_category_attention_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], group: int, heads: int, batch: int
) -> None:
    qkv = random_qkv(seed, size, c=2, c_out=4, batch=batch)
    categories = random_categories(seed, batch, size[0] * size[1])
    assert_category_attention_agrees(qkv, categories, heads, group)


def test_gradcheck() -> None:
    qkv = random_qkv(1, (2, 3), c_out=4, batch=1)
    categories = random_categories(1, 1, 6)
    assert torch.autograd.gradcheck(lambda *t: category_attention(*t, categories, 2, 4), qkv)


@pytest.mark.parametrize("size", SIZES)
def test_a_group_that_holds_the_map_is_non_local_attention(size: tuple[int, int]) -> None:
    q, k, v = random_qkv(4, size)
    categories = random_categories(0, 2, size[0] * size[1])
    out = category_attention(q, k, v, categories, 1, 35)
    assert_close(out, non_local_attention(q / 2, k, v), 1e-12)


def test_equal_categories_keep_the_order_of_positions() -> None:
    """An unstable sort shows only on longer rows: two alternating codes, 4096 positions."""
    zeros = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    v = torch.arange(4096, dtype=torch.float64).view(1, 1, 64, 64)
    categories = torch.arange(4096).remainder(2).unsqueeze(0)
    out = category_attention(zeros, zeros, v, categories, 1, 16).flatten()
    order = torch.cat([torch.arange(0, 4096, 2), torch.arange(1, 4096, 2)])
    wanted = order.double().view(-1, 16).mean(1, keepdim=True).expand(-1, 16).flatten()
    torch.testing.assert_close(out[order], wanted)


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 9},
        {"tokens": 3, "category_size": 6, "heads": 1, "reduction": 4, "res_scale": 0.3},
    ],
)
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(size: tuple[int, int], options: dict[str, float]) -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("atd", channels=8, **options).double())
    heads, group = options.get("heads", 4), options.get("category_size", 128)

    def forward(x: Tensor) -> Tensor:
        q, k, v = module.project(x)
        keys, values = (
            torch.stack([layer.weight @ token + layer.bias for token in module.dictionary])
            for layer in (module.token_key, module.token_value)
        )
        tokens = torch.tensor(float(len(keys)), dtype=torch.float64)
        scale = 1 + module.scale * torch.log(tokens)
        categories = oracle.token_categories(q, keys, scale)
        out = oracle.category_attention(q, k, v, categories, heads, group)
        out = conv_oracle.convolution(out, module.output.weight, module.output.bias)
        return x + options.get("res_scale", 0.1) * (
            out + oracle.token_attention(q, keys, values, scale)
        )

    assert_module_agrees(module, forward, random_map(0, 8, size))


def test_scales_are_clamped() -> None:
    module = create_attention("atd", channels=8, tokens=3)
    module.scale.data = torch.tensor([-1.0, 0.5, 7.0])
    wanted = 1 + torch.tensor([0.0, 0.5, 1.0]) * torch.log(torch.tensor(3.0))
    torch.testing.assert_close(module.token_maps(torch.float32)[2], wanted)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tokens": 0}, "tokens"),
        ({"category_size": 0}, "category_size"),
        ({"heads": 3}, "heads 3 does not divide the 8 channels"),
        ({"reduction": 4}, "heads 4 does not divide the 2 channels"),
    ],
)
def test_bad_options_are_refused(options: dict[str, int], told: str) -> None:
    with pytest.raises(AttentionError, match=told):
        create_attention("atd", channels=8, **options)


def test_categories_that_do_not_fit_are_refused() -> None:
    q, k, v = random_qkv(0, (3, 4))
    with pytest.raises(AttentionError, match=r"categories must be \[2, 12\], got \[2, 11\]"):
        category_attention(q, k, v, torch.zeros(2, 11, dtype=torch.long), 1)
    with pytest.raises(AttentionError, match="heads 2 does not divide the 5 channels"):
        category_attention(q, k, v, torch.zeros(2, 12, dtype=torch.long), 2)


def test_core_at_the_papers_setting() -> None:
    """2 N (M + n_s)(c + C) at 100x100 with 64 channels; further 64 tokens' maps, and 64² a row."""
    cost = create_attention("atd", channels=64).cost(100, 100)
    assert 2 * cost.core / 1e9 == pytest.approx(0.49152)
    assert cost.executed - cost.core == 64 * 64 * 128 + 100 * 100 * 64**2
