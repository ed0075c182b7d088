"""The configuration: mdistiller's defaults, inheritance, coercion, and errors of one line."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml

from mdistiller.commands.settings import TABLES
from mdistiller.config import Setting, identity, load_cfg, positive, run_names, runs_like
from mdistiller.config.docs import with_tables
from mdistiller.config.table import TABLE
from mdistiller.distillers import KD, CrossBatchDistiller, distiller_dict
from mdistiller.distillers._registry import DistillerRegistry
from mdistiller.engine.cfg import CFG, dump_cfg, experiment_name, show_cfg
from mdistiller.engine.check import check_config
from mdistiller.errors import ConfigError

from .golden_rules import golden_json


def flatten(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def merged(*opts):
    cfg = CFG.clone()
    cfg.merge_from_list(list(opts))
    return cfg


GOLDEN_DEFAULTS = dict(flatten(golden_json("distillers")["default_config"]))


GOLDEN_METHODS = [n for n in golden_json("distillers")["registry_order"] if n != "NONE"]


def test_defaults_are_mdistillers():
    assert CFG.LOG.WANDB is False  # the one that was changed on purpose
    for key, expected in GOLDEN_DEFAULTS.items():
        value = CFG.leaves()[key]
        if key != "LOG.WANDB":
            assert (list(value) if isinstance(value, tuple) else value) == expected, key
            leaf_type = golden_json("distillers")["default_config_leaf_types"][key]
            assert type(value).__name__ == leaf_type.partition("[")[0], key


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("KD.TEMPERATURE", "2.5", 2.5),
        ("KD.TEMPERATURE", "3", 3),
        ("SOLVER.LR", "1", 1.0),
        ("SOLVER.LR", "1e-2", 0.01),
        ("DKD.T", "4", 4.0),
        ("CRD.NCE.K", "100.0", 100),
        ("FITNET.INPUT_SIZE", "[64,64]", (64, 64)),
        ("SOLVER.LR_DECAY_STAGES", "(10, 20)", [10, 20]),
        ("SOLVER.LR_DECAY_STAGES", "[]", []),
        ("EXPERIMENT.NAME", "3", "3"),
        ("EXPERIMENT.TAG", "a,b", "a,b"),
        ("LOG.WANDB", "true", True),
        ("LOG.WANDB", "False", False),
        ("SOLVER.LR", 1, 1.0),
    ],
)
def test_override_is_coerced(key, text, value):
    found = merged(key, text).leaves()[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("KD.TEMPRATURE", "3"), ["KD.TEMPRATURE", "did you mean KD.TEMPERATURE"]),
        (("CROSSBATCH.ALFA", "3"), ["did you mean CROSSBATCH.ALPHA"]),
        (("SOLVER.EPOCH", "3"), ["did you mean SOLVER.EPOCHS"]),
        (("SOLVER.EPOCHS", "2.5"), ["SOLVER.EPOCHS", "whole number", "2.5"]),
        (("SOLVER.EPOCHS", "nan"), ["SOLVER.EPOCHS", "whole number"]),
        (("SOLVER.LR", "fast"), ["SOLVER.LR", "a number", "fast"]),
        (("LOG.WANDB", "1"), ["LOG.WANDB", "True or False"]),
        (("KD", "3"), ["KD is a group", "KD.TEMPERATURE"]),
        (("SOLVER.LR_DECAY_STAGES", "150"), ["SOLVER.LR_DECAY_STAGES", "list"]),
        (("SOLVER.LR_DECAY_STAGES", "[1.5]"), ["SOLVER.LR_DECAY_STAGES", "1.5"]),
        (("SOLVER.LR",), ["SOLVER.LR", "pairs"]),
    ],
)
def test_bad_override_is_one_line_that_names_key_and_source(opts, words):
    with pytest.raises(ConfigError) as error:
        merged(*opts)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith("command line: ")
    assert all(word in message for word in words)


def test_file_inherits_through_base_and_names_itself_in_errors(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "base.yaml").write_text("SOLVER:\n  LR: 1e-3\n  EPOCHS: 7\n")
    (tmp_path / "middle.yaml").write_text("_BASE_: base.yaml\nSOLVER: {EPOCHS: 8}\n")
    child = tmp_path / "sub" / "child.yaml"
    child.write_text("_BASE_: ../middle.yaml\nKD: {TEMPERATURE: 2}\n")
    cfg = CFG.clone()
    cfg.merge_from_file(child)
    assert (cfg.SOLVER.LR, cfg.SOLVER.EPOCHS, cfg.KD.TEMPERATURE) == (0.001, 8, 2)

    (tmp_path / "base.yaml").write_text("SOLVER: {LERNRATE: 1}\n")
    with pytest.raises(ConfigError, match=r"base\.yaml: unknown key SOLVER\.LERNRATE"):
        CFG.clone().merge_from_file(child)
    (tmp_path / "base.yaml").write_text("_BASE_: sub/child.yaml\n")
    with pytest.raises(ConfigError, match="leads back"):
        CFG.clone().merge_from_file(child)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no such configuration file"),
        ("SOLVER: {LR: 1", "not valid YAML at line"),
        ("- 1\n- 2\n", "expected keys and values"),
        ("SOLVER: 3\n", "SOLVER is a group"),
        ("SOLVER: {LR: [1]}\n", "SOLVER.LR expects a number"),
        ("_BASE_: [a]\n", "_BASE_ must name one file"),
        ("_BASE_: none.yaml\n", "none.yaml: no such"),
    ],
)
def test_bad_file_is_one_line(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as error:
        CFG.clone().merge_from_file(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("DISTILLER.TYPE", "KDD"), ["DISTILLER.TYPE", "did you mean 'KD'", "CROSSBATCH_KD"]),
        (("SOLVER.TRAINER", "crosbatch"), ["SOLVER.TRAINER", "'crossbatch'"]),
        (("DATASET.TYPE", "cifar10"), ["DATASET.TYPE", "'cifar100'"]),
        (("DISTILLER.STUDENT", "resnet21"), ["DISTILLER.STUDENT", "resnet20"]),
        (("DISTILLER.TYPE", "KD", "DISTILLER.TEACHER", "x"), ["DISTILLER.TEACHER"]),
        (("SOLVER.TYPE", "sgd"), ["SOLVER.TYPE", "'SGD'"]),
        (("SOLVER.DEVICE", "gpu"), ["SOLVER.DEVICE", "gpu"]),
        (("SOLVER.EPOCHS", "-1"), ["SOLVER.EPOCHS", "1 or greater", "-1"]),
        (("SOLVER.LR", "inf"), ["SOLVER.LR"]),
        (("SOLVER.BATCH_SIZE", "0"), ["SOLVER.BATCH_SIZE"]),
        (("SOLVER.SCHEDULE", "linear"), ["SOLVER.SCHEDULE", "step, cosine"]),
        (("SOLVER.WARMUP_EPOCHS", "240"), ["SOLVER.WARMUP_EPOCHS"]),
        (("SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"), ["SOLVER.NESTEROV"]),
        (("SOLVER.LR_DECAY_STAGES", "[5,2]"), ["SOLVER.LR_DECAY_STAGES", "ascending"]),
        (("SOLVER.TRAINER", "crossbatch"), ["SOLVER.TRAINER crossbatch", "distillation loss"]),
        (("SOLVER.TRAINER", "dot"), ["SOLVER.TRAINER dot", "distillation loss"]),
        (("DISTILLER.TYPE", "CROSSBATCH_KD"), ["SOLVER.TRAINER crossbatch"]),
    ],
)
def test_impossible_configuration_is_one_line(opts, words):
    with pytest.raises(ConfigError) as error:
        check_config(merged(*opts))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_impossible_value_names_where_it_was_set(tmp_path):
    (tmp_path / "c.yaml").write_text("SOLVER: {TRAINER: crossbatch}\n")
    cfg = CFG.clone()
    cfg.merge_from_file(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"c\.yaml: SOLVER\.TRAINER crossbatch needs"):
        check_config(cfg.clone())
    cfg.merge_from_list(["SOLVER.EPOCHS", "0"])
    with pytest.raises(ConfigError, match=r"^command line: SOLVER\.EPOCHS must be 1 or greater"):
        check_config(cfg)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("READING", "aligned", "CROSSBATCH.READING must be one of"),
        ("ALPHA", "-1", "CROSSBATCH.ALPHA"),
        ("EMA", "1", "CROSSBATCH.EMA"),
        ("RESCALE", "3", "CROSSBATCH.RESCALE"),
        ("MAX_RATIO", "0", "CROSSBATCH.MAX_RATIO"),
        ("PREFER", "kl", "CROSSBATCH.PREFER"),
        ("PERIOD", "0", "CROSSBATCH.PERIOD"),
        ("REFERENCE", "old", "CROSSBATCH.REFERENCE must be one of"),
        ("REFERENCE", "none", "only with CROSSBATCH.READING printed"),
    ],
)
def test_impossible_crossbatch_node(key, value, words):
    cfg = merged(
        *("DISTILLER.TYPE", "CROSSBATCH_KD", "SOLVER.TRAINER", "crossbatch"),
        *(f"CROSSBATCH.{key}", value),
    )
    with pytest.raises(ConfigError, match=words):
        check_config(cfg)


def test_stage_beyond_the_last_epoch_is_a_warning():
    with pytest.warns(UserWarning, match=r"LR_DECAY_STAGES \[180, 210\]"):
        check_config(merged("SOLVER.EPOCHS", 160))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_config(CFG)


def test_dump_can_be_loaded_again(tmp_path):
    opts = ("SOLVER.TRAINER", "crossbatch", "SOLVER.LR", "0.123", "VID.EPS", "1e-7")
    cfg = merged("DISTILLER.TYPE", "CROSSBATCH_VID", *opts)
    path = tmp_path / "config.yaml"
    path.write_text(dump_cfg(cfg))
    again = CFG.clone()
    again.merge_from_file(path)
    assert again == cfg
    assert "CROSSBATCH" in yaml.safe_load(dump_cfg(cfg))


def test_show_cfg_prints_the_groups_that_mdistiller_prints(capsys):
    golden = golden_json("configs")["show_cfg_output"]
    cfg = CFG.clone()
    cfg.merge_from_file(golden["config"])
    show_cfg(cfg)
    found = yaml.safe_load(capsys.readouterr().out.partition("CONFIG:")[2])
    expected = yaml.safe_load(golden["text"].partition("CONFIG:")[2].replace("\033[0m", ""))
    expected["LOG"]["WANDB"] = False
    assert found.keys() == expected.keys()
    for key, value in flatten(expected):
        assert dict(flatten(found))[key] == value


def test_experiment_name_follows_mdistillers_rule():
    golden = golden_json("configs")["experiment_name_rule"]["example"]
    cfg = CFG.clone()
    cfg.merge_from_file(golden["config"])
    assert experiment_name(cfg) == golden["without_opts"]
    cfg.merge_from_list(golden["opts"])
    assert experiment_name(cfg) == golden["experiment_path"]


def loaded(folder, text, *opts):
    (folder / "c.yaml").write_text(text)
    return load_cfg(folder / "c.yaml", opts)


# ---- YAML ------------------------------------------------------------------------------------


def test_text_is_kept_as_it_is_written(tmp_path):
    for text in ("1.10", "010", "12:30", "no", "On", "2024-01-01", "1_000", "0x10", ".inf", "1e3"):
        for style in ("{}", "'{}'", '"{}"'):
            written = f"EXPERIMENT: {{TAG: {style.format(text)}}}"
            assert text == loaded(tmp_path, written).EXPERIMENT.TAG


def test_number_that_yaml_reads_as_another_is_refused(tmp_path):
    for text in ("010", "12:30"):  # 8 and 750 in YAML 1.1
        with pytest.raises(
            ConfigError, match=f"SOLVER.EPOCHS expects a whole number, not .*{text}"
        ):
            loaded(tmp_path, f"SOLVER: {{EPOCHS: {text}}}")


def test_key_given_twice_is_refused_with_both_lines(tmp_path):
    (tmp_path / "twice.yaml").write_text("KD:\n  TEMPERATURE: 1\n  TEMPERATURE: 2\n")
    for text, key, lines in (
        ("SOLVER:\n  LR: 1\n  EPOCHS: 3\n  LR: 2\n", "SOLVER.LR", (2, 4)),
        ("SOLVER:\n  LR: 1\nLOG: {}\nSOLVER: {EPOCHS: 2}\n", "SOLVER", (1, 4)),
        ("SOLVER:\n  LR: 1\n\nSOLVER.LR: 2\n", "SOLVER.LR", (2, 4)),
        ("KD: {LOSS: {CE_WEIGHT: 1,\n CE_WEIGHT: 2}}\n", "KD.LOSS.CE_WEIGHT", (1, 2)),
        ("_BASE_: a.yaml\n_BASE_: b.yaml\n", "_BASE_", (1, 2)),
        ("_BASE_: twice.yaml\n", "KD.TEMPERATURE", (2, 3)),
    ):
        with pytest.raises(ConfigError) as error:
            loaded(tmp_path, text)
        message = str(error.value)
        assert f"{key} is given twice, at line {lines[0]} and at line {lines[1]}" in message
        assert "\n" not in message


def test_dotted_keys_and_merge_keys_are_read(tmp_path):
    cfg = loaded(tmp_path, "SOLVER.LR: 0.2\nSOLVER: &s {EPOCHS: 3, TYPE: SGD}\n")
    assert (cfg.SOLVER.LR, cfg.SOLVER.EPOCHS) == (0.2, 3)
    cfg = loaded(tmp_path, "KD: &k {LOSS: {CE_WEIGHT: 3}}\nAT: {<<: *k, P: 1}\n")
    assert (cfg.AT.LOSS.CE_WEIGHT, cfg.AT.P) == (3.0, 1)


def test_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = [key for key, setting in TABLE.items() if setting.is_path]
    assert {"LOG.PREFIX", "DATASET.ROOT", "DISTILLER.TEACHER_CKPT", "REPLAY.FILE"} <= set(paths)
    for key in paths:
        for cfg in (loaded(tmp_path, f"{key}: ~/x"), loaded(tmp_path, "", key, "~/x")):
            assert cfg.leaves()[key] == str(tmp_path / "x")
    monkeypatch.setenv("PLACE", str(tmp_path))
    cfg = loaded(tmp_path, "LOG: {PREFIX: '$PLACE/x'}")
    assert str(tmp_path / "x") == cfg.LOG.PREFIX
    with pytest.raises(ConfigError, match=r"PREFIX \$NOWHERE/x: \$NOWHERE is not set"):
        loaded(tmp_path, "", "LOG.PREFIX", "$NOWHERE/x")
    with pytest.raises(ConfigError, match="names no user's folder"):
        loaded(tmp_path, "LOG: {PREFIX: ~nobody-has-this-name/x}")


# ---- the table ---------------------------------------------------------------------------------


def test_pages_have_the_tables_of_today():
    root, found = Path(__file__).resolve().parents[1], []
    for page in (root / "README.md", *(root / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if names := [name for name in TABLES if f"<!-- {name}: begin -->" in text]:
            found += names
            message = "run python -m mdistiller.commands.settings --write PAGE"
            assert with_tables(text, TABLES) == text, f"{page}: {message}"
    assert set(found) == set(TABLES)
    for text in ("no marks", "<!-- settings: begin -->"):
        with pytest.raises(ValueError, match="mark"):
            with_tables(text, TABLES)


def test_setting_that_contradicts_itself_is_refused():
    for arguments in (
        {"default": None},
        {"default": -1, "rule": positive},
        {"default": 1, "kind": "x"},
    ):
        with pytest.raises(ValueError):
            Setting(**arguments)


def test_methods_bring_their_twins_and_may_have_one_by_hand():
    registry = DistillerRegistry()
    made = type("Mine", (KD,), {})
    registry["MINE_TWIN"] = made
    twin = registry["CROSSBATCH_MINE_TWIN"]
    assert issubclass(twin, CrossBatchDistiller) and issubclass(twin, made)
    by_hand = type("ByHand", (CrossBatchDistiller, made), {})
    registry["CROSSBATCH_MINE_TWIN"] = by_hand
    assert registry["CROSSBATCH_MINE_TWIN"] is by_hand
    with pytest.raises(ValueError, match="registered already"):
        registry["CROSSBATCH_MINE_TWIN"] = by_hand
    assert all(f"CROSSBATCH_{name}" in distiller_dict for name in GOLDEN_METHODS)


# ---- names and identities ----------------------------------------------------------------------


def test_name_is_of_what_changes_whatever_its_order_and_spelling(tmp_path):
    text = "EXPERIMENT: {TAG: a}\nSOLVER: {LR: 0.2}"
    names = {
        loaded(tmp_path, text, *opts).EXPERIMENT.NAME
        for opts in (
            ("SOLVER.LR", "0.1", "EXPERIMENT.SEED", "3"),
            ("EXPERIMENT.SEED", "3", "SOLVER.LR", "1e-1", "LOG.PREFIX", "/tmp/x"),
            ("SOLVER.LR", "5", "EXPERIMENT.SEED", "3", "SOLVER.LR", ".1", "DATASET.ROOT", "/data"),
        )
    }
    assert names == {"aEXPERIMENT.SEED:3,SOLVER.LR:0.1"}
    assert loaded(tmp_path, text, "SOLVER.LR", "2e-1").EXPERIMENT.NAME == "a"
    assert loaded(tmp_path, text, "EXPERIMENT.NAME", "b", "SOLVER.LR", "1").EXPERIMENT.NAME == "b"


def test_long_name_is_cut_and_told_apart_by_a_hash(tmp_path):
    numbers = [key for key, s in TABLE.items() if isinstance(s.default, float)][:14]
    names = [
        loaded(tmp_path, "", *(x for key in numbers for x in (key, value))).EXPERIMENT.NAME
        for value in ("0.125", "0.25")
    ]
    assert names[0] != names[1]
    assert all(len(name.encode()) <= 130 for name in names)


def test_name_that_is_no_folder_is_refused(tmp_path):
    for key, value in (
        ("EXPERIMENT.NAME", ".."),
        ("EXPERIMENT.TAG", "."),
        ("EXPERIMENT.PROJECT", "../up"),
        ("EXPERIMENT.PROJECT", "/root"),
        ("EXPERIMENT.NAME", "a" * 201),
        ("EXPERIMENT.NAME", "two\nlines"),
        ("EXPERIMENT.NAME", "t\udce4g"),  # a byte that is no character, as Python reads it
    ):
        with pytest.raises(ConfigError, match=key):
            loaded(tmp_path, "", key, value)


def test_identity_is_of_the_result_not_of_places_names_or_spelling(tmp_path):
    same = [
        "DISTILLER: {TYPE: KD}\nSOLVER: {TRAINER: crossbatch}",
        "DISTILLER: {TYPE: CROSSBATCH_KD}\nSOLVER: {TRAINER: crossbatch, LR: 5e-2}",
        "DISTILLER: {TYPE: KD}\nSOLVER: {TRAINER: crossbatch}\nLOG: {PREFIX: x}\n"
        "EXPERIMENT: {TAG: other}\nVID: {EPS: 3}\n",
    ]
    assert len({identity(loaded(tmp_path, text)) for text in same}) == 1
    for opts in (("SOLVER.LR", "1"), ("KD.TEMPERATURE", "1"), ("CROSSBATCH.EMA", "0.5")):
        assert identity(loaded(tmp_path, same[0], *opts)) != identity(loaded(tmp_path, same[0]))


def test_names_of_several_runs_tell_configurations_apart(tmp_path):
    texts = ["SOLVER: {LR: 0.1}", "SOLVER: {LR: 0.2}", "SOLVER: {LR: 1e-1}"]
    names = run_names([loaded(tmp_path, text) for text in texts])
    assert names[0] == names[2] == "defaultSOLVER.LR:0.1"
    assert names[1] == "defaultSOLVER.LR:0.2"


def run_folder(cfg, prefix, name):
    """A folder as a run leaves it."""
    folder = prefix / cfg.EXPERIMENT.PROJECT / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_cfg(cfg))
    (folder / "latest").touch()
    return folder


def test_run_is_found_by_its_own_config_file_wherever_it_lies(tmp_path):
    cfg = loaded(tmp_path, "", "SOLVER.LR", "1", "LOG.PREFIX", str(tmp_path / "out"))
    folder = run_folder(cfg, tmp_path / "out", cfg.EXPERIMENT.NAME)
    assert run_path(load_cfg(folder / "config.yaml")) == folder
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    folder.rename(moved)
    assert run_path(load_cfg(moved / "config.yaml")) == moved
    # Another configuration is another run.
    assert run_path(load_cfg(moved / "config.yaml", ["SOLVER.LR", "2"])) != moved


def test_run_that_an_earlier_version_named_as_typed_is_found(tmp_path):
    opts = ("SOLVER.LR", "1", "LOG.PREFIX", str(tmp_path / "out"), "EXPERIMENT.SEED", "3")
    old = loaded(tmp_path, "", *opts).clone()
    old.put("EXPERIMENT.NAME", "")
    folder = run_folder(old, tmp_path / "out", "defaultSOLVER.LR:1e0,EXPERIMENT.SEED:3")
    assert run_path(loaded(tmp_path, "", *opts)) == folder
    assert run_path(load_cfg(folder / "config.yaml")) == folder
    assert runs_like(loaded(tmp_path, "", *opts, "EXPERIMENT.NAME", "new")) == [folder]
    assert run_path(loaded(tmp_path, "", *opts, "SOLVER.LR", "2")) != folder


def run_path(cfg):
    return Path(cfg.LOG.PREFIX) / experiment_name(cfg)
