"""RCAN's channel attention against its oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import AttentionError, create_attention
from tests.reference import rcan as oracle
from tests.reference.cases import (
    FORMATS,
    SIZES,
    TOLERANCES,
    assert_agrees,
    assert_close,
    assert_module_agrees,
    perturb,
    random_map,
)


def layers(module: torch.nn.Module) -> list[list[Tensor]]:
    return [[layer.weight, layer.bias] for layer in (module.down, module.up)]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_the_oracle(
    size: tuple[int, int], dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    module = perturb(create_attention("channel-attention", channels=6, squeeze=2)).to(dtype)
    down, up = layers(module)
    v = random_map(0, 6, size, dtype=dtype, memory_format=memory_format)
    assert_agrees(
        lambda v: module.attend(v, v, v), lambda v: oracle.channel_attention(v, down, up), [v]
    )


@pytest.mark.parametrize(
    ("channels", "squeeze", "hidden"), [(8, 16, 1), (40, 16, 2), (64, 16, 4), (6, 1, 6)]
)
def test_module_agrees_with_the_oracle(channels: int, squeeze: int, hidden: int) -> None:
    torch.manual_seed(0)
    module = create_attention("channel-attention", channels, squeeze=squeeze, res_scale=0.3)
    perturb(module.double())
    down, up = layers(module)
    assert down[0].shape == (hidden, channels)
    assert_module_agrees(
        module,
        lambda x: x + 0.3 * oracle.channel_attention(x, down, up),
        random_map(0, channels, (5, 4)),
    )


def test_gradcheck() -> None:
    module = perturb(create_attention("channel-attention", channels=3, squeeze=1).double())
    assert torch.autograd.gradcheck(module, [random_map(0, 3, (2, 3))])


def test_a_channel_keeps_its_shape() -> None:
    """Weights between 0 and 1, one for all positions of a channel."""
    torch.manual_seed(0)
    module = perturb(create_attention("channel-attention", channels=8, squeeze=1).double())
    v = random_map(0, 8, (5, 4))
    weights = module.channel_weights(v)
    assert ((weights > 0) & (weights < 1)).all()
    assert_close(module.attend(v, v, v), v * weights[:, :, None, None], 1e-12)
    assert weights.unique().numel() == 16


@pytest.mark.parametrize("squeeze", [0, 2.5])
def test_bad_squeeze_is_refused(squeeze: float) -> None:
    with pytest.raises(AttentionError, match="squeeze"):
        create_attention("channel-attention", channels=8, squeeze=squeeze)


def test_cost_does_not_depend_on_the_map() -> None:
    module = create_attention("channel-attention", channels=64)
    assert module.cost(1, 1) == module.cost(100, 100)
    assert module.cost(100, 100).module == 2 * 64 * 4
