"""The insurance study as data: settings that are not right, arms, and what is claimed of them.

docs/study-2.md says why each is there; it was written down before the first run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mdistiller.seeding import derive_seed

TASKS = ("glyphs", "fashion_mnist")
TRIALS = 10

# Teacher, student and trials of the study and of its confirmations with larger networks.
PAIR = "convnet"
PAIRS = {
    PAIR: ("convnet48", "convnet12", TRIALS),
    "resnet": ("resnet20", "resnet8", 5),
    "resnet56": ("resnet56", "resnet20", 5),
}
CONFIRMATIONS = tuple(pair for pair in PAIRS if pair != PAIR)

# What all students have in common.
IMAGES, HELD_OUT = 10_000, 1_000
_COMMON = (
    *("DATASET.SUBSET", IMAGES, "DATASET.HOLDOUT", HELD_OUT, "DATASET.VALIDATE", "test"),
    *("SOLVER.EPOCHS", 12, "SOLVER.LR_DECAY_STAGES", [6, 9]),
)

# Half the epochs for networks that cost several times as much.
_OF_PAIR = dict.fromkeys(CONFIRMATIONS, ("SOLVER.EPOCHS", 6, "SOLVER.LR_DECAY_STAGES", [3, 5]))

# Weights of KD in configs/<task>/kd.yaml.
CE_WEIGHT, KD_WEIGHT = 0.1, 0.9


@dataclass(frozen=True)
class Setting:
    """What is wrong.

    Attributes:
        opts: overrides of every arm.
        teacher: one of :data:`TEACHERS`.
        scale: factor of the distillation weight.
        only: the one task on which it exists; empty: on all.
    """

    key: str
    label: str
    opts: tuple[object, ...] = ()
    teacher: str = "full"
    scale: float = 1.0
    only: str = ""

    def is_on(self, task: str) -> bool:
        return self.only in ("", task)


@dataclass(frozen=True)
class Arm:
    """What trains the student.

    Attributes:
        file: its configuration, configs/<task>/<file>.yaml.
        family: arms that have one learning rate, chosen together.
        held_out: what becomes of the held-out images: "trained" on with the others, "reference"
            gradient, or to "select" among arms.
        opts: overrides.
        ce_weight, kd_weight: of KD; ``kd_weight`` before the setting's scale.
        source: key of the arm of the same trial whose mean weights it has.
        features: the distillation loss is of features, not of logits, with its configuration's
            weight.
    """

    key: str
    label: str
    file: str = "kd"
    family: str = "fixed"
    held_out: str = "trained"
    opts: tuple[object, ...] = ()
    ce_weight: float = CE_WEIGHT
    kd_weight: float = KD_WEIGHT
    source: str | None = None
    features: bool = False


def _noise(percent: int) -> Setting:
    opts = ("DATASET.LABEL_NOISE", percent / 100)
    return Setting(f"noise{percent}", f"{percent} % of the labels random", opts)


def _fault(kind: str, label: str) -> Setting:
    return Setting(kind, label, ("DISTILLER.TEACHER_FAULT", kind))


def _scale(factor: float) -> Setting:
    return Setting(f"scale{factor:g}", f"distillation weight x {factor:g}", scale=factor)


# In the order in which they are trained; the first five are the main ones.
SETTINGS = {
    setting.key: setting
    for setting in (
        Setting("clean", "nothing is wrong"),
        _noise(40),
        _fault("permute", "teacher's classes permuted"),
        _scale(0.01),
        _scale(100),
        _fault("random", "teacher with random weights"),
        _noise(20),
        _noise(60),
        Setting("weak", "teacher stopped after its first epoch", teacher="weak"),
        Setting("fonts", "teacher of other fonts", teacher="fonts", only="glyphs"),
        _scale(0.1),
        _scale(10),
    )
}
MAIN = ("clean", "noise40", "permute", "scale0.01", "scale100")
# Planned, and dropped for want of time before any of their runs (docs/study-2.md).
DROPPED = ("noise20", "noise60", "weak", "fonts", "scale0.1", "scale10")

# Overrides of configs/<task>/teacher.yaml, of whose epochs convnet48 ends hardly better than its
# students.
TEACHERS = {
    "full": {
        "glyphs": ("SOLVER.EPOCHS", 8, "SOLVER.LR_DECAY_STAGES", [4, 6]),
        "fashion_mnist": ("SOLVER.EPOCHS", 6, "SOLVER.LR_DECAY_STAGES", [3, 5]),
    },
    "weak": {task: ("SOLVER.EPOCHS", 1, "SOLVER.LR_DECAY_STAGES", []) for task in TASKS},
    # docs/study-2.md says how its data set is built.
    "fonts": {
        "glyphs": ("DATASET.SUBSET", 0, "SOLVER.EPOCHS", 8, "SOLVER.LR_DECAY_STAGES", [4, 6])
    },
    **{f"{pair}-full": dict.fromkeys(TASKS, ()) for pair in CONFIRMATIONS},
}


def _weighted(key: str, label: str, reading: str, *opts: object, **more: Any) -> Arm:
    opts = ("CROSSBATCH.READING", reading, *opts)
    return Arm(key, label, "crossbatch_kd", opts=opts, **{"family": "weighted", **more})


def _regression(key: str, label: str, reference: str, *opts: object, **more: Any) -> Arm:
    opts = ("CROSSBATCH.REFERENCE", reference, *(opts or _PLAIN))
    more = {"held_out": "reference" if reference == "holdout" else "trained", **more}
    return _weighted(key, label, "regression", *opts, **more)


_PLAIN = ("CROSSBATCH.STEP", "plain")
_EQ_9 = ("CROSSBATCH.REFERENCE", "none", "CROSSBATCH.STABILIZE", False)

# Whose length is that of the cross-entropy's gradient, so that its weight must be 1.
_SUPERVISED: dict[str, Any] = {"family": "supervised", "ce_weight": 1.0}


def _feature_method(key: str, method: str) -> Iterator[Arm]:
    """As configured; insured, with both sets of parameters in the Gramian; as shipped for KD.

    All configured cross-entropy weights are 1, which STEP supervised needs.
    """
    yield Arm(key, method, key, features=True)
    insured = ("CROSSBATCH.READING", "regression", "CROSSBATCH.REFERENCE", "holdout")
    for name, family, step, theta in (
        ("insured", "weighted", "plain", "student"),
        ("insured_shared", "weighted", "plain", "shared"),
        ("supervised", "supervised", "supervised", "student"),
    ):
        opts = (*insured, "CROSSBATCH.STEP", step, "CROSSBATCH.THETA", theta)
        label = f"{method}, regression, STEP {step}, THETA {theta}"
        file = f"crossbatch_{key}"
        yield Arm(f"{key}_{name}", label, file, family, "reference", opts, features=True)


def _other(key: str, label: str, trainer: str, *opts: object) -> Arm:
    """Another weighting of KD's two losses."""
    return Arm(key, label, opts=("SOLVER.TRAINER", trainer, *opts))


