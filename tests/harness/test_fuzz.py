"""Whatever is typed, configured or read: it is taken whole, or refused with a message.

``FUZZ_EXAMPLES=5000 pytest tests/harness/test_fuzz.py --hypothesis-show-statistics`` tries more.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from attention_zoo import AttentionError, find_attention, list_attentions
from harness import run
from harness.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from harness.config import PRESETS, PROTOCOLS, RunConfig, Variant, learning_rate
from harness.data import DataSource, find_data
from harness.edsr import build_network
from harness.errors import UserError
from harness.images import read_image
from harness.official import read_state_dict
from harness.options import parse
from harness.weights import Architecture, load_weights, save_weights
from tests.harness.tiny import make_config

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

numbers = (
    st.integers()
    | st.integers(-2, 9)
    | st.floats()
    | st.sampled_from([2**31, 2**63, 2**64, -(2**63), 1e308, 5e-324])
)


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with some bytes changed, put in or taken out, or cut, or anything else."""
    place = st.integers(0, len(content) - 1)
    edit = st.tuples(place, place.map(lambda i: i % 9), st.binary(max_size=9))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        out = content
        for start, gone, new in edits:
            out = out[:start] + new + out[start + gone :]
        return out

    flips = st.lists(st.tuples(place, st.integers(0, 7)), min_size=1, max_size=20)

    def flip(bits: list[tuple[int, int]]) -> bytes:
        out = bytearray(content)
        for at, bit in bits:
            out[at] ^= 1 << bit
        return bytes(out)

    edited = st.lists(edit, min_size=1, max_size=4).map(apply)
    return flips.map(flip) | edited | place.map(lambda n: content[:n]) | st.binary(max_size=99)


def check_message(error: Exception, *words: object) -> None:
    """A refusal is one line that names what is at fault."""
    text = str(error)
    assert text
    assert "\n" not in text
    assert all(str(word) in text for word in words)


# -- command line and configuration ---------------------------------------------------------------

OPTIONS = sorted(
    {"--" + f.name.replace("_", "-") for f in dataclasses.fields(run.Options)}
    | {
        "--" + option.replace("_", "-")
        for name in list_attentions()
        for option in find_attention(name).options()
    }
)
VALUES = st.one_of(
    numbers.map(str),
    st.sampled_from([*list_attentions(), *PRESETS, *PROTOCOLS, "table4", "all", "", "-", "--"]),
    st.text(max_size=6),
)


@pytest.fixture(scope="module")
def source(image_folder: Path) -> DataSource:
    return find_data(image_folder)


@settings(fuzz, max_examples=EXAMPLES // 3)  # the parser takes a tenth of a second
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
        options, variants = parse(run.Options, argv, "harness.run")
    except (UserError, AttentionError) as error:
        check_message(error)
        return
    except SystemExit as stop:
        if stop.code:  # --help exits with 0
            raise
        return
    for variant in variants:
        for seed in options.seeds:
            try:
                device = torch.device("cpu")
                config = run.configure(options, variant, seed, device, source, None)
            except (UserError, AttentionError) as error:
                check_message(error)
            else:
                assert_runnable(config)


def assert_runnable(config: RunConfig) -> None:
    """It has an id, can be written as JSON, and has a rate and random numbers for each step."""
    assert config.run_id
    json.dumps(config.setting, allow_nan=False)
    for step in (0, config.steps - 1):
        assert 0 <= learning_rate(config, step) < math.inf
    np.array([config.seed, 0], dtype=np.uint64)
    torch.Generator().manual_seed(config.seed + 2**32)


NUMBERS = [
    f.name for f in dataclasses.fields(RunConfig) if f.type in ("int", "float", "int | None")
]


@fuzz
@given(name=st.sampled_from(NUMBERS), value=numbers)
def test_any_number_in_a_configuration(name: str, value: float) -> None:
    whole = "float" not in str(RunConfig.__dataclass_fields__[name].type)
    if whole and not isinstance(value, int):
        return  # the command line gives no float here
    try:
        config = make_config(**{name: value})
    except UserError as error:
        check_message(error)
    else:
        assert_runnable(config)


# -- files ----------------------------------------------------------------------------------------


def encoded(image_format: str, mode: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, image_format)
    return buffer.getvalue()


IMAGES = [
    encoded(f, m)
    for f, m in [("PNG", "RGB"), ("PNG", "P"), ("PNG", "RGBA"), ("WEBP", "RGB"), ("JPEG", "RGB"),
                 ("JPEG", "L"), ("BMP", "RGB"), ("BMP", "1")]
]  # fmt: skip


@fuzz
@given(content=st.one_of([mutated(image) for image in IMAGES]))
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_any_image(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    try:
        image = read_image(path)
    except UserError as error:
        check_message(error, path)
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


STATE = Checkpoint(3, {"config": "abc", "log": [[1, 0.5]]}, {"network.a": torch.arange(6.0)})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A state, weights and a pickled state dict, as they are written."""
    folder = tmp_path_factory.mktemp("written")
    architecture = Architecture(Variant("enla", {"m": 2}), 4, 4, 2)
    save_weights(folder / "a", architecture.build(), architecture, "a")
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
    try:
        found = load_checkpoint(tmp_path)
    except UserError as error:
        check_message(error, path)
    else:
        assert found is None or (found.step, found.content) == (STATE.step, STATE.content)
        assert found is None or torch.equal(*(s.tensors["network.a"] for s in (found, STATE)))


@fuzz
@given(data=st.data())
def test_any_pickled_weights(
    written: dict[str, bytes], data: st.DataObject, tmp_path: Path
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(data.draw(mutated(written["pickle"])))
    try:
        found = read_state_dict(path)
    except UserError as error:
        check_message(error, path)
    else:
        assert all(isinstance(value, torch.Tensor) for value in found.values())


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
    try:
        load_weights(path)
    except (UserError, AttentionError) as error:
        check_message(error)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@fuzz
@given(data=st.data(), value=anything)
def test_any_architecture_in_the_header(data: st.DataObject, value: Any, tmp_path: Path) -> None:
    content = Architecture(Variant("enla", {"m": 2}), 4, 4, 2).to_dict()
    place: dict[str, Any] = content
    while isinstance(place[key := data.draw(st.sampled_from(sorted(place)))], dict):
        if not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    tensors = build_network(Variant("enla", {"m": 2}), blocks=4, channels=4, scale=2).state_dict()
    header = {"network": json.dumps({"name": "a", "architecture": content})}
    path = tmp_path / "a.safetensors"
    path.write_bytes(save({k: v.contiguous() for k, v in tensors.items()}, metadata=header))
    try:
        load_weights(path)
    except (UserError, AttentionError) as error:
        check_message(error)


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
