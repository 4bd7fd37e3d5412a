"""Fixtures that several tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

# How long an example takes says more of what else the machine does.
hypothesis.settings.register_profile("attention-zoo", deadline=None)
hypothesis.settings.load_profile("attention-zoo")

# A shell starts what it runs in the background with SIGINT ignored, and the harness leaves an
# ignored signal alone: the tests of signals, and the processes they start, would see none.
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)

# Two tests running side by side must not fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sr_data() -> Path:
    """The benchmark images: SR_DATA, or ../shared/data beside the repository; else skip."""
    given = os.environ.get("SR_DATA")
    beside = Path(__file__).parents[2] / "shared" / "data"
    path = Path(given) if given else beside
    if not (path / "Set5" / "HR").is_dir():
        pytest.skip("benchmark images not found: set SR_DATA to a folder that holds Set5/HR")
    return path


@pytest.fixture(autouse=True)
def _no_user_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Tests neither see the user's data folder nor write into the user's cache."""
    monkeypatch.delenv("SR_DATA", raising=False)
    monkeypatch.setenv("SR_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def import_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder on the import path; what is imported from it is forgotten afterwards.

    Two tests may thus write packages of the same name, whichever runs first.
    """
    folder = tmp_path / "importable"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    yield folder
    for path in folder.iterdir():
        for name in [n for n in sys.modules if n.split(".")[0] == path.stem]:
            del sys.modules[name]
