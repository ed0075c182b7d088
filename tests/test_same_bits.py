"""Whatever is reorganised, every trainer trains the same student, and old folders stay of use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from .trainer_cases import CASES, GOLDEN_FILE, NOT_STOPPED, OLD_RUN, fingerprint, measure, train

ROOT = Path(__file__).resolve().parents[1]


@cache
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN_FILE.read_text())


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, Any]:
    """Every case, trained in this process."""
    prefix = tmp_path_factory.mktemp("same_bits")
    return {case: measure(train(prefix, case)) for case in CASES}


def differences(case: str, found: dict[str, Any], own: str) -> list[str]:
    """What of a measured case is not as recorded.

    Where the processor rounds as one of those recorded, the bits must be equal; everywhere the
    numbers must be within ten times what those differ from each other.
    """
    recorded = golden()["cases"][case]
    wrong = []
    if own in recorded["hashes"] and found["hash"] != recorded["hashes"][own]:
        wrong.append(f"{case}: other bits")
    assert found["numbers"].keys() == recorded["numbers"].keys()
    for name, values in recorded["numbers"].items():
        spread = max(10 * (max(values) - min(values)), 1e-4 * abs(values[0]))
        if abs(found["numbers"][name] - values[0]) > spread:
            wrong.append(f"{case}: {name} is {found['numbers'][name]}, not {values[0]}")
    return wrong


def test_every_trainer_trains_the_recorded_student(measured):
    own = fingerprint()
    assert measured.keys() == golden()["cases"].keys()
    assert [text for case in CASES for text in differences(case, measured[case], own)] == []


# One update but for rounding: no gradients conflict here, so nothing is projected.
PLAIN_SUMS = {
    *("base KD", "base KD, NCHW, teacher not folded"),
    *("multitask KD, PCGrad", "gradient_cosine KD"),
}


def test_cases_are_told_apart():
    """Where the bits of two cases differ, so do their numbers by more than is allowed.

    A trainer that left out what its case is about would so be noticed on any processor.
    """
    cases = golden()["cases"]
    alike = []
    for case, other in permutations(cases, 2):
        numbers = {name: values[0] for name, values in cases[other]["numbers"].items()}
        if (
            {case, other} <= PLAIN_SUMS
            or cases[case]["hashes"] == cases[other]["hashes"]
            or cases[case]["numbers"].keys() != numbers.keys()
        ):
            continue
        if not differences(case, {"hash": "", "numbers": numbers}, own=""):
            alike.append((case, other))
    assert alike == []


def run(tool: str, *arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_run_of_b53cf89_is_continued_and_its_table_reported(tmp_path):
    output = tmp_path / "output"
    shutil.copytree(OLD_RUN / "teacher", output / "same_bits" / "teacher")
    stopped = output / "same_bits" / "stoppedEXPERIMENT.SEED:3"
    shutil.copytree(OLD_RUN / "stopped", stopped)
    shutil.copytree(OLD_RUN / "table1", output / "table1" / "digits")
    before = (stopped / "metrics.jsonl").read_text()

    config = "output/same_bits/stoppedEXPERIMENT.SEED:3/config.yaml"
    run("train.py", "--cfg", config, "--resume", "EXPERIMENT.SEED", 3, cwd=tmp_path)
    assert differences(NOT_STOPPED, measure(stopped), fingerprint()) == []
    # The first epoch is the one of then, to the second that it took.
    assert (stopped / "metrics.jsonl").read_text().startswith(before)

    # Finished now, so that a comparison of it trains nothing.
    ended = (stopped / "result.json").stat().st_mtime_ns
    table = run("compare.py", "--cfg", config, "--seeds", 3, cwd=tmp_path)
    assert (stopped / "result.json").stat().st_mtime_ns == ended
    result = json.loads((stopped / "result.json").read_text())
    assert f"{result['last_top1']:.2f}" in table

    run("report.py", "table1", "--dataset", "digits", cwd=tmp_path)
    page = (output / "table1" / "digits" / "report" / "report.html").read_text()
    results = list((OLD_RUN / "table1").glob("*/result.json"))
    assert len(results) == 2
    for file in results:
        assert f"{json.loads(file.read_text())['last_top1']:.2f} ± – (1)" in page
