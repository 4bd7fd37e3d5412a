"""``harness.evaluate`` and its like with weights of other tasks on images than bicubic sr."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

from harness.config.network import NetworkConfig, quarters
from harness.config.variants import Variant
from harness.images import metrics
from harness.images.degradation import grey
from harness.images.files import read_image
from harness.images.sources import TestImage, find_data
from harness.measuring.quality import evaluate, restore
from harness.network.weights import Architecture, load_weights, save_weights
from harness.records.shapes import Run, untyped
from harness.records.store import load_record, save_record
from harness.tasks.denoise import Denoise
from harness.tasks.images import ImageTask
from harness.tasks.sr import SuperResolution
from tests.harness.conftest import Cli, copied, train

TINY = ["--channels", "8", "--steps", "2", "--batch", "2"]
#: By label: what trains a baseline, and how its run's id begins.
RUNS = {
    "denoise": ("--task denoise --sigma 25 --blocks 4 --patch 8", "baseline-denoise"),
    "nearest": ("--degradation nearest --noise 10 --blocks 4 --patch 8", "baseline-sr"),
    "sr": ("--blocks 4 --patch 8", "baseline-quick"),
    "recall": ("--task recall --blocks 2", "baseline-recall"),
}
NEAREST = {"degradation": "nearest", "noise": 10.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Results of a baseline of each task."""
    results = tmp_path_factory.mktemp("trained")
    more = f"{' '.join(TINY)} --attn none"
    lines = [
        f"{line} {more}{'' if 'task' in line else ' --skip-latency'}" for line, _ in RUNS.values()
    ]
    train(results, *(f"{line} {more}" for line in lines), data=image_folder)
    return results


@pytest.fixture
def results(trained: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return copied(trained, tmp_path)


def identifier(results: Path, label: str) -> str:
    (folder,) = (results / "runs").glob(f"{RUNS[label][1]}*")
    return folder.name


def evaluated(cli: Cli, results: Path, images: Path, line: str) -> tuple[dict[str, Any], str]:
    """The file that a command writes, and what it prints, in one line."""
    path = results / "out.json"
    words = ("--results", results, "--data", images, "--output", path)
    printed = cli(f"evaluate {line}", *words).out
    return json.loads(path.read_text()), " ".join(printed.split())


@pytest.mark.parametrize("source", ["the record", "config.json"])
@pytest.mark.parametrize("label", ["denoise", "nearest"])
def test_without_a_task_it_is_the_runs_own_with_the_same_quality(
    label: str, source: str, cli: Cli, results: Path, image_folder: Path
) -> None:
    name = identifier(results, label)
    record = load_record(results, Run, name)
    if source == "config.json":
        (results / "records" / "runs" / f"{name}.json").unlink()
    else:
        (results / "runs" / name / "config.json").unlink()
    found, printed = evaluated(cli, results, image_folder, f"--weights {name}")
    assert found["quality"] == {one: untyped(x) for one, x in record.quality.items()}
    options = {"sigma": 25.0} if label == "denoise" else NEAREST
    task = {"name": "denoise" if label == "denoise" else "sr", "options": options}
    assert (found["task"], found["trained_on"]) == (task, task)
    beside = record.quality["Tiny"]
    if label == "denoise":
        assert "task denoise (sigma 25)" in printed
        assert "noisy images" in printed
        assert f"{beside.noisy_psnr:.2f} / {beside.noisy_ssim:.4f}" in printed
        assert not {"chop", "psnr"} & found.keys()
    else:
        assert "task sr (degradation nearest, noise 10)" in printed
        assert f"{beside.bicubic_psnr:.2f} / {beside.bicubic_ssim:.4f}" in printed


@pytest.mark.parametrize("source", ["the record", "config.json"])
def test_tiles_are_those_of_the_run_unless_others_are_named(
    source: str, cli: Cli, results: Path, image_folder: Path
) -> None:
    name = identifier(results, "denoise")
    whole = load_record(results, Run, name)
    if source == "the record":
        config = replace(whole.config, tile=16)
        save_record(results, replace(whole, config=config), replace=True)
    else:
        (results / "records" / "runs" / f"{name}.json").unlink()
        path = results / "runs" / name / "config.json"
        content = json.loads(path.read_text())
        content["config"]["tile"] = 16
        path.write_text(json.dumps(content))
    network = load_weights(results / "runs" / name / "weights.safetensors").network
    images = list(Denoise(None, find_data(image_folder), 1, sigma=25.0).test_set("Tiny"))
    expected = evaluate(network, images, len(images), 1, "test", 16, grey=True)
    assert any(row.tile == 16 for row in expected.images)
    found, printed = evaluated(cli, results, image_folder, f"--weights {name}")
    assert (found["tile"], found["quality"]) == (16, {"Tiny": untyped(expected)})
    assert "In tiles of 16, as the run was evaluated" in printed
    found, printed = evaluated(cli, results, image_folder, f"--weights {name} --tile 0")
    assert found["tile"] is None
    assert found["quality"] == {one: untyped(x) for one, x in whole.quality.items()}
    assert "In tiles" not in printed
    picture = image_folder / "Tiny" / "HR" / "e0.png"
    for word, tile in (("", 16), ("--tile 0", None)):
        out = results / f"{tile}.png"
        cli("upscale", picture, out, *f"--weights {name} {word} --results {results}".split())
        pixels = np.repeat(grey(read_image(picture))[..., None], 3, axis=-1)
        image = TestImage("e0", pixels, pixels)
        wanted, _ = restore(network, image, 1, tile, grey=True)
        assert np.array_equal(read_image(out), wanted)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '"x"', "{", '{"config": 3}', '{"config": {"tile": 5}}']
)
def test_a_task_can_be_named_whatever_stands_beside_the_weights(
    text: str, cli: Cli, results: Path, image_folder: Path
) -> None:
    name = identifier(results, "denoise")
    whole = load_record(results, Run, name)
    (results / "records" / "runs" / f"{name}.json").unlink()
    (results / "runs" / name / "config.json").write_text(text)
    line = f"--weights {name} --task denoise --sigma 25"
    found, _ = evaluated(cli, results, image_folder, line)
    assert found["tile"] is None
    assert found["quality"] == {one: untyped(x) for one, x in whole.quality.items()}


