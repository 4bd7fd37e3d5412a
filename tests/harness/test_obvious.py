"""The obvious implementations give the values and gradients of ours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo import criss_cross, enla, enlca, nla, nlsa
from attention_zoo.cores import released as obvious
from attention_zoo.cores.released import obvious_variant
from harness.config.variants import Variant
from harness.measuring.latency import Case
from harness.measuring.memory import peak_memory
from tests.reference.cases import (
    FORMATS,
    SIZES,
    assert_agrees,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)

MODULES = [
    Variant("nla"),
    Variant("nlsa", {"rounds": 3, "chunk_size": 4}),
    Variant("criss-cross"),
    Variant("enlca", {"m": 12, "k": 3.0, "n1": 0.1, "n2": 0.3, "margin": 2.0}),
]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_non_local_attention(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    qkv = random_qkv(1, size, memory_format=memory_format)
    assert_agrees(obvious.non_local_attention, nla.non_local_attention, qkv)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_criss_cross(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    qkv = random_qkv(2, size, memory_format=memory_format)
    assert_agrees(obvious.criss_cross_attention, criss_cross.criss_cross_attention, qkv)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_random_features(size: tuple[int, int], memory_format: torch.memory_format) -> None:
    projection = enla.orthogonal_gaussian(7, 4, torch.Generator().manual_seed(0)).double()

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return obvious.random_feature_attention(q, k, v, projection, 6.0, eps=1e-3)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = enla.normalise(q, 6.0), enla.normalise(k, 6.0)
        return enla.random_feature_attention(q, k, v, projection, eps=1e-3)

    assert_agrees(theirs, ours, random_qkv(3, size, memory_format=memory_format))


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    chunk_size=st.integers(1, 20),
    rounds=st.integers(1, 4),
    shared=st.booleans(),
)
@settings(max_examples=40)
def test_sparse_attention(
    size: tuple[int, int], chunk_size: int, rounds: int, shared: bool
) -> None:
    n = size[0] * size[1]
    if -n % chunk_size > n:  # the published code cannot fill the chunk
        chunk_size = n
    generator = torch.Generator().manual_seed(4)
    half = nlsa.num_buckets(n, chunk_size) // 2
    rotations = torch.randn(rounds, 4, half, generator=generator, dtype=torch.float64)
    q, k, v = random_qkv(4, size)

    def theirs(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return obvious.sparse_attention(q, q if shared else k, v, rotations, chunk_size)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nlsa.sparse_attention(q, q if shared else k, v, rotations, chunk_size)

    if shared:
        assert_agrees(lambda q, v: theirs(q, k, v), lambda q, v: ours(q, k, v), (q, v))
    else:
        assert_agrees(theirs, ours, (q, k, v))


@pytest.mark.parametrize("hinge", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_contrastive_loss(size: tuple[int, int], hinge: bool) -> None:
    options = {"amplification": 3.0, "n1": 0.1, "n2": 0.3, "margin": 0.7, "hinge": hinge}
    assert_agrees(
        lambda q, k: obvious.contrastive_loss(q, k, **options),  # type: ignore[arg-type]
        lambda q, k: enlca.contrastive_loss(q, k, **options),  # type: ignore[arg-type]
        [random_map(seed, 4, size) for seed in (5, 6)],
    )


@pytest.mark.parametrize("variant", MODULES, ids=str)
def test_modules_differ_in_nothing_but_speed(variant: Variant) -> None:
    ours = perturb(variant.create(16).double())
    theirs = obvious_variant(variant).create(16).double()
    theirs.load_state_dict(ours.state_dict())
    assert type(theirs).attend is not type(ours).attend

    def forward(module: torch.nn.Module, x: Tensor) -> Tensor:
        torch.manual_seed(0)  # NLSA's rotations
        y = module(x)
        return y + 3 * module.auxiliary_loss()  # type: ignore[operator]

    class WithAuxiliary(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ours

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.inner, x)

    # The oracle has parameters of its own: share ours.
    for name, parameter in ours.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(theirs.get_submodule(owner), leaf, parameter)
    x = random_map(7, 16, (5, 7), scale=2.0)
    assert_module_agrees(WithAuxiliary(), lambda x: forward(theirs, x), x)
    if variant.name == "enlca":
        assert ours.auxiliary_loss() > 0  # type: ignore[operator]


@pytest.mark.parametrize(("name", "megabytes"), [("nlsa", 286), ("criss-cross", 48)])
def test_the_tensors_are_those_of_the_published_code(name: str, megabytes: float) -> None:
    """Peak memory at 100x100 is what was measured of the published code, in MB of 2^20 bytes."""
    case = Case("core", "forward", 100, 100, memory_format=torch.contiguous_format)
    peak = peak_memory(case.function(obvious_variant(Variant(name))), case.device)
    assert peak is not None
    assert peak / 2**20 == pytest.approx(megabytes, rel=0.03)
