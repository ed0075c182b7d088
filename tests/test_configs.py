"""The shipped YAML files: they load, upstream's equal upstream's, and names say what is inside.

A file whose name starts with ``_`` is only a base of others and is not run by itself.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mdistiller.commands import make_configs
from mdistiller.config import Config
from mdistiller.engine.cfg import CFG, experiment_name, load_cfg
from mdistiller.engine.check import check_config
from mdistiller.experiments.tables.authors import AUTHORS
from mdistiller.models import cifar_model_dict, imagenet_model_dict, tiny_imagenet_model_dict
from tests.golden_rules import golden_json
from tests.loops import for_each

ROOT = Path(__file__).parent.parent
GOLDEN = golden_json("configs")
UPSTREAM = sorted(GOLDEN["configs"])
ALL = sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "configs").rglob("*.yaml"))
FILES = [f for f in ALL if not PurePosixPath(f).name.startswith("_")]
DEMO = [f for f in FILES if "/demo/" in f]
INSURED = [f for f in FILES if f.endswith("/insured_kd.yaml")]
# For data that are not there; tests/test_image_folder.py trains with them.
ANYBODYS = [f for f in FILES if f.startswith("configs/image_folder/")]
OWN = [f for f in FILES if f not in (*GOLDEN["configs"], *DEMO, *INSURED, *ANYBODYS)]

PREFIX = "CROSSBATCH_"
METHODS = ("KD", "RKD", "AT", "KDSVD", "PKT")
PAIRS = ("res101_res50", "res56_res20", "vgg13_vgg8", "res101_res34", "res110_res32x4")
PAIRS += ("res110_res56", "wrn40_2_wrn40_1")
SHORT = {f"res{depth}": f"resnet{depth}" for depth in ("20", "56", "110", "8x4", "32x4")}
SHORT |= {f"res{depth}": f"ResNet{depth}" for depth in ("34", "50", "101")} | {"r18": "ResNet18"}
SHORT |= {"vgg8": "vgg8", "vgg13": "vgg13", "wrn40_1": "wrn_40_1", "wrn40_2": "wrn_40_2"}
SHORT |= {"mv2": "MobileNetV2", "shuv2": "ShuffleV2"}
MODELS = {
    "cifar100": cifar_model_dict,
    "digits": cifar_model_dict,
    "fashion_mnist": cifar_model_dict,
    "glyphs": cifar_model_dict,
    "tiny_imagenet": tiny_imagenet_model_dict,
    "imagenet": imagenet_model_dict,
    "image_folder": cifar_model_dict,
}
SMALL = ("digits", "fashion_mnist", "glyphs")


@cache
def raw(file: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))


@cache
def merged(file: str) -> Config:
    cfg = CFG.clone()
    cfg.merge_from_file(ROOT / file)
    return cfg


@cache
def resolved(file: str) -> dict[str, Any]:
    """All values of the run by dotted key, sequences as lists."""
    leaves = merged(file).leaves()
    return {k: list(v) if isinstance(v, tuple) else v for k, v in leaves.items()}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out


def experiment(file: str) -> tuple[str, str, str]:
    """Project, name and tag."""
    cfg = resolved(file)
    return tuple(cfg[f"EXPERIMENT.{key}"] for key in ("PROJECT", "NAME", "TAG"))


def experiment_path(file: str) -> str:
    project, name, tag = experiment(file)
    return f"{project}/{name or tag}"


def method_of(file: str) -> str:
    return resolved(file)["DISTILLER.TYPE"].removeprefix(PREFIX)


def baseline_of(file: str) -> str:
    """The file that a cross-batch file is a twin of."""
    folder, _, name = file.rpartition("/")
    if folder.endswith("/crossbatch"):
        return f"{folder.removesuffix('crossbatch')}baseline/{name}"
    return f"{folder}/{name.removeprefix('crossbatch_')}"


WEIGHTINGS = ("multitask", "gradnorm", "uncertainty", "gradient_cosine", "distill_decay")
NEWER_WEIGHTINGS = ("linear_fade", "confidence_gate", "two_batch", "scalarized")
TABLE_2 = {"mgda": "MGDA", "pcgrad": "PCGrad", "fairgrad": "FairGrad", "distill_decay": None}
TWINS = [f for f in (*OWN, *DEMO) if "crossbatch" in f]


@cache
def weighted() -> list[str]:
    return [f for f in OWN if resolved(f)["SOLVER.TRAINER"] in WEIGHTINGS + NEWER_WEIGHTINGS]


@cache
def distilling() -> list[str]:
    return [f for f in FILES if resolved(f)["DISTILLER.TYPE"] != "NONE"]


# --- upstream's files -------------------------------------------------------------------------


def test_every_upstream_file_is_shipped() -> None:
    assert len(UPSTREAM) == 42
    assert set(UPSTREAM) <= set(FILES)


@for_each(UPSTREAM)
def test_upstream_file_holds_upstreams_data(file: str) -> None:
    assert raw(file) == GOLDEN["configs"][file]


@for_each(UPSTREAM)
def test_upstream_file_means_what_it_means_upstream(file: str) -> None:
    golden = GOLDEN["merged"][file]
    upstream = flat(golden_json("distillers")["default_config"]) | golden["differs_from_default"]
    upstream["LOG.WANDB"] = False  # the one default that was changed on purpose
    added = {k: v for k, v in CFG.leaves().items() if k not in upstream}
    assert resolved(file) == upstream | added
    assert experiment_path(file) == golden["experiment_path"]


# --- every file -------------------------------------------------------------------------------


@for_each(FILES)
def test_names_are_registered(file: str) -> None:
    cfg = resolved(file)
    models = MODELS[cfg["DATASET.TYPE"]]
    method = method_of(file)
    newer = {row.distiller for row in AUTHORS.values()}
    assert method in newer | set(golden_json("distillers")["registry_order"])
    assert cfg["DISTILLER.STUDENT"] in models
    assert method == "NONE" or cfg["DISTILLER.TEACHER"] in models


@for_each(FILES)
def test_program_accepts_the_file(file: str) -> None:
    cfg = merged(file).clone()
    check_config(cfg)  # fits method, trainer and schedule together; a warning is an error here
    assert experiment_name(cfg) == experiment_path(file)


@for_each(FILES)
def test_every_decay_stage_is_reached(file: str) -> None:
    cfg = resolved(file)
    stages = cfg["SOLVER.LR_DECAY_STAGES"]
    assert stages == sorted(set(stages))
    # The rate changes in the epoch after a stage.
    assert stages[0] >= 1 and stages[-1] < cfg["SOLVER.EPOCHS"]


def test_every_base_is_used() -> None:
    named = {f: raw(f)["_BASE_"] for f in ALL if "_BASE_" in raw(f)}
    used = {((ROOT / f).parent / base).resolve() for f, base in named.items()}
    assert {(ROOT / f).resolve() for f in set(ALL) - set(FILES)} <= used


def test_no_two_runs_share_an_output_folder() -> None:
    paths = [experiment_path(f) for f in FILES]
    own = [experiment_path(f) for f in OWN]
    assert sorted(p for p in own if paths.count(p) > 1) == []


# --- what a file's name promises --------------------------------------------------------------


def is_pair(file: str) -> bool:
    return file.split("/")[2] in ("baseline", "crossbatch")


@for_each([f for f in OWN if is_pair(f)])
def test_pair_file_matches_its_name(file: str) -> None:
    _, dataset, folder, name = file.split("/")
    networks = "|".join(SHORT)
    method, teacher, student = re.fullmatch(
        rf"([a-z]+)_({networks})_({networks})\.yaml", name
    ).groups()
    cfg = resolved(file)
    kind = ("crossbatch_" if folder == "crossbatch" else "") + method
    assert cfg["DISTILLER.TYPE"] == kind.upper()
    assert cfg["DISTILLER.TEACHER"] == SHORT[teacher]
    assert cfg["DISTILLER.STUDENT"] == SHORT[student]
    assert cfg["DATASET.TYPE"] == dataset
    assert experiment(file) == (f"{dataset}_{folder}", "", f"{kind},{teacher},{student}")


@for_each([f for f in OWN if f.split("/")[2] == "teachers"])
def test_teacher_file_matches_its_name(file: str) -> None:
    _, dataset, _, name = file.split("/")
    cfg = resolved(file)
    assert cfg["DISTILLER.TYPE"] == "NONE"
    assert f"{cfg['DISTILLER.STUDENT']}.yaml" == name
    assert cfg["DATASET.TYPE"] == dataset
    assert experiment(file) == (f"{dataset}_teachers", "", cfg["DISTILLER.STUDENT"])


@for_each([f for f in OWN if f.split("/")[1] in SMALL])
def test_small_data_set_file_matches_its_name(file: str) -> None:
    _, dataset, name = file.split("/")
    tag = name.removesuffix(".yaml")
    cfg = resolved(file)
    kind, student = {"teacher": ("NONE", "resnet20"), "vanilla": ("NONE", "resnet8")}.get(
        tag, (tag.upper().removesuffix("_LS"), "resnet8")
    )
    assert cfg["DISTILLER.LOGIT_STANDARDIZATION"] == tag.endswith("_ls")
    if file in weighted():
        assert f"{cfg['SOLVER.TRAINER']}_kd" == tag
        kind = "KD"
    assert (cfg["DISTILLER.TYPE"], cfg["DISTILLER.STUDENT"]) == (kind, student)
    assert kind == "NONE" or cfg["DISTILLER.TEACHER"] == "resnet20"
    assert cfg["DATASET.TYPE"] == dataset
    assert experiment(file) == (dataset, "", tag)
    # No numbered checkpoints: these runs are to leave little on disk.
    assert cfg["LOG.SAVE_CHECKPOINT_FREQ"] > cfg["SOLVER.EPOCHS"]


def names_in(folder: str) -> set[str]:
    return {PurePosixPath(f).stem for f in FILES if f.startswith(f"configs/{folder}/")}


def test_tables_are_complete() -> None:
    cifar = {f"{m.lower()}_{pair}" for m in METHODS for pair in PAIRS} | {"kd_res32x4_res8x4"}
    tiny = {"kd_r18_mv2", "kd_r18_shuv2", "kd_res56_res20"}
    small = {"teacher", "vanilla"} | {p + m.lower() for m in METHODS for p in ("", "crossbatch_")}
    small |= {f"{weighting}_kd" for weighting in WEIGHTINGS} | {"insured_kd"}
    for folder in ("baseline", "crossbatch"):
        assert names_in(f"cifar100/{folder}") == cifar
        assert names_in(f"tiny_imagenet/{folder}") == tiny
    newer = {p + name for name in AUTHORS for p in ("", "crossbatch_")}
    newer |= {f"{weighting}_kd" for weighting in NEWER_WEIGHTINGS}
    for dataset in SMALL:
        assert names_in(dataset) == small | (newer if dataset != "fashion_mnist" else set())
    pairs = ("res56_res20", "res32x4_res8x4", "wrn40_2_wrn40_1", "vgg13_vgg8")
    methods = {
        f"{p}{name}_{pair}" for name in AUTHORS for p in ("", "crossbatch_") for pair in pairs
    }
    assert names_in("cifar100/methods") == methods


@for_each([f for f in OWN if f.startswith("configs/cifar100/")])
def test_cifar_recipe(file: str) -> None:
    cfg = resolved(file)
    recipe = {"BATCH_SIZE": 64, "EPOCHS": 240, "TYPE": "SGD", "MOMENTUM": 0.9}
    recipe |= {"LR": 0.05, "LR_DECAY_STAGES": [150, 180, 210], "LR_DECAY_RATE": 0.1}
    recipe |= {"WEIGHT_DECAY": 5e-4}
    if method_of(file) == "MLKD":
        recipe |= {"EPOCHS": 480, "LR": 0.01 if "mlkd_ls_vgg" in file else 0.025}
    assert {k: cfg[f"SOLVER.{k}"] for k in recipe} == recipe


@for_each(["mv2", "shuv2"])
def test_tiny_imagenet_recipe_is_that_of_the_dot_files(student: str) -> None:
    ours = resolved(f"configs/tiny_imagenet/baseline/kd_r18_{student}.yaml")
    dot = resolved(f"configs/tiny_imagenet/dot/r18_{student}.yaml")
    differing = {k for k in ours if ours[k] != dot[k]}
    assert differing == {"SOLVER.TRAINER", "EXPERIMENT.PROJECT", "EXPERIMENT.TAG"}


# --- cross-batch twins ------------------------------------------------------------------------


def test_every_distilling_baseline_has_a_twin() -> None:
    plain = set(distilling()) & set(OWN) - set(TWINS) - set(weighted())
    demo = {"configs/digits/demo/kd.yaml"}
    newer = len(AUTHORS) * (4 + 2)
    assert {baseline_of(f) for f in TWINS} == plain | demo
    assert len(TWINS) == len(plain | demo) == 36 + 3 + 5 + 5 + 5 + 1 + newer


@for_each(TWINS)
def test_twin_differs_only_in_the_weighting(file: str) -> None:
    ours, baseline = resolved(file), resolved(baseline_of(file))
    changed = {k for k in ours if ours[k] != baseline[k]}
    differing = {k for k in changed if not k.startswith("CROSSBATCH.")}
    expected = {"DISTILLER.TYPE", "SOLVER.TRAINER", "EXPERIMENT.TAG"}
    if file.split("/")[2] == "crossbatch":
        expected.add("EXPERIMENT.PROJECT")
    if method_of(file) == "SIMKD":
        expected.add("SIMKD.CE_WEIGHT")  # of weight 0 it has no gradient to weigh
    assert differing == expected
    assert ours["DISTILLER.TYPE"] == PREFIX + baseline["DISTILLER.TYPE"]
    assert (baseline["SOLVER.TRAINER"], ours["SOLVER.TRAINER"]) == ("base", "crossbatch")


@for_each(TWINS)
def test_twin_spells_out_its_weighting(file: str) -> None:
    # The values are defaults today; a file that says them keeps its meaning when those change.
    assert raw(file)["CROSSBATCH"] == {"READING": "align", "ALPHA": 1.0, "REFERENCE": "fresh"}


def test_the_demo_is_small_and_finds_its_teacher() -> None:
    teacher, student = (resolved(f"configs/digits/demo/{name}.yaml") for name in ("teacher", "kd"))
    project, _, tag = experiment("configs/digits/demo/teacher.yaml")
    assert student["DISTILLER.TEACHER_CKPT"] == f"output/{project}/{tag}/student_latest"
    assert teacher["DISTILLER.STUDENT"] == student["DISTILLER.TEACHER"] == "convnet48"
    assert student["DISTILLER.STUDENT"] == "convnet12"
    assert {resolved(f)["EXPERIMENT.PROJECT"] for f in DEMO} == {project}


@for_each(INSURED)
def test_insured_file_differs_in_the_weighting_and_what_is_held_out(file: str) -> None:
    ours, baseline = resolved(file), resolved(file.replace("insured_", ""))
    changed = {k: ours[k] for k in ours if ours[k] != baseline[k]}
    number = changed.pop("DATASET.HOLDOUT")
    assert number == (200 if "digits" in file else 1000)
    assert changed == {
        "DATASET.VALIDATE": "test",
        "EXPERIMENT.TAG": "insured_kd",
        "DISTILLER.TYPE": "CROSSBATCH_KD",
        "SOLVER.TRAINER": "crossbatch",
        "CROSSBATCH.READING": "regression",
        "CROSSBATCH.REFERENCE": "holdout",
        "CROSSBATCH.STEP": "supervised",
        "KD.LOSS.CE_WEIGHT": 1.0,  # the length of the step is cross-entropy's
    }
    check_config(load_cfg(ROOT / file))


# --- the newer methods ------------------------------------------------------------------------


def test_files_of_the_newer_methods_are_what_the_tool_writes() -> None:
    written = dict(make_configs.files())
    assert len(written) == len(AUTHORS) * 12 + len(NEWER_WEIGHTINGS) * 2
    for path, text in written.items():
        assert (ROOT / "configs" / path).read_text(encoding="utf-8") == text, path


@for_each([f for f in OWN if f.split("/")[2] == "methods"])
def test_method_file_matches_its_name(file: str) -> None:
    stem = PurePosixPath(file).stem.removeprefix("crossbatch_")
    pair = next(p for p in (*PAIRS, "res32x4_res8x4") if stem.endswith(p))
    name = stem.removesuffix(f"_{pair}")
    short = re.findall("|".join(sorted(SHORT, key=len)[::-1]), pair)
    cfg = resolved(file)
    assert [SHORT[x] for x in short] == [cfg["DISTILLER.TEACHER"], cfg["DISTILLER.STUDENT"]]
    assert cfg["DISTILLER.LOGIT_STANDARDIZATION"] == name.endswith("_ls")
    assert name.upper().removesuffix("_LS") == method_of(file)
    prefix = "crossbatch_" if "crossbatch_" in file else ""
    assert experiment(file) == ("cifar100_methods", "", ",".join([prefix + name, *short]))


# --- other weightings -------------------------------------------------------------------------


def unweighted(file: str) -> str:
    """The file of the same method and networks with fixed loss weights."""
    folder, _, name = file.rpartition("/")
    if not folder.endswith("/weightings"):
        return f"{folder}/kd.yaml"
    pair = next(name.removeprefix(f"{w}_") for w in TABLE_2 if name.startswith(f"{w}_"))
    return f"{folder.removesuffix('weightings')}baseline/kd_{pair}"


@for_each(weighted)
def test_weighting_file_differs_only_in_the_weighting(file: str) -> None:
    ours, baseline = resolved(file), resolved(unweighted(file))
    node = ours["SOLVER.TRAINER"].upper()
    changed = {k for k in ours if ours[k] != baseline[k] and not k.startswith(f"{node}.")}
    project = {"EXPERIMENT.PROJECT"} if "/weightings/" in file else set()
    assert changed == {"SOLVER.TRAINER", "EXPERIMENT.TAG"} | project
    assert raw(file)[node]  # spelled out, so that the file keeps its meaning


def test_table_2_is_complete() -> None:
    pairs = ("res101_res50", "res56_res20", "wrn40_2_wrn40_1", "res32x4_res8x4")
    folder = "cifar100/weightings"
    assert names_in(folder) == {f"{w}_{pair}" for w in TABLE_2 for pair in pairs}
    for weighting, method in TABLE_2.items():
        for pair in pairs:
            cfg = resolved(f"configs/{folder}/{weighting}_{pair}.yaml")
            trainer = "distill_decay" if method is None else "multitask"
            assert cfg["SOLVER.TRAINER"] == trainer
            assert method in (None, cfg["MULTITASK.METHOD"])
            short = re.findall("|".join(sorted(SHORT, key=len)[::-1]), pair)
            assert [SHORT[x] for x in short] == [cfg["DISTILLER.TEACHER"], cfg["DISTILLER.STUDENT"]]
            tag = ",".join([weighting, "kd", *short])
            assert experiment(f"configs/{folder}/{weighting}_{pair}.yaml") == (
                "cifar100_weightings",
                "",
                tag,
            )


# --- teachers ---------------------------------------------------------------------------------


@for_each(lambda: [f for f in OWN if f in distilling()])
def test_teacher_has_weights(file: str) -> None:
    """Published weights, or those that one file of ours writes when it is run."""
    cfg = resolved(file)
    name, weights = cfg["DISTILLER.TEACHER"], cfg["DISTILLER.TEACHER_CKPT"]
    if not weights:
        kind = cfg["DATASET.TYPE"].replace("cifar100", "cifar")
        published = golden_json("models")["models"][f"{kind}/{name}"]["teacher_checkpoint"]
        assert published is not None
        assert MODELS[cfg["DATASET.TYPE"]][name][1] == published
        return
    folder, _, leaf = weights.rpartition("/")
    assert leaf == "student_latest"
    written = {PurePosixPath(resolved(f)["LOG.PREFIX"], experiment_path(f)): f for f in OWN}
    source = written[PurePosixPath(folder)]
    assert resolved(source)["DISTILLER.STUDENT"] == name
    assert resolved(source)["DATASET.TYPE"] == resolved(file)["DATASET.TYPE"]
    assert method_of(source) == "NONE"


def test_every_teacher_of_cifar_can_be_trained_here() -> None:
    teachers = {
        resolved(f)["DISTILLER.TEACHER"]
        for f in distilling()
        if resolved(f)["DATASET.TYPE"] == "cifar100"
    }
    assert names_in("cifar100/teachers") == teachers
