"""What the insurance study (docs/study-2.md) found so far: means, differences, its claims.

example:
  python benchmarks/insurance_report.py --out output/insurance
  python benchmarks/insurance_report.py --records results --page docs/results/insurance.md
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from insurance import HELD_OUT, Study
from scipy import stats

from mdistiller.cli import exit_on_error
from mdistiller.experiments.records import Record
from mdistiller.experiments.tables import insurance as study
from mdistiller.experiments.tables.insurance_claims import BESIDE, CLAIMS, Part
from mdistiller.report.statistics import holm, mean_interval

LEVEL = 0.05

# Last-epoch top-1 in percent of one arm in one setting, by trial.
Trials = dict[int, float]


class Found:
    """The results of one task with one pair of networks."""

    def __init__(self, whole: Study, pair: str = study.PAIR) -> None:
        self._whole, self.pair = whole, pair
        self._best_scale = self._choose_scale()

    def confirmations(self) -> list[Found]:
        """The same task with each of the larger pairs."""
        return [Found(self._whole, pair) for pair in study.CONFIRMATIONS]

    def trials(self, setting: str, arm: str) -> Trials:
        """Of an arm, of :data:`~study.BEST_FIXED`, or of "kd_best_scale"."""
        if arm == study.BEST_FIXED:
            return self._best_fixed(setting)
        if arm == "kd_best_scale":
            return self.trials(self._best_scale, "kd")
        trained_as = study.trained_as(study.SETTINGS[setting], study.ARMS[arm])
        if study.ARMS[arm].features and trained_as.key != setting:
            return {}  # shown once, where nothing is wrong
        found = {}
        for trial in range(study.TRIALS):
            result = self._whole.result(self._name(setting, arm, trial))
            if result:
                found[trial] = result["last_top1"]
        return found

    def origins(self) -> set[str]:
        """Machine, versions and commits of the records, a line for each combination."""
        return {
            f"{self._whole.task}: {_machine(r)}, torch {r.machine['torch']}, "
            f"{r.machine['threads']} thread, commit {r.result['commit'][:7]}"
            for r in self._whole.recorded
        }

    def weights(self, setting: str, arm: str) -> np.ndarray | None:
        """A and B in each epoch, (epochs, 2), mean over the trials; None without trials."""
        names = [self._name(setting, arm, trial) for trial in self.trials(setting, arm)]
        found = [
            [[e["crossbatch"]["ce"], e["crossbatch"]["kd"]] for e in self._whole.epochs(name)]
            for name in names
        ]
        return np.mean(found, axis=0) if found else None

    def _name(self, setting: str, arm: str, trial: int) -> str:
        return study.run_of(self._whole.task, setting, arm, trial, pair=self.pair).name

    def _best_fixed(self, setting: str) -> Trials:
        """In each trial that has all seven the one that is best on the held-out images."""
        found = {}
        for trial in range(study.TRIALS):
            names = [self._name(setting, f"fixed{x}", trial) for x in study.FIXED]
            results = [self._whole.result(name) for name in names]
            if all(result and HELD_OUT in result for result in results):
                chosen = int(np.argmax([result[HELD_OUT] for result in results]))
                found[trial] = results[chosen]["last_top1"]
        return found

    def _choose_scale(self) -> str:
        scales = [key for key, s in study.SETTINGS.items() if key == "clean" or s.scale != 1]
        means = {key: mean(self.trials(key, "kd")) for key in scales}
        return max(scales, key=lambda key: -math.inf if math.isnan(means[key]) else means[key])


def _machine(run: Record) -> str:
    processor = f"{run.machine['cpu']} ({run.machine['instructions']})"
    kind, _, name = run.result["device"].partition(": ")
    return processor if kind == "cpu" else f"{name} beside {processor}"


def recorded(task: str, records: Path) -> Found:
    """What is on record of a task, whatever folders of runs there are."""
    return Found(Study(task, Path(), None, records))


def mean(trials: Trials) -> float:
    return float(np.mean(list(trials.values()))) if trials else math.nan


def differences(found: Found, part: Part) -> np.ndarray:
    """Of the trials that both arms have."""
    better, worse = (found.trials(part.setting, arm) for arm in (part.better, part.worse))
    return np.array([better[t] - worse[t] for t in better if t in worse])


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % t interval of the mean; NaN for fewer than two values."""
    found = mean_interval([values])
    return (found.low, found.high) if found else (math.nan, math.nan)


