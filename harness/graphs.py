"""CUDA graphs: the launches of a call recorded once, and replayed without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: Runs before the recording, on the stream that records: workspaces, tuning, compilation.
_WARMUP = 3


def captured(function: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """A call that replays what ``function`` launches on a CUDA device.

    It gives the tensors of the recording, overwritten by each replay.

    Raises:
        RuntimeError: the function waits for the device or copies from the host meanwhile.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                function()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()

    def replay() -> Any:
        graph.replay()
        return result

    return replay
