"""What the insurance study claims (docs/study-2.md): comparisons of two arms by a margin."""

from __future__ import annotations

from dataclasses import dataclass

from mdistiller.experiments.tables import insurance as study


@dataclass(frozen=True)
class Part:
    """One comparison of a claim: the arm ``better`` exceeds ``worse`` by more than ``margin``.

    Attributes:
        tasks: on which it is made.
    """

    setting: str
    better: str
    worse: str
    margin: float
    tasks: tuple[str, ...] = study.TASKS


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
        "as good as a search, on glyphs, with the weight as configured, where it was trained",
        tuple(
            Part(setting.key, "insured", study.BEST_FIXED, -0.3, study.SEARCHED)
            for setting in study.SETTINGS.values()
            if setting.scale == 1 and setting.key not in study.DROPPED
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

# Reported beside the claims, without a test, in every setting that both arms were trained in.
BESIDE = (
    *(("insured_supervised", other) for other in ("kd", "ce", "insured", study.BEST_FIXED)),
    ("supervised_period10", "insured_supervised"),
    *(("bisector", "kd"), ("align", "kd"), ("align", "align_short")),
    *(("insured_supervised", other) for other in ("mean_weights", *study.OTHERS)),
    *(
        pair
        for method in ("pkt", "at", "rkd")
        for pair in (
            (f"{method}_insured", method),
            (f"{method}_insured_shared", f"{method}_insured"),
            (f"{method}_supervised", method),
        )
    ),
)
