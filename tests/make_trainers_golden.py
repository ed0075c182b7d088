"""Write tests/golden/trainers.json: what the students of tests/trainer_cases.py are.

Processors differ in the last bits, so every training is done in several processes that are
limited to older instructions; each adds its hashes. Only to be run again where numbers are meant
to change, at a commit that tests/golden/README.md then names. Another processor's hashes are
added with --add, at that same commit.

  python tests/make_trainers_golden.py [--add]
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# What torch, oneDNN and MKL may use. "own" is what the processor offers.
LIMITS = {
    "own": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "AVX2",
    },
    "oneDNN old": {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    "oldest": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
}


def measure_here() -> None:
    """Train everything in this process and print what came of it as one line of JSON."""
    import torch

    from tests.trainer_cases import CASES, NOT_STOPPED, fingerprint, measure, train

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        found = {case: measure(train(Path(folder), case)) for case in (*CASES, NOT_STOPPED)}
    print(json.dumps({"fingerprint": fingerprint(), "cases": found}))


def add_measured(golden: dict[str, Any], found: dict[str, Any], how: str) -> None:
    """Add what :func:`measure_here` found, unless it is known what such a processor gets.

    Args:
        golden: the content of the file; changed.
        how: the processor was limited.
    """
    key = found["fingerprint"]
    if key in golden["fingerprints"]:
        return
    golden["fingerprints"][key] = how
    for case, measured in found["cases"].items():
        entry = golden["cases"].setdefault(case, {"hashes": {}, "numbers": {}})
        entry["hashes"][key] = measured["hash"]
        for name, value in measured["numbers"].items():
            entry["numbers"].setdefault(name, []).append(value)


def main() -> None:
    if sys.argv[1:] == ["--here"]:
        measure_here()
        return
    from tests.trainer_cases import GOLDEN_FILE

    add = sys.argv[1:] == ["--add"]
    golden = json.loads(GOLDEN_FILE.read_text()) if add else {"fingerprints": {}, "cases": {}}
    for limit, variables in LIMITS.items():
        done = subprocess.run(
            [sys.executable, __file__, "--here"],
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        add_measured(golden, json.loads(done.stdout), f"limit {limit}")
    GOLDEN_FILE.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
