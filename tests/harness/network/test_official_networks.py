"""The authors' networks: same function, strictly every tensor, no pickled code."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from attention_zoo import AttentionError
from attention_zoo.nlsa import NonLocalSparseAttention
from attention_zoo.official import find_official
from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.network.edsr import EDSR
from harness.network.official import load_official, published_method
from harness.network.weights import Architecture
from tests.reference import released
from tests.reference.cases import perturb, random_weights
from tests.reference.released import assert_same_function

NLSN = partial(released.NLSA, chunk_size=6)
ENLCN = partial(released.ENLCA, m=5)


def make(
    attention: Callable[[int], nn.Module] | None = ENLCN,
    blocks: int = 8,
    scale: int = 2,
    **options: Any,
) -> released.Network:
    """A released network of 8 channels with no weight at its initial value."""
    torch.manual_seed(0)
    network = released.Network(blocks, 8, scale, attention, **options)
    mean = {k: v.clone() for k, v in network.state_dict().items() if "_mean" in k}
    perturb(network).load_state_dict(mean, strict=False)
    return network


def write(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def released_names(network: EDSR, theirs: released.Network) -> dict[str, str]:
    """Released name of each of our parameters, counted off by hand."""
    names = {"head": "head.0", "body_end": f"body.{len(theirs.body) - 1}", "tail": "tail.1"}
    names |= {"upsampler.0": "tail.0.0", "upsampler.2": "tail.0.2"}
    done = 0
    for entry, module in enumerate(theirs.body[:-1]):
        if isinstance(module, released.Block):
            names[f"blocks.{done}.conv1"] = f"body.{entry}.body.0"
            names[f"blocks.{done}.conv2"] = f"body.{entry}.body.2"
            done += 1
        else:
            for ours, theirs_name in find_official(module.state_dict()).tensors.items():
                names[f"attention.{done}.{ours}"] = f"body.{entry}.{theirs_name}"
    found = {}
    for name, _ in network.named_parameters():
        layer, part = name.rsplit(".", 1)
        found[name] = names.get(name) or f"{names[layer]}.{part}"
    return found


@pytest.mark.parametrize(
    ("attention", "blocks", "scale", "options"),
    [
        (None, 8, 2, {"res_scale": 1.0}),
        (None, 5, 3, {"res_scale": 1.0, "image_range": 255.0}),
        (None, 8, 4, {"res_scale": 1.0, "image_range": 255.0}),
        (ENLCN, 16, 2, {}),
        (ENLCN, 8, 4, {"image_range": 255.0}),
        (NLSN, 8, 2, {}),
        (NLSN, 10, 4, {"image_range": 255.0}),
        (released.NLA, 8, 2, {}),
        (released.CrissCross, 8, 3, {}),
        # As deep as the authors'. (Wide ones differ where rounding turns the sign before a ReLU.)
        (None, 32, 2, {"res_scale": 1.0}),
        (ENLCN, 32, 4, {}),
        (NLSN, 32, 3, {}),
    ],
)
def test_a_network_computes_what_the_released_one_does(
    attention: Callable[[int], nn.Module] | None,
    blocks: int,
    scale: int,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    theirs = make(attention, blocks, scale, **options)
    trained = load_official(write(theirs.state_dict(), tmp_path / "a.pt"), chunk_size=6)
    ours, architecture = trained.network, trained.architecture
    image_range = options.get("image_range", 1.0)
    assert (architecture.network.blocks, architecture.network.channels) == (blocks, 8)
    assert (architecture.scale, architecture.image_range) == (scale, image_range)
    assert [int(key) for key in ours.attention] == list(
        range(0, blocks + 1, 8) if attention else []
    )
    rotations = torch.randn(4, 2, 2)
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, NonLocalSparseAttention):  # drawn anew in each released forward
            module.rotations = lambda q: rotations  # type: ignore[method-assign]
        elif isinstance(module, released.NLSA):
            module.rotations = rotations
    names = released_names(ours, theirs)
    x = torch.rand(1, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    assert_same_function(ours, theirs, x, names, image_range)


Gradients = dict[str, Tensor]


@dataclass
class Relus:
    """Stands for every ReLU: keeps what goes in, and passes what is positive, or what is given."""

    given: list[Tensor] | None = None
    inputs: list[Tensor] = field(default_factory=list)

    def __call__(self, u: Tensor, inplace: bool = False) -> Tensor:
        passed = u.detach() > 0 if self.given is None else self.given[len(self.inputs)]
        self.inputs.append(u.detach())
        return u * passed


def gradients(
    network: nn.Module, x: Tensor, given: list[Tensor] | None = None
) -> tuple[Gradients, list[Tensor]]:
    """Gradient by each parameter, in float64, and the inputs of the ReLUs."""
    relus = Relus(given)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "relu_", relus)
        patched.setattr(torch.nn.functional, "relu", relus)
        y = network(x.to(next(network.parameters()).dtype))
    wanted = {name: p for name, p in network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((y * random_weights(y)).sum(), [*wanted.values()])
    return {name: g.double() for name, g in zip(wanted, found, strict=True)}, relus.inputs


def sides(inputs: list[Tensor]) -> list[Tensor]:
    return [u > 0 for u in inputs]


def turned(inputs: list[Tensor], wanted: list[Tensor]) -> bool:
    """Whether any ReLU is on the other side of 0."""
    return not all(map(torch.equal, sides(inputs), sides(wanted)))


def largest_error(found: Gradients, wanted: Gradients) -> float:
    """Of single tensors, as in :func:`assert_same_function`."""
    assert found.keys() == wanted.keys()
    floor = 1e-2 * max(g.abs().max().item() for g in wanted.values())
    return max(
        (found[key] - g).abs().max().item() / max(g.abs().max().item(), floor)
        for key, g in wanted.items()
    )


def error_together(found: Gradients, wanted: Gradients) -> float:
    """Of all tensors as one vector, relative to its length."""
    a, b = (torch.cat([g[key].flatten() for key in wanted]) for g in (found, wanted))
    return ((a - b).norm() / b.norm()).item()


def to_the_edge(network: released.Network, x: Tensor) -> None:
    """Biases such that each channel's ReLU in each block gets 0, but for rounding, at (1, 1)."""
    exact = copy.deepcopy(network).double()

    def shift(conv: Any, _: Any, out: Tensor) -> Tensor:
        offset = out[0, :, 1, 1].clone()
        conv.bias -= offset
        return out - offset.view(-1, 1, 1)

    for module in exact.modules():
        if isinstance(module, released.Block):
            module.body[0].register_forward_hook(shift)
    with torch.no_grad():
        exact(x.double())
    network.load_state_dict(exact.state_dict())


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("attention", [None, ENLCN])
def test_gradients_of_a_deep_network_are_the_same_but_for_relus_at_zero(
    attention: Callable[[int], nn.Module] | None, edge: bool, tmp_path: Path
) -> None:
    """In float64 all agree; in float32 all do, but where a ReLU gets 0 but for rounding.

    There its derivative is 0 or 1 as rounding will have it, and single tensors of the released
    network differ from its own float64 gradients as much as ours do from them. On given sides of
    0 they all agree again.
    """
    torch.manual_seed(0)
    theirs = released.Network(32, 8, 2, attention)
    x = torch.rand(1, 3, 3, 2)
    if edge:
        to_the_edge(theirs, x)
    path = write(theirs.state_dict(), tmp_path / "a.pt")
    ours = load_official(path, block_res_scale=0.1).network
    names = released_names(ours, theirs)

    def of_ours(network: nn.Module, *given: list[Tensor]) -> tuple[Gradients, list[Tensor]]:
        found, inputs = gradients(network, x, *given)
        return {names[key]: g for key, g in found.items()}, inputs

    wanted, inputs = gradients(copy.deepcopy(theirs).double(), x)
    given = sides(inputs)
    assert largest_error(of_ours(copy.deepcopy(ours).double(), given)[0], wanted) <= 1e-10
    assert largest_error(gradients(theirs, x, given)[0], wanted) <= 1e-4
    assert largest_error(of_ours(ours, given)[0], wanted) <= 1e-4

    both = [gradients(theirs, x), of_ours(ours)]
    if edge:
        assert all(turned(found, inputs) for _, found in both)
        errors = [largest_error(found, wanted) for found, _ in both]
        assert min(errors) > 1e-2
        assert max(errors) < 10 * min(errors)
    else:
        assert not any(turned(found, inputs) for _, found in both)
        assert all(largest_error(found, wanted) <= 1e-4 for found, _ in both)


