"""Weight files build their own network again, strictly."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from harness.base.errors import UserError
from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.network.edsr import learned_weights
from harness.network.weights import (
    Architecture,
    exact_weights_path,
    find_weights,
    load_strictly,
    load_weights,
    save_weights,
    to_file,
    weights_path,
)
from tests.harness.conftest import Cli

ENLCA = Architecture(Variant("enlca", {"m": 4}), NetworkConfig(4, 8), 2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "enlca-m4-x" / "weights.safetensors"
    save_weights(path, ENLCA.build(seed=3), ENLCA, "enlca-m4-x")
    return path


def test_a_file_gives_the_same_network(saved: Path) -> None:
    trained = load_weights(saved)
    assert (trained.name, trained.label) == ("enlca-m4-x", "ENLCA-m4")
    assert trained.architecture.variant.resolved == ENLCA.variant.resolved
    assert not trained.network.training
    x = torch.rand(1, 3, 9, 11)
    torch.testing.assert_close(trained.network(x), ENLCA.build(seed=3).eval()(x), rtol=0, atol=0)


def test_range_and_positions_are_kept_and_older_files_have_none(saved: Path) -> None:
    other = dataclasses.replace(ENLCA, image_range=255.0, positions=(0, 3))
    path = saved.with_name("other.safetensors")
    save_weights(path, other.build(), other, "other")
    found = load_weights(path).architecture
    assert (found.image_range, found.positions) == (255.0, (0, 3))
    assert found == Architecture.from_dict(other.to_dict())


def test_learned_weights_are_kept_and_files_without_them_are_as_before(saved: Path) -> None:
    assert "learn_res_scale" not in ENLCA.to_dict()
    learned = dataclasses.replace(ENLCA, learn_res_scale=True)
    network = learned.build(seed=3)
    with torch.no_grad():
        for module in network.attention_modules:
            assert isinstance(module.res_scale, torch.Tensor)
            module.res_scale.fill_(0.25)
    path = saved.with_name("learned.safetensors")
    save_weights(path, network, learned, "learned")
    found = load_weights(path)
    assert found.architecture == Architecture.from_dict(learned.to_dict())
    assert learned_weights(found.network) == [0.25] * 5
    assert load_file(path)["attention.0.res_scale"].shape == ()
    with pytest.raises(UserError, match=r"attention\.0\.res_scale is missing"):
        load_strictly(learned.build(), load_file(saved), "file")
    with pytest.raises(ValueError, match="learn_res_scale must be true or false"):
        Architecture.from_dict(learned.to_dict() | {"learn_res_scale": "yes"})


def test_half_precision_takes_half_the_place(saved: Path, tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "half.safetensors"
    cli("convert --float16", "enlca-m4-x", path, "--results", tmp_path)
    assert path.stat().st_size < 0.7 * saved.stat().st_size  # the header stays as it is
    whole, half = load_weights(saved), load_weights(path)
    assert (half.name, half.architecture) == (whole.name, whole.architecture)
    for key, value in half.network.state_dict().items():
        exact = whole.network.state_dict()[key]
        assert value.dtype == exact.dtype
        torch.testing.assert_close(value, exact, rtol=2**-11, atol=2**-25)
    assert "exists already" in cli("convert --float16", saved, path, status=2).err
    other = tmp_path / "other.safetensors"
    assert "--float16 writes it in half" in cli("convert", saved, other, status=2).err
    words = ("convert --float16 --block-res-scale 0.1", saved, other)
    assert "--block-res-scale is read from" in cli(*words, status=2).err
    published = tmp_path / "weights" / "other.safetensors"
    published.parent.mkdir()
    published.write_bytes(saved.read_bytes())
    assert exact_weights_path(tmp_path, "other") == published
    published.write_bytes(path.read_bytes())
    own = tmp_path / "runs" / "other" / "weights.safetensors"
    assert (weights_path(tmp_path, "other"), exact_weights_path(tmp_path, "other")) == (
        published,
        own,
    )
    network = ENLCA.build()
    with torch.no_grad():
        network.head.bias.fill_(1e5)
    with pytest.raises(UserError, match=r"head\.bias has values above 65504"):
        save_weights(other, network, ENLCA, "large", half=True)
    assert not other.exists()


@pytest.mark.parametrize("size", ["blocks", "channels"])
@pytest.mark.parametrize("value", [-1, 0, True, 4.0, "4", None])
def test_sizes_that_no_network_has_are_refused(size: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{size} must be an integer of 1 or more"):
        Architecture.from_dict(ENLCA.to_dict() | {size: value})


@pytest.mark.parametrize("positions", [[-1], [5], ["1"], [True], [1.0], {"1": None}, "1", 1])
def test_a_module_at_no_place_of_the_network_is_refused(positions: Any) -> None:
    assert ENLCA.network.blocks == 4
    with pytest.raises((TypeError, ValueError)):
        Architecture.from_dict(ENLCA.to_dict() | {"positions": positions})


def test_a_file_of_something_else_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    nameless = saved.read_bytes().replace(b'\\"name\\": \\"enlca-', b'\\"nome\\": \\"enlca-')
    assert nameless != saved.read_bytes()
    for content, message in [
        (save({"a": torch.zeros(1)}), "does not say which network"),
        (nameless, "does not say which network"),
        (b"torn", "other.safetensors is cut off: it ends after 4 bytes; download or copy it"),
        (saved.read_bytes()[:-1], "is cut off: it ends after [0-9,]+ bytes"),
        (b"", "holds no weights: it is empty"),
        (b"no such file at all", "cannot read weights"),
        (b"<html>not found", "holds no weights: it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "holds no weights: it is a pointer"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            load_weights(path)
    with pytest.raises(UserError, match="no weights at"):
        load_weights(tmp_path / "nowhere.safetensors")


def test_loading_is_strict_and_names_every_tensor(saved: Path) -> None:
    tensors = load_file(saved)
    tensors["head.bias"] = torch.zeros(9)
    tensors["surplus"] = tensors.pop("tail.bias")
    with pytest.raises(
        UserError,
        match=r"tail\.bias is missing; surplus is surplus; head\.bias has shape \[9\], not \[8\]",
    ):
        load_strictly(ENLCA.build(), tensors, "file")
    tensors = {**ENLCA.build().state_dict(), "a\n\x1b[2J": torch.zeros(1)}
    with pytest.raises(UserError, match=r"network: 'a\\n\\x1b\[2J' is surplus$"):
        load_strictly(ENLCA.build(), tensors, "file")


def test_numbers_that_would_be_converted_silently_are_refused(saved: Path) -> None:
    tensors = load_file(saved)
    quantized = (tensors["head.weight"] * 100).to(torch.int8)
    for name, tensor, words in [
        ("head.weight", quantized, "file: head.weight is int8, not float32: save the weights as"),
        ("head.bias", torch.zeros(8, dtype=torch.complex64), "head.bias is complex64"),
        ("head.bias", torch.full((8,), torch.nan), "head.bias has values that are not finite"),
    ]:
        with pytest.raises(UserError, match=words):
            load_strictly(ENLCA.build(), tensors | {name: tensor}, "file")
    network = ENLCA.build()
    load_strictly(network, {name: t.half() for name, t in tensors.items()}, "file")
    assert torch.equal(network.head.weight, tensors["head.weight"].half().float())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_range", 0),
        ("image_range", "1"),
        ("block_res_scale", float("nan")),
        ("block_res_scale", "1"),
        ("blocks", 10**9),  # whose building would never end
    ],
)
def test_a_file_edited_by_hand_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    content = {"name": "x", "architecture": ENLCA.to_dict() | {key: value}}
    path = tmp_path / "edited.safetensors"
    tensors = to_file(ENLCA.build().state_dict())
    path.write_bytes(save(tensors, {"network": json.dumps(content)}))
    with pytest.raises(UserError, match="does not say which network"):
        load_weights(path)


def test_runs_are_found_by_the_beginning_of_their_id(saved: Path, tmp_path: Path) -> None:
    for name in ("enlca-m4-x", "enlca", str(saved), str(saved.parent)):
        assert find_weights(name, tmp_path) == saved
    with pytest.raises(UserError, match="finished runs there: enlca-m4-x"):
        find_weights("nla", tmp_path)
    save_weights(tmp_path / "runs" / "enlca-y" / "weights.safetensors", ENLCA.build(), ENLCA, "y")
    with pytest.raises(UserError, match=r"ambiguous \(enlca-m4-x, enlca-y\)"):
        find_weights("enlca", tmp_path)


def test_published_weights_are_found_where_the_run_was_not_trained_here(
    saved: Path, tmp_path: Path
) -> None:
    published = tmp_path / "weights" / "nla-z.safetensors"
    save_weights(published, ENLCA.build(), ENLCA, "nla-z")
    assert find_weights("nla", tmp_path) == weights_path(tmp_path, "nla-z") == published
    own = tmp_path / "runs" / "nla-z" / "weights.safetensors"
    save_weights(own, ENLCA.build(), ENLCA, "nla-z")
    assert find_weights("nla-z", tmp_path) == weights_path(tmp_path, "nla-z") == own
    assert weights_path(tmp_path, "none-w") == tmp_path / "runs" / "none-w" / saved.name