def p_value(values: np.ndarray, margin: float) -> float:
    """One-sided, of "the mean is at most ``margin``"; 1 for fewer than two values."""
    if len(values) < 2:
        return 1.0
    if values.std() == 0:
        return float(values.mean() <= margin)
    return float(stats.ttest_1samp(values, margin, alternative="greater").pvalue)


# The arms by which the claims are judged; the others have a table of their own.
MAIN_ARMS = (
    *("ce", "kd", "insured", "insured_supervised", "train_reference", "same_batch"),
    study.BEST_FIXED,
)


def means_table(found: Found, arms: Sequence[str]) -> list[str]:
    """Markdown lines: those of ``arms`` that have results below each other, settings beside."""
    cells = {
        (setting, arm): _cell(trials)
        for setting in study.SETTINGS
        for arm in arms
        if (trials := found.trials(setting, arm))
    }
    # Cross-entropy alone is the same run wherever only the teacher is wrong.
    settings = [s for s in study.SETTINGS if any((s, a) in cells for a in arms if a != "ce")]
    known = [a for a in arms if any((s, a) in cells for s in settings)]
    if not known:
        return ["nothing yet"]
    header = ["| arm | " + " | ".join(settings) + " |", "|---" * (len(settings) + 1) + "|"]
    return header + [
        f"| {arm} | {' | '.join(cells.get((s, arm), '') for s in settings)} |" for arm in known
    ]


def _cell(trials: Trials) -> str:
    spread = f" ± {np.std(list(trials.values()), ddof=1):.2f}" if len(trials) > 1 else ""
    return f"{mean(trials):.2f}{spread} ({len(trials)})"


@dataclass(frozen=True)
class Compared:
    """A part of a claim on a task: the differences of the trials that there are."""

    part: Part
    task: str
    values: np.ndarray

    @property
    def p(self) -> float:
        return p_value(self.values, self.part.margin)

    @property
    def complete(self) -> bool:
        return len(self.values) == study.TRIALS

    @property
    def cells(self) -> str:
        """Of a Markdown row: what is compared, where, trials, difference, interval."""
        part, n = self.part, len(self.values)
        within = "[{:+.2f}, {:+.2f}]".format(*interval(self.values)) if n > 1 else ""
        words = f"`{part.setting}`: `{part.better}` - `{part.worse}`"
        return f"{words} | {self.task} | {n} | {self.values.mean():+.2f} | {within}"

    @property
    def test(self) -> str:
        """Two more of a claim's part: its margin, and p once all trials are there."""
        return f"{self.part.margin:+.1f} | {f'{self.p:.2g}' if self.complete else ''}"


def compare(parts: Iterable[Part], tasks: dict[str, Found]) -> list[Compared]:
    """The parts, each on every task on which it is made."""
    return [
        Compared(part, task, differences(found, part))
        for part in parts
        for task, found in tasks.items()
        if task in part.tasks
    ]


def compare_claims(tasks: dict[str, Found]) -> dict[int, list[Compared]]:
    """The parts of every claim, by its number."""
    return {number: compare(parts, tasks) for number, (_, parts) in CLAIMS.items()}


def verdicts(compared: dict[int, list[Compared]]) -> dict[int, str]:
    """Of every claim "held" or "failed" with its p, corrected after Holm, or "not tested yet".

    One that has not all its trials counts in the correction as one that has failed, which makes
    none of the others easier to hold.
    """
    tested = {number: all(one.complete for one in parts) for number, parts in compared.items()}
    p = [max(one.p for one in compared[n]) if tested[n] else 1.0 for n in compared]
    found = {}
    for number, corrected in zip(compared, holm(p), strict=True):
        verdict = f"{'held' if corrected < LEVEL else 'failed'} (corrected p {corrected:.2g})"
        missing = "not tested yet: trials or runs are missing"
        found[number] = verdict if tested[number] else missing
    return found


