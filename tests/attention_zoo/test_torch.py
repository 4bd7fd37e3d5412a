"""Every registered module under what torch does with modules: checkpoint, copies, tracing, …"""

from __future__ import annotations

import copy
import pickle
import shutil
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from attention_zoo import (
    Attention,
    AttentionError,
    create_attention,
    find_attention,
    list_attentions,
)
from attention_zoo.enla import orthogonal_gaussian
from attention_zoo.implementations import use_implementation
from tests.reference.cases import assert_close, perturb, random_map, random_weights

CHANNELS = 16
SIZE = (9, 8)
#: So many chunks that NLSA has more than two buckets, and several groups.
SMALL: dict[str, dict[str, object]] = {
    "nlsa": {"chunk_size": 8},
    "token-cluster": {"group_size": 16},
}

every_module = pytest.mark.parametrize("name", list_attentions())


def build(
    name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **options: object
) -> Attention:
    """A module in training mode whose gates are open, with fewer features than positions."""
    torch.manual_seed(seed)
    if "m" in find_attention(name).options():
        options = {"m": 16, **options}
    module = create_attention(name, CHANNELS, **options).to(dtype)
    perturb(module, seed)
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


# -- what surrounds a call ------------------------------------------------------------------------


@every_module
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_defaults_of_torch_change_nothing(name: str, dtype: torch.dtype) -> None:
    """Another default dtype, another default device: for the forward, the loss and the backward."""
    x, options = features(dtype), SMALL.get(name, {})
    module = build(name, dtype, **options)
    for training in (False, True):
        wanted = train_step(module.train(training), x, module)
        for other in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(other)
            try:
                assert_equal(train_step(module, x, module), wanted)
            finally:
                torch.set_default_dtype(torch.float32)
        with torch.device("meta"):
            y = module(x)
            loss = module.auxiliary_loss()
        if not training or name != "nlsa":  # which draws its rotations
            assert torch.equal(y, wanted["y"])
        if name != "none":  # it has no tensor that says where it is
            assert loss.device.type == "cpu"


def test_a_default_device_draws_the_same_projection() -> None:
    torch.manual_seed(0)
    wanted = orthogonal_gaussian(5, 3)
    torch.manual_seed(0)
    with torch.device("meta"):
        assert torch.equal(orthogonal_gaussian(5, 3), wanted)


@every_module
def test_weights_may_come_later(name: str) -> None:
    """Built without memory, as ``torch.device("meta")`` does, and filled from a state dict."""
    module, x = build(name), features()
    with torch.device("meta"):
        other = type(module)(CHANNELS, **module._given)
    other.load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(other.eval()(x), module.eval()(x))


@every_module
@pytest.mark.parametrize("training", [False, True])
def test_an_empty_batch_gives_an_empty_batch(name: str, training: bool) -> None:
    module, x = build(name).train(training), features()[:0].detach().requires_grad_()
    y = module(x)
    assert y.shape == x.shape
    (y.sum() + module.auxiliary_loss()).backward()
    assert x.grad is not None


# -- changed layers -------------------------------------------------------------------------------


