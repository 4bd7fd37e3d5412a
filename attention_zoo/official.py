"""Modules released by the papers' authors: a state dict of one becomes our module.

NLA and NLSA as in the NLSN repository, Criss-Cross as in CCNet's, ENLCA as in its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .base import Attention, AttentionError
from .registry import create_attention

_Tensors = dict[str, tuple[str, tuple[str | int, ...]]]


def _conv(released: str, ours: str, out: str, size: int = 1) -> _Tensors:
    return {
        f"{released}.weight": (f"{ours}.weight", (out, "channels", size, size)),
        f"{released}.bias": (f"{ours}.bias", (out,)),
    }


def _slope(released: str, ours: str) -> _Tensors:
    return {f"{released}.weight": (f"{ours}.weight", (1,))}


#: By our name of the module: released name of each tensor to our name and its shape.
_FORMS: dict[str, _Tensors] = {
    "nla": {
        **_conv("conv_match1.0", "query.0", "embedding"),
        **_slope("conv_match1.1", "query.1"),
        **_conv("conv_match2.0", "key.0", "embedding"),
        **_slope("conv_match2.1", "key.1"),
        **_conv("conv_assembly.0", "value.0", "channels"),
        **_slope("conv_assembly.1", "value.1"),
    },
    "nlsa": {
        **_conv("conv_match.0", "match", "embedding", size=3),
        **_conv("conv_assembly.0", "value", "channels"),
    },
    "criss-cross": {
        **_conv("query_conv", "query", "embedding"),
        **_conv("key_conv", "key", "embedding"),
        **_conv("value_conv", "value", "channels"),
        "gamma": ("gamma", (1,)),
    },
    "enlca": {
        **_conv("conv_match1.0", "query", "embedding"),
        **_conv("conv_match2.0", "key", "embedding"),
        **_conv("conv_assembly.0", "value", "channels"),
        "attn_fn.projection_matrix": ("projection", ("m", "embedding")),
    },
}


@dataclass(frozen=True)
class OfficialModule:
    """What the tensors of a released module say.

    Attributes:
        name: our name of the module.
        channels: channels C of input and output.
        options: the module's options that give the released form.
        tensors: released name of each tensor, by our name.
    """

    name: str
    channels: int
    options: dict[str, Any]
    tensors: dict[str, str]


def load_official_module(
    state_dict: Mapping[str, Tensor],
    *,
    res_scale: float = 0.1,
    rounds: int = 4,
    chunk_size: int = 144,
) -> Attention:
    """Build our module of a released NLA, NLSA, Criss-Cross or ENLCA module's state dict.

    It computes what the released module computes. In evaluation NLSA's rotations come from a
    seeded generator, the released ones are drawn anew in every forward.

    Args:
        state_dict: the released module's tensors, and no others.
        res_scale: the released argument (not for Criss-Cross, whose gamma is a tensor); the
            authors' training commands set 0.1.
        rounds: hash rounds of NLSA (``n_hashes``).
        chunk_size: chunk size of NLSA.

    Raises:
        AttentionError: a tensor is missing, surplus or misshapen; the message names it.
    """
    found = find_official(state_dict, res_scale=res_scale, rounds=rounds, chunk_size=chunk_size)
    with torch.random.fork_rng(devices=[]):
        module = create_attention(found.name, found.channels, **found.options)
    tensors = {ours: state_dict[released] for ours, released in found.tensors.items()}
    module.load_state_dict(module.state_dict() | tensors)
    return module


def find_official(
    state_dict: Mapping[str, Tensor],
    prefix: str = "",
    *,
    res_scale: float = 0.1,
    rounds: int = 4,
    chunk_size: int = 144,
) -> OfficialModule:
    """Read a released module off its tensors; arguments as in :func:`load_official_module`.

    Args:
        prefix: the module's tensors are those whose names begin so, e.g. ``body.9.``.

    Raises:
        AttentionError: as there.
    """
    state = {name: t for name, t in state_dict.items() if name.startswith(prefix)}
    forms = {
        name: {prefix + released: entry for released, entry in form.items()}
        for name, form in _FORMS.items()
    }
    name = min(forms, key=lambda name: len(forms[name].keys() ^ state.keys()))
    form = forms[name]
    if not form.keys() & state.keys():
        found = ", ".join(list(state)[:5]) or "none"
        raise AttentionError(
            f"no released NLA, NLSA, Criss-Cross or ENLCA module has the tensors {found}"
        )
    sizes = _sizes(form, state)
    shapes = {key: [sizes.get(s, s) for s in shape] for key, (_, shape) in form.items()}
    if misfit := describe_misfit(shapes, state):
        raise AttentionError(f"the state dict is no released {name} module: {misfit}")
    channels, embedding = sizes["channels"], sizes["embedding"]
    if not embedding or channels % embedding:
        raise AttentionError(
            f"{next(iter(form))} gives {embedding} embedding channels, which do not divide the "
            f"{channels} channels"
        )
    options: dict[str, Any] = {"reduction": channels // embedding}
    if name != "criss-cross":
        options["res_scale"] = res_scale
    if name == "nla":
        options["released"] = True
    elif name == "nlsa":
        options |= {"rounds": rounds, "chunk_size": chunk_size}
    elif name == "enlca":
        options["m"] = sizes["m"]
    return OfficialModule(name, channels, options, {ours: key for key, (ours, _) in form.items()})


def _sizes(form: _Tensors, state: Mapping[str, Tensor]) -> dict[str | int, int]:
    """Each size as most tensors have it, so that one misshapen tensor cannot blame the others."""
    votes: dict[str, list[int]] = {}
    for key, (_, shape) in form.items():
        if key in state and state[key].dim() == len(shape):
            for symbol, length in zip(shape, state[key].shape, strict=True):
                if isinstance(symbol, str):
                    votes.setdefault(symbol, []).append(length)
    sizes: dict[str | int, int] = {s: statistics.mode(v) for s, v in votes.items()}
    # NLSA's embedding has two votes only: of two that differ, the one that divides is right.
    widths = [n for n in votes.get("embedding", []) if n and not sizes.get("channels", 0) % n]
    if widths:
        sizes["embedding"] = statistics.mode(widths)
    return sizes


def describe_misfit(
    shapes: Mapping[str, Iterable[int | str]], tensors: Mapping[str, Tensor]
) -> str:
    """The tensors that are missing, surplus or misshapen, in words; "" if all fit."""
    problems = [f"{key} is missing" for key in shapes if key not in tensors]
    # A stranger's file may name its tensors in several lines, or in codes of the terminal.
    problems += [
        f"{key if key.isprintable() else ascii(key)} is surplus"
        for key in tensors
        if key not in shapes
    ]
    for key, shape in shapes.items():
        wanted = list(shape)
        if key in tensors and list(tensors[key].shape) != wanted:
            text = ", ".join(map(str, wanted))
            problems.append(f"{key} has shape {list(tensors[key].shape)}, not [{text}]")
    more = f"; and {len(problems) - 5} more" if problems[5:] else ""
    return "; ".join(problems[:5]) + more
