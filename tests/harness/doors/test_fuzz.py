"""Whatever is typed, configured or read: it is taken whole, or refused with a message.

``FUZZ_EXAMPLES=20000 pytest -k any --hypothesis-show-statistics tests/harness/doors/test_fuzz.py
tests/harness/records/test_records.py`` tries more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from attention_zoo import AttentionError, find_attention, list_attentions
from harness.base.errors import UserError
from harness.base.names import digest
from harness.config.network import NetworkConfig
from harness.config.options import parse
from harness.config.presets import PRESETS
from harness.config.run import PROTOCOLS, RunConfig
from harness.config.variants import Variant
from harness.images.files import read_image
from harness.images.sources import DataSource, find_data
from harness.images.verify import verify_files
from harness.network.official import read_state_dict
from harness.network.weights import Architecture, load_weights, save_weights
from harness.records.shapes import untyped
from harness.records.store import record_path
from harness.reporting.tables.all import write_tables
from harness.runs import options as runs_options
from harness.runs.options import configure
from harness.runs.run import _claim
from harness.tasks.sr import SuperResolution
from harness.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from harness.training.trainer import learning_rate
from tests.harness import synthetic_records as synthetic
from tests.harness.fuzzing import (
    anything,
    change_one,
    check_message,
    fuzz,
    mutated,
    numbers,
    slow_fuzz,
    taken_or_refused,
)
from tests.harness.tiny import make_config

# -- command line and configuration ---------------------------------------------------------------

REFUSALS = (UserError, AttentionError)
ENLA = Architecture(Variant("enla", {"m": 2}), NetworkConfig(4, 4), 2)
#: Options of all modules.
MODULES = {option for name in list_attentions() for option in find_attention(name).options()}


def flags(options: type, *without: str) -> list[str]:
    """Of a command and, where it takes ``--attn``, of all modules."""
    names = {field.name for field in dataclasses.fields(options)}
    names |= MODULES if "attn" in names else set()
    return sorted("--" + name.replace("_", "-") for name in names - {*without})


OPTIONS = flags(runs_options.RunOptions)
VALUES = st.one_of(
    numbers.map(str),
    st.sampled_from([*list_attentions(), *PRESETS, *PROTOCOLS, "table4", "all", "", "-", "--"]),
    st.text(max_size=6),
    st.just("\udce9"),  # a byte that is not UTF-8
)


@pytest.fixture(scope="module")
def source(image_folder: Path) -> DataSource:
    return find_data(image_folder)


@slow_fuzz
@given(
    words=st.lists(
        st.tuples(st.sampled_from(OPTIONS) | VALUES, st.lists(VALUES, max_size=2)), max_size=5
    )
)
@example(words=[("--seeds", ["-1"])])
@example(words=[("--auxiliary-weight", ["nan"])])
@example(words=[("--block-res-scale", ["inf"])])
def test_any_command_line(words: list[tuple[str, list[str]]], source: DataSource) -> None:
    argv = [word for option, values in words for word in (option, *values)]
    try:
        options, variants = parse(runs_options.RunOptions, argv, "harness.run")
    except REFUSALS as error:
        check_message(error)
        return
    except SystemExit as stop:
        if stop.code:  # --help exits with 0
            raise
        return
    for variant, seed in itertools.product(variants, options.seeds):
        with taken_or_refused(refusals=REFUSALS):
            device = torch.device("cpu")
            task = SuperResolution(None, source, options.scale)
            assert_runnable(configure(options, task, variant, seed, device, decode=False))


class ReachedError(UserError):
    """The command line was taken, and work would begin."""


#: Options without which a command does nothing, and the functions that do its work.
COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "approximation": (("--synthetic",), ("measuring.approximation.study",)),
    "evaluate": (("--weights", "WEIGHTS"), ("measuring.quality.evaluate",)),
    "latency": ((), ("measuring.latency.measure",)),
    "probe": ((), ("runs.engines.open_engine", "runs.plan.print_plan")),
    "redraws": (("--runs", "WEIGHTS"), ("measuring.redraws.measure",)),
    "run": (
        ("--data", "IMAGES"),
        ("runs.run.run", "runs.run.measure_cost", "runs.run.measure_latency"),
    ),
    "scaling": ((), ("measuring.scaling.measure",)),
    "speed": ((), ("measuring.speed.measure",)),
    "sweep": (("--data", "IMAGES"), ("runs.engines.open_engine", "runs.plan.print_plan")),
}


@pytest.fixture(scope="module")
def places(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A folder of images and a file of weights."""
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    architecture = dataclasses.replace(ENLA, scale=4)
    save_weights(path, architecture.build(), architecture, "a")
    return {"IMAGES": str(image_folder), "WEIGHTS": str(path)}


