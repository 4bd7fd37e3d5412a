"""RNAN's residual non-local attention against its oracle, layer by layer by name."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from attention_zoo.rivals.rnan import ResidualNonLocalAttention
from tests.reference import rnan as oracle
from tests.reference.cases import (
    SIZES,
    TOLERANCES,
    LargestTensor,
    assert_agrees,
    assert_module_agrees,
    perturb,
    random_map,
    random_qkv,
)


def build(channels: int, **options: float) -> ResidualNonLocalAttention:
    torch.manual_seed(0)
    module = perturb(create_attention("rnan", channels=channels, **options).double())
    assert isinstance(module, ResidualNonLocalAttention)
    return module


@pytest.mark.parametrize(
    ("size", "dtype"),
    [*((size, torch.float64) for size in SIZES), *(((3, 4), dtype) for dtype in TOLERANCES)],
)
def test_agrees_with_the_oracle(size: tuple[int, int], dtype: torch.dtype) -> None:
    """Odd heights and widths, where the transposed convolution makes too many rows."""
    module = build(6).to(dtype)
    qkv = random_qkv(0, size, c=3, c_out=6, dtype=dtype)
    parameters = dict(module.named_parameters())
    assert_agrees(
        module.attend, lambda *t: oracle.trunk_times_mask(*t, parameters, module.blocks), qkv
    )


@pytest.mark.parametrize("options", [{}, {"blocks": 2, "reduction": 4, "res_scale": 0.3}])
def test_module_agrees_with_the_oracle(options: dict[str, float]) -> None:
    """Gradients of all parameters too."""
    module = build(8, **options)
    parameters = dict(module.named_parameters())

    def forward(x: Tensor) -> Tensor:
        out = oracle.trunk_times_mask(*module.project(x), parameters, module.blocks)
        return x + options.get("res_scale", 0.1) * out

    assert_module_agrees(module, forward, random_map(0, 8, (5, 4)))


def test_the_non_local_block_does_nothing_before_training_and_something_after() -> None:
    """Its last weights begin at zero: no position sees further than convolutions reach."""
    module = create_attention("rnan", channels=4).double()
    x = random_map(0, 4, (1, 64), batch=1)

    def far() -> bool:
        (gradient,) = torch.autograd.grad(module(x)[..., 0].sum(), x)
        return bool(gradient[..., -1].any())

    assert not far()
    perturb(module)
    assert far()


def test_the_mask_is_between_nothing_and_the_trunk() -> None:
    module = build(8)
    x = random_map(0, 8, (7, 6)).detach()
    out, trunk = module.attend(*module.project(x)), module.trunk(x)
    assert (out * trunk >= 0).all()
    assert (out.abs() <= trunk.abs()).all()
    assert (out.abs() < 0.999 * trunk.abs()).any()


def test_no_pairs_are_kept() -> None:
    module = create_attention("rnan", channels=8)
    with LargestTensor() as seen:
        module(random_map(0, 8, (64, 64), batch=1, dtype=torch.float32)).sum().backward()
    assert seen.largest <= 2**21


@pytest.mark.parametrize("blocks", [0, -1, 1.5])
def test_bad_blocks_are_refused(blocks: float) -> None:
    with pytest.raises(AttentionError, match="blocks"):
        create_attention("rnan", channels=8, blocks=blocks)


def test_core_at_the_papers_setting() -> None:
    """NLA's products at 100x100 with 64 channels, and the convolutions of both branches."""
    cost = create_attention("rnan", channels=64, reduction=1).cost(100, 100)
    assert f"{2 * cost.core / 1e9:.2f}" == "33.40"
    assert cost.core == cost.executed
