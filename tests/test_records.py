"""The records of runs: carried over without loss, each run once, and found by asking."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from mdistiller.config import identity_of
from mdistiller.errors import DataError
from mdistiller.experiments.query import places
from mdistiller.experiments.records import (
    QUERIES,
    RUNS,
    append_query,
    append_run,
    append_runs,
    as_line,
    by_id,
    read_queries,
    read_runs,
)
from mdistiller.experiments.schema import Query, Record, portable, without_places

RESULTS = Path(__file__).parents[1] / "results"
# Of every line of results/*.jsonl at commit b53cf89: its place in a table, then its numbers.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "records.json").read_text())


@pytest.fixture(scope="module")
def runs() -> list[Record]:
    return read_runs(RESULTS)


def numbers(record: Record) -> list:
    result = record.result
    return [
        *(record.seed, result["last_top1"], result["best_top1"], result["last_top5"]),
        *(round(result["seconds"], 6), record.epochs[-1]["train_loss"], len(record.weights)),
    ]


def test_every_place_of_the_first_study_is_found_with_its_numbers(runs):
    assert len(GOLDEN) == 593
    found = {}
    for query in read_queries(RESULTS):
        done = by_id(runs, query.table)
        for place in places(query, done):
            key = (query.table, query.dataset, query.settings_id, *place.key)
            if place.id in done:  # of a table that was begun later some wait
                found[key] = numbers(done[place.id])
    assert len(found) >= len(GOLDEN)
    assert {tuple(line[:6]): line[6:] for line in GOLDEN} == {
        tuple(line[:6]): found[tuple(line[:6])] for line in GOLDEN
    }


def test_runs_are_there_once_but_for_six_that_were_trained_twice(runs):
    # Those of reproduce.py have their command, the insurance study has a tool of its own.
    old = [run for run in runs if not run.command and run.table != "insurance"]
    counts = Counter(run.id for run in old)
    assert len(old) == 557 and len(counts) == 551
    for run in (run for run in old if counts[run.id] > 1):
        one, other = (r for r in old if r.id == run.id)
        assert {one.table, other.table} == {"grid_b", "grid_d"}
        assert one.result["last_top1"] == other.result["last_top1"]
        assert one.result["seconds"] != other.result["seconds"]
        assert by_id(old, "grid_d")[run.id].table == "grid_d"
        assert by_id(old)[run.id] == by_id(old, "grid_a")[run.id] == one


def test_records_name_the_teacher_and_no_path_of_a_machine(runs):
    for run in runs:
        if run.config["DISTILLER.TYPE"] != "NONE":
            assert run.teacher["network"] == run.config["DISTILLER.TEACHER"]
            assert run.teacher["file"].endswith("student_latest")
            sound = run.config.get("DISTILLER.TEACHER_FAULT", "none") == "none"
            assert not sound or run.teacher["top1"] > 80
        assert run.machine["threads"] >= 1 and run.machine["torch"]
    for path in (RESULTS / name for name in (RUNS, QUERIES)):
        text = path.read_text()
        assert not any(mark in text for mark in ('"/', " /", "=/", "/home/", "/root/", "/work/"))


def record(**changed) -> Record:
    config = {"EXPERIMENT.SEED": 1, "DATASET.TYPE": "digits", **changed.pop("config", {})}
    result = {"last_top1": 50.0, "seconds": 2.5}
    epochs = [{"epoch": 1, "test_acc": 50.0}]
    return Record(
        identity_of(config), "done", config, **{"result": result, "epochs": epochs} | changed
    )


def test_a_run_is_added_once_and_another_training_of_it_beside_it(tmp_path):
    one = record()
    assert append_run(tmp_path, one) and not append_run(tmp_path, one)
    later = replace(one, recorded={"at": "later"}, table="grid_a")
    assert not append_run(tmp_path, later)
    again = record(result={"last_top1": 50.0, "seconds": 3.0}, table="grid_d")
    assert append_run(tmp_path, again)
    assert read_runs(tmp_path) == [one, again]
    assert by_id(read_runs(tmp_path))[one.id] == one
    assert by_id(read_runs(tmp_path), "grid_d")[one.id] == again
    failed = replace(one, state="failed", result={}, failure={"exit_code": 1, "finished": "now"})
    assert append_run(tmp_path, failed)
    assert by_id(read_runs(tmp_path))[one.id] == one
    other = record(config={"EXPERIMENT.SEED": 2})
    assert append_runs(tmp_path, [one, other, again, other]) == 1
    assert read_runs(tmp_path) == [one, again, failed, other]


def test_files_of_two_machines_are_read_as_one(tmp_path):
    one, other = record(), record(config={"EXPERIMENT.SEED": 2})
    (tmp_path / "runs.jsonl").write_text(as_line(one))
    (tmp_path / "elsewhere.jsonl").write_text(as_line(one) + as_line(other))
    assert read_runs(tmp_path) == [one, other]


def test_a_half_line_of_a_killed_writer_is_dropped_and_damage_is_named(tmp_path):
    one, other = record(), record(config={"EXPERIMENT.SEED": 2})
    (tmp_path / "runs.jsonl").write_text(as_line(one) + as_line(other)[:40])
    assert read_runs(tmp_path) == [one]
    assert append_run(tmp_path, other)
    assert read_runs(tmp_path) == [one, other]
    for line in ("{", "[]", '{"state": "done", "config": {}}', '{"state": "odd", "config": {}}'):
        (tmp_path / "runs.jsonl").write_text(as_line(one) + line + "\n" + as_line(other))
        with pytest.raises(DataError, match=r"runs\.jsonl, line 2: no record"):
            read_runs(tmp_path)


def test_queries_are_kept_once(tmp_path):
    query = Query("table1", "digits", trials=2, overrides=("SOLVER.LR", "0.1"))
    assert append_query(tmp_path, query)
    assert not append_query(tmp_path, replace(query, command=("reproduce.py", "table1")))
    assert append_query(tmp_path, replace(query, trials=3))
    assert [q.trials for q in read_queries(tmp_path)] == [2, 3]
    (tmp_path / "queries.jsonl").write_text('{"tabel": "table1"}\n')
    with pytest.raises(DataError, match=r"queries\.jsonl, line 1"):
        read_queries(tmp_path)


def test_records_of_earlier_versions_are_read(tmp_path):
    config = {"EXPERIMENT.SEED": 7, "DATASET.TYPE": "digits", "DISTILLER.TEACHER": "resnet20"}
    config["DISTILLER.TEACHER_CKPT"] = "teacher/student_latest"
    old = {
        "table": "grid_b",
        "dataset": "digits",
        "row": "vanilla",
        "column": "res20_res8",
        "trial": 1,
        "seed": 7,
        "state": "done",
        "hash": "0",
        "config": config,
        "overrides": ["DATASET.ROOT", "/data", "SOLVER.EPOCHS", "2", "--teacher-epochs", "3"],
        "result": {"last_top1": 1.0, "teacher": "resnet20", "teacher_top1": 99.0, "threads": 2},
        "recorded": {"at": "then", "commit": "c", "system": "Linux", "processors": 2},
        "epochs": [],
    }
    copy = {**old, "table": "grid_a", "row": "kd", "same_as": {"table": "grid_b", "row": "vanilla"}}
    for line in (old, copy):
        (tmp_path / f"{line['table']}-digits.jsonl").write_text(json.dumps(line) + "\n")
    (run,) = read_runs(tmp_path)
    assert run.table == "grid_b" and run.machine["threads"] == 2
    teacher = {"network": "resnet20", "file": "teacher/student_latest", "top1": 99.0}
    assert run.teacher == teacher
    queries = {query.table: query for query in read_queries(tmp_path)}
    assert queries["grid_a"] == Query(
        *("grid_a", "digits", ("res20_res8",), ("kd",), 2),
        teacher_epochs=3,
        overrides=("SOLVER.EPOCHS", "2"),
        teachers={"resnet20": "teacher/student_latest"},
    )
    assert queries["grid_b"].methods == ("vanilla",)


def test_a_runs_hash_is_of_what_it_depends_on(runs):
    assert {"a394da46", "1198f211", "ea3c0482"} <= {run.id for run in runs}, "as they were written"
    config = record().config
    assert identity_of(config) == identity_of(config | {"SOLVER.MOMENTUM": 0.9}), "a default"
    assert identity_of(config) != identity_of(config | {"SOLVER.MOMENTUM": 0.8})
    # A file in another run's folder is that run's, whatever the folder is called besides.
    key = "DISTILLER.TEACHER_CKPT"
    one, other = (config | {key: f"{name}0123abcd/student_latest"} for name in ("teacher-a-", ""))
    assert identity_of(one) == identity_of(other) != identity_of(config)
    # Pinned: records and folders that exist are known by it.
    assert (
        identity_of({"EXPERIMENT.SEED": 1, "SOLVER.LR": 0.1, "CROSSBATCH.ALPHA": 0.5}) == "4359db12"
    )


def test_paths_become_portable(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portable(str(tmp_path / "a" / "b" / "c")) == "a/b/c"
    assert portable("/somewhere/else/teacher/student_latest") == "teacher/student_latest"
    assert portable("0.1") == "0.1"
    given = (
        "DATASET.ROOT",
        "/data",
        "LOG.PREFIX",
        "/out",
        "SOLVER.LR",
        "0.1",
        "SOLVER.DEVICE",
        "cpu",
    )
    assert without_places(given) == ("SOLVER.LR", "0.1")


def test_old_files_beside_the_new_ones_change_nothing(tmp_path, runs):
    """A folder that was carried over by hand, and not cleared."""
    shutil.copy(RESULTS / "runs.jsonl", tmp_path)
    shutil.copy(RESULTS / "runs.jsonl", tmp_path / "copy.jsonl")
    assert read_runs(tmp_path) == runs