@slow_fuzz
@given(data=st.data(), command=st.sampled_from(sorted(COMMANDS)))
def test_any_command(
    data: st.DataObject, command: str, places: dict[str, str], tmp_path: Path
) -> None:
    """It begins to work, prints its help, or ends with one line and status 2."""
    module = importlib.import_module(f"harness.{command}")
    given_words, work = COMMANDS[command]
    option = st.tuples(
        st.sampled_from(flags(module.Options, "results", "output", "data")),
        st.lists(VALUES, max_size=2),
    )
    words = [places.get(word, word) for word in given_words]
    for name, values in data.draw(st.lists(option, max_size=3)):
        words += [name, *values]

    def reached(*_: object, **__: object) -> None:
        raise ReachedError("reached")

    def set_threads(count: int) -> None:
        assert 1 <= count < 2**15

    create = Variant.create

    def create_small(self: Variant, channels: int) -> Any:
        sizes = [channels, *(v for v in self.options.values() if type(v) is int)]
        return None if max(sizes) > 4096 else create(self, channels)

    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(told):
        for name in work:
            patch.setattr(f"harness.{name}", reached)
        patch.setattr(torch, "set_num_threads", set_threads)
        patch.setattr(Variant, "create", create_small)
        patch.setattr(sys, "argv", [f"harness.{command}", *words])
        patch.chdir(tmp_path)
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as stop:
            module.main()
    lines = told.getvalue().splitlines()
    errors = [line for line in lines if not line.startswith("Decoding training images")]
    assert stop.value.code in (0, None) or (stop.value.code == 2 and len(errors) == 1), lines
    assert all(line.startswith("error: ") for line in errors)
    assert not list(tmp_path.iterdir())


def assert_runnable(config: RunConfig) -> None:
    """It has an id, can be written as JSON, and has a rate and random numbers for each step."""
    assert config.run_id
    json.dumps(config.setting, allow_nan=False)
    for step in (0, config.steps - 1):
        assert 0 <= learning_rate(config, step) < math.inf
    np.array([config.seed, 0], dtype=np.uint64)
    torch.Generator().manual_seed(config.seed + 2**32)


@fuzz
@given(content=mutated(b'{"variant": {"name": "none"}, "config": {"seed": 0}}'))
@example(content=b"[" * 100_000)
def test_any_configuration_of_a_runs_folder(content: bytes, tmp_path: Path) -> None:
    """The run is another one's, or unreadable; it is never taken up."""
    config = make_config()
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError) as refused:
        _claim(tmp_path, config)
    check_message(refused.value, tmp_path)


NUMBERS = {
    f.name: f.type
    for f in (*dataclasses.fields(RunConfig), *dataclasses.fields(NetworkConfig))
    if f.type in ("int", "float", "int | None")
}


@fuzz
@given(name=st.sampled_from(sorted(NUMBERS)), value=numbers)
def test_any_number_in_a_configuration(name: str, value: float) -> None:
    if NUMBERS[name] != "float" and not isinstance(value, int):
        return  # the command line gives no float here
    with taken_or_refused():
        assert_runnable(make_config(**{name: value}))


# -- files ----------------------------------------------------------------------------------------


def encoded(image_format: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, image_format)
    return buffer.getvalue()


KINDS = "PNG RGB, PNG P, PNG RGBA, WEBP RGB, JPEG RGB, JPEG L, BMP RGB, BMP 1"
IMAGES = [encoded(*kind.split()) for kind in KINDS.split(", ")]


