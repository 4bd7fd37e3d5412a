"""The authors' released networks: EDSR, NLSN and ENLCN in the naming of EDSR-PyTorch."""

from __future__ import annotations

import re
import statistics
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from attention_zoo import AttentionError
from attention_zoo.official import OfficialModule, describe_misfit, find_official

from ..base.errors import UserError
from ..config.network import NetworkConfig
from ..config.presets import find_preset
from ..config.variants import Variant
from .edsr import RGB_MEAN, quarters
from .weights import Architecture, TrainedNetwork, check_values, file_fault

#: Rows of the ENLCA paper's Table 1 that are EDSR with one of our modules, by module.
_PUBLISHED = {"none": "EDSR", "nlsa": "NLSN", "enlca": "ENLCN"}

# Where training code puts the state; averaged weights come first, as BasicSR evaluates them.
_KEYS = (
    *("params_ema", "params", "state_dict", "model_state_dict", "model"),
    *("net", "network", "generator"),
)
# What wrappers put before names: DataParallel, torch.compile, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "generator.")


def load_official(
    path: Path,
    *,
    block_res_scale: float | None = None,
    rounds: int = 4,
    chunk_size: int = 144,
) -> TrainedNetwork:
    """Build the network of a released file, in evaluation mode on the CPU.

    The tensors give blocks, channels, scale, image range, and the modules' form, positions,
    reduction and m. The state may stand under a key such as ``state_dict`` or ``params_ema``, and
    every name may have prefixes such as ``module.`` or ``_orig_mod.``: see
    :func:`read_state_dict`.

    Args:
        path: a pickled state dict (no code in it is run), or safetensors.
        block_res_scale: the released ``--res_scale``, of blocks and attention modules alike; the
            file does not hold it. By default 0.1, as in all published networks but EDSR's
            baseline: 1 for the blocks of a network without attention and under 256 channels.
        rounds: hash rounds of NLSA (``--n_hashes``).
        chunk_size: chunk size of NLSA.

    Raises:
        UserError: an unreadable or unsafe file, another kind of network, or a tensor that is
            missing, surplus, misshapen or not finite; the message names it.
        AttentionError: the module refuses a value, such as 0 rounds.
    """
    state = read_state_dict(path)
    channels = _channels(state, path)
    body = _Body.of(state)
    image_range = _image_range(state, path)
    res_scale = 0.1 if block_res_scale is None else block_res_scale
    try:
        modules = {
            entry: find_official(
                state, f"body.{entry}.", res_scale=res_scale, rounds=rounds, chunk_size=chunk_size
            )
            for entry in body.attention
        }
    except AttentionError as error:
        raise UserError(f"{path}: {error}") from None
    if block_res_scale is None and not modules and channels < 256:
        res_scale = 1.0
    positions = tuple(body.attention.values())
    architecture = Architecture(
        variant=_common_variant(modules, path),
        network=NetworkConfig(len(body.blocks), channels, res_scale),
        scale=_scale(state, channels),
        image_range=image_range,
        positions=None if not modules or positions == quarters(len(body.blocks)) else positions,
    )
    network = architecture.build()
    own = network.state_dict()
    names = body.names(modules, own)
    wanted = {released: own[ours] for ours, released in names.items()}
    shapes = {released: tensor.shape for released, tensor in wanted.items()}
    layers = {name: t for name, t in state.items() if name not in _normalisation(image_range)}
    if misfit := describe_misfit(shapes, layers):
        raise UserError(f"{path} does not fit {architecture.variant.label} in EDSR: {misfit}")
    check_values(wanted, layers, str(path))
    network.load_state_dict(own | {ours: state[released] for ours, released in names.items()})
    return TrainedNetwork(path.stem, architecture, network.eval())


