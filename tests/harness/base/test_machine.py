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
    assert (described["device"], described["gpu"]) == ("cpu", None)
    assert (described["compiler"] is None) == (why_not_native(torch.zeros(1)) is not None)
    assert described["cpu"]["model"]
    assert described["cpu"]["logical_cores"] >= 1
    assert described["cpu"]["memory_gb"] > 0
    assert described["packages"]["torch"] == torch.__version__


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
    assert describe(CPU)["torch"].items() >= {"threads": 77, "matmul_precision": "medium"}.items()


@pytest.mark.parametrize(
    ("key", "settings", "told"),
    [
        ("wait_policy", {}, None),
        ("wait_policy", {"OMP_WAIT_POLICY": "PASSIVE"}, "PASSIVE"),
        (
            "wait_policy",
            {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "300000"},
            "ACTIVE, GOMP_SPINCOUNT=300000",
        ),
        ("wait_policy", {"GOMP_SPINCOUNT": "0"}, "GOMP_SPINCOUNT=0"),
        ("allocator", {}, None),
        ("allocator", {"LD_PRELOAD": "/lib/libtcmalloc.so.4:je.so"}, "libtcmalloc.so.4, je.so"),
        ("allocator", {"MALLOC_TRIM_THRESHOLD_": "8000"}, "MALLOC_TRIM_THRESHOLD_=8000"),
        (
            "allocator",
            {"LD_PRELOAD": "a.so", "THP_MEM_ALLOC_ENABLE": "1"},
            "a.so, THP_MEM_ALLOC_ENABLE=1",
        ),
    ],
)
def test_how_threads_wait_and_memory_is_allocated(
    key: str, settings: dict[str, str], told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "LD_PRELOAD", *_ALLOCATION):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert describe(CPU)["torch"][key] == told


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


def offer(monkeypatch: pytest.MonkeyPatch, *, cuda: int, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "names"),
    [
        (0, False, {"auto": "cpu", "cpu": "cpu"}),
        (0, True, {"auto": "mps", "cpu": "cpu"}),
        (
            2,
            True,
            {"auto": "cuda:0", "cpu": "cpu", "cuda": "cuda:0", "cuda:1": "cuda:1", "mps": "mps"},
        ),
    ],
)
def test_devices_and_auto_takes_the_best(
    monkeypatch: pytest.MonkeyPatch, cuda: int, mps: bool, names: dict[str, str]
) -> None:
    offer(monkeypatch, cuda=cuda, mps=mps)
    assert {name: str(pick_device(name)) for name in names} == names


@pytest.mark.parametrize(
    ("gpus", "name", "told"),
    [
        (0, "cuda", "'cuda' is not available here: this machine has 0"),
        (0, "mps", "'mps' is not available here"),
        (2, "cuda:2", "'cuda:2' is not available here: this machine has 2"),
        *((2, name, "unknown device") for name in ("tpu", "cuda:", "cuda:x", "cuda:-1", "CPU", "")),
    ],
)
def test_devices_that_are_not_here(
    gpus: int, name: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, cuda=gpus, mps=gpus > 0)
    with pytest.raises(UserError, match=told):
        pick_device(name)


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
    found = [gpu[key] for key in ("name", "memory_gb", "compute_capability", "driver")]
    assert found == ["Some GPU", 12.0, "8.6", "555.42"]
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


@pytest.mark.parametrize(
    ("device", "capability", "has"),
    [
        ("cpu", (9, 0), False),
        ("mps", (9, 0), False),
        ("cuda", (7, 5), False),
        ("cuda:0", (8, 0), True),
        ("cuda", None, True),  # a sweep's jobs may run elsewhere
    ],
)
def test_tf32_is_refused_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, device: str, capability: tuple[int, int] | None, has: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    chosen = torch.device(device)
    for precision in ("float32", "bfloat16", *(["tf32"] if has else [])):
        machine.check_precision(precision, chosen)
    if not has:
        with pytest.raises(UserError, match=f"tf32 needs a CUDA device .* not {device}: use flo"):
            machine.check_precision("tf32", chosen)


@pytest.mark.parametrize(("threads", "told"), [(0, "at least 1"), (2**31, "at most 1024")])
def test_threads_that_no_machine_has(threads: int, told: str) -> None:
    with pytest.raises(UserError, match=f"--threads must be {told}, got {threads}"):
        machine.use_threads(threads)