_TWO_BATCH = ("two_batch", "TWO_BATCH.METHOD")
_OTHERS = (
    _other("gradient_cosine", "gradient cosine", "gradient_cosine"),
    _other("uncertainty", "uncertainty", "uncertainty"),
    _other("famo", "FAMO", "scalarized", "SCALARIZED.METHOD", "FAMO"),
    # As configs/*/two_batch_kd.yaml.
    _other("modo", "MoDo", *_TWO_BATCH, "MoDo", "TWO_BATCH.PARAMS", "gamma=0.1, rho=0.1"),
    _other("sdmgrad", "SDMGrad", *_TWO_BATCH, "SDMGrad", "TWO_BATCH.UPDATE", "third"),
)
OTHERS = tuple(arm.key for arm in _OTHERS)

# Cross-entropy weights among which the arm "best_fixed" chooses.
FIXED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)

# In the order in which they are dropped, last first.
ARMS = {
    arm.key: arm
    for arm in (
        Arm("ce", "CE alone", "vanilla", "ce"),
        Arm("kd", "KD as configured"),
        _regression("insured", "regression, held-out reference", "holdout"),
        _regression(
            *("insured_supervised", "the same, STEP supervised", "holdout"),
            *("CROSSBATCH.STEP", "supervised"),
            **_SUPERVISED,
        ),
        _regression("train_reference", "regression, reference from the training set", "fresh"),
        _regression("same_batch", "regression, reference of the same batch", "same"),
        _weighted(
            *("bisector", "bisector (Eq. 9), no second batch", "printed", *_EQ_9),
            *("CROSSBATCH.PREFER", "ce", "CROSSBATCH.MAX_RATIO", 1e6),
            **_SUPERVISED,
        ),
        _weighted("align", "align, α 1", "align", "CROSSBATCH.ALPHA", 1.0),
        _regression(
            *("insured_period10", "the insured arm, every tenth step", "holdout", *_PLAIN),
            *("CROSSBATCH.PERIOD", 10, "CROSSBATCH.EMA", 0.9),
        ),
        _regression(
            *("supervised_period10", "insured_supervised, every tenth step", "holdout"),
            *("CROSSBATCH.STEP", "supervised", "CROSSBATCH.PERIOD", 10, "CROSSBATCH.EMA", 0.9),
            **_SUPERVISED,
        ),
        *(
            Arm(f"fixed{x}", f"KD {x:g} : {1 - x:.1g}", "kd", "fixed", "select", (), x, 1 - x)
            for x in FIXED
        ),
        Arm("mean_weights", "KD with the insured arm's mean weights", source="insured"),
        _weighted("align_short", "align, α 0.5", "align", "CROSSBATCH.ALPHA", 0.5),
        *_OTHERS,
        *_feature_method("pkt", "PKT"),
        *_feature_method("at", "AT"),
        *_feature_method("rkd", "RKD"),
    )
}
KEY_ARMS = tuple(ARMS)[:8]
BEST_FIXED = "best_fixed"
# Of which it is trained in all trials: no time was left for the other (docs/study-2.md).
SEARCHED = ("glyphs",)

