"""Processes that begin with everything imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from harness.runs import warm
from harness.runs.warm import IMPORTED, Forked

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes fork on Linux alone")


def make_module(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that processes started from here find."""
    (folder / "job_of_a_test.py").write_text(textwrap.dedent(text), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    return "job_of_a_test"


def until_there(path: Path, text: str) -> str:
    """The file's text, once it holds ``text``."""
    for _ in range(600):
        if path.exists() and text in path.read_text():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(path.read_text() if path.exists() else "no log")


def start_parent(folder: Path, *lines: str) -> subprocess.Popen[str]:
    """A program of its own, in which nothing else has started a server."""
    script = folder / "parent.py"
    text = ["import sys, time", "from pathlib import Path"]
    text += ["from harness.runs.warm import Forked", "if __name__ == '__main__':"]
    text += [f"    {line}" for line in (f"sys.path.insert(0, {str(folder)!r})", *lines)]
    script.write_text("\n".join(text))
    root = Path(warm.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "OF_A_TEST": "given"}
    return subprocess.Popen([sys.executable, str(script)], env=environment, text=True)


def test_it_is_like_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(
        tmp_path,
        f"""
        import os, sys
        alone = os.getsid(0) == os.getpid()
        print(sys.argv[1:], __name__, os.getcwd(), os.environ["OF_A_TEST"], alone)
        print(sorted(set({IMPORTED!r}) - set(sys.modules)))
        print("told", file=sys.stderr)
        sys.exit(7)
        """,
        monkeypatch,
    )
    log = tmp_path / "log.txt"
    log.write_text("before\n")
    job = f"Forked({module!r}, ('a', 'b'), Path({str(log)!r}), Path({str(tmp_path)!r}))"
    assert start_parent(tmp_path, f"sys.exit({job}.wait())").wait() == 7
    wanted = f"before\n['a', 'b'] __main__ {tmp_path} given True\n[]\ntold\n"
    assert log.read_text() == wanted


def test_an_error_ends_it_with_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(tmp_path, "raise ValueError('no such thing')", monkeypatch)
    log = tmp_path / "log.txt"
    assert Forked(module, (), log, tmp_path).wait() == 1
    assert log.read_text().splitlines()[-1] == "ValueError: no such thing"


def test_it_is_stopped_and_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
    import signal, sys, time
    if sys.argv[1:] == ["stubborn"]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("begun")
    time.sleep(60)
    """
    module = make_module(tmp_path, text, monkeypatch)
    for words, signum in (((), signal.SIGTERM), (("stubborn",), signal.SIGKILL)):
        log = tmp_path / f"{len(words)}.txt"
        process = Forked(module, words, log, tmp_path)
        until_there(log, "begun")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        process.terminate()
        if words:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            process.kill()
        assert process.wait() == -signum


def test_a_signal_to_the_whole_group_leaves_its_exit_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
    print("begun")
    time.sleep(60)
    """
    module = make_module(tmp_path, text, monkeypatch)
    log = tmp_path / "log.txt"
    lines = (
        "import os, signal",
        "os.setpgid(0, 0)",
        "signal.signal(signal.SIGTERM, lambda *_: None)",
        f"log = Path({str(log)!r})",
        f"job = Forked({module!r}, (), log, Path())",
        "while not log.exists() or 'begun' not in log.read_text(): time.sleep(0.05)",
        "os.killpg(0, signal.SIGTERM)",
        "time.sleep(0.2)",
        "job.terminate()",
        "sys.exit(job.wait())",
    )
    assert start_parent(tmp_path, *lines).wait() == 9


def test_it_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(
        tmp_path, "import os, time\nprint(os.getpid(), 'begun')\ntime.sleep(60)", monkeypatch
    )
    log = tmp_path / "log.txt"
    job = f"Forked({module!r}, (), Path({str(log)!r}), Path())"
    process = start_parent(tmp_path, job, "time.sleep(60)")
    number = int(until_there(log, "begun").split()[0])
    process.kill()
    process.wait()
    for _ in range(200):
        try:
            os.kill(number, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("the process goes on without its parent")
