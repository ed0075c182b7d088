"""The settings that every run has, by group. Methods declare their own on their classes."""

from __future__ import annotations

from .setting import (
    Rule,
    Setting,
    Settings,
    ascending_epochs,
    at_least_one,
    below_one,
    not_negative,
    one_of,
    positive,
)

# Leaves room for what a run puts beside its folder (".failed.json") in 255 bytes.
_LONGEST_NAME = 200


def _names_a_folder(text: str) -> bool:
    return (
        text not in (".", "..")
        and (not text or text.isprintable())  # which bytes that are no characters are not
        and len(text.encode()) <= _LONGEST_NAME
    )


_folder = Rule(_names_a_folder, f"a folder's name, not .. and at most {_LONGEST_NAME} bytes long")
_project = Rule(
    lambda v: bool(v) and not v.startswith("/") and all(map(_names_a_folder, v.split("/"))),
    f"a folder's name, not empty, not .. and at most {_LONGEST_NAME} bytes long",
)

_fractions = Rule(
    lambda v: len(v) in (0, 3) and all(0 <= x <= 1 for x in v), "empty, or three numbers in [0, 1]"
)
_positive_fractions = Rule(
    lambda v: len(v) in (0, 3) and all(0 < x <= 1 for x in v), "empty, or three numbers in (0, 1]"
)
_NETWORK = (
    "a network that fits the data set, or `torchvision:NAME`, `timm:NAME`, "
    "`path/to/file.py:NAME`, see [networks](networks.md)"
)

