"""Records are final, whole and checked."""

from __future__ import annotations

import json
import math
import multiprocessing
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from harness.base.errors import UserError
from harness.base.names import canonical_json, digest, slug
from harness.records.shapes import KINDS, SCHEMA, Cost, Record, Run, untyped
from harness.records.store import (
    FOLDERS,
    load_all_records,
    load_record,
    load_records,
    new_record,
    record_id,
    record_path,
    save_record,
    setting_label,
)
from tests.harness.fuzzing import fuzz

RECORDS: dict[str, Record] = {
    "run": synthetic.run(),
    "cost": synthetic.cost("NLA", 25.6),
    "latency": synthetic.latency([synthetic.latency_row("NLA", 12.0)]),
    "speed": synthetic.speed([synthetic.speed_row("core-nla-100", 12.0, 3.0)]),
    "approximation": synthetic.approximation("enlca-k2"),
    "scaling": synthetic.scaling({"NLA": (2.0, 1.0)}),
    "implementations": synthetic.implementations(),
    "gpu": synthetic.gpu([{"name": "compile-enla", "milliseconds": 1.5}]),
    "redraw": synthetic.redraw([27.0, 27.1]),
}
RUN = synthetic.run()


def edit(path: Path, change: Any) -> None:
    """Change a record's file by hand, as an editor would."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_every_kind_is_tested() -> None:
    assert {kind: type(record) for kind, record in RECORDS.items()} == KINDS


@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_saved_is_loaded(tmp_path: Path, kind: str) -> None:
    record = RECORDS[kind]
    path = save_record(tmp_path, record)
    assert path == tmp_path / "records" / FOLDERS[kind] / f"{record.id}.json"
    assert load_records(tmp_path, KINDS[kind]) == [record]
    assert load_record(tmp_path, KINDS[kind], record.id) == record
    assert load_all_records(tmp_path) == [record]
    again = save_record(tmp_path / "elsewhere", load_record(tmp_path, KINDS[kind], record.id))
    assert again.read_bytes() == path.read_bytes()


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "runs").symlink_to("runs")  # root may read any other folder
    with pytest.raises(UserError, match=r"cannot read the folder .*runs: Too many levels"):
        load_records(tmp_path, Run)


def test_no_folder_means_no_records(tmp_path: Path) -> None:
    assert load_all_records(tmp_path / "missing") == []
    with pytest.raises(UserError, match=r"x\.json"):
        load_record(tmp_path, Run, "x")


def content_of(record: Record) -> dict[str, Any]:
    """What a measurement gives to ``new_record``."""
    content = untyped(record)
    return {key: content[key] for key in content.keys() - {"schema", "kind", "id", "created"}}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_new_record_is_of_now(kind: str) -> None:
    content = content_of(RECORDS[kind])
    before = datetime.now(UTC) - timedelta(seconds=1)
    record = new_record(KINDS[kind], "made-now", content)
    assert record.created.endswith("+00:00")
    assert before <= record.when <= datetime.now(UTC)
    assert replace(record, id=RECORDS[kind].id, created=RECORDS[kind].created) == RECORDS[kind]
    assert "created" not in content


def test_a_record_is_final(tmp_path: Path) -> None:
    path = save_record(tmp_path, RUN)
    before = path.read_bytes()
    assert save_record(tmp_path, replace(RUN, created="2030-01-01T00:00:00Z")) == path
    other = replace(RUN, command="another")
    with pytest.raises(UserError, match="exists already with other content"):
        save_record(tmp_path, other)
    assert path.read_bytes() == before
    save_record(tmp_path, other, replace=True)
    assert load_records(tmp_path, Run)[0].command == "another"


def with_psnr(psnr: float) -> dict[str, Any]:
    """Quality of which one image has this PSNR."""
    quality = content_of(RUN)["quality"]
    quality["Set5"]["images"][1]["psnr"] = psnr
    return {"quality": quality}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "figure"}, "key 'kind' is 'figure', not one of run, cost, latency"),
        ({"id": "../escape"}, "key 'id' '../escape' is not a file name"),
        ({"id": ".hidden"}, "key 'id'"),
        ({"machine": None}, "key 'machine' is null, not object"),
        ({"created": "yesterday"}, "key 'created' 'yesterday' is not an ISO-8601 time"),
        ({"created": "2026-01-01T00:00:00"}, "has no time zone"),
        ({"schema": 0}, "key 'schema' is 0, not 1"),
        ({"quality": {"Set5": synthetic.quality([1.0])}}, "key 'quality.Urban100' is missing"),
        ({"config": untyped(RUN.config) | {"stepz": 1}}, "key 'config.stepz' is unknown"),
        ({"command": ["run"]}, "key 'command' is array, not str"),
        ({"source_sha256": math.nan}, "source_sha256"),
        (with_psnr(math.nan), "key 'quality.Set5.images[1].psnr' is nan"),
        (with_psnr(math.inf), "key 'quality.Set5.images[1].psnr' is inf"),
    ],
)
def test_a_bad_record_is_not_made(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        new_record(Run, "bad", content_of(RUN) | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


DROPPED = object()


def put(record: dict[str, Any], place: str, value: object) -> None:
    """Put a value in a place such as ``rows.0.name``, or drop what stands there."""
    *parents, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inner: Any = record
    for key in parents:
        inner = inner[key]
    if value is DROPPED:
        del inner[last]
    else:
        inner[last] = value


@pytest.mark.parametrize(
    ("kind", "place", "value", "message"),
    [
        ("run", "config.seed", DROPPED, "key 'config.seed' is missing"),
        ("run", "sha256", DROPPED, "key 'sha256' is missing"),
        ("run", "quality.Set5.psnr", "27", "key 'quality.*.psnr' is str"),
        ("run", "config.seed", True, "key 'config.seed' is bool, not int"),
        ("run", "config.seeds", 1, "key 'config.seeds' is unknown"),
        ("run", "config.data.path", 1, "key 'config.data.path' is unknown"),
        ("run", "training.seconds", math.nan, "key 'training.seconds' is nan"),
        ("run", "quality.Set5.images", [], "is empty or names an image twice"),
        ("run", "variant.options", DROPPED, "key 'variant.options' is missing"),
        ("cost", "parts.core.torch_gflops", "x", "key 'parts.core.torch_gflops' is str"),
        ("latency", "rows.0.mean_ms", DROPPED, "key 'rows[0].mean_ms' is missing"),
        ("latency", "rows", 7, "key 'rows' is int, not array"),
        ("latency", "settings.max_seconds", [], "key 'settings.max_seconds' is array"),
        ("scaling", "rows", [], "key 'rows' is empty"),
        ("speed", "rows.0.ours.runs", DROPPED, "key 'rows[0].ours.runs' is missing"),
        ("redraw", "rows.0.draw", DROPPED, "key 'rows[0].draw' is missing"),
        ("gpu", "rows.0.name", DROPPED, "key 'rows[0].name' is missing"),
        ("approximation", "enla.1.m", DROPPED, "key 'enla[1].m' is missing"),
        ("approximation", "settings.sides", 4, "key 'settings.sides' is int"),
        ("run", "quality.Set5.psnr", 99.0, "was changed after it was written"),
        ("run", "extra", "new", "was changed after it was written"),
        ("cost", "sha256", 0, "was changed after it was written"),
        ("run", "schema", SCHEMA + 1, "newer than this version's 1; update attention-zoo"),
    ],
)
def test_a_hand_edited_record_is_refused(
    tmp_path: Path, kind: str, place: str, value: object, message: str
) -> None:
    path = save_record(tmp_path, RECORDS[kind])
    edit(path, lambda record: put(record, place, value))
    for read in (load_records, lambda *both: load_record(*both, RECORDS[kind].id)):
        with pytest.raises(UserError) as error:
            read(tmp_path, KINDS[kind])
        assert str(path) in str(error.value)
        assert message in str(error.value)


def test_keys_of_later_versions_are_kept_in_the_file(tmp_path: Path) -> None:
    """A reader does not see them; the checksum holds all the same."""
    path = save_record(tmp_path, RUN)

    def extend(record: dict[str, Any]) -> None:
        record["variant"]["colour"] = "blue"
        del record["sha256"]
        record["sha256"] = digest(record)

    edit(path, lambda record: None)  # another layout of the text is no change
    assert load_records(tmp_path, Run) == [RUN]
    edit(path, extend)
    assert load_records(tmp_path, Run) == [RUN]
    assert json.loads(path.read_text())["variant"]["colour"] == "blue"


WHOLE = json.dumps(untyped(RUN))
OTHER_JSON = ("[]", "null", "7", '"x"', "[" * 100_000, "\ufeff{}", "{}")


@pytest.mark.parametrize("text", [*(WHOLE[: len(WHOLE) * i // 10] for i in (0, 3, 9)), *OTHER_JSON])
def test_a_torn_file_and_other_json_are_refused(tmp_path: Path, text: str) -> None:
    path = save_record(tmp_path, RUN)
    path.write_text(text)
    with pytest.raises(UserError, match=path.name) as error:
        load_all_records(tmp_path)
    assert text in OTHER_JSON or "is not valid JSON" in str(error.value)


def test_a_renamed_or_moved_record_is_refused(tmp_path: Path) -> None:
    path = save_record(tmp_path, RUN)
    other = record_path(tmp_path, Cost, RUN.id)
    other.parent.mkdir()
    shutil.copyfile(path, other)
    with pytest.raises(UserError, match="moved or renamed"):
        load_records(tmp_path, Cost)
    path.rename(path.with_name("other.json"))
    with pytest.raises(UserError, match="moved or renamed"):
        load_records(tmp_path, Run)


def test_other_files_are_ignored(tmp_path: Path) -> None:
    path = save_record(tmp_path, RUN)
    for name in (f".{path.name}.1.tmp", ".hidden.json", "README.md"):
        (path.parent / name).write_text("not a record")
    assert load_records(tmp_path, Run) == [RUN]


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write"):
        save_record(tmp_path, RUN)


def test_ids_depend_on_content_not_on_order() -> None:
    assert record_id("a", {"x": 1, "y": [2]}) == record_id("a", {"y": [2], "x": 1})
    assert record_id("a", {"x": 1}) != record_id("a", {"x": 2})
    assert record_id("cost", {}) == "cost-44136fa355b3"  # sha256 of "{}"
    assert canonical_json({"b": 1, "a": "×"}) == '{"a":"\\u00d7","b":1}'


def test_a_setting_is_the_configuration_without_the_seed() -> None:
    first, second = synthetic.run(seed=0), synthetic.run("NLA", seed=1)
    assert first.config.setting == second.config.setting
    assert first.config.setting | {"seed": 0} == untyped(first.config)
    label = setting_label(first)
    assert label.startswith("small-x4-scratch-data-4000steps-")
    assert label == setting_label(second) != setting_label(synthetic.run(batch=8))


def test_slug_is_a_plain_file_name() -> None:
    names = {"a/b c": "a-b-c", "../x": "x", "my data (2)": "my-data-2"}
    assert {text: slug(text) for text in names} == names


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@fuzz
@given(value=json_values, data=st.data())
def test_any_json_in_any_place_is_loaded_whole_or_refused(
    tmp_path: Path, value: Any, data: st.DataObject
) -> None:
    path = record_path(tmp_path, Run, RUN.id)
    path.unlink(missing_ok=True)
    save_record(tmp_path, RUN)
    before = canonical_json(json.loads(path.read_text()))

    def change(record: dict[str, Any]) -> None:
        place: Any = record
        key = data.draw(st.sampled_from(sorted(place)))
        while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            key = data.draw(st.sampled_from(sorted(place)))
        place[key] = value

    edit(path, change)
    if json.dumps(json.loads(path.read_text()), sort_keys=True, separators=(",", ":")) == before:
        assert load_records(tmp_path, Run) == [RUN]
    else:
        with pytest.raises(UserError, match=re.escape(path.name)):
            load_records(tmp_path, Run)


@fuzz
@given(text=st.binary(max_size=40) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_refused(tmp_path: Path, text: bytes) -> None:
    path = record_path(tmp_path, Cost, "x")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"x\.json"):
        load_records(tmp_path, Cost)


def _write_some(results: Path, worker: int) -> None:
    for seed in range(20):
        save_record(results, synthetic.run(seed=seed, identifier=f"run-{worker}-{seed}"))
        shared = synthetic.run(seed=seed, identifier=f"shared-{seed}")
        save_record(results, shared, replace=True)


def test_readers_never_see_a_torn_record_while_others_write(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_some, args=(tmp_path, w)) for w in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        load_all_records(tmp_path)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert len(load_records(tmp_path, Run)) == 3 * 20 + 20
    assert not list(tmp_path.rglob("*.tmp"))
