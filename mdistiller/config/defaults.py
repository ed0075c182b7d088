"""The configuration tree with all its keys and defaults.

Everything up to the marked keys is mdistiller's; the marked ones are this project's.
"""

from __future__ import annotations

from yacs.config import CfgNode


def default_tree(node: type[CfgNode] = CfgNode) -> CfgNode:
    """A fresh tree of defaults, made of ``node`` objects."""
    cfg = node()

    cfg.EXPERIMENT = node()
    cfg.EXPERIMENT.PROJECT = "distill"
    cfg.EXPERIMENT.NAME = ""
    cfg.EXPERIMENT.TAG = "default"
    cfg.EXPERIMENT.SEED = 0  # added

    cfg.DATASET = node()
    cfg.DATASET.TYPE = "cifar100"
    cfg.DATASET.ROOT = "./data"  # added
    cfg.DATASET.NUM_WORKERS = 2
    cfg.DATASET.SKIP_BROKEN = False  # added
    cfg.DATASET.SUBSET = 0  # added; 0: all training images
    cfg.DATASET.SUBSET_SEED = 0  # added
    cfg.DATASET.HOLDOUT = 0  # added; training images that are not trained on
    cfg.DATASET.VALIDATE = "auto"  # added; on held-out images if there are any; or "test"
    cfg.DATASET.TRAIN_ON_HOLDOUT = False  # added
    cfg.DATASET.LABEL_NOISE = 0.0  # added; fraction of the training labels to make wrong
    cfg.DATASET.LABEL_NOISE_KIND = "symmetric"  # added; or "pair"
    cfg.DATASET.TEST = node()
    cfg.DATASET.TEST.BATCH_SIZE = 64

    cfg.DISTILLER = node()
    cfg.DISTILLER.TYPE = "NONE"
    cfg.DISTILLER.TEACHER = "ResNet50"
    cfg.DISTILLER.STUDENT = "resnet32"
    cfg.DISTILLER.TEACHER_CKPT = ""  # added; empty: the registry's path
    cfg.DISTILLER.TEACHER_FAULT = "none"  # added; for studies: "permute" or "random"

    cfg.SOLVER = node()
    cfg.SOLVER.TRAINER = "base"
    cfg.SOLVER.BATCH_SIZE = 64
    cfg.SOLVER.EPOCHS = 240
    cfg.SOLVER.LR = 0.05
    cfg.SOLVER.LR_DECAY_STAGES = [150, 180, 210]
    cfg.SOLVER.LR_DECAY_RATE = 0.1
    cfg.SOLVER.WEIGHT_DECAY = 0.0001
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.TYPE = "SGD"
    cfg.SOLVER.DOT = node()
    cfg.SOLVER.DOT.DELTA = 0.075
    cfg.SOLVER.DEVICE = "auto"  # added
    cfg.SOLVER.DETERMINISTIC = False  # added
    cfg.SOLVER.NESTEROV = False  # added
    cfg.SOLVER.SCHEDULE = "step"  # added
    cfg.SOLVER.WARMUP_EPOCHS = 0  # added
    cfg.SOLVER.LABEL_SMOOTHING = 0.0  # added
    cfg.SOLVER.AMP = "off"  # added; or "bf16"
    cfg.SOLVER.CHANNELS_LAST = True  # added
    cfg.SOLVER.FOLD_TEACHER = True  # added
    cfg.SOLVER.COMPILE = False  # added

    cfg.LOG = node()
    cfg.LOG.TENSORBOARD_FREQ = 500
    cfg.LOG.SAVE_CHECKPOINT_FREQ = 40
    cfg.LOG.SAVE_EVERY_STEPS = 0  # added; 0: a checkpoint after each epoch only
    cfg.LOG.WEIGHTS = False  # added; True: the two losses' weights in every step, weights.jsonl
    cfg.LOG.PREFIX = "./output"
    cfg.LOG.WANDB = False  # mdistiller: True

    _add_methods(cfg, node)
    _add_crossbatch(cfg, node)
    _add_weightings(cfg, node)
    return cfg


