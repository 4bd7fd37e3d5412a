"""Full disks, folders that cannot be written, files of strangers: one line, and nothing lost."""

from __future__ import annotations

import ast
import dataclasses
import multiprocessing
import os
import pickle
import resource
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch

from harness.base.errors import UserError
from harness.images.sources import TestImage, find_data
from harness.measuring.quality import within_memory
from harness.network.weights import load_weights
from harness.records.shapes import Run
from harness.records.store import load_records
from harness.reporting.tables.all import write_tables
from harness.runs import run
from harness.tasks.sr import SuperResolution
from harness.training.checkpoints import find_checkpoints, load_checkpoint
from tests.harness.conftest import write_images
from tests.harness.tiny import make_config, run_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[3]


def train_and_evaluate(images: Path, results: Path, steps: int = 6) -> None:
    run_tiny(make_config("enlca", {"m": 4}, steps=steps), images, results, save_every=0)


def in_child(work: Callable[[], object]) -> str:
    """What a user reads of an error that work gives in a forked process; empty if it gives none."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def told() -> None:
        sys.stdout = None  # type: ignore[assignment]
        try:
            work()
            writer.send("")
        except BaseException as error:
            writer.send(str(error) if isinstance(error, UserError) else f"no UserError: {error!r}")

    child = ForkProcess(target=told)
    child.start()
    text: str = reader.recv()
    child.join()
    assert child.exitcode == 0
    return text


def limit_files(size: int) -> None:
    """No file may grow beyond size bytes: writing ends as on a full disk, part way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_disk_that_fills_up_loses_nothing_that_was_saved(
    image_folder: Path, tmp_path: Path
) -> None:
    """The disk takes weights, but no second state; with room again, the run goes on."""
    train_and_evaluate(image_folder, tmp_path / "whole")
    (expected,) = load_records(tmp_path / "whole", Run)
    results = tmp_path / "full"
    folder = results / "runs" / expected.id

    def interrupted() -> None:
        step = run.Trainer.train_step

        def limited(self: run.Trainer) -> float:
            if self.step == 3:
                limit_files(10_000)
            return step(self)

        run.Trainer.train_step = limited  # type: ignore[method-assign]
        train_and_evaluate(image_folder, results)

    told = in_child(interrupted)
    assert told.startswith(f"cannot write {folder}/state-000000004.safetensors: File too large")
    assert told.count("\n") == 0
    assert [p.name[6:15] for p in find_checkpoints(folder)] == ["000000002", "000000003"]
    assert not list(folder.glob(".*.tmp"))

    train_and_evaluate(image_folder, results)
    (found,) = load_records(results, Run)
    assert found.training.log == expected.training.log
    weights = [r / "runs" / found.id / "weights.safetensors" for r in (tmp_path / "whole", results)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that another user may read, write and reach."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        yield folder


def as_nobody() -> None:
    """Permissions do not bind root."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)


def test_read_only_results(open_folder: Path) -> None:
    """A finished run is read there; a new one says that nothing can be written."""
    source = find_data(write_images(open_folder / "images"))
    cache = source.training_images(4)
    results = open_folder / "results"

    def work(steps: int) -> None:
        as_nobody()
        config = make_config(steps=steps)
        run.run(config, SuperResolution(cache, source), results, torch.device("cpu"), "test")

    run_tiny(make_config(steps=2), open_folder / "images", results)
    for path in [results, *results.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert in_child(lambda: work(2)) == ""
        told = in_child(lambda: work(3))
    finally:
        for path in [results, *results.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    assert told.startswith(f"cannot write {results}/runs/.locks/")
    assert "Permission denied; choose a folder that can be written" in told


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError])
def test_a_stopped_evaluation_goes_on_with_the_next_image(
    stop: type[BaseException],
    image_folder: Path,
    tmp_path: Path,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a step of training, and ends with the record of one that nothing disturbed."""
    train_and_evaluate(image_folder, tmp_path / "whole")
    (whole,) = load_records(tmp_path / "whole", Run)
    names: list[str] = []

    def stops(network: object, image: TestImage, *others: object) -> object:
        if len(names) == 1:
            raise stop("cannot read the image")
        names.append(image.name)
        return within_memory(network, image, *others)  # type: ignore[arg-type]

    monkeypatch.setattr("harness.measuring.quality.within_memory", stops)
    with pytest.raises(stop, match="cannot read the image"):
        train_and_evaluate(image_folder, results)
    assert not load_records(results, Run)
    names.append("stopped")
    monkeypatch.setattr("harness.training.trainer.Trainer.train_step", None)
    train_and_evaluate(image_folder, results)
    assert names == ["e0", "stopped", "e1"]
    (record,) = load_records(results, Run)
    assert record.quality == whole.quality
    assert record.training.log[-1][0] == 6
    folder = results / "runs" / record.id
    assert not [*folder.glob("state*"), *folder.glob("evaluated.json")]


def test_names_that_are_not_utf8(image_folder: Path, tmp_path: Path, results: Path) -> None:
    """Of a test set and an image: the record holds them, and is read back."""
    images = shutil.copytree(image_folder, tmp_path / "images")
    try:
        (images / "Tiny").rename(images / "T\udce9")
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    (images / "T\udce9" / "HR" / "e0.png").rename(images / "T\udce9" / "HR" / "e\udce8.png")
    data = dataclasses.replace(make_config().data, test=find_data(images).test_sets)
    record = run_tiny(make_config(steps=2, data=data), images, results)
    assert load_records(results, Run) == [record]
    assert {i.name for i in record.quality["T\udce9"].images} == {"e1", "e\udce8"}
    for _, paths in write_tables(results):
        assert all(path.read_text(encoding="utf-8") for path in paths)


# -- files of strangers -----------------------------------------------------------------------

#: Packages that run code out of a file that they read.
_UNSAFE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def test_nothing_in_the_packages_unpickles() -> None:
    """torch.load only of tensors, numpy.load nowhere, no pickle, no eval and exec."""
    sources = [p for name in ("attention_zoo", "harness") for p in (ROOT / name).rglob("*.py")]
    assert len(sources) > 40
    loads = 0
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names]
                modules = names if isinstance(node, ast.Import) else [node.module or ""]
                assert not _UNSAFE & {module.split(".")[0] for module in modules}, where
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "np.load", "numpy.load"}, where
                assert not called.endswith((".read_pickle", "hub.load")), where
                if called == "torch.load":
                    loads += 1
                    arguments = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert arguments.get("weights_only") == "True", where
    assert loads == 1


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.target,)


def test_a_pickle_in_the_place_of_weights_or_a_state_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are safetensors, whatever a stranger put there."""
    target, path = tmp_path / "executed", tmp_path / "state-000000009.safetensors"
    content = pickle.dumps(Malicious(target))
    pickle.loads(content)
    assert target.exists()  # so it would
    target.unlink()
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot read weights"):
        load_weights(path)
    assert load_checkpoint(tmp_path) is None
    assert "damaged" in capsys.readouterr().err
    assert not target.exists()
