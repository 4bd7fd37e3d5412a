"""The gradients of a training step as a CUDA graph.

Small networks spend a step on launches: Python gives the device less than it could do. A graph
replays what was launched once, with the same kernels, on new inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .graphs import captured


class Replayed:
    """Records a function of a step at its first call, and replays it in later ones.

    A step of another kind or with other shapes is recorded anew. What cannot be recorded, as it
    waits for the device, is called: then, and ever after.

    Random numbers are those of a plain call: a replay draws from the state that the generator of
    the device has then. Weights and projections may change between calls if they stay in their
    memory, as ``Attention.redraw`` and optimisers leave them.

    Args:
        function: takes the kind of step and its inputs on a CUDA device, and returns a tensor. It
            leaves the gradients of the network in new tensors, which are overwritten later.
        network: whose buffers the trial calls of a recording do not change.
    """

    def __init__(self, function: Callable[..., Tensor], network: nn.Module) -> None:
        self._function, self._network = function, network
        self._kind: Any = None
        self._inputs: list[Tensor] = []
        self._replay: Callable[[], Tensor] | None = None
        self.failed = ""

    def __call__(self, with_auxiliary: bool, *inputs: Tensor) -> Tensor:
        """The function's result, which the next call overwrites.

        Args:
            with_auxiliary: the kind of step.
            inputs: on the device; LR images ``[B, 3, H, W]``, targets, and references if any.

        Raises:
            RuntimeError: the function's own, e.g. too little memory.
        """
        if self.failed:
            return self._function(with_auxiliary, *inputs)
        kind = with_auxiliary, [(t.shape, t.stride(), t.dtype) for t in inputs]
        if kind != self._kind:
            self._replay = None  # its memory is free before the next recording
            self._inputs = [torch.empty_like(t).copy_(t) for t in inputs]
            try:
                self._record(with_auxiliary, inputs[0].device)
            except RuntimeError as error:
                self.failed = str(error).splitlines()[0]
                self._inputs = []
                return self._function(with_auxiliary, *inputs)
            self._kind = kind
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        assert self._replay is not None
        return self._replay()

    def _record(self, with_auxiliary: bool, device: torch.device) -> None:
        buffers = [(buffer, buffer.clone()) for buffer in self._network.buffers()]
        try:
            with torch.random.fork_rng(devices=[device]):
                call = lambda: self._function(with_auxiliary, *self._inputs)  # noqa: E731
                self._replay = captured(call, device)
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
