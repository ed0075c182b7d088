"""The settings: one table of keys, YAML files, overrides, messages, names of runs.

Knows no other room: what is registered in those above declares its settings here.
"""

from .cfg import CFG, dump_cfg, show_cfg, used_groups
from .load import images_beside, load_cfg, runs_like
from .names import experiment_name, identity, identity_of, run_name, run_names
from .node import Config
from .setting import (
    Rule,
    Setting,
    Settings,
    at_least_one,
    below_one,
    fraction,
    not_negative,
    one_of,
    positive,
)

__all__ = [
    "CFG",
    "Config",
    "Rule",
    "Setting",
    "Settings",
    "at_least_one",
    "below_one",
    "dump_cfg",
    "experiment_name",
    "fraction",
    "identity",
    "images_beside",
    "identity_of",
    "load_cfg",
    "not_negative",
    "one_of",
    "positive",
    "run_name",
    "run_names",
    "runs_like",
    "show_cfg",
    "used_groups",
]
