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
        RuntimeError: the function waits for the device or copies from the host meanwhile. Streams
            and random numbers are as before.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        graph = torch.cuda.CUDAGraph()
        # torch leaves the stream of a recording that failed the current one.
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                function()
            try:
                with torch.cuda.graph(graph, stream=stream):
                    result = function()
            except RuntimeError:
                _end_recording_of_random_numbers()
                raise
        torch.cuda.current_stream(device).wait_stream(stream)

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def _end_recording_of_random_numbers() -> None:
    """Give the current device's generator a state that is not being recorded.

    A recording that fails may leave the generator in it, and then every later draw fails.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
