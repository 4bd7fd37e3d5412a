"""``harness.upscale``: a user's own images, whatever they are called and wherever they lie."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from harness.config.network import NetworkConfig
from harness.config.variants import Variant
from harness.images.degradation import grey
from harness.images.files import read_image
from harness.images.saved import read_upright
from harness.measuring.quality import super_resolve
from harness.network.weights import Architecture, TrainedNetwork, load_weights, save_weights
from tests.harness.conftest import Cli, write_image


def weights(folder: Path, name: str, scale: int = 2, task: str | None = None) -> TrainedNetwork:
    """A run's folder with weights of random values, as training leaves it."""
    architecture = Architecture(Variant("enlca", {"m": 4}), NetworkConfig(4, 8), scale)
    network = architecture.build(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01)
    path = folder / "runs" / name / "weights.safetensors"
    path.parent.mkdir(parents=True)
    save_weights(path, network, architecture, name)
    options = {"denoise": {"sigma": 25.0}}.get(task or "", {})
    learned = {"task": {"name": task, "options": options}} if task else {}
    content = {"config": {"data": {"train_sha256": None}, **learned}}
    (path.parent / "config.json").write_text(json.dumps(content))
    return load_weights(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images in a folder and a sub-folder; beside them what is no image of a user's."""
    folder = tmp_path / "my photos"
    write_image(folder / "a [1].png", 20, 31, 0)
    write_image(folder / "b.v2.jpg", 17, 24, 1)
    write_image(folder / "sub" / "a [1].png", 24, 24, 2)
    write_image(folder / ".trash" / "c.png", 24, 24, 3)
    (folder / "notes.txt").write_text("no image")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(results: Path) -> TrainedNetwork:
    return weights(results, "mine")


@pytest.mark.usefixtures("run")
def test_a_folder_is_restored_as_it_lies(
    cli: Cli, photos: Path, results: Path, tmp_path: Path, run: TrainedNetwork
) -> None:
    out = tmp_path / "out"
    words = ("upscale", photos, out, "--weights", "mine", "--results", results)
    assert f"3 of 3 images restored: {out}" in cli(*words).out
    assert files(out) == {"a [1].png", "b.v2.png", "sub/a [1].png"}
    for source, target in (("b.v2.jpg", "b.v2.png"), ("sub/a [1].png", "sub/a [1].png")):
        expected = super_resolve(run.network, read_image(photos / source), 2)
        assert np.array_equal(read_image(out / target), expected)
    before = (out / "b.v2.png").read_bytes()
    assert "exists: choose another place, or give --overwrite" in cli.refused(*words)
    cli(*words, "--overwrite")
    assert (out / "b.v2.png").read_bytes() == before
    cli("upscale", photos, photos / "x4", *words[3:])  # inside the folder that is read
    cli("upscale", photos, photos / "x4", *words[3:], "--overwrite")
    assert files(photos / "x4") == files(out)


@pytest.mark.parametrize("name", ["mine", "its folder", "its file"])
def test_one_file_by_each_name_of_the_weights(
    name: str, cli: Cli, photos: Path, results: Path, tmp_path: Path, run: TrainedNetwork
) -> None:
    folder = results / "runs" / "mine"
    given = {"its folder": folder, "its file": folder / "weights.safetensors"}.get(name, name)
    words = ("--weights", given, "--results", results, "--tile", "16")
    cli("upscale", photos / "a [1].png", tmp_path / "big.png", *words)
    expected = super_resolve(run.network, read_image(photos / "a [1].png"), 2, tile=16)
    assert np.array_equal(read_image(tmp_path / "big.png"), expected)
    cli("upscale", photos / "a [1].png", photos / "b.v2.jpg", tmp_path / "two", *words)
    assert files(tmp_path / "two") == {"a [1].png", "b.v2.png"}


def test_a_photo_is_turned_as_its_camera_says(
    cli: Cli, results: Path, tmp_path: Path, run: TrainedNetwork
) -> None:
    write_image(tmp_path / "stored.png", 16, 24, 0)
    stored = Image.open(tmp_path / "stored.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    stored.save(tmp_path / "phone.png", exif=exif)
    cli("upscale", tmp_path / "phone.png", tmp_path / "out.png", "--weights", "mine",
        "--results", results)  # fmt: skip
    upright = np.rot90(np.asarray(stored), -1)
    assert np.array_equal(
        read_image(tmp_path / "out.png"),
        super_resolve(run.network, np.ascontiguousarray(upright), 2),
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exif", [b"garbage", b"MM\0*\0\0\0\x08\0\1\x01\x12\0\x02\0\0"])
def test_damaged_exif_data_turn_nothing(exif: bytes, tmp_path: Path) -> None:
    write_image(tmp_path / "stored.png", 16, 24, 0)
    with Image.open(tmp_path / "stored.png") as stored:
        stored.save(tmp_path / "phone.png", exif=exif)
        assert np.array_equal(read_upright(tmp_path / "phone.png"), np.asarray(stored))


def test_a_denoiser_takes_and_gives_grey(
    cli: Cli, photos: Path, results: Path, tmp_path: Path
) -> None:
    trained = weights(results, "denoiser", 1, "denoise")
    cli("upscale", photos / "a [1].png", tmp_path / "out.png", "--weights", "denoiser",
        "--results", results)  # fmt: skip
    noisy = np.repeat(grey(read_image(photos / "a [1].png"))[..., None], 3, axis=-1)
    tensor = torch.from_numpy(noisy).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        mean = trained.network(tensor).mean(1)[0].clamp(0, 1).mul(255).round().byte()
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == "L"
        assert np.abs(np.asarray(image).astype(int) - mean.numpy().astype(int)).max() <= 1


def test_what_cannot_be_read_is_named_and_the_rest_restored(
    cli: Cli, photos: Path, results: Path, tmp_path: Path, run: TrainedNetwork
) -> None:
    (photos / "broken.png").write_bytes((photos / "a [1].png").read_bytes()[:100])
    (photos / "link.png").symlink_to("nowhere.png")
    words = ("--weights", "mine", "--results", results)
    printed = cli("upscale", photos, tmp_path / "out", *words, status=1)
    assert "3 of 5 images restored" in printed.out
    assert f"left out: cannot read the image {photos / 'broken.png'}" in printed.err
    assert "broken.png" not in files(tmp_path / "out")


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["P", "--weights", "mine"], "give images and where the results go"),
        (["P", "OUT"], "give one of --weights RUN-OR-FILE and --official FILE"),
        (["P", "OUT", "--weights", "yours"], "no weights of run 'yours'"),
        (["P/nothing.png", "OUT", "--weights", "mine"], "no file or folder"),
        (["P/a [1].png", "OUT/x.jpg", "--weights", "mine"], "a name that ends in .png"),
        (["P", "P/notes.txt", "--weights", "mine"], "notes.txt is a file: give a folder"),
        (["P", "P", "--weights", "mine", "--overwrite"], "one of the images that are read"),
        (["P/a [1].png", "P/sub", "OUT", "--weights", "mine"], "would both become"),
        (["EMPTY", "OUT", "--weights", "mine"], "holds no image (.bmp, .jpeg, .jpg, .png, .webp)"),
        (["P", "OUT", "--weights", "mine", "--tile", "3"], "--tile must be at least 16"),
        (["P", "OUT", "--weights", "recaller"], "learned task recall"),
    ],
)
def test_mistakes_are_one_line_before_any_work(
    words: list[str], told: str, cli: Cli, photos: Path, results: Path, tmp_path: Path
) -> None:
    weights(results, "recaller", 1, "recall")
    (tmp_path / "empty").mkdir()
    places = {"P": photos, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    typed = [
        str(places[head]) + word.removeprefix(head) if (head := word.split("/")[0]) in places
        else word
        for word in words
    ]  # fmt: skip
    before = files(photos)
    assert told in cli.refused("upscale", *typed, "--results", results)
    assert files(photos) == before
    assert not (tmp_path / "out").exists()
