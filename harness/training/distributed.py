"""One run on several processes, each with its device.

Command line: ``torchrun --nproc-per-node=2 -m -- harness.run --attn enlca --m 16``. (Without the
``--`` torchrun parses ``--m`` as an option of its own.)

Every process draws the whole batch of a step and trains on its share; gradients are averaged. A
step equals that of a single process up to the order of its sums: losses agree to 1e-5 over the
first steps, not to the last bit, and diverge later as rounding errors grow. Random draws agree
because every process seeds each step alike and no draw depends on the share: ENLA's redraws and
NLSA's rotations are those of a single process. NLSA alone is discontinuous: where rounding decides
between two buckets of a query, one process and several may differ, as two machines may.

Only the first process writes, evaluates and prints. Without torchrun these functions do nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ..base import machine
from ..base.errors import UserError
from ..base.extras import install_extra

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

#: How long the others wait while the first evaluates; torchrun ends them all when one dies.
TIMEOUT = timedelta(days=2)

_accelerator: Accelerator | None = None


def start(device: str) -> torch.device:
    """Join the processes that torchrun started, if it did, and pick this one's device.

    Args:
        device: a name as for :func:`harness.base.machine.pick_device`; with torchrun ``cuda`` is
            the device of the process's local rank.

    Raises:
        UserError: the device is not available or cannot be shared, or accelerate is not installed.
    """
    global _accelerator
    if not torch.distributed.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) < 2:
        return machine.pick_device(device)
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device} does not work with torchrun: use auto, cpu or cuda")
    try:
        from accelerate import (
            Accelerator,
            DistributedDataParallelKwargs,
            InitProcessGroupKwargs,
        )
    except ImportError:
        raise UserError(f"torchrun needs accelerate: {install_extra('multi-gpu')}") from None
    rank = int(os.environ["LOCAL_RANK"])
    name = "cuda" if device == "auto" and torch.cuda.is_available() else device
    chosen = machine.pick_device(f"cuda:{rank}" if name == "cuda" else "cpu")
    _accelerator = Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision="no",  # the trainer has its own autocast
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=TIMEOUT),
            # Buffers (projections, counters) agree by themselves; see the module's docstring.
            DistributedDataParallelKwargs(broadcast_buffers=False),
        ],
    )
    if not _accelerator.is_main_process:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    return chosen


def stop() -> None:
    """Wait for all processes and leave the group."""
    global _accelerator
    if _accelerator is not None:
        _accelerator.wait_for_everyone()
        _accelerator.end_training()
        _accelerator = None


def processes() -> int:
    """Number of processes of this run."""
    return _accelerator.num_processes if _accelerator else 1


def is_main() -> bool:
    """Whether this process writes, evaluates and prints."""
    return _accelerator.is_main_process if _accelerator else True


def launcher() -> str:
    """The words that start ``harness.run`` on as many processes, for the record's command."""
    if _accelerator is None:
        return "python -m"
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = f" --nnodes={processes() // local}" if processes() > local else ""
    return f"torchrun{nodes} --nproc-per-node={local} -m --"


def check_batch(batch: int) -> None:
    """Check that the processes can share a batch equally.

    Raises:
        UserError: they cannot.
    """
    if batch % processes():
        raise UserError(
            f"a batch of {batch} cannot be shared by {processes()} processes: "
            "choose a --batch that --nproc-per-node divides"
        )


def share(batch: np.ndarray) -> np.ndarray:
    """This process's part of a batch, along the first axis."""
    if _accelerator is None:
        return batch
    size = len(batch) // _accelerator.num_processes
    first = _accelerator.process_index * size
    return batch[first : first + size]


def parallel(network: nn.Module) -> nn.Module:
    """A module to call instead of ``network``, which averages gradients over the processes."""
    if _accelerator is None:
        return network
    wrapped: nn.Module = _accelerator.prepare_model(network, device_placement=False)
    return wrapped


def mean(*values: Tensor) -> tuple[Tensor, ...]:
    """Means of scalar tensors over the processes, without gradient."""
    values = tuple(value.detach() for value in values)
    if _accelerator is None:
        return values
    reduced: Any = _accelerator.reduce(torch.stack([v.float() for v in values]), "mean")
    return tuple(reduced)


def agree(value: T) -> T:
    """The first process's value, in every process."""
    if _accelerator is None:
        return value
    from accelerate.utils import broadcast_object_list

    values: list[T] = broadcast_object_list([value])
    return values[0]


def any_of(value: bool) -> bool:
    """Whether ``value`` is true in any process; all must call it."""
    if _accelerator is None:
        return value
    found: Any = _accelerator.reduce(torch.tensor(float(value), device=_accelerator.device), "sum")
    return bool(found > 0)


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process no longer answers."""
    lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
    return _accelerator is not None and lost


def wait() -> None:
    """Wait until every process has called this."""
    if _accelerator is not None:
        _accelerator.wait_for_everyone()


@contextmanager
def main_first() -> Iterator[None]:
    """Let the first process run the block before the others do."""
    if _accelerator is None:
        yield
        return
    with _accelerator.main_process_first():
        yield
