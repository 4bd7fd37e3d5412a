"""The implementations named ``released``: values and gradients of the oracles, tensors of the code.

Their peak memory, which is that of the published code, is tested with the harness that measures it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.criss_cross import criss_cross_attention
from attention_zoo.enla import orthogonal_gaussian, random_feature_attention
from attention_zoo.enlca import contrastive_loss
from attention_zoo.implementations import use_implementation, watch_implementations
from attention_zoo.nla import non_local_attention
from attention_zoo.nlsa import num_buckets, sparse_attention
from tests.reference import contrastive, criss_cross, enla, nla, nlsa
from tests.reference.cases import (
    FORMATS,
    SIZES,
    assert_agrees,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)

MODULES: list[tuple[str, dict[str, Any]]] = [
    ("nla", {}),
    ("nlsa", {"rounds": 3, "chunk_size": 4}),
    ("criss-cross", {}),
    ("enla", {"m": 12}),
    ("enlca", {"m": 12, "k": 3.0, "n1": 0.1, "n2": 0.3, "margin": 2.0}),
]


def released(function: Callable[..., Tensor], core: str) -> Callable[..., Tensor]:
    def run(*args: Tensor) -> Tensor:
        with use_implementation(f"{core}=released"), watch_implementations() as seen:
            out = function(*args)
        assert seen == {core: "released"}
        return out

    return run


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_non_local_attention(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    qkv = random_qkv(1, size, memory_format=memory_format)
    assert_agrees(released(non_local_attention, "nla"), nla.non_local_attention, qkv)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_criss_cross(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    qkv = random_qkv(2, size, memory_format=memory_format)
    ours = released(criss_cross_attention, "criss-cross")
    assert_agrees(ours, criss_cross.criss_cross_attention, qkv)


@pytest.mark.parametrize("amplification", [None, 6.0])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_random_features(
    size: tuple[int, int], memory_format: torch.memory_format, amplification: float | None
) -> None:
    projection = orthogonal_gaussian(7, 4, torch.Generator().manual_seed(0)).double()

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return random_feature_attention(q, k, v, projection, 1e-3, amplification)

    def wanted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if amplification is not None:
            q, k = (enla.normalise(t, amplification) for t in (q, k))
        return enla.random_feature_attention(q, k, v, projection, 1e-3)

    qkv = random_qkv(3, size, memory_format=memory_format)
    assert_agrees(released(ours, "enla"), wanted, qkv)


def test_values_are_mapped_at_every_position() -> None:
    projection = orthogonal_gaussian(7, 4, torch.Generator().manual_seed(0)).double()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)

    def ours(q: Tensor, k: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return random_feature_attention(q, k, x, projection, 1e-3, 3.0, (weight, bias))

    def wanted(q: Tensor, k: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        values = torch.einsum("oc,bchw->bohw", weight, x) + bias.view(-1, 1, 1)
        q, k = (enla.normalise(t, 3.0) for t in (q, k))
        return enla.random_feature_attention(q, k, values, projection, 1e-3)

    assert_agrees(released(ours, "enla"), wanted, [*random_qkv(4, (3, 4)), weight, bias])


@given(
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    chunk_size=st.integers(1, 20),
    rounds=st.integers(1, 4),
    shared=st.booleans(),
)
@settings(max_examples=25)
def test_sparse_attention(
    size: tuple[int, int], chunk_size: int, rounds: int, shared: bool
) -> None:
    """With a stable sort, which the published code does not have: so the result is defined."""
    n = size[0] * size[1]
    if -n % chunk_size > n:  # the published code cannot fill the chunk
        chunk_size = n
    generator = torch.Generator().manual_seed(4)
    half = num_buckets(n, chunk_size) // 2
    rotations = torch.randn(rounds, 4, half, generator=generator, dtype=torch.float64)
    q, k, v = random_qkv(4, size)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, q if shared else k, v, rotations, chunk_size)

    def wanted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nlsa.sparse_attention(q, q if shared else k, v, rotations, chunk_size)

    ours = released(ours, "nlsa")
    if shared:
        assert_agrees(lambda q, v: ours(q, k, v), lambda q, v: wanted(q, k, v), (q, v))
    else:
        assert_agrees(ours, wanted, (q, k, v))


def test_a_chunk_that_cannot_be_filled_is_refused() -> None:
    with pytest.raises(
        AttentionError,
        match="'released' of nlsa cannot run here: the released code cannot fill up a chunk of 9 "
        "from 4 positions",
    ):
        released(sparse_attention, "nlsa")(*random_qkv(0, (2, 2)), torch.ones(1, 4, 1), 9)


@pytest.mark.parametrize("hinge", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_contrastive_loss(size: tuple[int, int], hinge: bool) -> None:
    options: dict[str, Any] = {
        "amplification": 3.0,
        "n1": 0.1,
        "n2": 0.3,
        "margin": 0.7,
        "hinge": hinge,
    }
    assert_agrees(
        released(lambda q, k: contrastive_loss(q, k, **options), "contrast"),
        lambda q, k: contrastive.contrastive_loss(q, k, **options),
        [random_map(seed, 4, size) for seed in (5, 6)],
    )


@pytest.mark.parametrize(("name", "options"), MODULES)
def test_modules_differ_in_nothing_but_speed(name: str, options: dict[str, Any]) -> None:
    module = perturb(create_attention(name, channels=16, **options).double()).train()
    losses = []

    def forward(x: Tensor) -> Tensor:
        torch.manual_seed(0)  # NLSA's rotations
        y = module(x)
        losses.append(module.auxiliary_loss())  # type: ignore[operator]
        return y + 3 * losses[-1]

    def by_released(x: Tensor) -> Tensor:
        with use_implementation("released"), watch_implementations() as seen:
            out = forward(x)
        assert set(seen.values()) == {"released"}
        return out

    class Ours(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    x = random_map(7, 16, (5, 7), scale=2.0)
    assert_module_agrees(Ours(), by_released, x)
    assert (losses[0] > 0) == (name == "enlca")
