"""What the insurance study (docs/study-2.md) found so far: means, differences, its claims.

example:
  python benchmarks/insurance_report.py --out output/insurance
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from insurance import HELD_OUT, Study
from scipy import stats

from mdistiller.cli import exit_on_error
from mdistiller.experiments.tables import insurance as study

LEVEL = 0.05

# Last-epoch top-1 in percent of one arm in one setting, by trial.
Trials = dict[int, float]


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: the arm ``better`` exceeds ``worse`` by more than ``margin``."""

    setting: str
    better: str
    worse: str
    margin: float


CLAIMS: dict[int, tuple[str, tuple[Part, ...]]] = {
    1: (
        "a wrong teacher does no harm",
        tuple(
            part
            for fault in ("permute", "random")
            for part in (Part(fault, "insured", "ce", -0.5), Part(fault, "ce", "kd", 20.0))
        ),
    ),
    2: (
        "the teacher's help against wrong labels is kept",
        (Part("noise40", "insured", "kd", -0.5), Part("noise40", "insured", "ce", 4.0)),
    ),
    3: ("nothing is paid where nothing is wrong", (Part("clean", "insured", "kd", -0.2),)),
    4: (
        "the distillation weight need not be tuned",
        tuple(
            Part(f"scale{s}", "insured_supervised", "kd_best_scale", -0.3) for s in ("0.01", "100")
        ),
    ),
    5: (
        "as good as a search",
        tuple(
            Part(
                setting.key,
                "insured" if setting.scale == 1 else "insured_supervised",
                study.BEST_FIXED,
                -0.3,
            )
            for setting in study.SETTINGS.values()
        ),
    ),
    6: (
        "why",
        (
            Part("noise40", "insured", "train_reference", 0.0),
            Part("permute", "train_reference", "same_batch", 0.0),
        ),
    ),
}


class Found:
    """The results of one task."""

    def __init__(self, whole: Study) -> None:
        self._whole = whole
        self._best_scale = self._choose_scale()

    def trials(self, setting: str, arm: str) -> Trials:
        """Of an arm, of :data:`~study.BEST_FIXED`, or of "kd_best_scale"."""
        if arm == study.BEST_FIXED:
            return self._best_fixed(setting)
        if arm == "kd_best_scale":
            return self.trials(self._best_scale, "kd")
        found = {}
        for trial in range(study.TRIALS):
            result = self._whole.result(self._name(setting, arm, trial))
            if result:
                found[trial] = result["last_top1"]
        return found

    def _name(self, setting: str, arm: str, trial: int) -> str:
        return study.run_of(self._whole.task, setting, arm, trial).name

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


def mean(trials: Trials) -> float:
    return float(np.mean(list(trials.values()))) if trials else math.nan


def differences(found: Found, part: Part) -> np.ndarray:
    """Of the trials that both arms have."""
    better, worse = (found.trials(part.setting, arm) for arm in (part.better, part.worse))
    return np.array([better[t] - worse[t] for t in better if t in worse])


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % t interval of the mean; infinite for fewer than two values."""
    if len(values) < 2:
        return -math.inf, math.inf
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def p_value(values: np.ndarray, margin: float) -> float:
    """One-sided, of "the mean is at most ``margin``"; 1 for fewer than two values."""
    if len(values) < 2:
        return 1.0
    if values.std() == 0:
        return float(values.mean() <= margin)
    return float(stats.ttest_1samp(values, margin, alternative="greater").pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Corrected after Holm, in the order given."""
    order, corrected, largest = np.argsort(p), [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p) - rank) * p[index])
        corrected[index] = min(1.0, largest)
    return corrected


def means_table(found: Found, arms: Sequence[str]) -> list[str]:
    lines = [
        "| arm | " + " | ".join(study.SETTINGS) + " |",
        "|---" * (len(study.SETTINGS) + 1) + "|",
    ]
    for arm in arms:
        cells = []
        for setting in study.SETTINGS:
            trials = found.trials(setting, arm)
            spread = f" ± {np.std(list(trials.values()), ddof=1):.2f}" if len(trials) > 1 else ""
            cells.append(f"{mean(trials):.2f}{spread} ({len(trials)})" if trials else "")
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return lines


def claims_table(tasks: dict[str, Found]) -> list[str]:
    """Markdown lines: every part of a claim on every task, then each claim's verdict."""
    lines = ["| | part | task | n | difference | interval | margin | p |", "|---" * 8 + "|"]
    p, complete = {}, {}
    for number, (_, parts) in CLAIMS.items():
        p[number], complete[number] = 0.0, True
        for part in parts:
            for task, found in tasks.items():
                if not study.SETTINGS[part.setting].is_on(task):
                    continue
                values = differences(found, part)
                complete[number] &= len(values) == study.TRIALS
                p[number] = max(p[number], part_p := p_value(values, part.margin))
                if len(values):
                    low, high = interval(values)
                    words = f"`{part.setting}`: `{part.better}` - `{part.worse}`"
                    lines.append(
                        f"| {number} | {words} | {task} | {len(values)} | {values.mean():+.2f} | "
                        f"[{low:+.2f}, {high:+.2f}] | {part.margin:+.1f} | {part_p:.2g} |"
                    )
    lines.append("")
    for (number, (words, _)), corrected in zip(CLAIMS.items(), holm(list(p.values())), strict=True):
        verdict = "held" if corrected < LEVEL else "failed"
        verdict = verdict if complete[number] else "not tested yet: trials or runs are missing"
        lines.append(f"{number}. {words}: {verdict} (corrected p {corrected:.2g})")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Print means and claims."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("output/insurance"))
    parser.add_argument("--records", type=Path, help="folder of records, e.g. results")
    args = parser.parse_args(argv)
    tasks = {task: Found(Study(task, Path(), args.out, args.records)) for task in study.TASKS}
    arms = [a for a in study.ARMS if not a.startswith("fixed")] + [study.BEST_FIXED]
    for task, found in tasks.items():
        print(f"\n{task}: top-1 in % of the last epoch, mean ± sample deviation (trials)\n")
        print(
            "\n".join(
                means_table(
                    found, [a for a in arms if any(found.trials(s, a) for s in study.SETTINGS)]
                )
            )
        )
    print()
    print("\n".join(claims_table(tasks)))


if __name__ == "__main__":
    exit_on_error(main)()
