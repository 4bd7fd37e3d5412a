"""The choice of implementation: every one equals the oracle, none is chosen silently."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.cores import native, softmax_rows
from attention_zoo.cores.nla import prefers_fused
from attention_zoo.criss_cross import criss_cross_attention
from attention_zoo.enla import orthogonal_gaussian, random_feature_attention
from attention_zoo.enlca import contrastive_loss
from attention_zoo.implementations import (
    choose_implementation,
    chosen_implementation,
    list_implementations,
    use_implementation,
    watch_implementations,
)
from attention_zoo.nla import non_local_attention
from attention_zoo.nlsa import sparse_attention
from tests.reference.cases import assert_agrees, random_qkv

SIZES = [(1, 1), (5, 7)]
_F = orthogonal_gaussian(6, 4, torch.Generator().manual_seed(0)).double()
_ROTATIONS = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(1)).double()

Function = Callable[..., Tensor]
CORES: dict[str, Function] = {
    "nla": non_local_attention,
    "nlsa": lambda q, k, v: sparse_attention(q, k, v, _ROTATIONS.to(q.dtype), 9),
    "criss-cross": criss_cross_attention,
    "enla": lambda q, k, v: random_feature_attention(q, k, v, _F.to(q.dtype), 1e-2, 3.0),
    "contrast": lambda q, k, v: contrastive_loss(q, k, n1=0.2, n2=0.4) + 0 * v.sum(),
}
RUNNING = [
    (core, name)
    for core, names in list_implementations().items()
    for name in names
    if core in CORES and name not in ("auto", "tiled", "triton")
]
# The authors' code cannot fill up a chunk of 9 from one position.
CANNOT = [("nlsa", "released", (1, 1))]


def test_the_list_names_every_core() -> None:
    assert set(CORES) <= set(list_implementations())
    for core in CORES:
        names = list_implementations()[core]
        assert names[0] == "auto"
        assert {"reference", "released", "tiled"} <= set(names)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("core", "name", "dtype"),
    [
        (core, name, dtype)
        for core, name in RUNNING
        for dtype in (torch.float64, torch.float32, torch.bfloat16)
        if name != "native" or dtype != torch.float64
    ],
)
def test_equals_tiled_in_value_and_gradient(
    core: str, name: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    if (core, name, size) in CANNOT:
        with (
            use_implementation(f"{core}={name}"),
            pytest.raises(AttentionError, match="cannot run here: the released code cannot fill"),
        ):
            CORES[core](*random_qkv(3, size, dtype=dtype))
        return
    # The tiled implementations equal the oracles in the cores' own tests. Hashing needs the same
    # values.
    inputs = [t.detach().to(dtype).requires_grad_() for t in random_qkv(3, size, dtype=dtype)]

    def chosen(choice: str) -> Function:
        def function(*args: Tensor) -> Tensor:
            with use_implementation(f"{core}={choice}"), watch_implementations() as seen:
                out = CORES[core](*args)
            assert seen == {core: choice}
            return out.to(args[0].dtype)  # the loss is in float32 at least

        return function

    assert_agrees(chosen(name), chosen("tiled"), inputs)


@pytest.mark.parametrize(
    ("c", "c_out", "expected"),
    [(4, 4, "sdpa"), (4, 30, "sdpa"), (33, 33, "sdpa"), (4, 33, "tiled")],
)
def test_auto_follows_the_width(
    monkeypatch: pytest.MonkeyPatch, c: int, c_out: int, expected: str
) -> None:
    monkeypatch.setattr(native, "_library", lambda _: "no C compiler was found")
    with watch_implementations() as seen:
        non_local_attention(*random_qkv(0, (3, 3), c=c, c_out=c_out, dtype=torch.float32))
    assert seen == {"nla": expected}


def test_auto_on_cuda_keeps_float64_off_the_fused_kernel() -> None:
    class Cuda:
        device = torch.device("cuda", 0)
        dtype = torch.float64
        shape = (1, 9, 4)

    like: Any = Cuda()
    assert "float64" in str(softmax_rows.why_not_fused(like, like, like))
    assert not prefers_fused(like, like, like)
    Cuda.dtype = torch.float32
    assert softmax_rows.why_not_fused(like, like, like) is None
    assert prefers_fused(like, like, like)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("flash", "unknown implementation 'flash': choose from auto, native, reference"),
        ("nla=triton", "nla has no implementation 'triton': choose from auto, native, reference"),
        ("nlaa=tiled", "unknown core 'nlaa' in 'nlaa=tiled': choose from contrast"),
    ],
)
def test_bad_choice(choice: str, message: str) -> None:
    for choose in (choose_implementation, lambda c: use_implementation(c).__enter__()):
        with pytest.raises(AttentionError, match=message):
            choose(choice)
    assert chosen_implementation() == "auto"


def test_a_core_without_the_implementation_says_so() -> None:
    with (
        use_implementation("sdpa"),
        pytest.raises(AttentionError, match="criss-cross has no implementation 'sdpa': choose"),
    ):
        criss_cross_attention(*random_qkv(0, (3, 3)))


def test_the_choice_ends_with_its_block() -> None:
    with use_implementation("reference"):
        with use_implementation("nla=tiled"):
            assert chosen_implementation() == "nla=tiled"
        assert chosen_implementation() == "reference"
    assert chosen_implementation() == "auto"


@pytest.mark.parametrize("name", ["nla", "nlsa", "criss-cross", "enlca"])
def test_modules_obey(name: str) -> None:
    module = create_attention(name, channels=8).train()
    with use_implementation("reference"), watch_implementations() as seen:
        module(torch.randn(1, 8, 6, 5))
    expected = ["enla", "contrast"] if name == "enlca" else [name]
    if name != "nlsa":
        expected.append("projections")
    assert seen == dict.fromkeys(expected, "reference")


def test_a_name_for_all_cores_is_not_asked_of_what_runs_beside_them() -> None:
    """The contrastive loss has no fused kernel: it takes what ``auto`` means."""
    maps = torch.randn(2, 1, 8, 6, 5)
    with watch_implementations() as auto:
        contrastive_loss(*maps)
    with use_implementation("sdpa"), watch_implementations() as seen:
        contrastive_loss(*maps)
    assert seen == auto
    with use_implementation("tiled"), watch_implementations() as seen:
        contrastive_loss(*maps)
    assert seen == {"contrast": "tiled"}
