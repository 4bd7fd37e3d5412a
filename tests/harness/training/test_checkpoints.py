"""Saved states: the last two, whole, unaltered, of this version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.base.errors import UserError
from harness.training.checkpoints import (
    Checkpoint,
    discard_checkpoints,
    find_checkpoints,
    load_checkpoint,
    save_checkpoint,
)

TENSORS = {
    "network.a": torch.arange(12.0).view(3, 4),
    "network.b": torch.tensor(7),
    "network.c": torch.empty(0),
    "optimizer.0.d": torch.tensor([0.1], dtype=torch.bfloat16),
}


def state(step: int) -> Checkpoint:
    return Checkpoint(step, {"log": [[step, 0.1 + step]], "sums": [0.3, 1e-9, 2]}, TENSORS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for step in (3, 20, 100):
        save_checkpoint(tmp_path, state(step))
    return tmp_path


def loaded(folder: Path) -> int:
    """The step of the state that is loaded, which is whole."""
    found = load_checkpoint(folder)
    assert found is not None
    assert found.content == state(found.step).content
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(value, found.tensors[name]) for name, value in TENSORS.items())
    return found.step


def test_the_last_two_are_kept(folder: Path) -> None:
    names = [p.name for p in find_checkpoints(folder)]
    assert names == ["state-000000020.safetensors", "state-000000100.safetensors"]
    assert loaded(folder) == 100
    discard_checkpoints(folder)
    assert list(folder.iterdir()) == []
    assert load_checkpoint(folder) is load_checkpoint(folder / "missing") is None


def test_any_flipped_bit_is_found(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of every byte of the file: the header's, the hash's, the tensors'."""
    newest = find_checkpoints(folder)[-1]
    whole = newest.read_bytes()
    for i in range(len(whole)):
        torn = bytearray(whole)
        format_number = whole[:i].endswith(b'\\"format\\": ')
        torn[i] ^= 2 if format_number else 1 << (i % 8)
        newest.write_bytes(torn)
        if format_number:  # it could be another version's: kept, and told
            with pytest.raises(UserError, match="has format"):
                load_checkpoint(folder)
            continue
        step = loaded(folder)
        if newest.exists():  # white space within the header may differ; the state is the same
            assert step == 100
            assert torn[i] in b" \t\n\r" or whole[i] in b" \t\n\r"
        else:
            assert step == 20
            assert "using the previous one" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.9])
def test_a_torn_state_is_found(
    folder: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = find_checkpoints(folder)
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[: int(share * len(data))])
    assert loaded(folder) == 20
    assert str(paths[1]) in capsys.readouterr().err
    paths[0].write_bytes(b"")
    assert load_checkpoint(folder) is None
    assert "none is left: starting over" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_state_of_another_version_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.training.checkpoints.FORMAT", 2)
    newer = save_checkpoint(folder, state(200))
    monkeypatch.undo()
    with safe_open(newer, framework="pt") as file:
        assert json.loads(file.metadata()["checkpoint"])["format"] == 2
    older = folder / "older" / "state.safetensors"
    older.parent.mkdir()
    save_file({"network.a": torch.ones(2)}, older)
    for path, message in ((newer, "has format 2, this version writes 1"), (older, "older version")):
        with pytest.raises(UserError, match=message):
            load_checkpoint(path.parent)
        assert path.exists()


def test_a_disk_that_refuses_leaves_the_states_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(folder, state(300))
    monkeypatch.setattr("harness.training.checkpoints.safe_open", refuse)
    with pytest.raises(UserError, match=r"cannot read the checkpoint .*No space left"):
        load_checkpoint(folder)
    assert sorted(p.name[6:15] for p in folder.iterdir()) == ["000000020", "000000100"]
