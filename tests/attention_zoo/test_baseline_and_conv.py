"""The two modules without attention: the baseline and the 3x3 convolution."""

from __future__ import annotations

import pytest
import torch

from attention_zoo import create_attention
from tests.reference import conv as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_agrees,
    assert_module_agrees,
    perturb,
    random_map,
)


def test_the_baseline_is_the_identity() -> None:
    module = create_attention("none", channels=5)
    x = random_map(0, 5, (3, 4))
    assert torch.equal(module(x), x)
    assert not list(module.parameters())


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_convolution_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    module = create_attention("conv", channels=4).to(dtype)
    weight, bias = (p.detach() for p in module.parameters())
    v = random_map(0, 4, size, dtype=dtype, memory_format=memory_format)
    assert_agrees(
        lambda v: module.attend(v, v, v), lambda v: oracle.convolution(v, weight, bias), [v]
    )


def test_convolution_module_agrees_with_the_oracle() -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("conv", channels=3, res_scale=0.3).double())
    weight, bias = module.parameters()
    assert_module_agrees(
        module, lambda x: x + 0.3 * oracle.convolution(x, weight, bias), random_map(0, 3, (5, 4))
    )


def test_one_by_one_projections_agree_with_the_oracle() -> None:
    """The 1x1 and 3x3 embeddings are ordinary zero-padded convolutions."""
    for name in ("nla", "criss-cross", "enla", "nlsa"):
        torch.manual_seed(0)
        module = create_attention(name, channels=8).double()
        convolutions = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
        x = random_map(0, 8, (3, 4))
        wanted = [oracle.convolution(x, c.weight, c.bias) for c in convolutions]
        if name == "nlsa":
            wanted.insert(0, wanted[0])  # one embedding for query and key
        for actual, expected in zip(module.project(x), wanted, strict=True):
            torch.testing.assert_close(actual, expected)