# Learning rates of each family; the arm that stands for it when one is chosen.
LEARNING_RATES = (0.02, 0.05, 0.1, 0.2)
FAMILIES = {"ce": "ce", "fixed": "kd", "weighted": "train_reference", "supervised": "bisector"}
SELECTION = "selection"


@dataclass(frozen=True)
class Run:
    """One training of the study.

    Attributes:
        trial: from 0; or :data:`SELECTION`.
        lr: SOLVER.LR.
        pair: key of :data:`PAIRS`.
    """

    task: str
    setting: Setting
    arm: Arm
    trial: int | str
    lr: float
    pair: str = PAIR

    @property
    def name(self) -> str:
        """Of its folder."""
        if self.trial == SELECTION:
            return f"{SELECTION}-{self.arm.family}-{self.lr:g}"
        first = "" if self.pair == PAIR else f"{self.pair}-"
        return f"{first}{self.setting.key}-{self.arm.key}-t{self.trial}"

    @property
    def teacher(self) -> str:
        """Key of its teacher, which the name of that one's folder ends in."""
        key = self.setting.teacher
        return key if self.pair == PAIR else f"{self.pair}-{key}"

    @property
    def file(self) -> str:
        return f"configs/{self.task}/{self.arm.file}.yaml"

    @property
    def opts(self) -> list[object]:
        """Overrides of its configuration; without its teacher's file and a source's numbers."""
        subset_seed = 1000 if isinstance(self.trial, str) else self.trial + 1
        teacher, student, _ = PAIRS[self.pair]
        opts: list[object] = ["DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", student]
        opts += [*_COMMON, *_OF_PAIR.get(self.pair, ())]
        opts += [*self.setting.opts, *self.arm.opts, "SOLVER.LR", self.lr]
        opts += ["EXPERIMENT.SEED", derive_seed(0, "insurance", self.trial) % 2**31]
        opts += ["DATASET.SUBSET_SEED", subset_seed, "LOG.SAVE_CHECKPOINT_FREQ", 1000]
        opts += ["KD.LOSS.CE_WEIGHT", self.arm.ce_weight]
        opts += ["KD.LOSS.KD_WEIGHT", round(self.arm.kd_weight * self.setting.scale, 10)]
        if self.trial == SELECTION:
            opts += ["DATASET.VALIDATE", "auto"]
        elif self.arm.held_out == "trained":
            opts += ["DATASET.TRAIN_ON_HOLDOUT", True]
        return opts


def selection_runs(task: str) -> list[Run]:
    """Those that choose each family's learning rate, on the held-out images of another seed."""
    return [
        Run(task, SETTINGS["clean"], ARMS[arm], SELECTION, lr)
        for arm in FAMILIES.values()
        for lr in LEARNING_RATES
    ]


def trained_as(setting: Setting, arm: Arm) -> Setting:
    """The setting in whose run an arm is not different.

    Without a teacher it does not matter what the teacher is like, and without its logits it does
    not matter to which classes they belong.
    """
    if arm.family == "ce" and not setting.key.startswith("noise"):
        return SETTINGS["clean"]
    if arm.features and setting.key == "permute":
        return SETTINGS["clean"]
    return setting


def run_of(task: str, setting: str, arm: str, trial: int, lr: float = 0.0, pair: str = PAIR) -> Run:
    """The run that stands for an arm in a setting."""
    return Run(task, trained_as(SETTINGS[setting], ARMS[arm]), ARMS[arm], trial, lr, pair)


def runs(
    task: str,
    rates: dict[str, float],
    settings: tuple[str, ...] = MAIN,
    arms: tuple[str, ...] = KEY_ARMS,
    trials: range = range(TRIALS),
    pair: str = PAIR,
) -> Iterator[Run]:
    """Trial by trial, then setting by setting, each run once.

    Args:
        rates: the learning rate of each family.
    """
    seen = set()
    for trial in trials:
        for key in settings:
            if not SETTINGS[key].is_on(task):
                continue
            for arm in arms:
                if ARMS[arm].features and SETTINGS[key].scale != 1:
                    continue  # the scale is of KD's weight
                run = run_of(task, key, arm, trial, rates[ARMS[arm].family], pair)
                if run.name not in seen:
                    seen.add(run.name)
                    yield run
