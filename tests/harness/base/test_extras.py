"""How an extra is installed, wherever the package came from."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.base import extras
from harness.base.extras import install_extra


def test_from_a_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my zoo").mkdir()
    monkeypatch.setattr(extras, "_CHECKOUT", tmp_path / "my zoo")
    (tmp_path / "my zoo" / "pyproject.toml").touch()
    assert install_extra("ray") == f"pip install -e '{tmp_path}/my zoo[ray]'"
    monkeypatch.chdir(tmp_path / "my zoo")
    assert install_extra("ray") == "pip install -e '.[ray]'"


@pytest.mark.parametrize(
    ("known", "command"),
    [
        (
            {"url": "https://host/zoo.git", "vcs_info": {"vcs": "git", "commit_id": "1a"}},
            "pip install 'attention-zoo[ray] @ git+https://host/zoo.git'",
        ),
        (
            {"url": "file:///tmp/zoo.whl", "archive_info": {}},
            "pip install 'attention-zoo[ray] @ file:///tmp/zoo.whl'",
        ),
        (None, "pip install '.[ray]' in the folder of attention-zoo"),
    ],
)
def test_from_elsewhere(
    known: Any, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def distribution(_name: str) -> SimpleNamespace:
        return SimpleNamespace(read_text=lambda _file: known and json.dumps(known))

    monkeypatch.setattr(extras, "_CHECKOUT", tmp_path)
    monkeypatch.setattr(extras, "distribution", distribution)
    assert install_extra("ray") == command

    def missing(_name: str) -> None:
        raise PackageNotFoundError

    monkeypatch.setattr(extras, "distribution", missing)
    assert install_extra("ray").endswith("in the folder of attention-zoo")
