"""Find the module of a network where numbers stop being finite."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..network.edsr import EDSR

#: How a message begins to say that training diverged: the numbers are infinite, or only too large.
DIVERGED = ("loss or gradient is not finite", "the loss has exploded")


def where_not_finite(network: EDSR, images: Tensor) -> str:
    """The first module whose output, auxiliary loss or gradient is not finite, in words.

    It repeats one forward and backward pass, of mean output plus auxiliary loss. If everything
    is finite, it names the module with the largest output.

    Args:
        network: in the state whose loss was not finite; this pass adds to its gradients.
        images: the batch ``[B, 3, H, W]``.
    """
    outputs: dict[str, float] = {}
    gradients: dict[str, float] = {}

    def on_gradient(name: str, gradient: Tensor) -> None:
        gradients[name] = _largest(gradient)

    def on_output(name: str, _: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs[name] = _largest(output)
            if output.requires_grad:
                output.register_hook(partial(on_gradient, name))

    modules = {name: module for name, module in network.named_modules() if name}
    handles = [m.register_forward_hook(partial(on_output, name)) for name, m in modules.items()]
    try:
        (network(images).float().mean() + network.auxiliary_loss()).backward()
    finally:
        for handle in handles:
            handle.remove()
    auxiliary = {
        f"attention.{place}": _largest(module.auxiliary_loss())
        for place, module in zip(network.attention, network.attention_modules, strict=True)
    }
    kinds = (("output", outputs), ("auxiliary loss", auxiliary), ("gradient", gradients))
    for kind, found in kinds:  # each in the order of execution, parts before the whole
        for name, value in found.items():
            if value == float("inf"):
                return f"first in the {kind} of {name} ({type(modules[name]).__name__})"
    name = max(outputs, key=lambda name: outputs[name])
    return f"the largest output ({outputs[name]:.3g}) is that of {name}"


def _largest(tensor: Tensor) -> float:
    """Largest absolute value; infinity for anything that is not finite."""
    inf = float("inf")
    return float(torch.nan_to_num(tensor.detach().abs().amax(), nan=inf, posinf=inf))
