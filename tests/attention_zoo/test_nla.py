"""What is special to non-local attention; its oracle is in the table."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import AttentionError
from attention_zoo.nlsa import sparse_attention
from tests.attention_zoo.table import build
from tests.reference import nla as oracle
from tests.reference.cases import assert_module_agrees, random_map


def test_embeddings_are_one_by_one_convolutions_of_c_over_reduction_channels() -> None:
    module = build("nla", 4, reduction=2)
    assert [t.shape for t in module.project(random_map(0, 8, (3, 4)))] == [
        (2, width, 3, 4) for width in (4, 4, 8)
    ]
    assert all(p.shape[2:] == (1, 1) for p in module.parameters() if p.dim() == 4)


def test_released_form_activates_projections_and_scales_the_input() -> None:
    """NLSN's released NLA: PReLU after each projection, y = attention + res_scale · x."""
    module = build("nla", 2, released=True, res_scale=0.3)
    with torch.no_grad():
        slopes = [p for p in module.parameters() if p.numel() == 1]
        assert len(slopes) == 3
        for slope in slopes:
            slope.zero_()  # PReLU with slope 0 is ReLU
    x = random_map(0, 8, (4, 3))
    q, k, v = module.project(x)
    assert all((t >= 0).all() and (t == 0).any() for t in (q, k, v))
    assert_module_agrees(
        module, lambda x: oracle.non_local_attention(*module.project(x)) + 0.3 * x, x
    )


def test_shared_is_nlsa_without_buckets() -> None:
    """In one chunk of all positions NLSA attends to each key as often: the same weights."""
    module, sparse = build("nla", 2, shared=True), build("nlsa", 2)
    state = sparse.state_dict()
    assert {name: p.shape for name, p in module.state_dict().items()} == {
        name: p.shape for name, p in state.items()
    }
    module.load_state_dict(state)
    x = random_map(0, 8, (5, 4))
    q, k, v = sparse.project(x)
    rotations = torch.randn(3, q.shape[1], 1, dtype=q.dtype)
    wanted = x + sparse.res_scale * sparse_attention(q, k, v, rotations, chunk_size=20)
    torch.testing.assert_close(module(x), wanted)


def test_shared_agrees_with_the_oracle() -> None:
    module = build("nla", 2, shared=True, res_scale=0.3)
    x = random_map(0, 8, (4, 3))

    def wanted(x: torch.Tensor) -> torch.Tensor:
        match, v = module.match(x), module.value(x)
        keys = match / match.norm(dim=1, keepdim=True)
        return x + 0.3 * oracle.non_local_attention(match, keys, v)

    assert_module_agrees(module, wanted, x)


def test_shared_embeddings_are_nlsas_and_cost_as_much() -> None:
    ours, nlsa = build("nla", 4, shared=True), build("nlsa", 4)
    assert ours.cost(7, 9).projections == nlsa.cost(7, 9).projections == 63 * 16 * (9 * 4 + 16)


def test_the_released_form_has_no_shared_embedding() -> None:
    with pytest.raises(AttentionError, match="shared and released exclude each other"):
        build("nla", 2, released=True, shared=True)
