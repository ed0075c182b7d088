"""What a report says, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .comparison import RULES, Comparison, at_equal_epochs, at_equal_time, compare_rows, costs
from .document import Block, Document, Heading, Listing, Picture, Text
from .dynamics import dynamics_tables
from .facts import facts, state_lines
from .figures import Drawn
from .plan import Plan
from .study import controls, longer, readings, tested
from .tables import (
    RULE_TEXT,
    accuracy_table,
    cost_table,
    difference_table,
    pooled_table,
    power_table,
    state_table,
)

_INTERVAL = (
    "Differences are paired by trial: a row and its baseline start from the same student and see "
    "the same batches. The 95 % confidence interval of one {word} is the t interval of its paired "
    "differences. That of the mean over {word}s gives every {word} the same weight, takes its "
    "variance from the scatter within each {word} (trials of different {word}s have different "
    "seeds, so they are independent) and its degrees of freedom from Welch and Satterthwaite. It "
    "says what other seeds would give for these {word}s, not what other {word}s would give. The "
    "paired t test belongs to this interval; the exact two-sided sign test takes the trials of "
    "all {word}s and leaves out ties. No p value is corrected for the number of rows."
)
_TIME = (
    "A step of cross-batch weighting costs more than a vanilla one, so equal epochs are not equal "
    "time. Here both runs of a pair get the training seconds of the faster one, and the slower one "
    "counts with what it had reached in its last epoch complete by then; a pair whose slower run "
    "had completed none is left out. Caveat: a run cut short "
    "has not finished its learning-rate schedule, which usually brings the last points, so that "
    "this comparison is hard on the slower method. The fair alternative is to train it anew with "
    "fewer epochs (SOLVER.EPOCHS divided by the cost factor, SOLVER.LR_DECAY_STAGES alike), "
    "or its baseline with more, as grid_d does. Times were taken while whatever else ran on "
    "the machine; runs on different devices, with different numbers of threads, or that shared "
    "their teacher with different numbers of others are left out."
)
_BY_THEN = {
    "last": "last epoch complete by then",
    "best": "best epoch by then, chosen on the test images themselves",
}


def build(plan: Plan, rule: str, drawn: Sequence[Drawn]) -> Document:
    """The report.

    Args:
        rule: the selection rule that comes first, "last" or "best" epoch.
        drawn: figures, whose files lie beside the report.
    """
    rules = sorted(RULES, key=lambda r: r != rule)
    pictures = {d.name: Picture(d.name, d.caption) for d in drawn}
    whole, plan = plan, tested(plan)
    blocks = [
        *_state(whole),
        *_accuracy(plan, rules, pictures),
        *_which(whole),
        *_differences(plan, rules, pictures),
        *readings(whole, rules),
        *controls(whole, rules),
        *_dynamics(plan, pictures),
        *_equal_time(plan, rules, pictures),
        *longer(plan, rules),
    ]
    return Document(f"{plan.title} ({plan.table} on {plan.dataset})", tuple(blocks))


def _state(plan: Plan) -> Iterator[Block]:
    counts = ", ".join(f"{n} {state}" for state, n in plan.states.items())
    yield Text(f"{len(plan.runs)} runs: {counts}. Only the done ones are counted below.")
    if plan.remarks:
        yield Listing(plan.remarks)
    for state in ("broken", "failed"):
        teachers = tuple(plan.teachers.values())
        if lines := state_lines((*plan.runs, *teachers), state, plan.root):
            yield Heading(f"{state.capitalize()} runs", 3)
            if state == "broken":
                yield Listing(tuple(dict.fromkeys(lines)))
                continue
            for run in dict.fromkeys(r.folder for r in (*plan.runs, *teachers) if r.state == state):
                yield from _failure(next(r for r in (*plan.runs, *teachers) if r.folder == run))


def _failure(run) -> Iterator[Block]:
    yield Text(f"{run.folder.name}: {run.reason}; the end of its log:")
    yield Listing(run.tail or ("(nothing)",), verbatim=True)


def _accuracy(plan: Plan, rules: list[str], pictures: dict[str, Picture]) -> Iterator[Block]:
    yield Heading("Accuracy")
    for rule in rules:
        yield Heading(RULE_TEXT[rule].capitalize(), 3)
        yield accuracy_table(plan, rule)
        yield Listing(facts(plan))
    names = ("preference", "sensitivity_relative", "sensitivity_absolute", "curves")
    yield from (pictures[name] for name in names if name in pictures)


def _which(plan: Plan) -> Iterator[Block]:
    if plan.states["done"] < len(plan.runs):
        yield Heading("Which runs are there", 3)
        yield state_table(plan)


def _differences(plan: Plan, rules: list[str], pictures: dict[str, Picture]) -> Iterator[Block]:
    found = {rule: compare_rows(plan, at_equal_epochs(rule)) for rule in rules}
    if not any(found.values()):
        return
    yield Heading("Difference to the baseline at equal epochs")
    yield Text(_INTERVAL.format(word=plan.column_word))
    for rule, comparisons in found.items():
        what = f"percentage points of test top-1, {RULE_TEXT[rule]}"
        yield from _pooled_and_single(plan, comparisons, what, power=True)
    if "differences" in pictures:
        yield pictures["differences"]


def _pooled_and_single(
    plan: Plan, comparisons: list[Comparison], what: str, power: bool = False
) -> Iterator[Block]:
    yield pooled_table(plan, comparisons, f"Mean paired difference, {what}")
    if power:
        yield power_table(plan, comparisons, what)
    caption = f"Paired difference (n) with its 95 % CI per {plan.column_word}, {what}"
    yield difference_table(plan, comparisons, caption)


def _dynamics(plan: Plan, pictures: dict[str, Picture]) -> Iterator[Block]:
    found = [*dynamics_tables(plan)]
    found += [pictures[name] for name in ("weights", "cosines") if name in pictures]
    if found:
        yield Heading("Weights and gradients over training")
        yield from found


def _equal_time(plan: Plan, rules: list[str], pictures: dict[str, Picture]) -> Iterator[Block]:
    found = {rule: compare_rows(plan, at_equal_time(rule)) for rule in rules}
    measured = tuple(costs(plan))
    if not measured:
        return
    yield Heading("At equal time")
    yield Text(_TIME)
    yield cost_table(plan, measured)
    if not any(found.values()):
        yield Text("No slower run had completed an epoch when the faster one ended.")
        found = {}
    for rule, comparisons in found.items():
        what = f"percentage points at equal training time, {_BY_THEN[rule]}"
        yield from _pooled_and_single(plan, comparisons, what)
    if "equal_time" in pictures:
        yield pictures["equal_time"]
