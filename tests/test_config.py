"""The configuration: mdistiller's defaults, inheritance, coercion, and errors of one line."""

from __future__ import annotations

import warnings

import pytest
import yaml

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


@pytest.mark.parametrize("key", GOLDEN_DEFAULTS)
def test_default_is_mdistillers(key):
    value = CFG.leaves()[key]
    if key == "LOG.WANDB":
        assert value is False
        return
    expected = GOLDEN_DEFAULTS[key]
    assert (list(value) if isinstance(value, tuple) else value) == expected
    leaf_type = golden_json("distillers")["default_config_leaf_types"][key]
    assert type(value).__name__ == leaf_type.partition("[")[0]


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


def test_experiment_name_leaves_out_where_things_lie():
    opts = ["LOG.PREFIX", "/tmp/x", "DATASET.ROOT", "/data", "EXPERIMENT.SEED", "3"]
    assert experiment_name(merged(*opts), opts) == "distill/defaultEXPERIMENT.SEED:3"
    opts = ["EXPERIMENT.NAME", "mine", "SOLVER.LR", "1"]
    assert experiment_name(merged(*opts), opts) == "distill/mine"
