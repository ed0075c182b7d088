"""The configuration, where mdistiller's users look for it."""

from mdistiller.config import CFG, dump_cfg, experiment_name, load_cfg, show_cfg, used_groups
from mdistiller.config.cfg import CROSSBATCH_PREFIX

__all__ = [
    "CFG",
    "CROSSBATCH_PREFIX",
    "dump_cfg",
    "experiment_name",
    "load_cfg",
    "show_cfg",
    "used_groups",
]
