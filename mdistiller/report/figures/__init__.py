"""The figures of a report, as functions from results to a matplotlib figure (or None)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.figure import Figure

from ..results import Results
from .bars import differences, preference
from .curves import accuracy_curves, cosines, equal_time, weights
from .sensitivity import sensitivity_absolute, sensitivity_relative
from .style import save, save_png


@dataclass(frozen=True)
class Drawn:
    """A figure with the name of its files and its caption."""

    name: str
    caption: str
    figure: Figure


# Drawn where there are the runs for it; the text says what one sees and what the band is.
_BAND = "mean over trials, band (where lines are few): ± sample deviation"
_FIGURES = (
    ("preference", preference, "Preference for the task or the distillation loss (Figure 4): "
     "{rule} epoch; single trials (small) and their mean ± sample deviation."),
    ("sensitivity_relative", sensitivity_relative, "Accuracy against the cross-entropy weight, "
     "as the difference to equal weights (Figure 2a); {rule} epoch, paired by trial; bars: ± "
     "sample deviation of the differences."),
    ("sensitivity_absolute", sensitivity_absolute, "Accuracy against the cross-entropy weight "
     "(Figure 2b), {rule} epoch; mean ± sample deviation. An axis above (not for KD) gives "
     "the factors on the method's own weights, 1 : 1 being those weights."),
    ("differences", differences, "Paired differences to the baseline with 95 % confidence "
     "intervals over trials, {rule} epoch; filled: interval excludes zero."),
    ("curves", accuracy_curves, "Test accuracy while training; " + _BAND + "; the "
     "lower of two panels enlarges the last quarter. Dashed and hollow: baseline."),
    ("equal_time", equal_time, "Test accuracy against training time (validation left out); "
     "mean over trials, per panel of one machine and one number of runs that share a "
     "process, whichever most of its rows have; a row without such runs is missing. The "
     "dotted line is where the fastest baseline ended."),
    ("weights", weights, "Weights of the two losses while training (Figure 3), as they multiply "
     "the configured losses; " + _BAND + "."),
    ("cosines", cosines, "Cosines between the gradients of cross-entropy (ce), distillation (kd) "
     "and the reference batch (ref), and the share of steps in which the first two conflict; "
     "epoch means, " + _BAND + "."),
)  # fmt: skip
CAPTIONS = {name: caption for name, _, caption in _FIGURES}


def draw(results: Results, rule: str, left_out: tuple[str, ...] = ()) -> Iterator[Drawn]:
    """Every figure that the complete runs allow.

    Args:
        rule: "last" or "best" epoch, for the figures of final accuracies.
        left_out: names of figures.
    """
    for name, function, caption in _FIGURES:
        figure = function(results, rule) if name not in left_out else None
        if figure is not None:
            yield Drawn(name, caption.format(rule=rule), figure)


__all__ = ["CAPTIONS", "Drawn", "draw", "save", "save_png"]
