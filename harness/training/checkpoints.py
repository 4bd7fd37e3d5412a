"""Saved states of a training: whole or not at all, hashed, the last two kept.

A state is ``<folder>/state-<step>.safetensors``: tensors, and JSON with a SHA-256 of both.
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

#: Version of the states' layout; another one is refused.
FORMAT = 1
#: States that are kept: should the newest be damaged, the one before it is used.
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A state after ``step`` steps: tensors by name, and what else there is, ready for JSON."""

    step: int
    content: dict[str, Any]
    tensors: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a state, then delete all but the last :data:`KEPT`; returns the file's path.

    Raises:
        UserError: the file cannot be written; the states from before are untouched.
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
    """The newest whole state of the folder; None if there is none.

    A damaged one is deleted with a warning, and the one before it is taken.

    Raises:
        UserError: a state cannot be opened, or another version of this program wrote it.
    """
    if (folder / "state.safetensors").exists():
        raise UserError(
            f"{folder / 'state.safetensors'} was saved by an older version, which checked no hash: "
            "finish the run with that version, or delete the file to start anew"
        )
    for path in reversed(find_checkpoints(folder)):
        try:
            return _read(path)
        except _DamagedError as error:
            left = len(find_checkpoints(folder)) > 1
            print(
                f"warning: the saved state {path} is damaged ({error}) and was deleted; "
                + ("taking the one before it" if left else "no other is left: starting anew"),
                file=sys.stderr,
            )
            path.unlink(missing_ok=True)
    return None


def find_checkpoints(folder: Path) -> list[Path]:
    """Files of the folder's states, oldest first."""
    return sorted(folder.glob("state-[0-9]*.safetensors"))


def discard_checkpoints(folder: Path, step: int | None = None) -> None:
    """Delete the state of a step, or all."""
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
            f"cannot read the saved state {path}: {error.strerror or error}; make it readable, "
            "or delete it to take the one before it"
        ) from error
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _DamagedError(f"it is torn or no state: {error}") from error
    except RecursionError as error:
        raise _DamagedError("it is no state") from error
    if body.get("format", FORMAT) != FORMAT:  # its hash may be made otherwise
        raise UserError(
            f"{path} has format {body['format']}, this version writes {FORMAT}: finish the run "
            "with the version that began it, or delete the file to start anew"
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