def test_one_relu_on_the_other_side_of_zero_is_seen_in_single_tensors_only() -> None:
    """The one of 147,456 whose input is nearest to 0; the wider the network, the more there are."""
    torch.manual_seed(0)
    network, x = released.Network(32, 32, 2).double(), torch.rand(1, 3, 12, 12)
    wanted, inputs = gradients(network, x)
    nearest = min(range(32), key=lambda i: inputs[i].abs().min())
    given = sides(inputs)
    given[nearest].flatten()[inputs[nearest].abs().argmin()].logical_not_()
    found, _ = gradients(network, x, given)
    assert inputs[nearest].abs().min() < 1e-5
    assert largest_error(found, wanted) > 1e-3
    assert error_together(found, wanted) < 1e-4


def test_what_is_read_off_the_tensors(tmp_path: Path) -> None:
    def load(*args: Any, **options: Any) -> Architecture:
        return load_official(
            write(make(*args).state_dict(), tmp_path / "a.pt"), **options
        ).architecture

    enlca = Variant("enlca", {"m": 5})
    assert load(ENLCN, 32) == Architecture(enlca, NetworkConfig(32, 8, 0.1), 2)
    assert load(ENLCN, 12) == Architecture(enlca, NetworkConfig(12, 8, 0.1), 2, positions=(0, 8))
    nla = load(released.NLA).variant
    assert (nla.name, nla.options["released"]) == ("nla", True)
    nlsa = load(NLSN, rounds=2).variant.resolved
    assert (nlsa["rounds"], nlsa["chunk_size"]) == (2, 144)
    assert load(None) == Architecture(Variant("none"), NetworkConfig(8, 8, 1.0), 2)
    with pytest.raises(AttentionError, match="rounds must be at least 1"):
        load(NLSN, rounds=0)