@fuzz
@given(content=st.one_of([mutated(image) for image in IMAGES]))
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_any_image(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with taken_or_refused(path):
        image = read_image(path)
        assert (image.dtype, image.ndim, image.shape[2]) == (np.uint8, 3, 3)


STATE = Checkpoint(3, {"config": "abc", "log": [[1, 0.5]]}, {"network.a": torch.arange(6.0)})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A state, weights and a pickled state dict, as they are written."""
    folder = tmp_path_factory.mktemp("written")
    save_weights(folder / "a", ENLA.build(), ENLA, "a")
    torch.save({"head.0.weight": torch.ones(2, 3)}, folder / "b")
    return {
        "state": save_checkpoint(folder, STATE).read_bytes(),
        "weights": (folder / "a").read_bytes(),
        "pickle": (folder / "b").read_bytes(),
    }


@fuzz
@given(data=st.data())
def test_any_saved_state(written: dict[str, bytes], data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "state-000000003.safetensors"
    path.write_bytes(data.draw(mutated(written["state"])))
    with taken_or_refused(path):
        found = load_checkpoint(tmp_path)
        assert found is None or (found.step, found.content) == (STATE.step, STATE.content)
        assert found is None or torch.equal(*(s.tensors["network.a"] for s in (found, STATE)))


@fuzz
@given(data=st.data())
def test_any_pickled_weights(
    written: dict[str, bytes], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data.draw(mutated(written["pickle"])))
    with taken_or_refused(path):
        assert all(isinstance(value, torch.Tensor) for value in read_state_dict(path).values())


@fuzz
@given(data=st.data())
def test_any_bytes_as_weights(
    written: dict[str, bytes], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "a.safetensors"
    # The header is short beside the tensors, and is where the faults are.
    content = written["weights"]
    header = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(data.draw(mutated(content[:header])) + content[header:])
    with taken_or_refused(refusals=REFUSALS):
        load_weights(path)


@fuzz
@given(data=st.data(), value=anything)
def test_any_architecture_in_the_header(data: st.DataObject, value: Any, tmp_path: Path) -> None:
    content = ENLA.to_dict()
    change_one(content, value, data)
    tensors = ENLA.build().state_dict()
    header = {"network": json.dumps({"name": "a", "architecture": content})}
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}, metadata=header))
    with taken_or_refused(refusals=REFUSALS):
        load_weights(path)


RECORDS = [
    *(synthetic.run(name, seed) for name in ("Baseline", "NLA") for seed in (0, 1)),
    synthetic.cost("NLA", 25.6),
    synthetic.latency([synthetic.latency_row("NLA", 12.0)]),
    synthetic.speed([synthetic.speed_row("core-nla-100", 12.0, 3.0)]),
    synthetic.approximation("enlca-k2"),
    synthetic.scaling({"NLA": (2.0, 1.0)}),
]


@slow_fuzz
@given(data=st.data(), value=anything, index=st.integers(0, len(RECORDS) - 1))
def test_any_record_with_a_fitting_hash(
    data: st.DataObject, value: Any, index: int, tmp_path: Path
) -> None:
    """Somebody else's program may have written it: tables come out, or one line says why not."""
    contents = [untyped(record) for record in RECORDS]
    change_one(contents[index], value, data)
    shutil.rmtree(tmp_path / "records", ignore_errors=True)
    for record, content in zip(RECORDS, contents, strict=True):
        path = record_path(tmp_path, type(record), record.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ValueError):  # what holds NaN has no hash
            content["sha256"] = digest(content)
        path.write_text(json.dumps(content))
    with taken_or_refused():
        write_tables(tmp_path)


HASHES = {
    "MANIFEST.csv": b"path,width,height,bytes,sha256\nTiny/HR/e0.png,60,48,9,0a\n",
    "LR_bicubic_pixels.csv": b"set,image,scale,width,height,channels,sha256_of_uint8_pixels\n"
    b"Tiny,e0,4,15,12,3,0a\nTiny,e0,2,30,24,1,0a\n",
}


@slow_fuzz
@given(data=st.data())
@pytest.mark.parametrize("name", HASHES)
def test_any_list_of_hashes(
    name: str, data: st.DataObject, image_folder: Path, tmp_path: Path
) -> None:
    """``harness.data verify`` checks by it, or says what is wrong with it."""
    image = image_folder / "Tiny" / "HR" / "e0.png"
    path = tmp_path / "Tiny" / "HR" / image.name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, path)
    (tmp_path / name).write_bytes(data.draw(mutated(HASHES[name])))
    source = find_data(tmp_path)
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), taken_or_refused():
        verify_files(source.root, source.train, source.test, side=112)


@fuzz
@given(data=st.data(), value=anything)
def test_any_index_of_the_image_cache(
    data: st.DataObject, value: Any, source: DataSource, tmp_path: Path
) -> None:
    """It is taken as it was written, or made again; the images are the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SR_CACHE", str(tmp_path))
        expected = source.training_images(4).sha256
        (path,) = tmp_path.glob("*.json")
        index = json.loads(path.read_text())
        place: Any = data.draw(st.sampled_from([index, *index["images"]]))
        place[data.draw(st.sampled_from(sorted(place)))] = value
        path.write_text(json.dumps(index))
        assert source.training_images(4).sha256 == expected