def test_saved_images_are_those_that_are_evaluated(
    cli: Cli, trained: Path, image_folder: Path, tmp_path: Path
) -> None:
    name = identifier(trained, "denoise")
    words = ("--results", trained, "--data", image_folder, "--save-images", tmp_path)
    first, second = (row.name for row in load_record(trained, Run, name).quality["Tiny"].images)
    (tmp_path / "Tiny").mkdir()
    (tmp_path / "Tiny" / f"{second}.png").write_text("mine")
    printed = cli(f"evaluate --weights {name} --every 2", *words).out
    assert "one image in 2" in " ".join(printed.split())
    assert {path.stem for path in (tmp_path / "Tiny").iterdir()} == {first, second}
    assert (tmp_path / "Tiny" / f"{second}.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("label", "line", "options"),
    [
        ("denoise", "--task denoise --sigma 60", {"sigma": 60.0}),
        ("sr", "--task sr --degradation nearest --noise 10", NEAREST),
        ("nearest", "--task sr --degradation box", {"degradation": "box", "noise": 0.0}),
        ("nearest", "--task sr", {"degradation": "bicubic", "noise": 0.0}),
    ],
)
def test_another_task_is_what_the_command_says(
    label: str, line: str, options: dict[str, Any], cli: Cli, trained: Path, image_folder: Path
) -> None:
    """The images are those of the task, whatever the network learned."""
    name = identifier(trained, label)
    found, printed = evaluated(cli, trained, image_folder, f"--weights {name} {line}")
    network = load_weights(trained / "runs" / name / "weights.safetensors").network
    source = find_data(image_folder)
    task: ImageTask = (
        Denoise(None, source, 1, **options)
        if label == "denoise"
        else SuperResolution(None, source, 4, **options)
    )
    images = list(task.test_set("Tiny"))
    expected = evaluate(network, images, len(images), task.scale, "test", grey=task.grey)
    assert found["quality"] == {"Tiny": untyped(expected)}
    assert found["task"] == {"name": task.name, "options": options}
    learned = {"denoise": ("denoise", {"sigma": 25.0}), "nearest": ("sr", NEAREST), "sr": None}
    trained_on = learned[label]
    assert found["trained_on"] == (trained_on and {"name": trained_on[0], "options": trained_on[1]})
    assert (
        f"task {task.name} ({', '.join(f'{k} {v}' for k, v in options.items()).replace('.0', '')})"
        in printed
    )


