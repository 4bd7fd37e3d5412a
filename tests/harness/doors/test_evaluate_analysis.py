"""``harness.evaluate --self-similar --non-local-use``: printed, and added to the run's record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace

from harness.images.sources import find_data
from harness.measuring import analysis
from harness.measuring.analysis import Analysis
from harness.measuring.quality import evaluate
from harness.network.weights import load_weights
from harness.records.shapes import UNSET, ImageQuality, Run, untyped
from harness.records.store import load_record, load_records, save_record
from tests.harness.conftest import Cli, copied, train

TINY = "--channels 8 --blocks 4 --steps 2 --batch 2 --patch 8 --skip-latency"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, image_folder: Path) -> Path:
    """Results of a baseline and of NLA."""
    results = tmp_path_factory.mktemp("trained")
    train(results, f"{TINY} --attn none", f"{TINY} --attn nla", data=image_folder)
    return results


@pytest.fixture
def results(trained: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return copied(trained, tmp_path)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny images have no self-similar part that is large enough: here any part is."""
    monkeypatch.setattr(analysis, "LEAST_SHARE", 0.0)
    monkeypatch.setattr(analysis, "self_similar", lambda hr, *_: hr[..., 0] > 100)


def identifier(results: Path, name: str) -> str:
    (record,) = [one for one in load_records(results, Run) if one.variant.name == name]
    return record.id


def without(row: ImageQuality) -> ImageQuality:
    names = ("self_similar_psnr", "self_similar_share", "lost_as_mean", "lost_confined")
    return replace(row, **dict.fromkeys(names, UNSET))


def test_the_record_gets_what_is_measured_and_keeps_the_rest(
    cli: Cli, results: Path, image_folder: Path
) -> None:
    name = identifier(results, "nla")
    before = load_record(results, Run, name)
    words = ("--results", results, "--data", image_folder, "--output", results / "out.json")
    printed = cli(f"evaluate --weights {name} --self-similar --non-local-use", *words).out
    assert "lost confined" in printed
    assert f"Recorded: {results / 'records' / 'runs' / name}.json" in printed.replace("\n", "")
    after = load_record(results, Run, name)
    assert after.analysed is not None
    assert after.analysed.reach == 12
    assert after.analysed.rule["side"] == 7
    network = load_weights(results / "runs" / name / "weights.safetensors").network
    images = list(find_data(image_folder).test_set("Tiny", 4))
    measure = Analysis(network, 4, 12, False, True, True)
    wanted = evaluate(network, images, len(images), 4, "test", analyse=measure)
    assert after.quality == {"Tiny": wanted}
    assert any(row.lost_confined for row in wanted.images)
    assert all(row.self_similar_psnr for row in wanted.images)
    assert json.loads((results / "out.json").read_text())["quality"] == {"Tiny": untyped(wanted)}
    rows = [without(row) for row in after.quality["Tiny"].images]
    quality = {"Tiny": replace(after.quality["Tiny"], images=rows)}
    assert replace(after, quality=quality, analysed=None) == before


def test_a_second_analysis_adds_to_the_first(cli: Cli, results: Path, image_folder: Path) -> None:
    name = identifier(results, "none")
    for option in ("--self-similar", "--non-local-use"):
        cli(f"evaluate --weights {name} {option} --results", results, "--data", image_folder)
    record = load_record(results, Run, name)
    for row in record.quality["Tiny"].images:
        assert row.self_similar_psnr is not UNSET
        assert (row.lost_as_mean, row.lost_confined) == (0.0, 0.0)
    assert record.analysed is not None
    assert record.analysed.rule  # of the first
    assert "--non-local-use" in record.analysed.command


