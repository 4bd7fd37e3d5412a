"""Checkpoints of a training: whole or not at all, hashed, the last two kept.

A checkpoint is ``<folder>/state-<step>.safetensors``: tensors, and JSON with a SHA-256 of both.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..base.errors import UserError
from ..base.files import write_atomic
from ..network.weights import to_file

#: Version of the files' layout; files of another version are refused.
FORMAT = 1
#: Checkpoints that are kept: if the newest is damaged, the previous one is used.
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``step`` steps: tensors by name, and all else as JSON-ready content."""

    step: int
    content: dict[str, Any]
    tensors: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint, then delete all but the last :data:`KEPT`; returns its path.

    Raises:
        UserError: the file cannot be written; earlier checkpoints are untouched.
    """
    tensors = to_file(checkpoint.tensors)
    body = {"format": FORMAT, "step": checkpoint.step, "content": checkpoint.content}
    sealed = body | {"sha256": _digest(body, tensors)}
    data = save(tensors, metadata={"checkpoint": json.dumps(sealed)})
    path = _path(folder, checkpoint.step)
    write_atomic(path, lambda file: file.write(data))
    for old in find_checkpoints(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint of the folder; None if there is none.

    A damaged one is deleted with a warning, and the previous one is used.

    Raises:
        UserError: a checkpoint cannot be opened, or another version of this program wrote it.
    """
    if (folder / "state.safetensors").exists():
        raise UserError(
            f"{folder / 'state.safetensors'} was written by an older version, without a hash: "
            "finish the run with that version, or delete the file to start over"
        )
    for path in reversed(find_checkpoints(folder)):
        try:
            return _read(path)
        except _DamagedError as error:
            path.unlink(missing_ok=True)
            others = find_checkpoints(folder)
            print(
                f"warning: deleted the damaged checkpoint {path} ({error}); "
                + ("using the previous one" if others else "none is left: starting over"),
                file=sys.stderr,
            )
    return None


def find_checkpoints(folder: Path) -> list[Path]:
    """Files of the folder's checkpoints, oldest first."""
    return sorted(folder.glob("state-[0-9]*.safetensors"))


def discard_checkpoints(folder: Path, step: int | None = None) -> None:
    """Delete the checkpoint of a step, or all."""
    for path in find_checkpoints(folder) if step is None else [_path(folder, step)]:
        path.unlink(missing_ok=True)


def _path(folder: Path, step: int) -> Path:
    return folder / f"state-{step:09d}.safetensors"


class _DamagedError(Exception):
    pass


def _read(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            sealed = json.loads((file.metadata() or {})["checkpoint"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        body = {key: value for key, value in sealed.items() if key != "sha256"}
        intact = sealed["sha256"] == _digest(body, tensors)
    except OSError as error:
        raise UserError(
            f"cannot read the checkpoint {path}: {error.strerror or error}; make it readable, "
            "or delete it to use the previous one"
        ) from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _DamagedError(f"not a whole checkpoint: {error}") from error
    except RecursionError as error:
        raise _DamagedError("not a checkpoint") from error
    if body.get("format", FORMAT) != FORMAT:  # its hash may be defined otherwise
        raise UserError(
            f"{path} has format {body['format']}, this version writes {FORMAT}: finish the run "
            "with the version that began it, or delete the file to start over"
        )
    if not intact:
        raise _DamagedError("its content does not match its SHA-256")
    return Checkpoint(body["step"], body["content"], tensors)


def _digest(body: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    sha256 = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
