"""The configuration, where mdistiller's users look for it."""

from mdistiller.config.cfg import CFG, dump_cfg, experiment_name, load_cfg, show_cfg, used_groups

__all__ = ["CFG", "dump_cfg", "experiment_name", "load_cfg", "show_cfg", "used_groups"]
