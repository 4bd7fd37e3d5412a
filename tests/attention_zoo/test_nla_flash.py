"""NLA by the fused kernel, and never another way; its oracle is in the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from attention_zoo import AttentionError, create_attention
from attention_zoo.implementations import use_implementation, watch_implementations
from tests.reference import nla as oracle
from tests.reference.cases import (
    FORMATS,
    assert_agrees,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["nla", "nla-flash"])
@settings(max_examples=15, suppress_health_check=[HealthCheck.differing_executors])
@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    widths=st.sampled_from([(1, 1), (2, 8), (8, 2), (3, 40), (40, 3)]),
    batch=st.integers(1, 3),
)
def test_any_widths_agree_with_the_oracle(
    name: str, seed: int, size: tuple[int, int], widths: tuple[int, int], batch: int
) -> None:
    """Widths that are filled up on either side, past where ``auto`` turns to tiles."""
    attend = create_attention(name, channels=4).attend
    qkv = random_qkv(seed, size, c=widths[0], c_out=widths[1], batch=batch)
    qkv[0].data /= widths[0] ** 0.5
    assert_agrees(attend, oracle.non_local_attention, qkv)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", [1, 4])
def test_the_fused_kernel_is_taken(
    reduction: int, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """And nothing multiplies matrices beside it, whatever implementation is chosen."""
    module = create_attention("nla-flash", channels=64, reduction=reduction).to(dtype).eval()
    x = random_map(0, 64, (6, 7), dtype=dtype, memory_format=memory_format).detach()
    with torch.no_grad():
        q, k, v = module.project(x)
    with (
        torch.no_grad(),
        use_implementation("reference"),
        watch_implementations() as seen,
        Operations() as operations,
    ):
        module.attend(q, k, v)
    assert seen == {"nla": "sdpa"}
    assert "_scaled_dot_product_flash_attention_for_cpu" in operations.names
    assert not {"bmm", "mm", "matmul", "baddbmm", "_softmax"} & operations.names


@pytest.mark.parametrize("released", [False, True])
def test_state_and_result_are_those_of_nla(released: bool) -> None:
    modules = [
        perturb(create_attention(name, channels=8, released=released).double())
        for name in ("nla", "nla-flash")
    ]
    modules[1].load_state_dict(modules[0].state_dict())
    assert_module_agrees(modules[1], lambda x: _with(modules, x), random_map(0, 8, (4, 5)))


def _with(modules: list[torch.nn.Module], x: torch.Tensor) -> torch.Tensor:
    """What nla gives with the parameters of the other."""
    state = dict(modules[1].named_parameters())
    return torch.func.functional_call(modules[0], state, (x,))


def test_where_there_is_no_kernel_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    module = create_attention("nla-flash", channels=8)
    qkv = random_qkv(0, (3, 4))

    def refuse(*_: Any) -> None:
        raise RuntimeError("No available kernel. Aborting execution.")

    monkeypatch.setattr("attention_zoo.cores.nla.softmax_attention_fused", refuse)
    with pytest.raises(AttentionError, match=r"no fused kernel for torch\.float64 and 4 channels"):
        module.attend(*qkv)

    class Elsewhere:
        device = torch.device("mps")

    elsewhere: Any = Elsewhere()
    with pytest.raises(AttentionError, match="no fused kernel on mps"):
        module.attend(elsewhere, elsewhere, elsewhere)


def test_other_errors_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("attention_zoo.cores.nla.softmax_attention_fused", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        create_attention("nla-flash", channels=8).attend(*random_qkv(0, (3, 4)))


def test_filling_up_is_executed_but_not_core() -> None:
    flash, nla = (create_attention(n, channels=64).cost(10, 10) for n in ("nla-flash", "nla"))
    assert (flash.core, flash.projections) == (nla.core, nla.projections)
    assert flash.executed == 100**2 * 128
    assert nla.executed == nla.core == 100**2 * 80
