"""Peak memory of a call."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import torch

from ..base.machine import synchronise

# Kineto prints a line on stderr whenever a profile starts or stops; it reads this at the first.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def peak_memory(function: Callable[[], Any], device: torch.device) -> int | None:
    """Peak of the bytes that torch's allocator holds during one call, above those at its start.

    The peak includes the call's result and what is kept for a backward pass.

    - CPU: exact. It counts every allocation and release of torch's CPU allocator on the calling
      thread, also inside kernels. :mod:`attention_zoo.cores.tiles` works on this thread alone
      meanwhile and holds the tiles' memory of all its threads; what operations on a tile return
      counts once. It does not count what libraries allocate themselves (oneDNN scratchpads, MKL
      packing buffers), nor the release of memory that is older than the call.
    - CUDA: exact for torch's caching allocator, in blocks of 512 bytes. It does not count CUDA's
      own context and libraries' private workspaces.
    - MPS: None. torch offers no peak there, only the memory allocated at this moment.
    """
    gc.collect()
    if device.type == "cpu":
        return _peak_cpu(function)
    if device.type == "cuda":
        return _peak_cuda(function, device)
    return None


def _peak_cpu(function: Callable[[], Any]) -> int:
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        function()
    events = profile.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        held += change
        peak = max(peak, held)
    return peak


def _peak_cuda(function: Callable[[], Any], device: torch.device) -> int:
    synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    function()
    synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before
