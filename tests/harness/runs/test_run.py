"""The main job as a command: records, weights and tables, and what it refuses."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.base.errors import UserError
from harness.config.options import describe_command
from harness.measuring import latency
from harness.records.shapes import Cost, Latency, Run, untyped
from harness.records.store import load_records
from harness.runs.run import _claim
from tests.harness.conftest import Cli, write_image, write_images
from tests.harness.tiny import make_config


@pytest.fixture
def job(tiny: list[str]) -> list[str]:
    return [*tiny, "--skip-latency"]


@pytest.fixture
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runs.run.LATENCY_SECONDS", 0.01)


def table(cli: Cli, results: Path, name: str) -> list[dict[str, str]]:
    """Rows of a table that ``harness.tables`` makes from the records."""
    cli("tables", "--results", results)
    path = results / "tables" / f"{name}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(paths: Iterable[Path]) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in paths}


@pytest.mark.usefixtures("quick_timing")
def test_main_job_leaves_records_and_prints_a_table(
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    tiny: list[str],
    results: Path,
    image_folder: Path,
) -> None:
    words = ["--attn", "enlca", "--m", "16", *tiny]
    printed = cli("run", *words).out
    assert "ENLCA-m16" in printed
    assert "bicubic" in printed
    *_, last, times = printed.splitlines()
    assert last.endswith(f"tables: python -m harness.tables --results {results}")
    assert re.search("start-up .* counting .* training .* evaluation .* timing .* rest", times)

    (record,) = load_records(results, Run)
    assert record.variant.options["m"] == 16
    assert record.config.data.name == image_folder.name
    assert [row.name for row in record.quality["Tiny"].images] == ["e0", "e1"]
    assert record.training.log[-1][0] == 3
    assert str(image_folder) not in json.dumps(untyped(record))
    (cost,) = load_records(results, Cost)
    assert round(cost.parts.core.paper_gflops, 2) == 0.08
    (timed,) = load_records(results, Latency)
    assert {row.variant.label for row in timed.rows} == {"NLA", "ENLCA-m16"}

    folder = results / "runs" / record.id
    weights = load_file(folder / "weights.safetensors")
    assert sum(v.numel() for k, v in weights.items() if "projection" not in k) > 1000
    assert not (folder / "state.safetensors").exists()

    # The same command again trains nothing and changes nothing.
    runs = results / "records" / "runs"
    before = contents(runs.iterdir())
    monkeypatch.setattr("harness.runs.run.Trainer", None)
    told = " ".join(cli("run", *words, "--skip-latency").out.split())
    assert "ENLCA-m16 seed 0 is finished: 20" in told
    assert f"records/runs/{record.id}.json; another --results" in told
    assert before == contents(runs.iterdir())

    # And the tables come out of the records alone.
    assert table(cli, results, "table4")
    written = {p.name for p in (results / "tables").rglob("*.csv")}
    assert {"table6.csv", "quality.csv"} <= written
    assert any(name.startswith("table5") for name in written)


@pytest.mark.usefixtures("quick_timing")
@pytest.mark.parametrize("busy", [0.0, 0.5])
def test_a_finished_job_reads_its_times(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tiny: list[str], results: Path, busy: float
) -> None:
    """Unless other processes were busy meanwhile, or the machine or command is another."""
    monkeypatch.setattr("harness.measuring.latency.watch_load", lambda: lambda: busy)
    timed = latency.measure
    monkeypatch.setattr(
        latency, "measure", lambda *args, **named: timed(*args, **named | {"sizes": ((8, 8),)})
    )
    words = ["--attn", "conv", *tiny]
    cli("run", *words)
    (first,) = load_records(results, Latency)
    again = cli("run", *words).out
    assert ("Timed before: read from" in again) == (busy == 0.0)
    assert len(load_records(results, Latency)) == (1 if busy == 0.0 else 2)
    cli("run", *words, "--seeds", 1)
    assert first in load_records(results, Latency)
    assert len(load_records(results, Latency)) == (2 if busy == 0.0 else 3)


def test_a_users_manga109_joins_table_1(
    cli: Cli, job: list[str], results: Path, tmp_path: Path, image_folder: Path
) -> None:
    """The set is not free to pass on; a folder of its name is measured and stands in its column."""
    folder = shutil.copytree(image_folder, tmp_path / "images")
    (folder / "Tiny").rename(folder / "Manga109")
    cli("run", *job, "--attn", "none", "enlca", "--scale", "2", "--data", folder)
    found = table(cli, results, "table1")
    rows = {r["method"]: r for r in found if r["test_set"] == "Manga109"}
    assert rows["ENLCN"]["psnr_db_paper"] == "39.64"
    measured = {m: r["psnr_db_measured"] for m, r in rows.items() if r["source"] == "measured"}
    assert measured.keys() == {"Baseline", "ENLCA-m128"}
    for record in load_records(results, Run):
        psnr = float(measured[record.variant.label])
        assert psnr == pytest.approx(record.quality["Manga109"].psnr, abs=1e-4)


def test_several_modules_and_seeds(cli: Cli, job: list[str], results: Path) -> None:
    cli("run", *job, "--attn", "none", "enla", "conv", "--m", "4", "--seeds", "0", "1")
    found = {(r.variant.label, r.config.seed) for r in load_records(results, Run)}
    assert found == {(n, s) for n in ("Baseline", "ENLA-m4", "Conv") for s in (0, 1)}


def test_the_rows_of_a_table(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, job: list[str], results: Path
) -> None:
    words = [*job, "--steps", "2"]
    cli("run", "--rows", "table2", *words)
    found = {(r.variant.name, r.variant.options.get("k")) for r in load_records(results, Run)}
    assert found == {("none", None), *((n, k) for n in ("enla", "enlca") for k in (1.0, 6.0))}

    # A row that another table shares is not trained again.
    monkeypatch.setattr("harness.runs.run.Trainer", None)
    cli("run", "--attn", "enlca", "--k", "1", *words)
    cli("run", "--attn", "none", "enla", "enlca", *words)

    rows = table(cli, results, "table2")
    assert [row["psnr_db_paper"] for row in rows] == ["32.21", "32.37", "32.44", "32.41", "32.48"]
    measured = [r.quality["Tiny"].psnr for r in load_records(results, Run)]
    printed = sorted(float(row["psnr_db_measured"]) for row in rows)
    assert printed == pytest.approx(sorted(measured))
    assert {row["test_set"] for row in rows} == {"Tiny"}
    assert not list((results / "tables").rglob("table[13].csv"))


@pytest.mark.usefixtures("quick_timing")
@pytest.mark.usefixtures("quick_timing")
def test_skip_training_needs_no_images(cli: Cli, results: Path) -> None:
    """And an option of zero is given."""
    words = ["--attn", "conv", "--skip-training", "--block-res-scale", "0", "--results", results]
    assert "0.74" in cli("run", *words).out
    assert load_records(results, Run) == []
    assert len(load_records(results, Cost)) == 1
    (timed,) = load_records(results, Latency)
    assert timed.settings.network["block_res_scale"] == 0.0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--attn", "nonlocal"], ["unknown attention 'nonlocal'", "nlsa"]),
        (["--attn", "nlsa", "--m", "16"], ["nlsa has no option --m", "--rounds", "--chunk-size"]),
        (["--attn", "enlca", "--m", "0"], ["m must be at least 1, got 0"]),
        (["--attn", "enlca", "--m", "99999999999"], ["m must be at most 65536"]),
        (["--attn", "enlca", "--m", "x"], ["--m", "x"]),
        (["--attn"], ["--attn needs a name"]),
        (["--attn", "nla", "--rows", "table4"], ["either --attn or --rows"]),
        (["--rows", "table4", "--m", "3"], ["--m", "--rows"]),
        (["--rows", "table9"], ["table9"]),
        (["--wrong", "1"], ["unknown option --wrong"]),
        (["--preset", "huge"], ["unknown preset 'huge'", "quick"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
        (["--threads", "0"], ["threads"]),
        (["--seeds"], ["--seeds"]),
        (["--seeds", "-1"], ["seed must be 0 to 4294967295, got -1"]),
        (["--save-every", "nan"], ["--save-every must be at least 0 seconds, got nan"]),
        (["--data", "/nowhere/at/all"], ["/nowhere/at/all does not exist"]),
        (["--scale", "5"], ["scale"]),
        (["--test-sets", "Urban10"], ["Urban10"]),
        (["--steps", "0"], ["steps must be at least 1"]),
        (["--attn", "no_such_package:Thing"], ["cannot import 'no_such_package'"]),
        (["--attn", "torch.nn:Linear"], ["the option out_features needs a default"]),
        (["--protocol", "cold"], ["--protocol"]),
        (["--start-steps", "4"], ["--start-steps applies only to --protocol warm-start"]),
        (["--protocol", "warm-start", "--start-steps", "0"], ["steps must be at least 1"]),
        (["--patch", "200"], ["200", "t0.png"]),
        (["--precision", "tf32"], ["--precision tf32 needs a CUDA device", "not cpu: use float32"]),
    ],
)
def test_bad_words_are_refused_in_one_line(
    words: list[str], told: list[str], cli: Cli, results: Path, image_folder: Path
) -> None:
    line = cli.refused("run", "--data", image_folder, "--results", results, *words)
    for word in told:
        assert word in line
    assert not results.exists()


SPOILS: dict[str, tuple[Callable[[Path], object], str]] = {
    "broken": (lambda hr: (hr / "e1.png").write_bytes(b"no image"), "cannot read the image"),
    "too small": (lambda hr: write_image(hr / "e1.png", 18, 60, 0), "e1.png is 60x18: x4 needs 20"),
    "twice": (
        lambda hr: write_image(hr / "e0.jpg", 48, 60, 0),
        "has both e0.jpg and e0.png: rename",
    ),
    "no sets": (shutil.rmtree, "images has no test sets: put images into <Set>/HR/"),
    "LR size": (
        lambda hr: [
            write_image(hr.parent / "LR_bicubic" / "X4" / f"{name}x4.png", height, 15, 0)
            for name, height in (("e0", 9), ("e1", 12))
        ],
        "e0x4.png is 15x9, which does not fit",
    ),
    "LR twice": (
        lambda hr: [
            write_image(hr.parent / "LR_bicubic" / "X4" / f"e0x4.{ending}", 12, 15, 0)
            for ending in ("png", "bmp")
        ],
        "has both e0x4.bmp and e0x4.png, LR images of e0.png: remove one",
    ),
}


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize("what", SPOILS)
def test_all_inputs_are_checked_before_the_first_step(
    what: str, command: str, cli: Cli, tiny: list[str], results: Path, tmp_path: Path
) -> None:
    spoil, message = SPOILS[what]
    folder = write_images(tmp_path / "images")
    spoil(folder / "Tiny" / "HR")
    assert message in cli.refused(command, *tiny, "--attn", "none", "--data", folder)
    assert not results.exists()


def test_the_place_of_the_record_is_checked_before_the_first_step(
    cli: Cli, tiny: list[str], results: Path
) -> None:
    results.mkdir()
    (results / "records").write_text("no folder")
    line = cli.refused("run", *tiny, "--attn", "none", "--skip-latency")
    assert f"cannot write into {results / 'records' / 'runs'}" in line
    assert not [*results.glob("runs/[!.]*")]


def test_sets_have_one_order_and_seeds_no_repetition(
    cli: Cli, job: list[str], results: Path, tmp_path: Path
) -> None:
    folder = write_images(tmp_path / "images")
    shutil.copytree(folder / "Tiny", folder / "Set5")
    words = [*job, "--attn", "none", "--data", folder]
    cli("run", *words, "--test-sets", "Tiny", "Set5", "Tiny", "--seeds", "0", "0")
    for names in (["Set5", "Tiny"], ["Tiny", "Set5"], []):
        cli("run", *words, *(["--test-sets", *names] if names else []))
    (record,) = load_records(results, Run)
    assert record.config.data.test == list(record.quality) == ["Set5", "Tiny"]


def test_folder_of_another_configuration(tmp_path: Path) -> None:
    _claim(tmp_path, make_config())
    _claim(tmp_path, make_config())
    with pytest.raises(UserError, match=f"{tmp_path} holds a run of another configuration"):
        _claim(tmp_path, make_config(steps=7))


def test_a_warm_start_trains_every_variant_on_from_one_baseline(
    cli: Cli, job: list[str], results: Path, tmp_path: Path, image_folder: Path
) -> None:
    warm = [*job, "--protocol", "warm-start", "--start-steps", "4", "--learning-rate", "1e-9"]
    cli("run", "--attn", "none", "nla", *warm)
    records = {(r.config.protocol, r.variant.name): r for r in load_records(results, Run)}
    assert set(records) == {("scratch", "none"), ("warm-start", "none"), ("warm-start", "nla")}
    start = records["scratch", "none"]
    assert start.config.steps == 4
    assert not start.config.start
    assert records["warm-start", "nla"].config.start.steps == 4
    weights = {
        key: load_file(results / "runs" / r.id / "weights.safetensors")
        for key, r in records.items()
    }
    # At this rate nothing moves: both still have the baseline's backbone.
    for key in ("none", "nla"):
        for name, value in weights["scratch", "none"].items():
            torch.testing.assert_close(weights["warm-start", key][name], value, rtol=0, atol=1e-6)
    # Without its weights the baseline is trained again, to the same bits; its record stays.
    path = results / "runs" / start.id / "weights.safetensors"
    before = path.read_bytes()
    path.unlink()
    cli("run", "--attn", "conv", *warm)
    assert path.read_bytes() == before
    # Published weights stand in for those of a training here, if they are that run's.
    other = tmp_path / "other"
    published = other / "weights" / f"{start.id}.safetensors"
    record = Path("records", "runs", f"{start.id}.json")
    for source, copy in ((path, published), (results / record, other / record)):
        copy.parent.mkdir(parents=True)
        shutil.copyfile(source, copy)
    elsewhere = ["--attn", "nla", *warm, "--results", other]
    cli("run", *elsewhere)
    nla = Path("runs", records["warm-start", "nla"].id, "weights.safetensors")
    assert (other / nla).read_bytes() == (results / nla).read_bytes()
    assert not (other / "runs" / start.id).exists()
    shutil.copyfile(other / nla, published)
    shutil.rmtree(other / "runs")
    (other / "records" / "runs" / f"{nla.parent.name}.json").unlink()
    assert "holds the weights of nla-" in cli.refused("run", *elsewhere)
    # It is the run that the same options without a warm start give.
    cli("run", *job, "--attn", "none", "--steps", "4")
    assert len(load_records(results, Run)) == 4


def test_commands_hold_no_path_of_the_machine() -> None:
    words = ["--attn", "nla", "--data", "/home/someone/images", "--results=/home/someone/results"]
    command = describe_command("harness.run", [*words, "--image=a/b.png"])
    assert command == (
        "python -m harness.run --attn nla --data images --results=results --image=a/b.png"
    )