def test_residual_scale(tmp_path: Path) -> None:
    wide = write(released.Network(1, 256, 2).state_dict(), tmp_path / "wide.pt")
    assert load_official(wide).architecture.network.block_res_scale == 0.1
    path = write(make().state_dict(), tmp_path / "enlcn.pt")
    network = load_official(path, block_res_scale=0.5).network
    assert {block.res_scale for block in network.blocks} == {0.5}
    assert {module.res_scale for module in network.attention_modules} == {0.5}


@pytest.mark.parametrize("attention", [None, ENLCN, NLSN])
def test_every_tensor_is_wanted_and_no_other(
    attention: Callable[[int], nn.Module] | None, tmp_path: Path
) -> None:
    state = make(attention, 1).state_dict()

    def message(changed: dict[str, Tensor]) -> str:
        with pytest.raises(UserError) as error:
            load_official(write(changed, tmp_path / "a.pt"))
        return str(error.value)

    for key, tensor in state.items():
        rest = {k: t for k, t in state.items() if k != key}
        assert message(rest).endswith(f": {key} is missing")
        assert f"{key} has shape {[1, *tensor.shape]}, not" in message(rest | {key: tensor[None]})
    for extra in ("extra", "body.0.extra", "body.1.extra", "body.2.extra", "body.9.weight"):
        assert f"{extra} is surplus" in message(state | {extra: torch.zeros(8)})