class LowRank(nn.Module):
    """A layer and a second of low rank beside it, as LoRA has them; it has no weight or bias."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.factor = nn.Parameter(torch.full((), 1.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.layer(x)


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, args, y: 1.1 * y)
    return layer


CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral_norm": old_spectral_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "weight_norm": old_weight_norm,
    "parametrized weight_norm": parametrizations.weight_norm,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "low rank": LowRank,
    "hook": hooked,
}


def layers(module: nn.Module) -> list[str]:
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    return [name for name, layer in module.named_modules() if isinstance(layer, kinds)]


def change_layers(module: nn.Module, change: Callable[[nn.Module], nn.Module]) -> None:
    for name in layers(module):
        module.set_submodule(name, change(module.get_submodule(name)))


def with_plain_layers(changed: Attention) -> Attention:
    """The same function with plain layers, whose weights are what the changed ones compute."""
    module = build(changed.name)
    state = changed.state_dict()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if name in state:
            tensor.data.copy_(state[name])
    for name in layers(module):
        layer = changed.get_submodule(name)
        inner, factor = layer, 1.1 if layer._forward_hooks else 1.0
        if isinstance(layer, LowRank):
            inner, factor = layer.layer, layer.factor
        plain = module.get_submodule(name)
        for part in ("weight", "bias"):
            if getattr(plain, part) is not None:
                getattr(plain, part).data.copy_(factor * getattr(inner, part))
    return module


@every_module
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_changed_layers_act_and_learn(name: str, change: str) -> None:
    """Norms, pruning, wrappers and hooks of every layer, for two steps of training."""
    module, x = build(name), features()
    if not layers(module):
        pytest.skip("no layers")
    change_layers(module, CHANGES[change])
    optimizer = torch.optim.SGD(module.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        y = module(x)
        ((y * random_weights(y).to(y)).sum() + module.auxiliary_loss()).backward()
        for parameter_name, parameter in module.named_parameters():
            assert parameter.grad is not None, parameter_name
        optimizer.step()
    module.eval()(x)  # older norms and pruning set the weight when they are called
    assert_close(module(x), with_plain_layers(module).eval()(x), 1e-5)


@every_module
@pytest.mark.parametrize("change", ["pruned", "low rank", "hook"])
def test_changed_layers_in_half_precision(name: str, change: str) -> None:
    module = build(name)
    change_layers(module, CHANGES[change])
    x = features()
    wanted = module.eval()(x)
    found = module.bfloat16()(x.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found - wanted).abs().mean() < 0.02


def test_a_value_of_another_kernel_is_called() -> None:
    module, x = build("enla").eval(), features()
    module.value = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
    assert_close(module(x), module.residual(x, module.attend(*module.project(x))), 1e-6)


# -- compilers and tracers ------------------------------------------------------------------------

#: Modules whose operations are all torch's own: one graph, which torch.export takes too.
ONE_GRAPH = {
    *("agent", "channel-attention", "conv", "focused-linear", "hedgehog", "large-kernel", "mdta"),
    *("mean", "none", "nystrom", "oracle", "rela"),
}
#: Modules that have only tiles: no implementation of plain operations.
TILES_ONLY = {
    *("atd", "cluster-landmarks", "neighbourhood", "nlrn", "overlap-window", "patch-knn"),
    *("permuted-window", "shifted-window", "token-cluster", "window"),
}
#: For torch.func.
NO_PLAIN_FORM = TILES_ONLY | {"csnln", "nla-flash"}
OWN_BACKWARD = {
    *("criss-cross", "differential", "enla", "enlca", "hspa", "nla", "nlsa", "performer", "region"),
    *("rnan", "top-k"),
}
PAPER = ["nla", "nlsa", "criss-cross", "enla", "enlca"]
#: All modules, those of the paper first; the others take a minute together.
paper_first = pytest.mark.parametrize(
    "name",
    [
        *PAPER,
        *(pytest.param(n, marks=pytest.mark.slow) for n in list_attentions() if n not in PAPER),
    ],
)


@paper_first
@pytest.mark.parametrize("training", [False, True])
def test_compiled_modules_are_equal(name: str, training: bool) -> None:
    """Value, loss and gradients to the last bit; what cannot be traced stands between graphs."""
    torch._dynamo.reset()
    x = features()
    module = build(name, **SMALL.get(name, {})).train(training)
    compiled = torch.compile(module, backend="eager", fullgraph=name in ONE_GRAPH)
    found = train_step(module, x, compiled)
    assert_equal(found, train_step(module, x, module))


@pytest.mark.parametrize("name", PAPER)
def test_a_core_is_one_break_between_two_graphs(name: str) -> None:
    torch._dynamo.reset()
    found = torch._dynamo.explain(build(name).eval())(features())
    assert found.graph_count == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER)
def test_inductor(name: str) -> None:
    if not any(shutil.which(compiler) for compiler in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    x, module = features(), build(name).eval()
    found = train_step(module, x, torch.compile(module))
    wanted = train_step(module, x, module)
    for key, tensor in wanted.items():
        other = found[key]
        if tensor is not None:
            assert other is not None
            assert_close(other, tensor, 1e-5, key)


@paper_first
def test_traced_modules_are_equal_and_take_one_size(name: str) -> None:
    x = features().detach()
    module = build(name, **SMALL.get(name, {})).eval()
    with warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(module, (x,))
    for seed in range(2):
        y = random_map(seed, CHANNELS, SIZE, dtype=torch.float32)
        assert_close(traced(y), module(y), 1e-6)
        assert torch.equal(traced(y), traced(y))
    other_sizes = (SIZE[1], SIZE[0]), (SIZE[0], 1), (SIZE[0] + 1, SIZE[1])
    for other in (*(features(size=size) for size in other_sizes), x[:1]):
        with pytest.raises(RuntimeError, match="split_with_sizes expects split_sizes to sum"):
            traced(other)


@paper_first
def test_exported_modules_are_equal(name: str) -> None:
    x, module = features().detach(), build(name, **SMALL.get(name, {})).eval()
    if name in TILES_ONLY:
        with pytest.raises(AttentionError, match=r"^torch\.export takes plain operations[^\n]*$"):
            torch.export.export(module, (x,))
        return
    if name in {"nlsa", "criss-cross", "enla", "enlca", "performer", "top-k", "hspa"}:
        with pytest.raises(AttentionError, match=r"use_implementation\('reference'\)$"):
            torch.export.export(module, (x,))
    with use_implementation("reference"):
        exported = torch.export.export(module, (x,)).module()
    assert_close(exported(x), module(x), 1e-6)


@pytest.mark.parametrize("name", PAPER)
def test_transformations_of_functions(name: str) -> None:
    """torch.func and second derivatives, by plain operations; one line by any others."""
    module, x = (
        build(name, torch.float64, **SMALL.get(name, {})).eval(),
        features(torch.float64, (3, 4)).detach(),
    )

    def loss(x: Tensor) -> Tensor:
        return (module(x) * random_weights(x)).sum()

    with pytest.raises(AttentionError, match=r"^torch\.func takes plain operations"):
        torch.func.grad(loss)(x)
    with use_implementation("reference"):
        found = torch.func.grad(loss)(x)
        assert torch.autograd.gradgradcheck(module, x[:1, :, :1, :2].clone().requires_grad_())
    y = x.clone().requires_grad_()
    assert_close(found, torch.autograd.grad(loss(y), y)[0], 1e-9)
    first = loss(y)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(first, y, create_graph=True)


@every_module
def test_a_transformation_works_or_is_refused_in_a_line(name: str) -> None:
    """With the implementation that is chosen by itself, and by plain operations."""
    module, x = build(name, **SMALL.get(name, {})).eval(), features().detach()
    two = torch.cat([x, 2 * x])
    weights = random_weights(x)
    y = x.clone().requires_grad_()
    wanted = {
        "grad": torch.autograd.grad((module(y) * weights).sum(), y)[0],
        "vmap": module(two).detach(),
    }

    def transformed() -> dict[str, Tensor]:
        found = {"grad": torch.func.grad(lambda x: (module(x) * weights).sum())(x)}
        if name != "nlsa":  # its rotations are random: torch asks for vmap's randomness
            found["vmap"] = torch.func.vmap(lambda x: module(x[None])[0])(two)
        return found

    for choice in ("auto", "reference"):
        with use_implementation(choice):
            if name in NO_PLAIN_FORM or (choice == "auto" and name in OWN_BACKWARD):
                for transform in (torch.func.grad, torch.func.vmap)[: 1 if name == "nlsa" else 2]:
                    with pytest.raises(
                        AttentionError,
                        match=r"^torch\.func takes plain operations, (which|of which) [^\n]*: use ",
                    ):
                        transform(lambda x: module(x.view(-1, CHANNELS, *SIZE)).sum())(x)
                continue
            for transform_name, tensor in transformed().items():
                assert_close(tensor, wanted[transform_name], 1e-5, transform_name)


def test_a_trace_of_nlsa_in_training_is_refused() -> None:
    """It would draw other rotations in each call, in evaluation too."""
    module = build("nlsa").train()
    with pytest.raises(AttentionError, match=r"call \.eval\(\) before torch\.jit\.trace"):
        torch.jit.trace(module, (features().detach(),), check_trace=False)
