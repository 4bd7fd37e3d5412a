"""CUDA graphs: the launches of a call, recorded once and replayed without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: Runs before the recording, on the stream that records: workspaces, tuning, compilation.
_WARMUP = 3


def captured(function: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """A call that replays what ``function`` launches on a CUDA device.

    It returns the tensors of the recording; each replay overwrites them.

    Raises:
        RuntimeError: the function waits for the device or copies from the host. Streams and random
            numbers are then as before.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        graph = torch.cuda.CUDAGraph()
        # After a failed recording torch leaves its stream the current one.
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

    A failed recording may leave the generator recording, and then every later draw fails.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    generator.graphsafe_set_state(generator.clone_state())
