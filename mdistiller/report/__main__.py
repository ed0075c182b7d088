"""``python -m mdistiller.report`` is tools/report.py."""

import runpy

if __name__ == "__main__":
    # By name: a package imports none of the commands that stand on it.
    runpy.run_module("mdistiller.commands.report", run_name="__main__", alter_sys=True)
