from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness import run, tables
from harness.config.options import describe_command
from harness.records.shapes import Cost, Latency, Run, untyped
from harness.records.store import load_records

TINY = ["--blocks", "4", "--channels", "8", "--steps", "3", "--batch", "2", "--patch", "8"]


def run_main(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["harness.run", *map(str, words)])
    run.main()


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path
) -> str:
    """The one line that a refused command prints; its status is 2."""
    with pytest.raises(SystemExit) as stop:
        run_main(monkeypatch, *words)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: ")
    # Nothing but a progress bar may stand before it.
    assert all(line.startswith("Decoding training images") for line in lines[:-1]), lines
    return lines[-1]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting and timing are tested elsewhere and take seconds."""
    monkeypatch.setattr("harness.runs.run.LATENCY_SECONDS", 0.01)


def test_main_job_leaves_records_and_prints_a_table(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
    quiet: None,
) -> None:
    words = ["--attn", "enlca", "--m", "16", *TINY, "--data", image_folder, "--results", tmp_path]
    run_main(monkeypatch, *words)
    printed = capsys.readouterr().out
    assert "ENLCA-m16" in printed
    assert "bicubic" in printed

    (record,) = load_records(tmp_path, Run)
    assert record.variant.options["m"] == 16
    assert record.config.data.name == image_folder.name
    assert [row.name for row in record.quality["Tiny"].images] == ["e0", "e1"]
    assert record.training.log[-1][0] == 3
    assert str(image_folder) not in json.dumps(untyped(record))
    (cost,) = load_records(tmp_path, Cost)
    assert round(cost.parts.core.paper_gflops, 2) == 0.08
    (timed,) = load_records(tmp_path, Latency)
    assert {row.variant.label for row in timed.rows} == {"NLA", "ENLCA-m16"}

    folder = tmp_path / "runs" / record.id
    weights = load_file(folder / "weights.safetensors")
    assert sum(v.numel() for k, v in weights.items() if "projection" not in k) > 1000
    assert not (folder / "state.safetensors").exists()

    # The same command again trains nothing and changes nothing.
    before = {p: p.read_bytes() for p in (tmp_path / "records" / "runs").iterdir()}
    monkeypatch.setattr("harness.runs.run.Trainer", None)
    run_main(monkeypatch, *words, "--skip-latency")
    told = " ".join(capsys.readouterr().out.split())
    assert "ENLCA-m16 seed 0 is finished: 20" in told
    assert f"records/runs/{record.id}.json; another --results" in told
    assert before == {p: p.read_bytes() for p in (tmp_path / "records" / "runs").iterdir()}

    # And the tables come out of the records alone.
    monkeypatch.setattr(sys, "argv", ["harness.tables", "--results", str(tmp_path)])
    tables.main()
    written = {p.name for p in (tmp_path / "tables").rglob("*.csv")}
    assert {"table4.csv", "table6.csv", "quality.csv"} <= written
    assert any(name.startswith("table5") for name in written)


def test_a_users_manga109_joins_table_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    """The set is not free to pass on; a folder of its name is measured and stands in its column."""
    folder = shutil.copytree(image_folder, tmp_path / "images")
    (folder / "Tiny").rename(folder / "Manga109")
    words = ["--attn", "none", "enlca", "--scale", "2", *TINY, "--skip-latency"]
    run_main(monkeypatch, *words, "--data", folder, "--results", tmp_path)
    monkeypatch.setattr(sys, "argv", ["harness.tables", "--results", str(tmp_path)])
    tables.main()
    (path,) = (tmp_path / "tables").rglob("table1.csv")
    with path.open() as file:
        rows = {r["method"]: r for r in csv.DictReader(file) if r["test_set"] == "Manga109"}
    assert rows["ENLCN"]["psnr_db_paper"] == "39.64"
    measured = {m: r["psnr_db_measured"] for m, r in rows.items() if r["source"] == "measured"}
    assert measured.keys() == {"Baseline", "ENLCA-m128"}
    for record in load_records(tmp_path, Run):
        psnr = float(measured[record.variant.label])
        assert psnr == pytest.approx(record.quality["Manga109"].psnr, abs=1e-4)


def test_same_command_same_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    records = []
    for place in ("a", "b"):
        words = ["--attn", "nlsa", *TINY, "--data", image_folder, "--results", tmp_path / place]
        run_main(monkeypatch, *words, "--skip-latency")
        (record,) = load_records(tmp_path / place, Run)
        records.append((record.id, record.quality, record.training.log))
    assert records[0] == records[1]


def test_several_modules_and_seeds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    words = ["--attn", "none", "enla", "conv", "--m", "4", "--seeds", "0", "1"]
    common = ["--data", image_folder, "--results", tmp_path, "--skip-latency"]
    run_main(monkeypatch, *words, *TINY, *common)
    records = load_records(tmp_path, Run)
    found = {(r.variant.label, r.config.seed) for r in records}
    assert found == {(n, s) for n in ("Baseline", "ENLA-m4", "Conv") for s in (0, 1)}


def test_the_rows_of_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path
) -> None:
    small = [*TINY, "--steps", "2", "--data", image_folder, "--results", tmp_path, "--skip-latency"]
    run_main(monkeypatch, "--rows", "table2", *small)
    found = {(r.variant.name, r.variant.options.get("k")) for r in load_records(tmp_path, Run)}
    assert found == {("none", None), *((n, k) for n in ("enla", "enlca") for k in (1.0, 6.0))}

    # A row that another table shares is not trained again.
    monkeypatch.setattr("harness.runs.run.Trainer", None)
    run_main(monkeypatch, "--attn", "enlca", "--k", "1", *small)
    run_main(monkeypatch, "--attn", "none", "enla", "enlca", *small)

    monkeypatch.setattr(sys, "argv", ["harness.tables", "--results", str(tmp_path)])
    tables.main()
    (path,) = (tmp_path / "tables").rglob("table2.csv")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["psnr_db_paper"] for row in rows] == ["32.21", "32.37", "32.44", "32.41", "32.48"]
    measured = {r.id: r.quality["Tiny"].psnr for r in load_records(tmp_path, Run)}
    assert sorted(float(row["psnr_db_measured"]) for row in rows) == pytest.approx(
        sorted(measured.values())
    )
    assert {row["test_set"] for row in rows} == {"Tiny"}
    assert not list((tmp_path / "tables").rglob("table[13].csv"))


def test_skip_training_needs_no_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--attn", "conv", "--skip-training", "--skip-latency", "--results", tmp_path]
    run_main(monkeypatch, *words)
    assert "0.74" in capsys.readouterr().out
    assert load_records(tmp_path, Run) == []
    assert len(load_records(tmp_path, Cost)) == 1


@pytest.mark.usefixtures("quiet")
def test_an_option_of_zero_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ["--attn", "conv", "--skip-training", "--results", tmp_path, "--block-res-scale", "0"]
    run_main(monkeypatch, *words)
    (record,) = load_records(tmp_path, Latency)
    assert record.settings.network["block_res_scale"] == 0.0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--attn", "nonlocal"], ["unknown attention 'nonlocal'", "nlsa"]),
        (["--attn", "nlsa", "--m", "16"], ["nlsa has no option --m", "--rounds", "--chunk-size"]),
        (["--attn", "enlca", "--m", "0"], ["m must be at least 1, got 0"]),
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
        (["--attn", "torch.nn:Linear"], ["not a subclass"]),
    ],
)
def test_bad_words_are_refused_in_one_line(
    words: list[str],
    told: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    line = refused(monkeypatch, capsys, *words, "--results", tmp_path / "results")
    for word in told:
        assert word in line
    assert not (tmp_path / "results").exists()


def test_bad_images_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "found no images" in refused(monkeypatch, capsys, "--data", empty)

    torn = tmp_path / "torn"
    source = image_folder / "train" / "Some" / "t0.png"
    (torn / "train" / "A").mkdir(parents=True)
    (torn / "train" / "A" / "torn.png").write_bytes(source.read_bytes()[:500])
    assert "torn.png" in refused(monkeypatch, capsys, "--data", torn)

    words = ["--data", image_folder, "--patch", "200", "--results", tmp_path / "results"]
    line = refused(monkeypatch, capsys, *words)
    assert "200" in line
    assert "t0.png" in line


def test_results_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    (tmp_path / "results").write_text("a file where a folder should be")
    words = [*TINY, "--data", image_folder, "--results", tmp_path / "results"]
    assert "cannot write" in refused(monkeypatch, capsys, *words)


def test_full_disk(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    """The error that a full disk gives comes at the sync of the temporary file."""

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    words = [*TINY, "--data", image_folder, "--results", tmp_path / "results"]
    run_main(monkeypatch, *words, "--skip-latency")  # the image cache is there now
    monkeypatch.setattr("os.fsync", no_space)
    line = refused(monkeypatch, capsys, *words, "--seeds", "5")
    assert "No space left on device" in line
    leftovers = [p for p in (tmp_path / "results").rglob("*") if p.name.endswith(".tmp")]
    assert leftovers == []


def test_folder_of_another_configuration(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    words = ["--attn", "none", *TINY, "--data", image_folder, "--results", tmp_path]
    run_main(monkeypatch, *words, "--skip-latency")
    (record,) = load_records(tmp_path, Run)
    (tmp_path / "records" / "runs" / f"{record.id}.json").unlink()
    path = tmp_path / "runs" / record.id / "config.json"
    content: dict[str, Any] = json.loads(path.read_text())
    content["config"]["steps"] = 4
    path.write_text(json.dumps(content))
    line = refused(monkeypatch, capsys, *words)
    assert "another configuration" in line
    assert record.id in line


def test_an_own_module_is_run_by_its_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image_folder: Path, import_folder: Path
) -> None:
    (import_folder / "my_package").mkdir()
    (import_folder / "my_package" / "my_module.py").write_text(
        "from attention_zoo import Cost\n"
        "from attention_zoo.conv import Conv\n"
        "class Twice(Conv):\n"
        "    '''Own module.\n\n    Args:\n        channels: C.\n        factor: gain.\n    '''\n"
        "    name = ''\n"
        "    label_format = 'Twice-{factor}'\n"
        "    def __init__(self, channels: int, *, factor: float = 2.0) -> None:\n"
        "        super().__init__(channels)\n"
        "        self.factor = factor\n"
        "    def attend(self, q, k, v):\n"
        "        return self.factor * super().attend(q, k, v)\n"
    )
    words = ["--attn", "my_package.my_module:Twice", "--factor", "3", *TINY]
    common = ["--data", image_folder, "--results", tmp_path / "results", "--skip-latency"]
    run_main(monkeypatch, *words, *common)
    (record,) = load_records(tmp_path / "results", Run)
    assert record.variant.label == "Twice-3.0"


def test_a_warm_start_trains_every_variant_on_from_one_baseline(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
) -> None:
    warm = ["--protocol", "warm-start", "--start-steps", "4", "--learning-rate", "1e-9"]
    common = [*TINY, *warm, "--data", image_folder, "--results", tmp_path, "--skip-latency"]
    run_main(monkeypatch, "--attn", "none", "nla", *common)
    records = {(r.config.protocol, r.variant.name): r for r in load_records(tmp_path, Run)}
    assert set(records) == {("scratch", "none"), ("warm-start", "none"), ("warm-start", "nla")}
    start = records["scratch", "none"]
    assert start.config.steps == 4
    assert not start.config.start
    assert records["warm-start", "nla"].config.start.steps == 4
    weights = {
        key: load_file(tmp_path / "runs" / r.id / "weights.safetensors")
        for key, r in records.items()
    }
    # At this rate nothing moves: both still have the baseline's backbone.
    for key in ("none", "nla"):
        for name, value in weights["scratch", "none"].items():
            torch.testing.assert_close(weights["warm-start", key][name], value, rtol=0, atol=1e-6)
    # Without its weights the baseline is trained again, to the same bits; its record stays.
    path = tmp_path / "runs" / start.id / "weights.safetensors"
    before = path.read_bytes()
    path.unlink()
    run_main(monkeypatch, "--attn", "conv", *common)
    assert path.read_bytes() == before
    # Published weights stand in for those of a training here, if they are that run's.
    other = tmp_path / "other"
    published = other / "weights" / f"{start.id}.safetensors"
    published.parent.mkdir(parents=True)
    shutil.copyfile(path, published)
    record = Path("records", "runs", f"{start.id}.json")
    (other / record).parent.mkdir(parents=True)
    shutil.copyfile(tmp_path / record, other / record)
    elsewhere = [other if word == tmp_path else word for word in common]
    run_main(monkeypatch, "--attn", "nla", *elsewhere)
    nla = Path("runs", records["warm-start", "nla"].id, "weights.safetensors")
    assert (other / nla).read_bytes() == (tmp_path / nla).read_bytes()
    assert not (other / "runs" / start.id).exists()
    shutil.copyfile(other / nla, published)
    shutil.rmtree(other / "runs")
    (other / "records" / "runs" / f"{nla.parent.name}.json").unlink()
    assert "holds the weights of nla-" in refused(monkeypatch, capsys, "--attn", "nla", *elsewhere)
    # It is the run that the same options without a warm start give.
    alone = ["--attn", "none", *TINY, "--steps", "4", "--data", image_folder, "--skip-latency"]
    run_main(monkeypatch, *alone, "--results", tmp_path)
    assert len(load_records(tmp_path, Run)) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--protocol", "cold"], "--protocol"),
        (["--start-steps", "4"], "--start-steps applies only to --protocol warm-start"),
        (["--protocol", "warm-start", "--start-steps", "0"], "steps must be at least 1"),
    ],
)
def test_bad_protocols_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    image_folder: Path,
    words: list[str],
    message: str,
) -> None:
    common = ["--attn", "none", *TINY, "--data", image_folder, "--results", tmp_path]
    assert message in refused(monkeypatch, capsys, *common, *words)


def test_commands_hold_no_path_of_the_machine() -> None:
    words = ["--attn", "nla", "--data", "/home/someone/images", "--results=/home/someone/results"]
    command = describe_command("harness.run", [*words, "--image=a/b.png"])
    assert command == (
        "python -m harness.run --attn nla --data images --results=results --image=a/b.png"
    )


def test_help_tells_the_modules_options() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness.run", "--attn", "enlca", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert "random features. (enlca: 128)" in " ".join(done.stdout.replace("│", " ").split())
    assert "--chunk-size" not in done.stdout