def _add_crossbatch(cfg: CfgNode, node: type[CfgNode]) -> None:
    cb = cfg.CROSSBATCH = node()
    cb.READING = "align"
    cb.ALPHA = 1.0
    cb.RIDGE = 0.0
    cb.STABILIZE = True
    cb.PREFER = "ce"
    cb.MAX_RATIO = 10.0
    cb.RESCALE = 0
    cb.EMA = 0.0  # the "regression" reading then takes 0.99
    cb.STEP = "paper"
    cb.THETA = "student"
    cb.REFERENCE = "fresh"
    cb.PERIOD = 1
    cb.BATCH_SIZE = 0  # 0: SOLVER.BATCH_SIZE


def _add_weightings(cfg: CfgNode, node: type[CfgNode]) -> None:
    cfg.MULTITASK = node({"METHOD": "MGDA", "PARAMS": ""})
    cfg.GRADNORM = node({"ALPHA": 1.5, "LR": 0.025})
    cfg.UNCERTAINTY = node({"LR": 0.01})
    cfg.GRADIENT_COSINE = node({"WEIGHTED": False})
    cfg.REPLAY = node({"FILE": "", "SHUFFLE": False})
    decay = cfg.DISTILL_DECAY = node()
    decay.START = 0.5
    decay.END = 0.75
    decay.CE_FROM = 0.0  # 0: the method's own weight of the supervised loss
    decay.CE_TO = 1.0
    decay.KD_FROM = 0.9
    decay.KD_TO = 0.0
    decay.BETA = 0.1


def _add_methods(cfg: CfgNode, node: type[CfgNode]) -> None:
    def losses(**weights: float) -> CfgNode:
        return node({"LOSS": node(weights)})

    cfg.KD = losses(CE_WEIGHT=0.1, KD_WEIGHT=0.9)
    cfg.KD.TEMPERATURE = 4

    cfg.AT = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=1000.0)
    cfg.AT.P = 2

    cfg.RKD = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=1.0)
    cfg.RKD.DISTANCE_WEIGHT = 25
    cfg.RKD.ANGLE_WEIGHT = 50
    cfg.RKD.PDIST = node({"EPSILON": 1e-12, "SQUARED": False})

    cfg.FITNET = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=100.0)
    cfg.FITNET.HINT_LAYER = 2
    cfg.FITNET.INPUT_SIZE = (32, 32)

    cfg.KDSVD = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=1.0)
    cfg.KDSVD.K = 1

    cfg.OFD = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=0.001)
    cfg.OFD.CONNECTOR = node({"KERNEL_SIZE": 1})
    cfg.OFD.TEACHER_TRAIN_MODE = True  # added; False: the teacher in eval mode

    cfg.NST = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=50.0)
    cfg.PKT = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=30000.0)
    cfg.SP = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=3000.0)

    cfg.VID = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=1.0)
    cfg.VID.EPS = 1e-5
    cfg.VID.INIT_PRED_VAR = 5.0
    cfg.VID.INPUT_SIZE = (32, 32)
    cfg.VID.LEARN_VARIANCE = False  # added; True: the log scales are trained, as in the paper

    cfg.CRD = losses(CE_WEIGHT=1.0, FEAT_WEIGHT=0.8)
    cfg.CRD.MODE = "exact"
    cfg.CRD.FEAT = node({"DIM": 128, "STUDENT_DIM": 256, "TEACHER_DIM": 256})
    cfg.CRD.NCE = node({"K": 16384, "MOMENTUM": 0.5, "TEMPERATURE": 0.07})

    cfg.REVIEWKD = node()
    cfg.REVIEWKD.CE_WEIGHT = 1.0
    cfg.REVIEWKD.REVIEWKD_WEIGHT = 1.0
    cfg.REVIEWKD.WARMUP_EPOCHS = 20
    cfg.REVIEWKD.SHAPES = [1, 8, 16, 32]
    cfg.REVIEWKD.OUT_SHAPES = [1, 8, 16, 32]
    cfg.REVIEWKD.IN_CHANNELS = [64, 128, 256, 256]
    cfg.REVIEWKD.OUT_CHANNELS = [64, 128, 256, 256]
    cfg.REVIEWKD.MAX_MID_CHANNEL = 512
    cfg.REVIEWKD.STU_PREACT = False

    cfg.DKD = node()
    cfg.DKD.CE_WEIGHT = 1.0
    cfg.DKD.ALPHA = 1.0
    cfg.DKD.BETA = 8.0
    cfg.DKD.T = 4.0
    cfg.DKD.WARMUP = 20