def test_bicubic_super_resolution_names_no_task(
    cli: Cli, trained: Path, image_folder: Path
) -> None:
    name = identifier(trained, "sr")
    found, printed = evaluated(cli, trained, image_folder, f"--weights {name}")
    assert list(found) == [
        *("kind", "name", "command", "machine", "architecture", "data", "tile", "chop", "psnr"),
        "quality",
    ]
    quality = load_record(trained, Run, name).quality
    assert found["quality"] == {one: untyped(x) for one, x in quality.items()}
    assert "task" not in printed
    # Naming the default changes nothing.
    again, same = evaluated(cli, trained, image_folder, f"--weights {name} --task sr")
    assert again | {"command": ""} == found | {"command": ""}
    assert same.partition(name)[2] == printed.partition(name)[2]  # less the progress


def test_a_file_alone_shows_whether_it_is_of_another_task(
    cli: Cli, trained: Path, tmp_path: Path, image_folder: Path
) -> None:
    """Else its network would be measured on bicubic images; a usual file counts as sr."""
    words = ("--results", tmp_path, "--data", image_folder)
    for label, task in [("denoise", "denoise"), ("nearest", "sr"), ("recall", "recall")]:
        path = tmp_path / f"{label}.safetensors"
        shutil.copy(trained / "runs" / identifier(trained, label) / "weights.safetensors", path)
        line = cli.refused(f"evaluate --weights {path}", *words)
        assert line.endswith("name the task it learned with --task")
        for command in ("redraws", "visual"):
            line = cli.refused(f"{command} --runs {path}", *words)
            assert "neither a record under" in line
            assert line.endswith("takes networks of super-resolution from bicubic LR images")
        if task != "recall":
            cli(f"evaluate --weights {path} --task {task}", *words)
    path = tmp_path / "sr.safetensors"
    shutil.copy(trained / "runs" / identifier(trained, "sr") / "weights.safetensors", path)
    cli(f"evaluate --weights {path}", *words)


def test_positions_of_converted_files_are_no_sign_of_a_task(
    cli: Cli, tmp_path: Path, image_folder: Path
) -> None:
    """The authors' files name positions only where they are unusual."""
    for places in (None, (0, 4)):
        architecture = Architecture(Variant("conv"), NetworkConfig(4, 8), 2, positions=places)
        path = tmp_path / "some.safetensors"
        save_weights(path, architecture.build(), architecture, "some")
        cli(f"evaluate --weights {path}", "--results", tmp_path, "--data", image_folder)
    assert quarters(4) != (0, 4)


@pytest.mark.parametrize("label", ["denoise", "nearest", "recall"])
def test_pictures_and_measurements_take_no_network_of_another_task(
    label: str, cli: Cli, trained: Path, image_folder: Path, tmp_path: Path
) -> None:
    name = identifier(trained, label)
    image = image_folder / "Tiny" / "HR" / "e0.png"
    learned = {
        "denoise": "denoise (sigma 25)",
        "nearest": "sr (degradation nearest, noise 10)",
        "recall": "recall (pairs 4, cells 6,",
    }
    line = f"maps --image {image} --at 1,1 --runs {name} --output {tmp_path / 'a'}"
    found = cli.refused(line, "--results", trained)
    if label == "recall":
        assert f"{name} learned task {learned[label]}" in found
        assert found.endswith("harness.maps takes networks of tasks on images")
    else:  # it is of a task on images
        assert found.endswith(f"run {name} (Baseline) has no weights over positions: leave it out")
    for command, line in [
        ("visual", f"--data {image_folder} --runs {name} --output {tmp_path / 'a'}"),
        ("redraws", f"--data {image_folder} --runs {name}"),
        ("approximation", f"--data {image_folder} --weights {name}"),
    ]:
        found = cli.refused(f"{command} {line}", "--results", trained)
        assert f"{name} learned task {learned[label]}" in found
        assert found.endswith(
            f"harness.{command} takes networks of super-resolution from bicubic LR images"
        )
    assert not list(tmp_path.iterdir())


