"""Calls of a module's layers, which its user may have replaced, hooked or parametrized."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from .base import Attention
from .implementations import outside_graphs, plain_operations_only, run


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer's weight and bias say what a call of it gives.

    They do not where a user replaced the layer by a wrapper of it (LoRA), or gave it hooks or
    parametrizations (spectral norm, weight norm, pruning): these act only when it is called.
    """
    return (
        type(layer) in (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
        and "forward" not in vars(layer)
    )


def call_in_dtype(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` computed in the dtype of x; in the layer's own if it is not :func:`is_plain`."""
    tensors = dict(layer.named_parameters())
    own = next((t.dtype for t in tensors.values() if t.is_floating_point()), x.dtype)
    if own == x.dtype:
        return layer(x)
    if not is_plain(layer):
        return layer(x.to(own)).to(x.dtype)
    cast = {name: t.to(x.dtype) for name, t in tensors.items()}
    return torch.func.functional_call(layer, cast, x)


def projects_sums(module: Attention, own: type[Attention], m: int, n: int) -> bool:
    """Whether the values' projection maps m sums instead of N values.

    See ``value_map`` of :func:`.enla.random_feature_attention`. Not where that is more work, nor
    where a subclass of ``own`` or a user of the module replaced its ``project`` or ``attend``, or
    changed the layer ``value``: then these are called.
    """
    kept = all(is_method(module, name, getattr(own, name)) for name in ("project", "attend"))
    return n > m and kept and _is_matrix(module.value, module.channels)


def _is_matrix(layer: object, channels: int) -> bool:
    """Whether a layer is a 1x1 convolution that :func:`weight_and_bias` describes."""
    return (
        isinstance(layer, nn.Conv2d)
        and is_plain(layer)
        and layer.bias is not None
        and layer.weight.shape[1:] == (channels, 1, 1)
        and layer.stride == (1, 1)
        and layer.padding in ((0, 0), "valid", "same")
    )


@overload
def call_together(x: Tensor, one: nn.Module, two: nn.Module, /) -> tuple[Tensor, Tensor]: ...
@overload
def call_together(
    x: Tensor, one: nn.Module, two: nn.Module, three: nn.Module, /
) -> tuple[Tensor, Tensor, Tensor]: ...
def call_together(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """The layers' outputs of a map, of 1x1 convolutions in one pass over it where C kernels can.

    The kernels, ``native`` of the core ``projections``, have no second derivative and no forward
    mode, so modules of plain operations call their layers one by one.

    Args:
        x: ``[B, C, H, W]``.
        layers: two or three; each takes x.

    Returns:
        What each layer gives, of a 1x1 convolution ``[B, c, H, W]``.

    Raises:
        AttentionError: the implementation ``projections=native`` was chosen and cannot run on x.
    """
    if torch.compiler.is_compiling() and not x.is_contiguous(memory_format=torch.channels_last):
        return tuple(layer(x) for layer in layers)  # the graph's: kernels in C do not take x
    return _call_together(x, layers)


@outside_graphs
def _call_together(x: Tensor, layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    plain = all(_is_matrix(layer, x.shape[1]) for layer in layers)
    if not plain or module._has_any_global_hook() or plain_operations_only():
        return tuple(layer(x) for layer in layers)
    tensors = (t for layer in layers for t in weight_and_bias(layer))  # type: ignore[arg-type]
    outs: tuple[Tensor, ...] = run("projections", x, *tensors)
    return outs


def add_embeddings(
    owner: Any, width: int, shared: bool, layer: Callable[[int, int], nn.Module]
) -> None:
    """Give a module the layers that :func:`embed` calls: ``query`` and ``key``, or ``match``.

    Args:
        owner: for maps of C channels.
        width: channels c of query and key.
        shared: one 3x3 convolution, ``match``, serves as both, as in NLSA.
        layer: makes query and key, each from C and c.
    """
    owner.shared = shared
    if shared:
        owner.match = nn.Conv2d(owner.channels, width, 3, padding=1)
    else:
        owner.query, owner.key = layer(owner.channels, width), layer(owner.channels, width)


@overload
def embed(owner: Any, x: Tensor, /) -> tuple[Tensor, Tensor]: ...
@overload
def embed(owner: Any, x: Tensor, value: nn.Module, /) -> tuple[Tensor, Tensor, Tensor]: ...
def embed(owner: Any, x: Tensor, *others: nn.Module) -> tuple[Tensor, ...]:
    """Queries, keys and what the other layers give, by :func:`call_together` if not shared.

    Args:
        owner: a module with the layers of :func:`add_embeddings`.
        x: ``[B, C, H, W]``.
        others: the layer of the values, or none.

    Returns:
        q and k ``[B, c, H, W]``, one tensor if shared, and v ``[B, c_out, H, W]``.

    Raises:
        AttentionError: as :func:`call_together`.
    """
    if owner.shared:
        match = owner.match(x)
        return match, match, *(layer(x) for layer in others)
    layers: tuple[Any, ...] = (owner.query, owner.key, *others)
    return call_together(x, *layers)


def weight_and_bias(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight ``[c_out, C]`` and bias ``[c_out]`` of a 1x1 convolution."""
    assert convolution.bias is not None
    return convolution.weight.flatten(1), convolution.bias


def is_method(module: nn.Module, name: str, function: object) -> bool:
    """Whether a module's method is still this function, not a replacement by subclass or user."""
    return getattr(type(module), name) is function and name not in vars(module)
