"""The study's grids: whether the method works, by which reading, why, and at what cost.

Sized for small pairs on a laptop; all runs of a pair and a trial have one seed in all grids, so
that a cell which two grids share is one run.
"""

from __future__ import annotations

from .layouts import (
    METHODS,
    Derived,
    Layout,
    Row,
    at_first_alpha,
    multitask_row,
    other_row,
    ours_row,
    table1_rows,
)

# Of all grids, see trial_seed.
SEEDS = "study"

# The row that others are compared with; not "kd", which --methods takes for all rows of KD.
VANILLA = "vanilla"

# Whose numbers the controls of grid b are made of.
SOURCE = "align"

# Rows of grid b that could be shipped in its place; the further rows vary one option of it.
CANDIDATES = (
    *("align_ema", "printed", "printed_ema", "orthogonal", "orthogonal_ema"),
    *("ridge", "ridge_ema", "cone_ema"),
)

# Kinds of rows beside "vanilla" and the weightings.
CONTROL, SELECTION, LONGER = "control", "selection", "longer"

# A step of the method costs about two of plain KD (benchmarks/cost.py).
TIMES_LONGER = 2

# Weights of the cross-entropy among which control 5 chooses; KD's own is 0.1 : 0.9.
FIXED = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)

# Training images held out for that choice; what a data set does not name has 5,000.
HOLDOUT = {"digits": 270}
HOLDOUT_OTHERWISE = 5000

# The row that is made of the chosen weights' runs when the results are read.
BEST_FIXED = "best_fixed"

# What is no explanation of a gain if the weighting is better than the control.
RULES_OUT = {
    "scaled_lr": "that it is one of step length alone (plain KD, learning rate scaled to the mean "
    "step length of the weighting's run)",
    "mean_weights": "that constant weights do as well (plain KD, loss weights fixed at the means "
    "of the weighting's run)",
    "same": "that the current batch serves as well as a second one (the same reading, reference "
    "gradient from the current batch)",
    "shuffled": "that it does not matter when a weight is used (the run's own weights in random "
    "order)",
    BEST_FIXED: "that a search over fixed loss weights does as well (the best of "
    f"{len(FIXED)} pairs, chosen by accuracy on held-out training images)",
}

# α changes the step length most of all, so that the largest has this control of its own.
LONG_STEPS = "alpha2.0"
RULES_OUT_OF = {
    SOURCE: RULES_OUT,
    LONG_STEPS: {f"scaled_lr_{LONG_STEPS}": RULES_OUT["scaled_lr"]},
    # Grid e's; shuffled weights would need every step's weights of runs that did not keep them.
    **{
        f"{method}_crossbatch": {
            f"{method}_{how}": RULES_OUT[how].replace("plain KD", f"plain {method.upper()}")
            for how in ("scaled_lr", "mean_weights", "same")
        }
        for method in map(str.lower, METHODS)
    },
}

# Keeps the weights of every step, from which controls are made.
_KEPT = ("LOG.WEIGHTS", "True")


def _ours(key: str, label: str, *opts: str, baseline: str = VANILLA) -> Row:
    return ours_row(key, label, *opts, *_KEPT, baseline=baseline)


def _reading(key: str, label: str, reading: str, *opts: str) -> Row:
    return ours_row(key, label, "CROSSBATCH.READING", reading, *opts, baseline=VANILLA)


def _align(key: str, label: str, *opts: str) -> Row:
    return _reading(key, f"align, {label}", "align", *opts)


def _vanilla() -> Row:
    return Row(VANILLA, "KD", "KD", x=FIXED[0])


def _readings() -> tuple[Row, ...]:
    average = ("CROSSBATCH.EMA", "0.95")
    ridge = ("CROSSBATCH.RIDGE", "0.05")
    return (
        _align(SOURCE, "α 0.5 (the default then)", *_KEPT),
        _align("align_ema", "EMA 0.95", *average),
        _reading("printed", "printed", "printed"),
        _reading("printed_ema", "printed, EMA 0.95", "printed", *average),
        _reading("orthogonal", "orthogonal", "orthogonal"),
        _reading("orthogonal_ema", "orthogonal, EMA 0.95", "orthogonal", *average),
        _reading("ridge", "orthogonal, ridge 0.05", "orthogonal", *ridge),
        _reading("ridge_ema", "orthogonal, ridge 0.05, EMA 0.95", "orthogonal", *ridge, *average),
        # Without an average of the cosines its weights jump from step to step (docs/method.md).
        _reading("cone_ema", "cone, EMA 0.95", "cone", *average),
        *(_align(f"alpha{a}", f"α {a}", "CROSSBATCH.ALPHA", a) for a in ("0.25", "1.0", "2.0")),
        *(_align(f"rescale{r}", f"rescale {r}", "CROSSBATCH.RESCALE", r) for r in ("1", "2")),
    )