def test_mistakes_are_one_line(cli: Cli, results: Path, image_folder: Path) -> None:
    sr, denoise, nearest, recall = (
        identifier(results, label) for label in ("sr", "denoise", "nearest", "recall")
    )
    for line, message in [
        (f"{sr} --task denoise", f"{sr} has scale 4, but task denoise has scale 1: give weights"),
        (f"{denoise} --task sr", f"{denoise} has scale 1, but task sr has scale 2 to 4: give"),
        (f"{recall} --task denoise", "has scale 2, but task denoise has scale 1"),
        (f"{denoise} --task denoise --sigma 0", "sigma must be 1 to 255, got 0"),
        (f"{denoise} --task denoise --noise 3", "task denoise has no option --noise (an option of"),
        (f"{denoise} --task denoise --psnr released", "--psnr applies only to super-resolution"),
        (f"{denoise} --chop", "--chop applies only to super-resolution"),
        (f"{sr} --degradation box", "--degradation is an option of sr: name the task with --task"),
        (f"{nearest} --task sr --degradation area", "area"),
        (f"{nearest} --test-sets Set99", "no test set in images"),
        (f"{sr} --output {image_folder}", f"--output {image_folder} is a folder: give a file"),
        (f"{sr} --save-images {__file__}", "test_evaluate_images.py is a file: give a folder"),
    ]:
        words = ("--results", results, "--data", image_folder)
        assert message in cli.refused(f"evaluate --weights {line}", *words)
    path = results / "runs" / denoise / "config.json"
    (results / "records" / "runs" / f"{denoise}.json").unlink()
    path.write_text(path.read_text().replace("sigma", "strength"))
    line = cli.refused(f"evaluate --weights {denoise}", *words)
    assert "task denoise has other options than when the weights were trained (no strength)" in line


@pytest.mark.parametrize("label", ["sr", "denoise"])
def test_saved_images_have_the_quality_that_is_printed(
    label: str, cli: Cli, trained: Path, image_folder: Path, tmp_path: Path
) -> None:
    line = f"--weights {identifier(trained, label)} --save-images"
    words = (tmp_path / "sr", "--data", image_folder, "--results", trained)
    output = ("--output", tmp_path / "out.json")
    assert f"Images: {tmp_path / 'sr'}" in cli(f"evaluate {line}", *words, *output).out
    found = json.loads((tmp_path / "out.json").read_text())["quality"]["Tiny"]["images"]
    assert sorted(path.stem for path in tmp_path.glob("sr/Tiny/*.png")) == ["e0", "e1"]
    for row in found:
        hr = read_image(image_folder / "Tiny" / "HR" / f"{row['name']}.png")
        with Image.open(tmp_path / "sr" / "Tiny" / f"{row['name']}.png") as image:
            assert image.mode == ("RGB" if label == "sr" else "L")
            saved = np.asarray(image)
        if label == "sr":
            psnr = metrics.quality(saved, hr, 4).psnr
        else:
            psnr = 10 * np.log10(255**2 / np.mean((saved.astype(float) - grey(hr)) ** 2))
        assert row["psnr"] == pytest.approx(psnr, abs=1e-5)
    taken = cli.refused(f"evaluate {line}", *words)
    assert "sr/Tiny/e0.png (and 1 more) exists: choose another --save-images" in taken
    cli(f"evaluate {line}", *words, "--overwrite")


def test_only_images_can_be_saved(cli: Cli, trained: Path, tmp_path: Path) -> None:
    words = ("--weights", identifier(trained, "recall"), "--results", trained)
    told = cli.refused("evaluate", *words, "--save-images", tmp_path / "sr")
    assert "--save-images applies only to tasks on images" in told
    words = ("--weights", identifier(trained, "sr"), "--results", trained)
    assert "--overwrite applies only to --save-images" in cli.refused(
        "evaluate", *words, "--overwrite"
    )
