"""Every registered module under what torch does with modules: checkpoint, copies, tracing, …"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from attention_zoo import Attention, create_attention, list_attentions
from tests.reference.cases import perturb, random_map, random_weights

CHANNELS = 16
SIZE = (9, 8)

every_module = pytest.mark.parametrize("name", list_attentions())


def build(name: str, dtype: torch.dtype = torch.float32, **options: object) -> Attention:
    """A module in training mode whose gates are open."""
    torch.manual_seed(0)
    module = create_attention(name, CHANNELS, **options).to(dtype)
    perturb(module)
    return module.train()


def features(dtype: torch.dtype = torch.float32, size: tuple[int, int] = SIZE) -> Tensor:
    return random_map(0, CHANNELS, size, dtype=dtype)


def train_step(
    module: Attention, x: Tensor, forward: Callable[[Tensor], Tensor]
) -> dict[str, Tensor | None]:
    """Output, auxiliary loss, and gradients of their sum by x and every parameter."""
    torch.manual_seed(1)
    y = forward(x)
    loss = module.auxiliary_loss()
    leaves = {"x": x, **dict(module.named_parameters())}
    total = (y * random_weights(y).to(y)).sum() + loss
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {"y": y, "loss": loss} | dict(zip(leaves, found, strict=True))


def assert_equal(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    """To the last bit."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        other = found[name]
        assert (other is None) == (tensor is None), name
        if tensor is not None and other is not None:
            assert torch.equal(other, tensor), name


# -- checkpoint -----------------------------------------------------------------------------------


@every_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # native and tiled kernels
def test_checkpointed_modules_have_the_same_gradients(name: str, dtype: torch.dtype) -> None:
    x = features(dtype)
    wanted = train_step(module := build(name, dtype), x, module)
    module = build(name, dtype)
    found = train_step(module, x, lambda x: checkpoint(module, x, use_reentrant=False))
    assert_equal(found, wanted)
    assert wanted["loss"] is not None
    assert torch.equal(module.auxiliary_loss(), wanted["loss"]), "the repeated forward changed it"


def test_a_repeated_forward_neither_counts_nor_redraws() -> None:
    module = build("enlca", redraw_every=1)
    plain = build("enlca", redraw_every=1)
    x = features()
    for _ in range(3):
        wanted = train_step(plain, x, plain)
        found = train_step(module, x, lambda x: checkpoint(module, x, use_reentrant=False))
        assert_equal(found, wanted)
    assert int(module.forwards) == int(plain.forwards) == 3
    assert torch.equal(module.projection, plain.projection)


# -- copies ---------------------------------------------------------------------------------------


def copies(module: Attention) -> list[Attention]:
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    average.update_parameters(module)
    return [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), average.module]


@every_module
def test_copies_after_a_training_step(name: str) -> None:
    """Copies compute the same, and leave out the loss of the last forward."""
    module, x = build(name), features()
    (module(x).sum() + module.auxiliary_loss()).backward()
    loss = module.auxiliary_loss()
    for other in copies(module):
        assert other.auxiliary_loss() == 0
        assert torch.equal(other.eval()(x), module.eval()(x))
        module.train()
    module(x)  # the copies have taken nothing away
    assert module.auxiliary_loss().requires_grad == loss.requires_grad
