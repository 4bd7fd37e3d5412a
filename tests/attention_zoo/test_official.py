"""The authors' modules become ours: same function, strictly every tensor."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from attention_zoo import AttentionError, list_attentions
from attention_zoo.nlsa import NonLocalSparseAttention
from attention_zoo.official import find_official, load_official_module
from tests.reference import released
from tests.reference.cases import perturb, random_map

MODULES = {
    "nla": released.NLA,
    "nlsa": partial(released.NLSA, chunk_size=6),
    "criss-cross": released.CrissCross,
    "enlca": partial(released.ENLCA, m=20),
}


def make(name: str, **options: Any) -> nn.Module:
    """A released module of 16 channels with no parameter at its initial value."""
    torch.manual_seed(0)
    return perturb(MODULES[name](16, **options))


def load(name: str, state: dict[str, Tensor], **options: Any) -> nn.Module:
    return load_official_module(state, **({"chunk_size": 6} if name == "nlsa" else {}), **options)


@pytest.mark.parametrize("size", [(5, 7), (6, 4)])
@pytest.mark.parametrize("name", MODULES)
def test_a_module_computes_what_the_released_one_does(name: str, size: tuple[int, int]) -> None:
    theirs = make(name)
    ours = load(name, theirs.state_dict())
    assert ours.name == name
    if isinstance(ours, NonLocalSparseAttention):  # drawn anew in each released forward
        rotations = torch.randn(4, 4, 3)
        ours.rotations = lambda q: rotations  # type: ignore[method-assign]
        theirs.rotations = rotations
    x = random_map(1, 16, size, batch=1, dtype=torch.float32)
    names = find_official(theirs.state_dict()).tensors
    released.assert_same_function(ours, theirs, x, names)


@pytest.mark.parametrize("name", ["nla", "nlsa", "enlca"])
def test_what_is_not_in_the_tensors_is_an_argument(name: str) -> None:
    state = make(name).state_dict()
    assert load(name, state).res_scale == 0.1
    assert load(name, state, res_scale=0.7).res_scale == 0.7


def test_rounds_and_chunk_size_of_nlsa() -> None:
    state = make("nlsa").state_dict()
    default, other = load_official_module(state), load_official_module(state, rounds=2)
    assert isinstance(default, NonLocalSparseAttention)
    assert isinstance(other, NonLocalSparseAttention)
    assert (default.rounds, default.chunk_size, other.rounds) == (4, 144, 2)


@settings(max_examples=15)
@given(embedding=st.integers(1, 5), reduction=st.integers(1, 5), m=st.integers(1, 9))
def test_sizes_are_read_off_the_tensors(embedding: int, reduction: int, m: int) -> None:
    channels = embedding * reduction
    for name, module in [
        ("nla", released.NLA(channels, reduction)),
        ("nlsa", released.NLSA(channels, reduction)),
        ("criss-cross", released.CrissCross(channels, reduction)),
        ("enlca", released.ENLCA(channels, reduction, m=m)),
    ]:
        found = find_official(module.state_dict())
        assert (found.name, found.channels) == (name, channels)
        assert found.options["reduction"] == reduction
        assert found.options.get("m") == (m if name == "enlca" else None)


@pytest.mark.parametrize("name", MODULES)
def test_every_tensor_is_wanted_and_no_other(name: str) -> None:
    state = make(name).state_dict()
    for key, tensor in state.items():
        rest = {k: t for k, t in state.items() if k != key}
        with pytest.raises(AttentionError) as missing:
            load_official_module(rest)
        assert str(missing.value).endswith(f"no released {name} module: {key} is missing")
        longer = torch.cat([tensor, tensor[:1]])
        # Any number of rows of F is good: it is where m stands.
        for bad in (tensor[None],) if key.startswith("attn_fn") else (tensor[None], longer):
            with pytest.raises(AttentionError) as misshapen:
                load_official_module(rest | {key: bad})
            assert f"module: {key} has shape {list(bad.shape)}, not" in str(misshapen.value)
            assert ";" not in str(misshapen.value)
    with pytest.raises(AttentionError, match=rf"released {name} module: extra is surplus$"):
        load_official_module(state | {"extra": torch.zeros(1)})


def test_a_projection_of_another_width_is_refused() -> None:
    state = make("enlca").state_dict()
    wide = torch.zeros(20, 5)
    with pytest.raises(
        AttentionError, match=r"attn_fn\.projection_matrix has shape \[20, 5\], not \[20, 4\]"
    ):
        load_official_module(state | {"attn_fn.projection_matrix": wide})


def test_embeddings_must_divide_the_channels() -> None:
    state = released.NLSA(6, 2).state_dict()
    state["conv_match.0.weight"] = torch.zeros(4, 6, 3, 3)
    state["conv_match.0.bias"] = torch.zeros(4)
    with pytest.raises(AttentionError, match=r"conv_match\.0\.weight gives 4 embedding channels"):
        load_official_module(state)


@pytest.mark.parametrize("state", [{}, {"body.weight": torch.zeros(1)}])
def test_other_modules_are_refused(state: dict[str, Tensor]) -> None:
    found = ", ".join(state) or "none"
    with pytest.raises(AttentionError, match=f"has the tensors {found}$"):
        load_official_module(state)


def test_loading_leaves_registry_and_random_state() -> None:
    assert not [name for name in list_attentions() if "official" in name]
    state = make("enlca").state_dict()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_official_module(state)
    assert torch.equal(torch.rand(3), expected)
