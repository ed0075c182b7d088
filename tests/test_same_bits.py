"""Whatever is reorganised, every trainer trains the same student, and old folders stay of use."""

from __future__ import annotations

import importlib
import json
import shutil
from functools import cache
from itertools import permutations
from typing import Any

import pytest

from .make_trainers_golden import add_measured
from .trainer_cases import CASES, GOLDEN_FILE, NOT_STOPPED, OLD_RUN, fingerprint, measure, train

# Each trainer, reading and reference, but not each with each, and of options and methods those
# that differ in what the trainer does; the others with make test-slow. Trainings of mdistiller's
# own that test_trainer.py compares with mdistiller itself are among those.
RARELY = (
    *("crossbatch", "multitask", "replay", "gradient_cosine KD, weighted"),
    *("base NONE", "base KD", "dot KD", "crd CRD"),
)
MAIN = [
    *(case for case in CASES if not case.startswith(RARELY)),
    *("base KD, AdamW, cosine, warm-up, label smoothing", "crossbatch KD, printed, none"),
    *("crossbatch KD, orthogonal, same", "crossbatch KD, cone, fresh"),
    *("crossbatch KD, previous, PERIOD 2", "crossbatch CRD"),
    *("multitask KD, MGDA", "replay KD, shuffled"),
]


@cache
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN_FILE.read_text())


# Where the processor rounds as none of those recorded, a number may differ by this part of itself
# (of sums: of the vector's norm), or by this many times what the recorded processors differ by.
ALLOWED = {"epoch": 1e-4, "weights": 3e-5, "running": 1e-4}
ALLOWED_SPREADS = 5
# Losses with large weights on unlike features, and CRD with its small temperature, make much of
# small differences: there both are larger by these factors.
ILL_CONDITIONED = {f"crossbatch {method}": (1, 4) for method in ("AT", "PKT", "RKD", "FITNET")}
ILL_CONDITIONED |= {f"{trainer} CRD": (10, 1) for trainer in ("crd", "crd_dot", "crossbatch")}


def differences(case: str, found: dict[str, Any], own: str) -> list[str]:
    """What of a measured case is not as recorded: bits (for the fingerprint ``own``), numbers."""
    recorded = golden()["cases"][case]
    assert found["numbers"].keys() == recorded["numbers"].keys()
    wrong = []
    if own in recorded["hashes"] and found["hash"] != recorded["hashes"][own]:
        wrong.append(f"{case}: other bits")
    units = {name: unit(recorded["numbers"], name) for name in recorded["numbers"]}
    floors, spreads = ILL_CONDITIONED.get(case, (1, 1))
    allowed = {what: floors * part for what, part in ALLOWED.items()}
    for name, values in recorded["numbers"].items():
        spread = (max(values) - min(values)) / units[name]
        enough = spreads * ALLOWED_SPREADS * spread
        allowed[kind(name)] = max(allowed[kind(name)], enough)
    for name, values in recorded["numbers"].items():
        if abs(found["numbers"][name] - values[0]) > allowed[kind(name)] * units[name]:
            wrong.append(f"{case}: {name} is {found['numbers'][name]}, not {values[0]}")
    return wrong


def kind(name: str) -> str:
    return name.split()[0]


def unit(numbers: dict[str, list[float]], name: str) -> float:
    norm = name if kind(name) == "epoch" else f"{name.split(' sum')[0].removesuffix(' norm')} norm"
    return abs(numbers[norm][0])


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(MAIN, id="main"),
        pytest.param([c for c in CASES if c not in MAIN], id="rest", marks=pytest.mark.slow),
    ],
)
def test_every_trainer_trains_the_recorded_student(cases, tmp_path):
    own = fingerprint()
    assert {*CASES, NOT_STOPPED} == golden()["cases"].keys()
    measured = {case: measure(train(tmp_path, case)) for case in cases}
    assert [text for case in cases for text in differences(case, measured[case], own)] == []


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


def test_another_processor_is_added_to_the_record_once():
    found = {"fingerprint": "a", "cases": {"base": {"hash": "1", "numbers": {"weights": 2.0}}}}
    made: dict[str, Any] = {"fingerprints": {}, "cases": {}}
    add_measured(made, found, "limit own")
    other = {"fingerprint": "b", "cases": {"base": {"hash": "3", "numbers": {"weights": 4.0}}}}
    for _ in range(2):
        add_measured(made, other, "limit avx2")
    assert made == {
        "fingerprints": {"a": "limit own", "b": "limit avx2"},
        "cases": {"base": {"hashes": {"a": "1", "b": "3"}, "numbers": {"weights": [2.0, 4.0]}}},
    }
    # The file that is compared with has this form.
    for case in golden()["cases"].values():
        assert case["hashes"].keys() == golden()["fingerprints"].keys()
        assert {len(values) for values in case["numbers"].values()} == {len(case["hashes"])}


def call(capsys, tool: str, *arguments: object) -> str:
    """What the tool's command line prints, called in this process."""
    capsys.readouterr()
    importlib.import_module(f"mdistiller.commands.{tool}").main([*map(str, arguments)])
    return capsys.readouterr().out


def test_a_run_of_b53cf89_is_continued_and_its_table_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "output"
    shutil.copytree(OLD_RUN / "teacher", output / "same_bits" / "teacher")
    stopped = output / "same_bits" / "stoppedEXPERIMENT.SEED:3"
    shutil.copytree(OLD_RUN / "stopped", stopped)
    shutil.copytree(OLD_RUN / "table1", output / "table1" / "digits")
    before = (stopped / "metrics.jsonl").read_text()

    config = "output/same_bits/stoppedEXPERIMENT.SEED:3/config.yaml"
    call(capsys, "train", "--cfg", config, "--resume", "EXPERIMENT.SEED", 3)
    # The checkpoint is of the processor that was recorded first; only one step is taken here.
    first = next(iter(golden()["fingerprints"]))
    own = fingerprint()
    assert differences(NOT_STOPPED, measure(stopped), own if own == first else "") == []
    # The first epoch is the one of then, to the second that it took.
    assert (stopped / "metrics.jsonl").read_text().startswith(before)

    # Finished now, so that a comparison of it trains nothing.
    ended = (stopped / "result.json").stat().st_mtime_ns
    table = call(capsys, "compare", "--cfg", config, "--seeds", 3)
    assert (stopped / "result.json").stat().st_mtime_ns == ended
    result = json.loads((stopped / "result.json").read_text())
    assert f"{result['last_top1']:.2f}" in table

    call(capsys, "report", "table1", "--dataset", "digits")
    page = (output / "table1" / "digits" / "report" / "report.html").read_text()
    results = list((OLD_RUN / "table1").glob("*/result.json"))
    assert len(results) == 2
    for file in results:
        assert f"{json.loads(file.read_text())['last_top1']:.2f} ± – (1)" in page
