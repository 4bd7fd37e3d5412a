"""Non-local sparse attention against its oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.cores import nlsa_tiled
from attention_zoo.cores.nlsa import sort_codes
from attention_zoo.nlsa import hash_codes, num_buckets, sparse_attention
from tests.reference import nlsa as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    assert_agrees,
    assert_close,
    assert_module_agrees,
    perturb,
    random_map,
)


def inputs_and_rotations(
    seed: int,
    size: tuple[int, int],
    chunk_size: int,
    *,
    rounds: int = 2,
    c: int = 4,
    batch: int = 2,
    dtype: torch.dtype = torch.float64,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[list[Tensor], Tensor]:
    """Query, key (equal, yet two leaves) and value; rotations ``[r, c, nb/2]``."""
    q, k = (
        random_map(seed, c, size, batch=batch, dtype=dtype, memory_format=memory_format)
        for _ in range(2)
    )
    v = random_map(seed + 1, 5, size, batch=batch, dtype=dtype, memory_format=memory_format)
    half = oracle.number_of_buckets(size[0] * size[1], chunk_size) // 2
    generator = torch.Generator().manual_seed(seed + 2)
    rotations = torch.randn(rounds, c, half, generator=generator, dtype=torch.float64)
    return [q, k, v], rotations.to(dtype)


def assert_sparse_agrees(inputs: list[Tensor], rotations: Tensor, chunk_size: int) -> None:
    assert_agrees(
        lambda q, k, v: sparse_attention(q, k, v, rotations, chunk_size),
        lambda q, k, v: oracle.sparse_attention(q, k, v, rotations, chunk_size),
        inputs,
    )


@pytest.mark.parametrize(
    ("dtype", "memory_format"),
    [(torch.float64, FORMATS[0]), (torch.float64, FORMATS[1]), (torch.float32, FORMATS[0])],
)
@pytest.mark.parametrize("chunk_size", [1, 4, 7, 13])
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int],
    chunk_size: int,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:
    """Whole and broken chunks; one, two, three and more of them."""
    inputs, rotations = inputs_and_rotations(
        0, size, chunk_size, dtype=dtype, memory_format=memory_format
    )
    assert_sparse_agrees(inputs, rotations, chunk_size)


@pytest.mark.parametrize("chunk_size", [13, 24, 30, 144])
def test_fewer_positions_than_a_chunk(chunk_size: int) -> None:
    inputs, rotations = inputs_and_rotations(0, (3, 4), chunk_size, batch=1)
    assert_sparse_agrees(inputs, rotations, chunk_size)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    chunk_size=st.integers(1, 12),
    rounds=st.integers(1, 3),
    batch=st.integers(1, 3),
)
def test_agrees_with_the_oracle_for_drawn_shapes(
    seed: int, size: tuple[int, int], chunk_size: int, rounds: int, batch: int
) -> None:
    inputs, rotations = inputs_and_rotations(seed, size, chunk_size, rounds=rounds, batch=batch)
    assert_sparse_agrees(inputs, rotations, chunk_size)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """One rounding may move a position to another bucket, so buckets are made far apart here."""
    inputs, rotations = inputs_and_rotations(0, (5, 7), 4, dtype=dtype)
    corners = torch.eye(4, dtype=dtype) * 2
    generator = torch.Generator().manual_seed(0)
    signed = corners[torch.randint(4, (2, 35), generator=generator)]
    signed = signed * (torch.randint(2, (2, 35, 1), generator=generator) * 2 - 1)
    for x in inputs[:2]:
        x.data = signed.transpose(1, 2).reshape(2, 4, 5, 7)
    assert_sparse_agrees(inputs, rotations, 4)


def test_gradcheck() -> None:
    inputs, rotations = inputs_and_rotations(0, (3, 4), 4, batch=1)
    assert torch.autograd.gradcheck(lambda *qkv: sparse_attention(*qkv, rotations, 4), inputs)


def test_no_gradient_through_the_hashing() -> None:
    inputs, rotations = inputs_and_rotations(0, (4, 5), 4)
    rotations.requires_grad_()
    out = sparse_attention(*inputs, rotations, 4)
    (gradient,) = torch.autograd.grad(out.sum(), rotations, allow_unused=True)
    assert gradient is None


def test_equal_codes_keep_the_order_of_positions() -> None:
    """All positions in one bucket: a stable sort leaves row-major order, so chunks are strips.

    Chunks 0 … 15 of four positions: position 0 sees chunks 15, 0 and 1, and nothing else.
    """
    q = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    v = torch.eye(64, dtype=torch.float64).reshape(1, 64, 8, 8)
    rotations = torch.ones(1, 1, 8, dtype=torch.float64)
    out = sparse_attention(q, q, v, rotations, 4)
    seen = [
        out[0, :, 0, 0].nonzero().flatten().tolist(),
        out[0, :, 4, 1].nonzero().flatten().tolist(),
    ]
    assert seen == [[*range(8), *range(60, 64)], [*range(28, 40)]]


def test_equal_codes_in_a_long_row() -> None:
    """An unstable sort shows only on longer rows: two alternating codes, 4096 positions."""
    signs = torch.ones(4096, dtype=torch.float64)
    signs[1::2] = -1
    q = signs.reshape(1, 1, 64, 64)
    v = torch.arange(4096, dtype=torch.float64).reshape(1, 1, 64, 64)
    out = sparse_attention(q, q, v, torch.ones(1, 1, 1, dtype=torch.float64), 16)
    order = [*range(0, 4096, 2), *range(1, 4096, 2)]
    for rank in (16, 1000, 3000):  # inside one bucket: mean of three chunks in order
        chunk = rank // 16
        seen = torch.tensor(order[(chunk - 1) * 16 : (chunk + 2) * 16], dtype=torch.float64)
        row, column = divmod(order[rank], 64)
        torch.testing.assert_close(out[0, 0, row, column], seen.mean())


@pytest.mark.parametrize("hashed", [hash_codes, nlsa_tiled.hash_codes])
def test_hash_codes_are_the_first_of_the_largest(
    hashed: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """Also where several are largest (no position, one, all), and where one is not a number."""
    x = torch.randn(2, 300, 8, dtype=torch.float64)
    rotations = torch.randn(3, 8, 5, dtype=torch.float64)
    for many in (0, 1, 150, 300):
        x[:, :many] = 0
        rotated = torch.einsum("bnc,rch->brnh", x, rotations)
        assert (hashed(x, rotations) == torch.cat([rotated, -rotated], -1).argmax(-1)).all()
    x[0, 7, 3] = torch.nan
    assert (hashed(x, rotations)[0, :, 7] == 0).all()


@pytest.mark.parametrize("buckets", [2, 70, 2**14])
def test_positions_are_sorted_by_code_and_in_order(buckets: int) -> None:
    """2^14 buckets in six lists do not fit into 16 bits."""
    codes = torch.randint(0, buckets, (2, 3, 5000))
    expected = codes.sort(dim=-1, stable=True).indices
    assert torch.equal(sort_codes(codes, buckets), expected)


def test_the_key_is_divided_by_its_norm_and_the_query_is_not() -> None:
    inputs, rotations = inputs_and_rotations(0, (4, 5), 4)
    q, k, v = inputs
    out = sparse_attention(q, k, v, rotations, 4)
    assert_close(sparse_attention(q, 7 * k, v, rotations, 4), out, 1e-12)
    assert not torch.allclose(sparse_attention(7 * q, k, v, rotations, 4), out)


def test_tiny_keys_are_divided_by_the_least_norm() -> None:
    inputs, rotations = inputs_and_rotations(0, (4, 5), 4)
    for x in inputs[:2]:
        x.data[:, :, :2] *= 1e-5  # norms on both sides of 5e-5
        x.data[:, :, 0, 0] = 0
    exact = [x.detach().clone().requires_grad_() for x in inputs]
    out = sparse_attention(*inputs, rotations, 4)
    wanted = oracle.sparse_attention(*exact, rotations, 4)
    assert_close(out, wanted, 1e-10)
    for a, b in zip(
        torch.autograd.grad(out.sum(), inputs),
        torch.autograd.grad(wanted.sum(), exact),
        strict=True,
    ):
        assert_close(a, b, 1e-9)


@pytest.mark.parametrize(
    ("positions", "chunk_size", "buckets"),
    [
        (10_000, 144, 70),  # 69 chunks, rounded up to even
        (144 * 4, 144, 4),
        (144 * 5, 144, 6),
        (1_000_000, 144, 128),  # at most
        (143, 144, 2),  # at least
        (1, 144, 2),
        (144, 144, 2),
        (144 * 127, 144, 128),
    ],
)
def test_number_of_buckets(positions: int, chunk_size: int, buckets: int) -> None:
    assert num_buckets(positions, chunk_size) == buckets
    assert oracle.number_of_buckets(positions, chunk_size) == buckets


def seeded_module(**options: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return perturb(create_attention("nlsa", channels=8, chunk_size=4, **options).double())


def test_query_and_key_are_one_embedding() -> None:
    q, k, v = seeded_module().project(random_map(0, 8, (4, 5)))
    torch.testing.assert_close(q, k, rtol=0, atol=0)
    assert q.shape == (2, 2, 4, 5)
    assert v.shape == (2, 8, 4, 5)


def test_evaluation_is_reproducible_and_leaves_the_global_generator_alone() -> None:
    module = seeded_module().eval()
    x = random_map(0, 8, (6, 7))
    torch.manual_seed(1)
    first = module(x)
    state = torch.get_rng_state()
    second = module(x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    third = module(x)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    module.train()(x)  # a training forward in between changes nothing either
    assert torch.equal(module.eval()(x), first)


def test_training_draws_rotations_from_the_global_generator() -> None:
    module = seeded_module(rounds=1).train()
    x = random_map(0, 8, (9, 9))
    torch.manual_seed(1)
    first, second = module(x), module(x)
    torch.manual_seed(1)
    again = module(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_module_agrees_with_the_oracle(
    size: tuple[int, int], training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rotations are caught on their way into the pure function."""
    caught: list[Tensor] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, rotations: Tensor, chunk_size: int) -> Tensor:
        caught.append(rotations)
        return sparse_attention(q, k, v, rotations, chunk_size)

    monkeypatch.setattr("attention_zoo.nlsa.sparse_attention", spy)
    module = seeded_module(rounds=3).train(training)

    def forward(x: Tensor) -> Tensor:
        (rotations,) = caught
        assert rotations.shape == (3, 2, num_buckets(size[0] * size[1], 4) // 2)
        return x + 0.1 * oracle.sparse_attention(*module.project(x), rotations, 4)

    assert_module_agrees(module, forward, random_map(0, 8, size))


@pytest.mark.parametrize("option", ["rounds", "chunk_size"])
def test_options_below_one_are_refused(option: str) -> None:
    with pytest.raises(AttentionError, match=option):
        create_attention("nlsa", channels=8, **{option: 0})