CORE: dict[str, Settings] = {
    "EXPERIMENT": {
        "PROJECT": Setting("distill", _project, "folder below LOG.PREFIX", False),
        "NAME": Setting(
            "", _folder, "the run's folder; empty: TAG and what the command line changes", False
        ),
        "TAG": Setting("default", _folder, "short name of the configuration", False),
        "SEED": Setting(0, not_negative, "every random stream of the run derives from it"),
        "IMPORTS": Setting(
            [],
            doc="Python files or modules with methods, trainers or data sets of your own; files "
            "are looked for beside the YAML file, then in the current folder",
            affects_result=False,
            kind="texts",
        ),
    },
    "DATASET": {
        "TYPE": Setting("cifar100", doc="see `python tools/train.py --list`"),
        "ROOT": Setting(
            "./data",
            doc="where data sets lie and are downloaded to",
            affects_result=False,
            kind="path",
        ),
        "IMAGE_SIZE": Setting(
            0,
            not_negative,
            "image_folder: height and width in pixels to which images are brought, at least 32; 0 "
            "for the other sets, which have their own",
        ),
        "MEAN": Setting(
            [],
            _fractions,
            "image_folder: mean of red, green and blue, of values in 0..1; empty: computed once "
            "over the training images and kept beside them",
            kind="real",
        ),
        "STD": Setting(
            [], _positive_fractions, "image_folder: their standard deviations", kind="real"
        ),
        "AUGMENT": Setting(
            "crop_flip",
            one_of("none", "crop_flip", "randaugment"),
            "image_folder: crop_flip: shifted by up to an eighth of the size, and half of the time "
            "mirrored; randaugment: RandAugment on top; none: for signs and text",
        ),
        "NUM_WORKERS": Setting(
            2,
            not_negative,
            "processes that decode images in folders; sets in memory use none",
            False,
        ),
        "SKIP_BROKEN": Setting(
            False,
            doc="of images in folders: decode all once at the start and leave out, with a "
            "warning, those that cannot be read; False: the first one met stops the run",
        ),
        "SUBSET": Setting(
            0,
            not_negative,
            "train on so many images only, of each class as many as of any other if there are "
            "enough; the same ones in every run, whatever EXPERIMENT.SEED is; 0: on all",
        ),
        "SUBSET_SEED": Setting(0, not_negative, "which images SUBSET and HOLDOUT choose"),
        "HOLDOUT": Setting(
            0,
            not_negative,
            "hold out so many training images, as evenly, and validate on them **instead of the "
            "test images**: for choosing hyperparameters, see below; 0: none. Also what "
            "`CROSSBATCH.REFERENCE holdout` takes its batches from",
        ),
        "VALIDATE": Setting(
            "auto",
            one_of("auto", "test"),
            "auto: on the held-out images if there are any; test: on the test images all the same",
        ),
        "TRAIN_ON_HOLDOUT": Setting(
            False,
            doc="train on the held-out images, too, with their right labels; needs `VALIDATE test`",
        ),
        "LABEL_NOISE": Setting(
            0.0, below_one, "make so many of the training labels wrong, see below"
        ),
        "LABEL_NOISE_KIND": Setting(
            "symmetric",
            one_of("symmetric", "pair"),
            "a wrong label is any other class (symmetric) or the next one (pair)",
        ),
        "STRONG_VIEW": Setting(
            False,
            doc="give each training image under strong augmentation, too, for MLKD",
        ),
        "TEST.BATCH_SIZE": Setting(64, at_least_one, "images at a time in validation"),
    },
    "DISTILLER": {
        "TYPE": Setting("NONE", doc="the method; NONE: no teacher"),
        "TEACHER": Setting("ResNet50", doc=_NETWORK),
        "STUDENT": Setting("resnet32", doc=_NETWORK),
        "LOGIT_STANDARDIZATION": Setting(
            False,
            doc="of methods that compare logits: each image's logits get mean 0 and deviation 1 "
            "before they are compared (LSKD)",
        ),
        "TEACHER_CKPT": Setting(
            "",
            doc="the teacher's file; empty: the registry's path, see "
            "`python tools/train.py --list`; `pretrained`: what torchvision or timm publish",
            affects_result=False,
            kind="input",
        ),
        "TEACHER_MEAN": Setting(
            [],
            _fractions,
            "with which the teacher's images were normalised; empty: as its published weights "
            "say, a file's as the data set's",
            kind="real",
        ),
        "TEACHER_STD": Setting(
            [],
            _positive_fractions,
            "likewise",
            kind="real",
        ),
        "TEACHER_SIZE": Setting(
            0,
            not_negative,
            "height and width that the teacher's images are brought to; 0: as they are",
        ),
        "FEATURES.TEACHER": Setting(
            [],
            doc="modules of a network of others whose outputs are its maps, the stem's first, "
            "see [networks](networks.md); empty: found",
            kind="texts",
        ),
        "FEATURES.STUDENT": Setting([], doc="likewise", kind="texts"),
        "TEACHER_CACHE": Setting(
            "",
            doc="file of the teacher's answers, of `tools/cache_teacher.py`, to be read instead of "
            "running the teacher, see [performance](performance.md)",
            affects_result=False,
            kind="path",
        ),
        "TEACHER_FAULT": Setting(
            "none",
            one_of("none", "permute", "random"),
            "for studies: `permute` gives the teacher's logits to other classes, `random` takes a "
            "teacher with random weights; see below",
        ),
    },
    "SOLVER": {
        "TRAINER": Setting("base", doc="how the losses become gradients"),
        "BATCH_SIZE": Setting(64, at_least_one, "images at a time in training"),
        "EPOCHS": Setting(240, at_least_one, "passes over the training images"),
        "LR": Setting(0.05, positive, "learning rate"),
        "LR_DECAY_STAGES": Setting(
            [150, 180, 210], ascending_epochs, "epochs after which the learning rate decays"
        ),
        "LR_DECAY_RATE": Setting(0.1, positive, "factor at each of LR_DECAY_STAGES"),
        "WEIGHT_DECAY": Setting(0.0001, not_negative, "L2 penalty"),
        "MOMENTUM": Setting(0.9, below_one, "of SGD; beta_1 of AdamW"),
        "TYPE": Setting("SGD", doc="optimizer: SGD or AdamW"),
        "DOT.DELTA": Setting(
            0.075,
            doc="trainer dot: MOMENTUM less this for the task, plus this for distillation",
        ),
        "DEVICE": Setting(
            "auto", doc="auto: cuda, then mps, then cpu; or the device's name", affects_result=False
        ),
        "DETERMINISTIC": Setting(
            False,
            doc="deterministic algorithms only (`--deterministic`), see [trust](trust.md)",
        ),
        "NESTEROV": Setting(False, doc="for SOLVER.TYPE SGD"),
        "SCHEDULE": Setting(
            "step",
            one_of("step", "cosine"),
            "step: times LR_DECAY_RATE after each of LR_DECAY_STAGES; cosine: towards 0",
        ),
        "WARMUP_EPOCHS": Setting(0, not_negative, "linear warm-up, from LR / WARMUP_EPOCHS"),
        "LABEL_SMOOTHING": Setting(
            0.0, below_one, "of the supervised cross-entropy; never of the reference loss"
        ),
        "AMP": Setting(
            "off",
            one_of("off", "bf16", "auto"),
            "bf16: the networks in bfloat16, see [performance](performance.md); auto: where the "
            "hardware computes in it (a CPU without AVX512-BF16 or AMX takes much longer)",
        ),
        "CHANNELS_LAST": Setting(True, doc="memory layout, see [performance](performance.md)"),
        "FOLD_TEACHER": Setting(
            True, doc="the teacher's BatchNorms merged, see [performance](performance.md)"
        ),
        "COMPILE": Setting(False, doc="compile the teacher, see [performance](performance.md)"),
    },
    "LOG": {
        "TENSORBOARD_FREQ": Setting(500, at_least_one, "steps between TensorBoard scalars", False),
        "SAVE_CHECKPOINT_FREQ": Setting(
            40, at_least_one, "epochs between numbered checkpoints", False
        ),
        "SAVE_EVERY_STEPS": Setting(
            0,
            not_negative,
            "also save after every so many steps of an epoch, see [trust](trust.md); 0: after "
            "epochs only",
            False,
        ),
        "WEIGHTS": Setting(
            False,
            doc="of trainers that weight the losses: the weights of every step in `weights.jsonl`, "
            "see [method](method.md)",
            affects_result=False,
        ),
        "PREFIX": Setting(
            "./output", doc="where runs are written", affects_result=False, kind="path"
        ),
        "WANDB": Setting(False, doc="report to Weights & Biases, too", affects_result=False),
    },
}