def _controls() -> tuple[Row, ...]:
    def derived(key: str, label: str, source: str = SOURCE, how: str = "") -> Row:
        return Row(key, label, "KD", CONTROL, VANILLA, derived=Derived(source, how or key))

    return (
        derived("scaled_lr", "control 1: KD, steps as long"),
        derived("mean_weights", "control 2: KD, mean weights"),
        _reading("same", "control 3: G of the same batch", "align", *_same_batch()),
        derived("shuffled", "control 4: KD, shuffled weights"),
        *(
            derived(key, "control 1 of α 2.0: KD, steps as long", LONG_STEPS, "scaled_lr")
            for key in RULES_OUT_OF[LONG_STEPS]
        ),
    )


def _same_batch() -> tuple[str, str]:
    return "CROSSBATCH.REFERENCE", "same"


def _fixed() -> tuple[Row, ...]:
    """Control 5: every weight on the test images, and once more on held-out images."""

    def label(x: float) -> str:
        return f"KD, {x:g} : {1 - x:.1g}"

    tested = (Row(f"fixed{x}", label(x), "KD", CONTROL, VANILLA, x=x) for x in FIXED[1:])
    selected = (Row(f"select{x}", label(x), "KD", SELECTION, x=x) for x in FIXED)
    return (*tested, *selected)


def _weightings() -> tuple[Row, ...]:
    return (
        Row("original", "original", "KD"),
        other_row("distill_decay", "distill-decay", "distill_decay", baseline="original"),
        *(multitask_row(name, "original") for name in ("MGDA", "PCGrad", "FairGrad", "CAGrad")),
        other_row("gradnorm", "GradNorm", "gradnorm", baseline="original"),
        other_row("uncertainty", "uncertainty", "uncertainty", baseline="original"),
        other_row("gradient_cosine", "gradient cosine", "gradient_cosine", baseline="original"),
        other_row("dot", "DOT", "dot", baseline="original"),
        _ours("ours", "ours", baseline="original"),
    )


def _costs() -> tuple[Row, ...]:
    def cheaper(key: str, label: str, *opts: str) -> Row:
        return ours_row(key, label, *opts, baseline=VANILLA)

    return (
        Row(VANILLA, "KD", "KD"),
        _ours("ours", "ours"),
        cheaper("previous", "ours, G of the step before", "CROSSBATCH.REFERENCE", "previous"),
        *(cheaper(f"period{k}", f"ours, period {k}", "CROSSBATCH.PERIOD", k) for k in ("5", "10")),
        *(
            cheaper(f"auxiliary{n}", f"ours, auxiliary batch {n}", "CROSSBATCH.BATCH_SIZE", n)
            for n in ("16", "32")
        ),
        Row(
            LONGER,
            f"KD, {TIMES_LONGER} times the epochs",
            "KD",
            LONGER,
            VANILLA,
            derived=Derived(VANILLA, LONGER),
        ),
    )


def _method_controls() -> tuple[Row, ...]:
    """Grid a's rows, each method followed by what a gain can come from without the weighting."""
    rows = []
    for row in _with_kept_weights(table1_rows()):
        rows.append(row)
        if row.baseline is not None:
            rows += _controls_of(row)
    return tuple(rows)


def _controls_of(ours: Row) -> tuple[Row, ...]:
    key, method = ours.baseline, ours.method

    def derived(how: str, label: str) -> Row:
        source = Derived(ours.key, how)
        return Row(f"{key}_{how}", f"{method}, {label}", method, CONTROL, key, derived=source)

    label = f"{ours.label}, G of the same batch"
    return (
        derived("scaled_lr", "steps as long"),
        derived("mean_weights", "mean weights"),
        Row(f"{key}_same", label, method, ours.variant, key, opts=_same_batch()),
    )


def _with_kept_weights(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """KD's run is that of grid b's source, so it must leave what the source leaves."""
    return tuple(
        ours_row(r.key, r.label, *r.opts, *_KEPT, baseline=r.baseline)
        if r.key == "kd_crossbatch"
        else r
        for r in rows
    )


def _grid(title: str, rows: tuple[Row, ...]) -> Layout:
    # The pairs are those on CIFAR-100; elsewhere as many small ones take their place.
    return Layout(title, "table", at_first_alpha(rows), ("res56_res20", "vgg13_vgg8"), seeds=SEEDS)


STUDY = {
    "grid_a": _grid(
        "Grid A: distillation methods with fixed weights and with cross-batch weighting",
        _with_kept_weights(table1_rows()),
    ),
    "grid_b": _grid(
        "Grid B: readings of cross-batch weighting, and controls",
        (_vanilla(), *_readings(), *_controls(), *_fixed()),
    ),
    "grid_c": _grid("Grid C: KD with dynamic weightings", _weightings()),
    "grid_d": _grid("Grid D: cheaper forms of cross-batch weighting", _costs()),
    "grid_e": _grid("Grid E: controls of every method", _method_controls()),
}
