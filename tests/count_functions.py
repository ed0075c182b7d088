"""Count the functions that one image batch passes from the loader to the optimizer.

The rule: a digits run of two epochs is trained as a user's. Counted is from the return of the
optimizer's second step to that of its third: what the loop does after a step, asking the loader
for the next batch, moving it to the device, forward, losses, weighting, backward, the
optimizer's step. A function is one that has a line of its own in a file of mdistiller (methods
and lambdas, too; a comprehension belongs to its function), counted once however often it is
entered or, as a generator, continued. The networks' own forward functions in mdistiller/models
are counted apart: they are of the architecture, not of the house.

  python tests/count_functions.py
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import mdistiller  # noqa: E402
from mdistiller.engine.cfg import load_cfg  # noqa: E402
from mdistiller.engine.run import run_training  # noqa: E402

PACKAGE = Path(mdistiller.__file__).resolve().parent
GOLDEN = ROOT / "tests" / "golden"
KINDS = {
    "vanilla KD": ("DISTILLER.TYPE", "KD", "SOLVER.TRAINER", "base"),
    "cross-batch KD": ("DISTILLER.TYPE", "CROSSBATCH_KD", "SOLVER.TRAINER", "crossbatch"),
}
INSIDE_A_FUNCTION = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>")


def entered(*options: str) -> set[CodeType]:
    """Code of the Python functions entered within the window, of whatever package."""
    found: set[CodeType] = set()
    taken = 0
    step = torch.optim.SGD.step

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            found.add(frame.f_code)

    def counted(self: Any, *arguments: Any) -> Any:
        nonlocal taken
        result = step(self, *arguments)
        taken += 1
        if taken in (2, 3):
            sys.setprofile(note if taken == 2 else None)
        return result

    torch.optim.SGD.step = counted
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            teacher = str(GOLDEN / "old_run" / "teacher" / "student_latest")
            places = ("LOG.PREFIX", folder, "DISTILLER.TEACHER_CKPT", teacher)
            # No logging of a window and no checkpoint falls into the third step.
            often = ("LOG.TENSORBOARD_FREQ", "500", "SOLVER.EPOCHS", "2")
            run_training(load_cfg(GOLDEN / "trainers.yaml", [*places, *often, *options]))
    finally:
        torch.optim.SGD.step = step
        sys.setprofile(None)
    return found


def main() -> None:
    for kind, options in KINDS.items():
        names = set()
        for code in entered(*options):
            path = Path(code.co_filename).resolve()
            if path.is_relative_to(PACKAGE) and code.co_name not in INSIDE_A_FUNCTION:
                place = path.relative_to(PACKAGE)
                names.add(
                    (str(place), code.co_firstlineno, getattr(code, "co_qualname", code.co_name))
                )
        models = {name for name in names if name[0].startswith("models/")}
        house = sorted(names - models)
        files = Counter(name[0] for name in house)
        print(f"{kind}: {len(house)} functions in {len(files)} files", end="")
        print(f" (and {len(models)} of the networks in {len({m[0] for m in models})})")
        for path, line, name in house:
            print(f"  {path}:{line} {name}")


if __name__ == "__main__":
    main()
