"""Devices, and the description of the machine that goes into every record."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from attention_zoo.cores.native import why_not_native
from harness.base import machine
from harness.base.errors import UserError
from harness.base.machine import _ALLOCATION, describe, pick_device, synchronise

CPU = torch.device("cpu")


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for item in value.values() for text in strings(item)]
    return [value] if isinstance(value, str) else []


def test_description_is_json_and_says_what_matters() -> None:
    described = json.loads(json.dumps(describe(CPU), allow_nan=False))
    assert described["device"] == "cpu"
    assert (described["compiler"] is None) == (why_not_native(torch.zeros(1)) is not None)
    assert described["gpu"] is None
    assert described["cpu"]["model"]
    assert described["cpu"]["logical_cores"] >= 1
    assert described["cpu"]["memory_gb"] > 0
    assert described["packages"]["torch"] == torch.__version__
    assert described["torch"]["threads"] == torch.get_num_threads()
    assert described["torch"]["matmul_precision"] == torch.get_float32_matmul_precision()


def test_description_names_no_host_user_or_path() -> None:
    texts = strings(describe(CPU))
    for private in (socket.gethostname(), getpass.getuser()):
        word = re.compile(rf"(?<!\w){re.escape(private)}(?!\w)")
        assert not [text for text in texts if word.search(text)]
    for folder in (Path.home(), Path.cwd(), Path(machine.__file__).parent):
        assert not [text for text in texts if str(folder) in text]


def test_description_follows_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    described = describe(CPU)["torch"]
    assert (described["threads"], described["matmul_precision"]) == (77, "medium")


@pytest.mark.parametrize(
    ("policy", "spins", "told"),
    [
        (None, None, None),
        ("PASSIVE", None, "PASSIVE"),
        ("ACTIVE", "300000", "ACTIVE, GOMP_SPINCOUNT=300000"),
        (None, "0", "GOMP_SPINCOUNT=0"),
    ],
)
def test_how_threads_wait(
    policy: str | None, spins: str | None, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("OMP_WAIT_POLICY", policy), ("GOMP_SPINCOUNT", spins)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert describe(CPU)["torch"]["wait_policy"] == told


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, None),
        (
            {"LD_PRELOAD": "/usr/lib/libtcmalloc.so.4:libjemalloc.so"},
            "libtcmalloc.so.4, libjemalloc.so",
        ),
        ({"MALLOC_TRIM_THRESHOLD_": "8000000000"}, "MALLOC_TRIM_THRESHOLD_=8000000000"),
        ({"LD_PRELOAD": "a.so", "THP_MEM_ALLOC_ENABLE": "1"}, "a.so, THP_MEM_ALLOC_ENABLE=1"),
    ],
)
def test_how_memory_is_allocated(
    settings: dict[str, str], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LD_PRELOAD", *_ALLOCATION):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert describe(CPU)["torch"]["allocator"] == told


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_of_a_source_tree(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    assert machine._commit(tmp_path) is None
    git("init", "-q")
    assert machine._commit(tmp_path) is None  # nothing committed yet
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    clean = machine._commit(tmp_path)
    assert clean is not None
    assert re.fullmatch(r"[0-9a-f]{7,}", clean)
    (tmp_path / "file").write_text("2")
    assert machine._commit(tmp_path) == f"{clean}-dirty"
    (tmp_path / "site-packages").mkdir()  # an environment inside somebody's repository
    assert machine._commit(tmp_path / "site-packages") is None


def test_what_cannot_be_found_out_is_none() -> None:
    assert machine._output("no-such-command-here") is None
    assert machine._version("no-such-package-here") is None
    assert machine._build_setting("NO_SUCH_SETTING") is None


def test_cpu_model_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.platform, "system", lambda: "Windows")
    monkeypatch.setattr(machine.platform, "processor", lambda: "Some CPU")
    assert machine._cpu_model() == "Some CPU"
    monkeypatch.setattr(machine.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(machine, "_output", lambda *command: " ".join(command))
    assert machine._cpu_model() == "sysctl -n machdep.cpu.brand_string"


@pytest.mark.parametrize("name", ["tpu", "cuda:", "cuda:x", "cuda:-1", "CPU", ""])
def test_unknown_device(name: str) -> None:
    with pytest.raises(UserError, match="unknown device"):
        pick_device(name)


def offer(monkeypatch: pytest.MonkeyPatch, *, cuda: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "auto"), [(0, False, "cpu"), (0, True, "mps"), (2, True, "cuda:0")]
)
def test_auto_takes_the_best(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, auto: str
) -> None:
    offer(monkeypatch, cuda=cuda, mps=mps)
    assert pick_device("auto") == torch.device(auto)
    assert pick_device("cpu") == CPU


def test_devices_that_are_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, cuda=0, mps=False)
    with pytest.raises(UserError, match="'cuda' is not available here: this machine has 0"):
        pick_device("cuda")
    with pytest.raises(UserError, match="'mps' is not available here"):
        pick_device("mps")
    offer(monkeypatch, cuda=2, mps=True)
    assert pick_device("cuda") == torch.device("cuda:0")
    assert pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("mps") == torch.device("mps")
    with pytest.raises(UserError, match="'cuda:2' is not available here: this machine has 2"):
        pick_device("cuda:2")


def test_synchronise_waits_for_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(str(device)))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("mps"))
    for name in ("cpu", "cuda:1", "mps"):
        synchronise(torch.device(name))
    assert calls == ["cuda:1", "mps"]


def test_gpu_description(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, total_memory, major, minor = "Some GPU", 12_000_000_000, 8, 6

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(machine, "_output", lambda *command: "555.42\n555.42")
    gpu = machine._gpu(torch.device("cuda:0"))
    assert gpu is not None
    assert (gpu["name"], gpu["memory_gb"], gpu["compute_capability"], gpu["driver"]) == (
        "Some GPU",
        12.0,
        "8.6",
        "555.42",
    )
    mps = machine._gpu(torch.device("mps"))
    assert mps is not None
    assert mps["name"].endswith("(MPS)")


@pytest.mark.cuda
def test_description_of_a_real_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    described = describe(pick_device("cuda"))
    assert described["gpu"]["name"] == torch.cuda.get_device_name(0)
    assert json.dumps(described)


@pytest.mark.parametrize(("threads", "told"), [(0, "at least 1"), (2**31, "at most 1024")])
def test_threads_that_no_machine_has(threads: int, told: str) -> None:
    with pytest.raises(UserError, match=f"--threads must be {told}, got {threads}"):
        machine.use_threads(threads)