def claims_table(tasks: dict[str, Found]) -> list[str]:
    """Markdown lines: every part of a claim on every task, then each claim's verdict."""
    compared = compare_claims(tasks)
    lines = ["| | part | task | n | difference | interval | margin | p |", "|---" * 8 + "|"]
    for number, parts in compared.items():
        lines += [f"| {number} | {one.cells} | {one.test} |" for one in parts if len(one.values)]
    reached = verdicts(compared)
    return [*lines, "", *(f"{n}. {words}: {reached[n]}" for n, (words, _) in CLAIMS.items())]


def beside_table(tasks: dict[str, Found]) -> list[str]:
    """Markdown lines: the differences that are reported without a test."""
    parts = (Part(key, *arms, margin=0.0) for arms in BESIDE for key in study.SETTINGS)
    lines = ["| difference | task | n | mean | interval |", "|---" * 5 + "|"]
    return lines + [f"| {one.cells} |" for one in compare(parts, tasks) if len(one.values)]


def weights_table(found: Found) -> list[str]:
    """Markdown lines: A and B of the insured forms of methods on features; none without trials."""
    lines = []
    for setting, arm in itertools.product(study.SETTINGS, study.ARMS.values()):
        if not (arm.features and arm.held_out == "reference"):
            continue
        weights = found.weights(setting, arm.key)
        if weights is not None:
            thirds = [part.mean(axis=0) for part in np.array_split(weights, 3)]
            cells = " | ".join(f"{a:.2f} : {b:.2f}" for a, b in thirds)
            lines.append(f"| `{setting}` | `{arm.key}` | {cells} |")
    header = "| setting | arm | first third of the epochs | second | last |"
    return [header, "|---" * 5 + "|", *lines] if lines else []


def tables(tasks: dict[str, Found]) -> list[str]:
    """All that is known, in Markdown."""
    others = [a for a in study.ARMS if a not in MAIN_ARMS and not a.startswith("fixed")]
    lines = ["Top-1 in % of the last epoch: mean ± sample deviation (trials)."]
    for task, found in tasks.items():
        lines += ["", f"## {task}", "", *means_table(found, MAIN_ARMS)]
        if (more := means_table(found, others))[1:]:
            lines += ["", "Other arms, not part of a claim:", "", *more]
        if weights := weights_table(found):
            lines += ["", "Weights of cross-entropy and distillation there, A : B:", "", *weights]
    lines += ["", "## Claims", "", *claims_table(tasks)]
    lines += ["", "## Beside the claims, without a test", "", *beside_table(tasks)]
    for task, found in tasks.items():
        for confirmation in found.confirmations():
            lines += confirmation_tables(task, confirmation)
    return lines


def confirmation_tables(task: str, found: Found) -> list[str]:
    """Markdown lines: means and differences with larger networks; none without trials."""
    teacher, student, _ = study.PAIRS[found.pair]
    means = means_table(found, MAIN_ARMS)
    head = ["", f"## {task}, {teacher} to {student}, without a test", ""]
    return [*head, *means, "", *beside_table({task: found})] if means[1:] else []


def page(tasks: dict[str, Found]) -> str:
    """docs/results/insurance.md."""
    text = f"""# The second study's results

Made by `python benchmarks/insurance_report.py --records results --page docs/results/insurance.md`;
settings, arms and claims are explained in [the plan](../study-2.md). A claim is tested once, when
all its arms have {study.TRIALS} trials; what stands here before that is interim.

"""
    origin = sorted({line for found in tasks.values() for line in found.origins()})
    lines = [*tables(tasks), "", "## Where it was trained", "", *(f"- {line}" for line in origin)]
    return text + "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print means and claims, or write them as a page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("output/insurance"))
    parser.add_argument("--records", type=Path, help="folder of records, e.g. results")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page of results there")
    args = parser.parse_args(argv)
    if args.page and not args.records:
        parser.error("--page is made of --records")
    if args.page:
        tasks = {task: recorded(task, args.records) for task in study.TASKS}
        args.page.write_text(page(tasks), encoding="utf-8")
        return
    tasks = {task: Found(Study(task, Path(), args.out, args.records)) for task in study.TASKS}
    print("\n".join(tables(tasks)))


if __name__ == "__main__":
    exit_on_error(main)()
