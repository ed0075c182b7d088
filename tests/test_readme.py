"""README: its commands can be given, its code runs, its numbers are those of the records."""

from __future__ import annotations

import math
import re
import shlex
import sys
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mdistiller.config import load_cfg
from mdistiller.distillers import distiller_dict
from mdistiller.experiments.tables import insurance as study
from mdistiller.experiments.tables.insurance_claims import Part
from mdistiller.report import load_table
from mdistiller.report.comparison import Comparison, compare, costs
from mdistiller.report.numbers import bounds, fixed
from mdistiller.report.statistics import mean_interval
from mdistiller.weighting import READINGS

from .commands import ROOT
from .toys import networks

sys.path.insert(0, str(ROOT / "benchmarks"))
from insurance_report import Found, compare_claims, differences, recorded, verdicts
from insurance_report import main as report_insurance

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = [ROOT / "docs" / f"{n}.md" for n in ("install", "first-run", "faq", "own-loop", "own-data")]


def section(heading: str) -> str:
    return README.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]


def rows_of(text: str) -> list[list[str]]:
    """The cells of a Markdown table below its rule."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_it_is_short():
    assert len(README.splitlines()) <= 120


def test_commands_can_be_given(monkeypatch):
    monkeypatch.chdir(ROOT)
    texts = [README, *(p.read_text(encoding="utf-8") for p in GUIDE if p.exists())]
    shell = "\n".join(b for t in texts for b in re.findall(r"```sh\n(.*?)```", t, re.DOTALL))
    shell += "\n" + "\n".join(re.findall(r"`(python [^`]+)`", README))
    lines = [line.split(" #")[0].strip() for line in shell.replace("\\\n", " ").splitlines()]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    given = 0
    for line in filter(None, lines):
        first, *words = shlex.split(line)
        if first == "make":
            assert set(words) <= targets, line
        if first != "python" or not words[0].startswith("tools/") or "$" in line:
            continue
        module = import_module(f"mdistiller.commands.{Path(words[0]).stem}")
        given += 1
        if not hasattr(module, "parse_arguments"):
            assert words[1:] == [], line
            continue
        args = module.parse_arguments(words[1:])
        if getattr(args, "cfg", None) and words[0] == "tools/train.py":
            load_cfg(args.cfg, args.opts)
    assert given >= 12


def test_the_loop_of_ones_own_runs():
    (code,) = re.findall(r"```python\n(.*?)```", section("In your own loop"), re.DOTALL)
    assert len(code.splitlines()) <= 13
    nets = networks()

    class Student(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nets[0]

        def forward(self, image):
            return self.net(image)[0]

    student, teacher = Student(), nets[1]
    before = [p.detach().clone() for p in student.parameters()]
    image, other_image = torch.rand(2, 8, 3, 32, 32)
    label, other_label = torch.randint(2, (2, 8))
    known = {
        "F": F,
        "student": student,
        "teacher": lambda x: teacher(x)[0].detach(),
        "image": image,
        "other_image": other_image,
        "label": label,
        "other_label": other_label,
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
        "distillation_loss": F.mse_loss,
    }
    exec(compile(code, "README.md", "exec"), known)
    after = student.parameters()
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_methods_are_all_named_and_counted():
    plain = {name for name in distiller_dict if not name.startswith("CROSSBATCH_")}
    named = section("What there is")
    assert {name for name in plain if f"`{name}`" not in named} <= {"MSE"}
    assert f" {len(plain - {'NONE', 'MSE'})} methods," in README and len(READINGS) == 5


# ---- the verdicts ----------------------------------------------------------------------------


loaded = cache(partial(load_table, records=ROOT / "results"))


@cache
def compared(
    table: str, dataset: str, settings: str | None = None
) -> dict[tuple[str, str], Comparison]:
    results = loaded(table, dataset, settings=settings)
    pairs = list(results.compared)
    if "longer" in results.by_key:
        pairs.append((results.by_key["ours"], results.by_key["longer"]))
    return {(c.row.key, c.other.key): c for c in compare(results, pairs, "last")}


@cache
def times(table: str, dataset: str, settings: str | None = None) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for cost in costs(loaded(table, dataset, settings=settings)):
        found.setdefault(cost.row.key, []).append(cost.factor)
    return found


# Grid A's first pair with α 1, the default since then.
ALPHA_1 = "b93768"
# Behind the rows of README's table, in order: records, the row and what it is compared with, and
# settings where they are not those of most runs.
SOURCES = [
    [("grid_a", "glyphs", f"{method}_crossbatch", method) for method in ("kd", "rkd")],
    [("grid_a", "glyphs", f"{method}_crossbatch", method) for method in ("at", "kdsvd", "pkt")],
    [
        ("grid_a", "glyphs", f"{method}_crossbatch", method, ALPHA_1)
        for method in ("kd", "at", "kdsvd", "pkt")
    ],
    [
        ("grid_a", "fashion_mnist", "rkd_crossbatch", "rkd"),
        ("grid_e", "fashion_mnist", "rkd_mean_weights", "rkd"),
    ],
    [("grid_d", "glyphs", "period10", "vanilla")],
    [("grid_d", "glyphs", "ours", "longer")],
]


# The same of the insurance study's row, which is about what insured_kd.yaml ships: setting, and
# what it is compared with.
INSURED = [
    *(("clean", "kd"), ("noise40", "kd"), ("noise40", "ce"), ("permute", "ce"), ("random", "ce")),
    *(("scale100", "kd"), ("scale0.01", "kd")),
]


def test_the_verdicts_are_those_of_the_records():
    rows = rows_of(section("What the weighting does"))
    counts = []
    for (_, claim, cost), sources in zip(rows, SOURCES, strict=False):
        found = [compared(t, dataset, *s)[row, other] for t, dataset, row, other, *s in sources]
        numbers = [f"{fixed(c.pooled.mean, sign=True)} {bounds(c.pooled)}" for c in found]
        assert re.findall(r"[−+][\d.]+ \[[^]]*\]", claim) == numbers
        for c, number in zip(found, numbers, strict=True):
            low, high = c.pooled.low, c.pooled.high
            word = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
            before = claim[: claim.index(number)]
            assert re.findall("better|worse|no difference shown", before)[-1] == word, claim
        counts += [c.pooled.n for c in found]
        if "times" in cost:
            factors = [
                factor
                for table, dataset, row, _, *settings in sources
                for factor in times(table, dataset, *settings).get(row, [])
            ]
            shown = list(dict.fromkeys(f"{pick(factors):.2f}" for pick in (min, max)))
            assert re.findall(r"\d\.\d\d", cost) == shown, cost
    assert f"{min(counts)} to {max(counts)} trials" in section("What the weighting does")


def ends_beside_right_kd(found: Found) -> list[float]:
    """Of the intervals of the insured form, labels or weight wrong, minus KD with nothing wrong."""
    right = found.trials("clean", "kd")
    ends = []
    for setting in ("noise40", "scale0.01", "scale100"):
        wrong = found.trials(setting, "insured_supervised")
        one = mean_interval([np.array([wrong[t] - right[t] for t in right])])
        ends += [one.low, one.high]
    return ends


def test_the_insurance_studys_rows_are_those_of_the_records():
    rows = rows_of(section("What the weighting does"))
    (situation, numbers, cost), (_, claims, _) = rows[len(SOURCES) :]
    found = {task: recorded(task, ROOT / "results") for task in study.TASKS}
    values = {
        (setting, other, task): differences(
            found[task], Part(setting, "insured_supervised", other, margin=0.0)
        )
        for setting, other in INSURED
        for task in study.TASKS
    }
    reached = {key: mean_interval([v]) for key, v in values.items()}
    expected = [f"{fixed(one.mean, sign=True)} {bounds(one)}" for one in reached.values()]
    assert re.findall(r"[−+][\d.]+ \[[^]]*\]", numbers) == expected
    assert "ten trials" in situation and {len(v) for v in values.values()} == {study.TRIALS} == {10}
    assert f"{cost.split()[0]} (quartiles" in (ROOT / "docs" / "study-2.md").read_text()
    judged = verdicts(compare_claims(found))
    said = section("What the weighting does").split("With wrong labels", 1)[1]
    within, least, most, below = map(float, re.findall(r"\d+(?:\.\d)?", said)[:4])
    ends = [end for task in study.TASKS for end in ends_beside_right_kd(found[task])]
    assert math.ceil(10 * max(map(abs, ends))) / 10 == within
    faults = ("permute", "random")
    lost = [
        float(np.mean(differences(found[task], Part(fault, "ce", "kd", margin=0.0))))
        for fault in faults
        for task in study.TASKS
    ]
    assert [round(min(lost)), round(max(lost))] == [least, most]
    lowest = min(one.low for (setting, *_), one in reached.items() if setting in faults)
    assert math.ceil(-10 * lowest) / 10 == below
    shown = re.findall(r"(\d) [^<]*: \**(held|failed)", claims)
    assert shown == [(str(number), v.split()[0]) for number, v in judged.items()]


def test_the_confirmation_is_that_of_the_records():
    found = recorded("glyphs", ROOT / "results").confirmations()[0]
    values = [
        differences(found, Part(setting, "insured_supervised", other, margin=0.0))
        for setting, other in (("clean", "kd"), ("noise40", "kd"), ("permute", "ce"))
    ]
    assert {len(v) for v in values} == {5}
    reached = [mean_interval([v]) for v in values]
    expected = [f"{fixed(one.mean, sign=True)} {bounds(one)}" for one in reached]
    said = section("What the weighting does").split("With resnet20 and resnet8, five trials")[1]
    plan = (ROOT / "docs" / "study-2.md").read_text(encoding="utf-8")
    paragraph = plan.split("**The confirmation with resnet20 and resnet8**")[1]
    for text in (said, paragraph):
        assert re.findall(r"[−+][\d.]+ \[[^]]*\]", text)[:3] == expected


def test_the_page_of_the_insurance_study_is_that_of_the_records(tmp_path):
    page = tmp_path / "insurance.md"
    report_insurance(["--records", str(ROOT / "results"), "--page", str(page)])
    assert page.read_bytes() == (ROOT / "docs" / "results" / "insurance.md").read_bytes()
    with pytest.raises(SystemExit):
        report_insurance(["--page", str(page)])


def test_the_plot_is_that_of_the_records():
    for name in ("light", "dark"):
        drawn = (ROOT / "docs" / "figures" / f"verdict-{name}.svg").read_text(encoding="utf-8")
        for sources in SOURCES[:4]:
            for table, dataset, row, other, *settings in sources:
                if table == "grid_a":
                    c = compared(table, dataset, *settings)[row, other]
                    words = f"{fixed(c.pooled.mean, sign=True)} {bounds(c.pooled)}"
                    assert f"row: {other.upper()}: {words}" in drawn


def test_speeds_are_those_of_the_performance_page():
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    machines = [page.split(f"Machine {x}:")[1] for x in "ABCH"]
    machines[0] = machines[0].split("AT:")[0]
    variants = [("vanilla", 2), ("vanilla bf16", 2), ("crossbatch", 3), ("period 10", 3)]
    rows = rows_of(section("Speed"))
    for (_, *shown), (variant, column) in zip(rows, variants, strict=True):
        for cell, text in zip(shown, machines, strict=True):
            if cell == "not measured":
                assert f"\n| {variant} |" not in text.split("\n\n**")[0], cell
                continue
            line = next(x for x in text.splitlines() if x.startswith(f"| {variant} |"))
            assert line.strip("|").split("|")[column].strip() == cell
