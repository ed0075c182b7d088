"""The grids: controls that wait for their source, and records that outlive the folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mdistiller.engine.cfg import CFG
from mdistiller.engine.trainers.replay import read_weights
from mdistiller.errors import ConfigError, DataError, MdistillerError
from mdistiller.experiments import STUDY, build_table, describe, make_plan, schedule
from mdistiller.experiments.fleet.grouping import ALL
from mdistiller.experiments.job import identity_of
from mdistiller.experiments.old_derive import Source, derive
from mdistiller.experiments.plan_file import load_plan
from mdistiller.experiments.record import append, read_records, record_file
from mdistiller.experiments.tables.study import FIXED, RULES_OUT

from .study_runs import STEPS, grid, train

KEPT = ("vanilla", "align", "scaled_lr", "mean_weights", "shuffled")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(schedule, "_POLL_SECONDS", 0.0)


def records(prefix: Path, table: str = "grid_b") -> list[dict]:
    return read_records(record_file(prefix / "results", table, "digits"))


def settings(prefix: Path, table: str = "grid_b") -> dict[str, dict]:
    """What was recorded as done, by row; of one trial."""
    return {r["row"]: r["config"] for r in records(prefix, table) if r["state"] == "done"}


# ---- the grids -------------------------------------------------------------------------------


def test_the_grids_have_what_the_study_asks_for():
    rows = {name: {row.key for row in layout.rows} for name, layout in STUDY.items()}
    assert len(rows["grid_a"]) == 10
    wanted = {"vanilla", "align", "printed", "orthogonal", "ridge"}
    assert wanted | {f"{key}_ema" for key in wanted - {"vanilla"}} | {"cone_ema"} <= rows["grid_b"]
    wanted = {"alpha0.25", "alpha1.0", "alpha2.0", "rescale1", "rescale2"}
    assert wanted | (set(RULES_OUT) - {"best_fixed"}) <= rows["grid_b"]
    assert {f"select{x}" for x in FIXED} <= rows["grid_b"] and len(FIXED) >= 6
    assert {"mgda", "pcgrad", "fairgrad", "cagrad", "gradnorm", "uncertainty"} <= rows["grid_c"]
    assert {"dot", "gradient_cosine", "distill_decay", "ours", "original"} <= rows["grid_c"]
    assert {"previous", "period5", "period10", "auxiliary16", "auxiliary32"} <= rows["grid_d"]
    methods = {key.removesuffix("_crossbatch") for key in rows["grid_a"]}
    controls = {f"{m}_{c}" for m in methods for c in ("scaled_lr", "mean_weights", "same")}
    assert rows["grid_e"] == rows["grid_a"] | controls


def test_all_grids_share_the_seeds_of_pairs_and_trials(tmp_path):
    seeds = {}
    for name in STUDY:
        methods = {"grid_b": ("vanilla", "align"), "grid_c": ("ours",)}.get(name, ("KD",))
        plan = make_plan(grid(tmp_path, name, trials=2, methods=methods))
        seeds[name] = {(run.trial, run.seed) for run in plan.runs}
        assert len(seeds[name]) == 2
    assert len(set(map(frozenset, seeds.values()))) == 1


def test_weights_are_fixed_and_chosen_on_held_out_images():
    table = build_table("grid_b", "digits")
    for x in FIXED:
        cell = table.cell(f"select{x}", "res20_res8")
        assert cell.opts[-2:] == ("DATASET.HOLDOUT", "270")
        if x != FIXED[0]:
            tested = table.cell(f"fixed{x}", "res20_res8")
            assert cell.opts == (*tested.opts, "DATASET.HOLDOUT", "270")
            assert "DATASET.HOLDOUT" not in tested.opts
    assert "5000" in build_table("grid_b", "fashion_mnist").cell("select0.1", "res20_res8").opts


# ---- settings made of numbers ----------------------------------------------------------------


def source(tmp_path, **changed) -> Source:
    first = {"ce": 0.6, "kd": 0.4, "norm_sum": 2.0, "norm_update": 1.0, **changed}
    second = {"ce": 0.8, "kd": 0.2, "norm_sum": 4.0, "norm_update": 4.0}
    epochs = [
        {"epoch": 1, "lr": 0.1, "steps": 3, "crossbatch": first},
        {"epoch": 2, "lr": 0.01, "steps": 3, "crossbatch": second},
    ]
    return Source("align-t0", CFG, epochs, tmp_path / "weights.jsonl")


def control():
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "KD", "SOLVER.LR", 0.1])
    return cfg


def test_derived_settings_by_hand(tmp_path):
    run = source(tmp_path)
    # Steps of 0.1 * 1 and 0.01 * 4, against plain ones of 0.1 * 2 and 0.01 * 4.
    ratio = (0.1 * 1 + 0.01 * 4) / (0.1 * 2 + 0.01 * 4)
    key, value = derive("scaled_lr", run, control())
    assert (key, float(value)) == ("SOLVER.LR", pytest.approx(0.1 * ratio, rel=1e-5))
    assert derive("mean_weights", run, control()) == (
        *("KD.LOSS.CE_WEIGHT", "0.07", "KD.LOSS.KD_WEIGHT", "0.27"),
    )
    opts = derive("shuffled", run, control())
    assert dict(zip(opts[0::2], opts[1::2], strict=True)) == {
        "SOLVER.TRAINER": "replay",
        "REPLAY.SHUFFLE": "True",
        "REPLAY.FILE": str(tmp_path / "weights.jsonl"),
    }
    with pytest.raises(DataError, match="align-t0 has no crossbatch.norm_update"):
        derive("scaled_lr", source(tmp_path, norm_update=None), control())


def test_every_method_has_controls_made_of_its_own_run(tmp_path):
    train(grid(tmp_path, "grid_e", methods=("RKD",)))
    found = settings(tmp_path, "grid_e")
    assert set(found) >= {"rkd", "rkd_crossbatch", "rkd_scaled_lr", "rkd_mean_weights", "rkd_same"}
    (ours,) = [r for r in records(tmp_path, "grid_e") if r["row"] == "rkd_crossbatch"]
    means = {k: sum(e["crossbatch"][k] for e in ours["epochs"]) / 2 for k in ("ce", "kd")}
    loss = found["rkd_mean_weights"]
    assert loss["RKD.LOSS.CE_WEIGHT"] == pytest.approx(means["ce"], rel=1e-5)
    assert loss["RKD.LOSS.FEAT_WEIGHT"] == pytest.approx(means["kd"], rel=1e-5)
    assert found["rkd_scaled_lr"]["SOLVER.LR"] != found["rkd"]["SOLVER.LR"]
    assert found["rkd_same"]["DISTILLER.TYPE"] == "CROSSBATCH_RKD"
    assert found["rkd_same"]["CROSSBATCH.REFERENCE"] == "same"


def test_grid_e_shares_its_runs_of_kd_with_grid_b(tmp_path):
    train(grid(tmp_path, methods=("vanilla", "align", "scaled_lr", "mean_weights", "same")))
    assert set(train(grid(tmp_path, "grid_e", methods=("KD",))).rows) <= {"teacher"}


def test_longer_training_has_twice_the_epochs_and_the_same_schedule(tmp_path):
    request = grid(tmp_path, "grid_d", methods=("vanilla", "longer"))
    train(replace(request, epochs=None, opts=("SOLVER.LR_DECAY_STAGES", "[5]", "SOLVER.EPOCHS", 6)))
    found = settings(tmp_path, "grid_d")
    vanilla, longer = found["vanilla"], found["longer"]
    assert longer["SOLVER.EPOCHS"] == 12 and longer["SOLVER.LR_DECAY_STAGES"] == [10]
    differing = {key for key in vanilla if vanilla[key] != longer[key]}
    assert differing == {"SOLVER.EPOCHS", "SOLVER.LR_DECAY_STAGES"}
    overrides = [r["overrides"] for r in records(tmp_path, "grid_d") if r["row"] != "teacher"]
    assert overrides[0] == overrides[1]


def test_a_control_starts_as_soon_as_its_source_is_done(tmp_path):
    request = grid(tmp_path, trials=2, methods=KEPT)
    assert "4 runs of 5 cells and 1 teachers" in describe(request, 1, 1)
    assert "6 more wait for the runs that they are made of" in describe(request, 1, 1)
    started = train(request)
    rows = started.rows
    assert sorted(rows) == sorted(["teacher", *2 * KEPT])
    # Two at a time: with the first trial's source, the second trial's baseline was under way.
    assert set(rows[3:7]) >= {"scaled_lr", "mean_weights", "shuffled"}
    plan = load_plan(request.root)
    assert {c["row"]: len(c["runs"]) for c in plan["cells"]} == dict.fromkeys(KEPT, 2)

    by_run = {(r["row"], r["trial"]): r for r in records(tmp_path)}
    for trial in (0, 1):
        align = by_run["align", trial]
        means = [entry["crossbatch"] for entry in align["epochs"]]
        loss = by_run["mean_weights", trial]["config"]
        ce = sum(m["ce"] for m in means) / 2
        assert loss["KD.LOSS.CE_WEIGHT"] == pytest.approx(0.1 * ce, rel=1e-5)
        assert by_run["scaled_lr", trial]["config"]["SOLVER.LR"] != 0.05
        replay = by_run["shuffled", trial]["config"]
        assert replay["SOLVER.TRAINER"] == "replay"
        assert replay["REPLAY.FILE"].split("/")[0].startswith(f"align-res20_res8-t{trial}-")
        assert len({by_run[row, trial]["seed"] for row in KEPT}) == 1
    for row in KEPT:
        assert by_run[row, 0]["hash"] != by_run[row, 1]["hash"]
    assert train(request).started == []


def test_controls_of_one_source_share_a_process(tmp_path):
    backend = train(grid(tmp_path, trials=2, methods=KEPT), fleet_size=ALL)
    # The teacher; baseline and source of both trials; then what is made of each source.
    assert sorted(backend.processes) == [1, 2, 2, 3, 3]


def test_a_control_needs_its_source_in_the_plan(tmp_path):
    with pytest.raises(ConfigError, match="row shuffled is made of the runs of row align; add"):
        train(grid(tmp_path, methods=("vanilla", "shuffled")))


def test_controls_of_a_failed_source_wait(tmp_path, capsys):
    request = grid(tmp_path, methods=KEPT)
    with pytest.raises(MdistillerError, match="1 runs failed"):
        train(request, failing=("align",))
    assert "3 more wait for the runs that they are made of" in capsys.readouterr().out
    (failed,) = [r for r in records(tmp_path) if r["state"] == "failed"]
    assert failed["row"] == "align"
    assert failed["failure"]["tail"] == ["its last words"]
    with pytest.raises(MdistillerError):
        train(request)
    assert sum(r["state"] == "failed" for r in records(tmp_path)) == 1
    again = train(request, retry_failed=True)
    assert sorted(again.rows) == ["align", "mean_weights", "scaled_lr", "shuffled"]
    # The failure stays on record.
    states = [r["state"] for r in records(tmp_path) if r["row"] == "align"]
    assert states == ["failed", "done"]


# ---- records ---------------------------------------------------------------------------------


def test_everything_recorded_counts_as_done_where_the_folders_are_gone(tmp_path, capsys):
    request = grid(tmp_path, methods=KEPT)
    train(request)
    before = settings(tmp_path)
    assert sorted(before) == sorted([*KEPT, "teacher"])
    shutil.rmtree(tmp_path / "output")
    assert train(request).started == []
    assert "5 of 5 runs are done" in capsys.readouterr().out
    assert "(6 done)" in describe(request, 1, 1)
    # What is to do needs its teacher again, and the other runs nothing.
    more = train(grid(tmp_path, methods=(*KEPT, "printed")))
    assert more.rows == ["teacher", "printed"]
    assert {k: v for k, v in settings(tmp_path).items() if k != "printed"} == before
    # Recorded elsewhere or not at all, it is trained.
    assert len(train(grid(tmp_path, methods=KEPT, record=None)).started) == 5


def test_a_control_is_made_of_a_recorded_source(tmp_path):
    request = grid(tmp_path, methods=KEPT)
    train(request)
    (given,) = (tmp_path / "output").rglob("align*/weights.jsonl")
    weights, before = read_weights(given).float(), settings(tmp_path)
    path = record_file(tmp_path / "results", "grid_b", "digits")
    lines = [
        x for x in path.read_text().splitlines() if json.loads(x)["row"] in ("vanilla", "align")
    ]
    path.write_text("\n".join(lines) + "\n")
    shutil.rmtree(tmp_path / "output")
    backend = train(request)
    assert sorted(backend.rows) == ["mean_weights", "scaled_lr", "shuffled", "teacher"]
    assert settings(tmp_path) == before
    (replay,) = [j for j in backend.started if j.cfg.SOLVER.TRAINER == "replay"]
    # In single precision, as the replay uses them.
    restored = read_weights(replay.cfg.REPLAY.FILE)
    assert restored.float().equal(weights)
    assert len(restored) == 2 * STEPS


def test_a_run_that_two_grids_share_is_trained_once(tmp_path, capsys):
    train(grid(tmp_path, "grid_a", methods=("KD",)))
    backend = train(grid(tmp_path, methods=KEPT))
    assert "2 runs are those of other tables" in capsys.readouterr().out
    assert sorted(backend.rows) == ["mean_weights", "scaled_lr", "shuffled"] + ["teacher"] * (
        "teacher" in backend.rows
    )
    shared = {r["row"]: r["same_as"] for r in records(tmp_path) if "same_as" in r}
    assert shared == {
        "vanilla": {"table": "grid_a", "row": "kd"},
        "align": {"table": "grid_a", "row": "kd_crossbatch"},
    }


def test_a_recorded_run_is_another_one_with_other_settings(tmp_path):
    train(grid(tmp_path, methods=("vanilla",)))
    assert (
        "vanilla" in train(grid(tmp_path, methods=("vanilla",), opts=("KD.TEMPERATURE", "2"))).rows
    )
    assert len([r for r in records(tmp_path) if r["row"] == "vanilla"]) == 2


def test_what_ended_without_being_recorded_is_recorded_by_the_next_call(tmp_path):
    request = grid(tmp_path, methods=KEPT)
    train(grid(tmp_path, methods=KEPT, record=None))
    assert train(request).started == []
    assert sorted(settings(tmp_path)) == sorted([*KEPT, "teacher"])


def test_identity_survives_changed_defaults_and_json(tmp_path, monkeypatch):
    train(grid(tmp_path, methods=("vanilla", "align")))
    recorded = settings(tmp_path)["align"]
    assert "CROSSBATCH.READING" not in identity_of(recorded)
    monkeypatch.setitem(CFG.CROSSBATCH, "READING", "printed")
    # Another hash, but the same settings: still the run that the plan asks for.
    assert identity_of(recorded)["CROSSBATCH.READING"] == "align"
    assert train(grid(tmp_path, methods=("vanilla", "align"))).started == []


def test_lines_are_added_whole_once_and_in_turn(tmp_path):
    train(grid(tmp_path, methods=("vanilla",)))
    path = record_file(tmp_path / "results", "grid_b", "digits")
    before = path.read_bytes()
    one = records(tmp_path)[-1]
    assert not append(path, one)
    assert path.read_bytes() == before
    # A writer that was killed.
    path.write_bytes(before + b'{"table": "gri')
    assert len(records(tmp_path)) == 2
    assert append(path, {**one, "trial": 7})
    assert path.read_bytes().startswith(before)
    assert [r["trial"] for r in records(tmp_path)] == [0, 0, 7]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 3: no record of a run"),
        ("[]", "line 3: no record"),
        ('{"state": "done"}', "no entry table"),
    ],
)
def test_damaged_records_are_one_line(tmp_path, line, words):
    request = grid(tmp_path, methods=("vanilla",))
    train(request)
    path = record_file(tmp_path / "results", "grid_b", "digits")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=words) as error:
        train(request)
    assert "\n" not in str(error.value)


def test_a_folder_that_takes_no_records_is_one_line(tmp_path):
    (tmp_path / "results").touch()
    with pytest.raises(DataError, match="give another --record"):
        train(grid(tmp_path, methods=("vanilla",)))