def test_some_images_can_be_measured_and_the_others_keep_what_they_have(
    cli: Cli, results: Path, image_folder: Path
) -> None:
    name = identifier(results, "nla")
    words = ("--results", results, "--data", image_folder)
    cli(f"evaluate --weights {name} --self-similar", *words)
    before = load_record(results, Run, name).quality["Tiny"]
    found = results / "out.json"
    line = f"evaluate --weights {name} --non-local-use --every 2 --output {found}"
    assert "Recorded" in cli(line, *words).out
    after = load_record(results, Run, name).quality["Tiny"]
    assert len(before.images) >= 2
    assert all(row.self_similar_psnr is not UNSET for row in after.images)
    lost = [row.lost_confined is not UNSET for row in after.images]
    assert lost == [i % 2 == 0 for i in range(len(lost))]
    content = json.loads(found.read_text())
    assert content["every"] == 2
    assert [row["name"] for row in content["quality"]["Tiny"]["images"]] == [
        row.name for row in before.images[::2]
    ]
    assert "--every must be at least 1" in cli.refused(f"{line} --every 0", *words)


def test_fewer_images_are_not_recorded_unless_they_are_asked_for(
    cli: Cli, results: Path, image_folder: Path, tmp_path: Path
) -> None:
    name = identifier(results, "nla")
    shutil.copytree(image_folder, tmp_path / "images")
    names = [row.name for row in load_record(results, Run, name).quality["Tiny"].images]
    (tmp_path / "images" / "Tiny" / "HR" / f"{names[-1]}.png").unlink()
    line = f"evaluate --weights {name} --non-local-use --data {tmp_path / 'images'}"
    assert "there are other images" in cli(line, "--results", results).err


def test_a_part_by_another_rule_is_not_mixed_in(
    cli: Cli, results: Path, image_folder: Path
) -> None:
    name = identifier(results, "nla")
    words = (*f"--weights {name} --self-similar --results {results} --data".split(), image_folder)
    cli("evaluate", *words)
    record = load_record(results, Run, name)
    assert record.analysed is not None
    earlier = replace(record.analysed, rule=record.analysed.rule | {"side": 5})
    save_record(results, replace(record, analysed=earlier), replace=True)
    assert "has another rule" in cli("evaluate", *words, "--every", "2").err


@pytest.mark.parametrize("case", ["no record", "pixels", "psnr", "tile", "task", "set"])
def test_what_is_not_of_the_record_is_not_recorded(
    case: str, cli: Cli, results: Path, image_folder: Path
) -> None:
    name = identifier(results, "none")
    path = results / "records" / "runs" / f"{name}.json"
    record = load_record(results, Run, name)
    quality = record.quality["Tiny"]
    line = "--task sr --degradation box" if case == "task" else ""
    reason = {
        "no record": "there is no record",
        "pixels": "the images have other pixels",
        "psnr": "dB and here",
        "tile": "has tiles of 99 and here None",
        "task": "learned task sr",
        "set": "has no test set Tiny",
    }[case]
    if case == "no record":
        path.unlink()
    elif case == "pixels":
        quality = replace(quality, sha256="0" * 64)
    elif case in ("psnr", "tile"):
        first, *others = quality.images
        other = {"psnr": first.psnr + 0.02} if case == "psnr" else {"tile": 99}
        quality = replace(quality, images=[replace(first, **other), *others])
    if case == "set":
        config = replace(record.config, data=replace(record.config.data, test=["Other"]))
        record = replace(record, config=config, quality={"Other": quality})
    elif case != "no record":
        record = replace(record, quality={"Tiny": quality})
    if case != "no record":
        save_record(results, record, replace=True)
    words = ("--results", results, "--data", image_folder)
    printed = cli(f"evaluate --weights {name} --non-local-use {line}", *words)
    assert "lost as mean" in printed.out
    assert reason in printed.err
    if case != "no record":
        assert load_record(results, Run, name) == record


@pytest.mark.parametrize("option", ["--chop", "--psnr released"])
def test_options_that_exclude_each_other(
    option: str, cli: Cli, trained: Path, image_folder: Path
) -> None:
    name = identifier(trained, "none")
    words = ("--results", trained, "--data", image_folder)
    printed = cli(f"evaluate --weights {name} --self-similar {option}", *words, status=2)
    assert f"{option} excludes --self-similar and --non-local-use" in printed.err