def published_method(architecture: Architecture) -> str | None:
    """Row of the ENLCA paper's Table 1 with this architecture; None if there is none."""
    variant = architecture.variant
    if architecture.network != find_preset("paper").network or variant.changed:
        return None
    return _PUBLISHED.get(variant.name) if architecture.positions is None else None


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a safetensors file or a pickled state dict; no pickled code is run.

    The content tells which it is, not the file's ending. The state may stand under a key of
    ``_KEYS``, of several the first, and every name may have prefixes of ``_PREFIXES``.

    Raises:
        UserError: the file is missing, damaged, a web page or a Git LFS pointer, or holds more
            than tensors.
    """
    content: Any
    try:
        with warnings.catch_warnings(action="ignore"):  # about the age of a file's format
            if _is_safetensors(path):
                content = load_file(path)
            else:
                with path.open("rb") as file:  # of a path torch would look at the ending
                    content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}") from None
    except OSError as error:
        if error.filename is None and (fault := file_fault(path, error)):
            raise UserError(f"{path} {fault}") from error
        raise UserError(f"cannot read weights {path}: {error.strerror or error}") from error
    except Exception as error:  # unpickling raises many kinds
        if fault := file_fault(path, error):
            raise UserError(f"{path} {fault}") from error
        raise UserError(
            f"cannot open {path}: it is damaged or cut off, or holds more than tensors and could "
            "run any code; save its state dict alone: torch.save(model.state_dict(), ...)"
        ) from error
    while isinstance(content, dict) and (
        key := next((key for key in _KEYS if isinstance(content.get(key), dict)), None)
    ):
        content = content[key]
    if not isinstance(content, dict) or not content:
        raise UserError(f"{path} holds no state dict")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path} holds no state dict: {name!r} is no tensor")
    content = {name: value for name, value in content.items() if name != "n_averaged"}
    while prefix := next((p for p in _PREFIXES if all(n.startswith(p) for n in content)), ""):
        content = {name.removeprefix(prefix): value for name, value in content.items()}
    return content


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins as safetensors does; torch's files begin otherwise."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[:2] == b"PK" or head[:1] == b"\x80":  # zip, pickle
        return False
    size = int.from_bytes(head[:8], "little")
    return path.suffix == ".safetensors" or (head[8:] == b"{" and size < path.stat().st_size)


@dataclass
class _Body:
    """The entries of the released ``body``.

    Attributes:
        blocks: entries that are residual blocks.
        attention: for each entry that is an attention module, the number of blocks before it.
        end: the entry that is the last convolution.
    """

    blocks: list[int] = field(default_factory=list)
    attention: dict[int, int] = field(default_factory=dict)
    end: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> _Body:
        body = cls()
        entries: dict[int, list[str]] = {}
        for name in state:
            if match := re.fullmatch(r"body\.(\d+)\.(.+)", name):
                entries.setdefault(int(match[1]), []).append(match[2])
        while parts := entries.get(body.end):
            if any(part.startswith("body.") for part in parts):
                body.blocks.append(body.end)
            elif any("." in part for part in parts):
                body.attention[body.end] = len(body.blocks)
            else:
                break
            body.end += 1
        return body

    def names(
        self, modules: Mapping[int, OfficialModule], own: Mapping[str, Tensor]
    ) -> dict[str, str]:
        """Released names of our tensors, by our names."""
        layers = {"head": "head.0", "body_end": f"body.{self.end}", "tail": "tail.1"}
        layers |= {"upsampler.0": "tail.0.0", "upsampler.2": "tail.0.2"}
        for i, entry in enumerate(self.blocks):
            layers |= {f"blocks.{i}.conv{j + 1}": f"body.{entry}.body.{2 * j}" for j in (0, 1)}
        names = {
            f"{ours}.{part}": f"{released}.{part}"
            for ours, released in layers.items()
            for part in ("weight", "bias")
        }
        for entry, module in modules.items():
            place = f"attention.{self.attention[entry]}"
            names |= {f"{place}.{ours}": released for ours, released in module.tensors.items()}
        return {ours: released for ours, released in names.items() if ours in own}


def _channels(state: Mapping[str, Tensor], path: Path) -> int:
    """Feature channels: the commonest number among the convolutions."""
    layers = re.compile(r"(head\.0|body\.\d+(\.body\.[02])?)\.bias")
    counts = [tensor.numel() for name, tensor in state.items() if layers.fullmatch(name)]
    if not counts:
        raise UserError(
            f"{path} is no network of EDSR-PyTorch, NLSN or ENLCA: it has no head.0 and body.0, "
            f"but {', '.join(list(state)[:3])}; open files of this project with --weights"
        )
    return statistics.mode(counts)


def _scale(state: Mapping[str, Tensor], channels: int) -> int:
    if any(name.startswith("tail.0.2.") for name in state):
        return 4
    rows = (len(t) for name, t in state.items() if name.startswith("tail.0.0.") and t.dim())
    return 3 if 9 * channels in rows else 2


def _normalisation(image_range: float) -> dict[str, Tensor]:
    """The convolutions that subtract the mean and add it again."""
    tensors = {}
    for name, sign in (("sub_mean", -1), ("add_mean", 1)):
        tensors[f"{name}.weight"] = torch.eye(3).view(3, 3, 1, 1)
        tensors[f"{name}.bias"] = sign * image_range * torch.tensor(RGB_MEAN)
    return tensors


def _image_range(state: Mapping[str, Tensor], path: Path) -> float:
    """1 or 255, from the mean that the network subtracts."""
    bias = state.get("sub_mean.bias", torch.zeros(1))
    image_range = 255.0 if bias.abs().sum() > 3 else 1.0
    wanted = _normalisation(image_range)
    found = {name: state[name] for name in wanted if name in state}
    if misfit := describe_misfit({name: t.shape for name, t in wanted.items()}, found):
        raise UserError(f"{path}: {misfit}")
    for name, tensor in wanted.items():
        if not torch.allclose(found[name].float(), tensor, rtol=1e-3, atol=1e-6):
            raise UserError(
                f"{path}: {name} is {found[name].flatten().tolist()}, not the mean of DIV2K in an "
                "image range of 1 or 255: the network was trained with another normalisation"
            )
    return image_range


def _common_variant(modules: Mapping[int, OfficialModule], path: Path) -> Variant:
    variants = {entry: Variant.of(m.name, m.options) for entry, m in modules.items()}
    if not variants:
        return Variant("none")
    (first, common), *others = variants.items()
    for entry, variant in others:
        if variant != common:
            raise UserError(
                f"{path}: body.{first} is {common.label} and body.{entry} {variant.label}; "
                "all attention modules of a network must be alike"
            )
    return common
