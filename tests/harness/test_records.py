"""Records are final, whole and checked."""

from __future__ import annotations

import json
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import UserError
from harness.base.names import canonical_json, slug
from harness.records.shapes import SCHEMA
from harness.records.store import (
    load_records,
    record_id,
    record_path,
    save_record,
    setting_label,
    setting_of,
)
from tests.harness.fuzzing import fuzz

RECORDS = {
    "run": synthetic.run(),
    "cost": synthetic.cost("NLA", 25.6),
    "latency": synthetic.latency([synthetic.latency_row("NLA", 12.0)]),
    "speed": synthetic.speed([synthetic.speed_row("core-nla-100", 12.0, 3.0)]),
    "approximation": synthetic.approximation("enlca-k2"),
    "scaling": synthetic.scaling({"NLA": (2.0, 1.0)}),
}


def edit(path: Path, change: Any) -> None:
    """Change a record's file by hand, as an editor would."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_saved_is_loaded(tmp_path: Path, kind: str) -> None:
    path = save_record(tmp_path, RECORDS[kind])
    folder = {"run": "runs", "cost": "costs"}.get(kind, kind)
    assert path == tmp_path / "records" / folder / f"{RECORDS[kind]['id']}.json"
    assert load_records(tmp_path, kind) == [RECORDS[kind] | {"schema": SCHEMA}]
    assert load_records(tmp_path) == load_records(tmp_path, kind)


def test_no_folder_means_no_records(tmp_path: Path) -> None:
    assert load_records(tmp_path / "missing") == []


def test_created_is_filled_with_utc(tmp_path: Path) -> None:
    record = {key: value for key, value in RECORDS["run"].items() if key != "created"}
    save_record(tmp_path, record)
    assert load_records(tmp_path)[0]["created"].endswith("+00:00")
    assert "created" not in record


def test_a_record_is_final(tmp_path: Path) -> None:
    path = save_record(tmp_path, RECORDS["run"])
    before = path.read_bytes()
    assert save_record(tmp_path, RECORDS["run"] | {"created": "2030-01-01T00:00:00Z"}) == path
    assert path.read_bytes() == before
    other = RECORDS["run"] | {"command": "another"}
    with pytest.raises(UserError, match="exists already with other content"):
        save_record(tmp_path, other)
    assert path.read_bytes() == before
    save_record(tmp_path, other, replace=True)
    assert load_records(tmp_path)[0]["command"] == "another"


def test_a_loaded_record_can_be_saved_elsewhere(tmp_path: Path) -> None:
    save_record(tmp_path / "a", RECORDS["run"])
    save_record(tmp_path / "b", load_records(tmp_path / "a")[0])
    assert load_records(tmp_path / "a") == load_records(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "figure"}, "key 'kind' is 'figure', not one of run, cost, latency"),
        ({"id": "../escape"}, "key 'id' '../escape' is not a file name"),
        ({"id": ".hidden"}, "key 'id'"),
        ({"machine": None}, "key 'machine' is null, not dict"),
        ({"created": "yesterday"}, "key 'created' 'yesterday' is not an ISO-8601 time"),
        ({"created": "2026-01-01T00:00:00"}, "has no time zone"),
        ({"schema": 0}, "key 'schema' is 0, not 1"),
        ({"quality": {"Set5": synthetic.quality([1.0])}}, "key 'quality.Urban100' is missing"),
    ],
)
def test_a_bad_record_is_not_written(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        save_record(tmp_path, RECORDS["run"] | change)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(UserError, match=r"key 'quality\.Set5\.images\[1\]\.psnr' is (nan|inf)"):
        save_record(tmp_path, synthetic.run(values=[1.0, value]))


def drop(*keys: Any) -> Any:
    def change(record: dict[str, Any]) -> None:
        for key in keys[:-1]:
            record = record[key]
        del record[keys[-1]]

    return change


def put(value: Any, *keys: Any) -> Any:
    def change(record: dict[str, Any]) -> None:
        for key in keys[:-1]:
            record = record[key]
        record[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("run", drop("config", "seed"), "key 'config.seed' is missing"),
        ("run", drop("sha256"), "key 'sha256' is missing"),
        ("run", put("27", "quality", "Set5", "psnr"), "key 'quality.Set5.psnr' is str"),
        ("run", put(True, "config", "seed"), "key 'config.seed' is bool, not int"),
        ("run", put(float("nan"), "training", "seconds"), "key 'training.seconds' is nan"),
        ("run", put([], "quality", "Set5", "images"), "is empty or names an image twice"),
        ("cost", put("x", "parts", "core", "torch_gflops"), "key 'parts.core.torch_gflops' is str"),
        ("latency", drop("rows", 0, "mean_ms"), "key 'rows[0].mean_ms' is missing"),
        ("latency", put(7, "rows"), "key 'rows' is int, not list"),
        ("latency", put([], "settings", "max_seconds"), "key 'settings.max_seconds' is list"),
        ("scaling", put([], "rows"), "key 'rows' is empty"),
        ("speed", drop("rows", 0, "ours", "runs"), "key 'rows[0].ours.runs' is missing"),
        ("run", put(99.0, "quality", "Set5", "psnr"), "was changed after it was written"),
        ("run", put("new", "extra"), "was changed after it was written"),
        ("cost", put(0, "sha256"), "was changed after it was written"),
        ("run", put(SCHEMA + 1, "schema"), "newer than this version's 1; update attention-zoo"),
    ],
)
def test_a_hand_edited_record_is_refused(
    tmp_path: Path, kind: str, change: Any, message: str
) -> None:
    path = save_record(tmp_path, RECORDS[kind])
    edit(path, change)
    with pytest.raises(UserError) as error:
        load_records(tmp_path, kind)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_new_layout_of_the_text_is_no_change(tmp_path: Path) -> None:
    edit(save_record(tmp_path, RECORDS["run"]), lambda record: None)
    assert len(load_records(tmp_path)) == 1


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_torn_file_is_refused(tmp_path: Path, share: float) -> None:
    path = save_record(tmp_path, RECORDS["run"])
    text = path.read_bytes()
    path.write_bytes(text[: int(share * len(text))])
    with pytest.raises(UserError, match="is not valid JSON"):
        load_records(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "7", '"x"', "[" * 100_000, "\ufeff{}", "{}"])
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = save_record(tmp_path, RECORDS["run"])
    path.write_text(text)
    with pytest.raises(UserError, match=path.name):
        load_records(tmp_path)


def test_a_renamed_or_moved_record_is_refused(tmp_path: Path) -> None:
    path = save_record(tmp_path, RECORDS["run"])
    path.rename(path.with_name("other.json"))
    with pytest.raises(UserError, match="moved or renamed"):
        load_records(tmp_path)


def test_other_files_are_ignored(tmp_path: Path) -> None:
    path = save_record(tmp_path, RECORDS["run"])
    for name in (f".{path.name}.1.tmp", ".hidden.json", "README.md"):
        (path.parent / name).write_text("not a record")
    assert len(load_records(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "records").write_text("a file in the way")
    with pytest.raises(UserError, match="cannot write"):
        save_record(tmp_path, RECORDS["run"])


def test_ids_depend_on_content_not_on_order() -> None:
    assert record_id("a", {"x": 1, "y": [2]}) == record_id("a", {"y": [2], "x": 1})
    assert record_id("a", {"x": 1}) != record_id("a", {"x": 2})
    assert record_id("cost", {}) == "cost-44136fa355b3"  # sha256 of "{}"
    assert canonical_json({"b": 1, "a": "×"}) == '{"a":"\\u00d7","b":1}'


def test_a_setting_is_the_configuration_without_the_seed() -> None:
    first, second = synthetic.run(seed=0), synthetic.run("NLA", seed=1)
    assert setting_of(first) == setting_of(second)
    assert "seed" not in setting_of(first)
    assert first["config"]["seed"] == 0
    label = setting_label(first)
    assert label == setting_label(second)
    assert label.startswith("small-x4-scratch-data-4000steps-")
    assert label != setting_label(synthetic.run(batch=8))


@pytest.mark.parametrize(
    ("text", "name"), [("a/b c", "a-b-c"), ("../x", "x"), ("my data (2)", "my-data-2")]
)
def test_slug_is_a_plain_file_name(text: str, name: str) -> None:
    assert slug(text) == name


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
    path = record_path(tmp_path, "run", RECORDS["run"]["id"])
    path.unlink(missing_ok=True)
    save_record(tmp_path, RECORDS["run"])
    before = canonical_json(json.loads(path.read_text()))

    def change(record: dict[str, Any]) -> None:
        place: Any = record
        while True:
            key = data.draw(st.sampled_from(sorted(place)))
            deeper = isinstance(place[key], dict) and place[key] and data.draw(st.booleans())
            if not deeper:
                break
            place = place[key]
        place[key] = value

    edit(path, change)
    if json.dumps(json.loads(path.read_text()), sort_keys=True, separators=(",", ":")) == before:
        assert load_records(tmp_path, "run") == [RECORDS["run"] | {"schema": SCHEMA}]
    else:
        with pytest.raises(UserError, match=re.escape(path.name)):
            load_records(tmp_path, "run")


@fuzz
@given(text=st.binary(max_size=40) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_are_refused(tmp_path: Path, text: bytes) -> None:
    path = record_path(tmp_path, "cost", "x")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"x\.json"):
        load_records(tmp_path, "cost")


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
        load_records(tmp_path)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(load_records(tmp_path)) == 3 * 20 + 20
    assert not list(tmp_path.rglob("*.tmp"))