def test_a_file_may_be_wrapped_prefixed_or_old(tmp_path: Path) -> None:
    state = make().state_dict()
    expected = load_official(write(state, tmp_path / "plain.pt")).network.state_dict()
    averaged, other = AveragedModel(make()), {k: v + 1 for k, v in state.items()}
    prefixed = OrderedDict((f"module.model.{k}", v) for k, v in state.items())
    for name, content in [
        ("a.pt", {"state_dict": state, "epoch": 3}),
        ("b.pth", {"model": prefixed, "optimizer": {"lr": 0.1}}),
        ("c.pt", {k: nn.Parameter(v) for k, v in state.items()}),
        ("d.pt", {f"model.{k}": v for k, v in state.items()}),
        ("f.pth", {"params_ema": state, "params": other}),  # BasicSR
        ("g.pth", {"params": state}),
        ("h.pt", {"epoch": 9, "model_state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}}),
        ("i.ckpt", {"state_dict": {f"net._orig_mod.{k}": v for k, v in state.items()}}),
        ("j.pt", {"model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}}),
        ("k.pt", averaged.state_dict()),
        ("l.safetensors", state),  # torch's, in spite of the name
    ]:
        write(content, tmp_path / name)
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("e.safetensors", "m.pt"):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / name)
    for path in tmp_path.iterdir():
        trained = load_official(path)
        assert (trained.name, trained.network.training) == (path.stem, False)
        for key, value in trained.network.state_dict().items():
            assert torch.equal(value, expected[key])


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"head.0.weight": x}])
def test_no_pickled_code_is_run(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    target, path = tmp_path / "executed", tmp_path / "a.pt"
    content = wrap(Malicious(target))
    pickle.loads(pickle.dumps(content))
    assert target.exists()  # so it would
    target.unlink()
    write(content, path)
    with pytest.raises(UserError, match="more than tensors and could run any code"):
        load_official(path)
    path.write_bytes(pickle.dumps(content))
    with warnings.catch_warnings(action="error"), pytest.raises(UserError, match="cannot open"):
        load_official(path)
    assert not target.exists()


def test_other_files_are_refused(tmp_path: Path) -> None:
    state = make().state_dict()
    last = "body.9.attn_fn.projection_matrix"
    (tmp_path / "torn.pt").write_bytes(write(state, tmp_path / "whole.pt").read_bytes()[:999])
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "page.pt").write_bytes(b"\n<!DOCTYPE html>\n<html><title>Google Drive - Virus scan")
    (tmp_path / "page.safetensors").write_bytes(b"<html>")
    (tmp_path / "lfs.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d")
    (tmp_path / "empty.pt").touch()
    zeros, nan = torch.zeros(3), torch.full((3, 3, 1, 1), torch.nan)
    for content, words in [
        ("nowhere.pt", "no weights at"),
        (".", "cannot read weights"),
        ("torn.pt", "torn.pt is cut off: it ends after 999 bytes; download or copy it again"),
        ("torn.safetensors", "torn.safetensors is cut off: it ends after 4 bytes"),
        ("page.pt", "page.pt holds no weights: it is a web page"),
        ("page.safetensors", "holds no weights: it is a web page"),
        ("lfs.pt", "holds no weights: it is a pointer of Git LFS; fetch the file with git lfs"),
        ("empty.pt", r"empty.pt holds no weights: it is empty \(0 bytes\); download"),
        ([zeros], "holds no state dict$"),
        ({}, "holds no state dict$"),
        ({"head.0.bias": 3}, "'head.0.bias' is no tensor"),
        (released.ENLCA(8).state_dict(), "no network of EDSR-PyTorch.*but conv_match1.0.weight"),
        (state | {last: state[last][:2]}, "body.0 is ENLCA-m5 and body.9 ENLCA-m2; all"),
        (state | {"sub_mean.bias": zeros}, r"sub_mean.bias is \[0.*0\], not the mean of DIV2K"),
        (state | {"add_mean.weight": nan}, r"add_mean.weight is \[nan, .* another normalisation"),
        (state | {"tail.1.bias": zeros + torch.inf}, "tail.1.bias has values that are not finite"),
        (state | {"tail.1.bias": zeros.to(torch.int8)}, "tail.1.bias is int8, not float32"),
        (state | {f"body.0.{i}.w": zeros for i in range(99)}, "body.0.0.w is .*; and 94 more"),
    ]:
        there = isinstance(content, str)
        path = tmp_path / content if there else write(content, tmp_path / "a.pt")
        with pytest.raises(UserError, match=words) as error:
            load_official(path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "safetensors named .pt"])
def test_a_file_is_called_cut_off_wherever_it_ends(form: str, tmp_path: Path) -> None:
    state = {"head.0.bias": torch.zeros(8), "body.0.weight": torch.ones(8, 8, 3, 3)}
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pt")
    if form.startswith("safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    with pytest.raises(UserError, match=r"sub_mean\.weight is missing"):
        load_official(path)
    for size in range(1, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"^(cannot open )?\S+a\.(pt|safetensors).* cut off"):
            load_official(path)


def test_published_methods() -> None:
    full = NetworkConfig(32, 256, 0.1)
    for architecture, method in [
        (Architecture(Variant("none"), full, 4), "EDSR"),
        (Architecture(Variant("nlsa"), full, 4), "NLSN"),
        (Architecture(Variant("enlca"), full, 4), "ENLCN"),
        (Architecture(Variant("nla"), full, 4), None),
        (Architecture(Variant("enlca", {"m": 16}), full, 4), None),
        (Architecture(Variant("enlca"), NetworkConfig(32, 64, 0.1), 4), None),
        (Architecture(Variant("none"), NetworkConfig(32, 256, 1.0), 4), None),
        (Architecture(Variant("enlca"), full, 4, positions=(0,)), None),
    ]:
        assert published_method(architecture) == method
