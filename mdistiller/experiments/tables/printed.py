"""The numbers that the paper prints: test top-1 on CIFAR-100 in percent, means of 5 trials.

Source: Tables 1 and 2 of *Cross-Batch Gradient Consistency for Adaptive Loss Balancing in
Knowledge Distillation*. Figures 2 to 4 are drawn without numbers.
"""

from __future__ import annotations

# The order of the columns of Table 1, by the names of the files in configs/cifar100.
TABLE1_PAIRS = (
    *("res101_res50", "res56_res20", "vgg13_vgg8", "res101_res34"),
    *("res110_res32x4", "res110_res56", "wrn40_2_wrn40_1"),
)

# Rows are keyed as in tables.py: the method, and the method with cross-batch weighting.
TABLE1: dict[str, tuple[float, ...]] = {
    "kd": (80.21, 70.62, 72.90, 80.57, 78.86, 75.14, 73.65),
    "kd_crossbatch": (80.51, 71.59, 73.46, 81.22, 79.31, 75.72, 74.83),
    "rkd": (80.18, 70.12, 71.45, 79.56, 79.36, 74.38, 72.02),
    "rkd_crossbatch": (80.83, 70.93, 72.09, 80.40, 80.05, 75.09, 72.76),
    "at": (79.93, 69.70, 71.54, 79.85, 79.18, 73.92, 73.02),
    "at_crossbatch": (80.23, 70.74, 72.64, 80.61, 79.53, 74.62, 74.01),
    "kdsvd": (78.73, 70.11, 70.53, 79.42, 79.62, 73.06, 71.83),
    "kdsvd_crossbatch": (79.70, 71.07, 71.39, 80.13, 80.26, 73.52, 72.58),
    "pkt": (80.32, 70.43, 73.19, 80.22, 80.15, 74.70, 73.73),
    "pkt_crossbatch": (80.95, 71.20, 73.77, 80.94, 80.80, 75.39, 74.09),
}

# The column "Avg %" of Table 1.
TABLE1_AVERAGES: dict[str, float] = {
    "kd": 75.99,
    "kd_crossbatch": 76.66,
    "rkd": 75.30,
    "rkd_crossbatch": 76.02,
    "at": 75.31,
    "at_crossbatch": 76.05,
    "kdsvd": 74.76,
    "kdsvd_crossbatch": 75.52,
    "pkt": 76.11,
    "pkt_crossbatch": 76.73,
}

TABLE2_PAIRS = ("res101_res50", "res56_res20", "wrn40_2_wrn40_1", "res32x4_res8x4")

# By weighting: the paper's columns are rows here, as in Table 1.
TABLE2: dict[str, tuple[float, ...]] = {
    "original": (80.21, 70.62, 73.65, 73.32),
    "distill_decay": (79.97, 71.54, 74.02, 73.80),
    "mgda": (79.43, 71.77, 74.60, 72.77),
    "fairgrad": (81.47, 70.00, 73.25, 72.89),
    "pcgrad": (79.12, 71.54, 74.10, 75.77),
    "ours": (80.51, 71.59, 74.83, 74.67),
}

# The row "average" of Table 2.
TABLE2_AVERAGES: dict[str, float] = {
    "original": 74.45,
    "distill_decay": 74.83,
    "mgda": 74.64,
    "fairgrad": 74.40,
    "pcgrad": 75.13,
    "ours": 75.40,
}
