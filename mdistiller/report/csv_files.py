"""The report's runs and cells as CSV, for other programs."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from mdistiller.config.names import relevant

from .results import PRINTED_DATASET, RULES, Results

# Of report.csv.
RUN_COLUMNS = (
    *("table", "dataset", "row", "method", "variant", "ce_weight", "column", "teacher", "student"),
    *("trial", "seed", "state", "epochs", "last_top1", "best_top1", "best_epoch", "seconds"),
    *("median_epoch_seconds", "device", "threads", "fleet", "torch", "commit", "folder", "reason"),
)
_OF_ROW = {"method": "method", "variant": "variant", "ce_weight": "x"}


def runs_csv(results: Results) -> str:
    """Every run, complete or not, then the settings that differ; what is unknown stays empty."""
    runs = results.runs
    rows = pd.DataFrame(map(vars, results.rows)).set_index("key")
    pairs = {column.key: column.pair for column in results.columns}
    frame = runs.assign(
        table=results.name,
        dataset=results.dataset,
        **{k: runs["row"].map(rows[v]) for k, v in _OF_ROW.items()},
        **{k: [getattr(pairs[c], k) for c in runs["column"]] for k in ("teacher", "student")},
        folder=[folder.name for folder in runs["folder"]],
    )[list(RUN_COLUMNS)]
    return _whole_numbers(frame.join(varying(runs))).to_csv(index=False, lineterminator="\n")


def varying(runs: pd.DataFrame) -> pd.DataFrame:
    """The settings in which runs differ, as texts; a column each.

    Without the seed, and without what no result depends on: names, places, logging.
    """
    settings = pd.DataFrame(map(relevant, runs["settings"]), index=runs.index).astype(str)
    differing = [k for k in settings if k != "EXPERIMENT.SEED" and settings[k].nunique() > 1]
    return settings[differing].replace("nan", "")


def _whole_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Counts as whole numbers, also where some are missing."""
    counts = ("trial", "seed", "epochs", "best_epoch", "threads", "fleet")
    return frame.astype(dict.fromkeys(counts, "Int64"))


def cells_csv(results: Results) -> str:
    """Every cell: measured figures and the paper's, each in a column of its own."""
    done = results.done.groupby(["row", "column"])
    frame = pd.DataFrame(_places(results), columns=["row", "column"])
    frame.insert(0, "table", results.name)
    frame.insert(1, "dataset", results.dataset)
    measured = done.agg(
        n=("trial", "size"),
        **{
            f"{rule}_{name}": (f"{rule}_top1", how)
            for rule in RULES
            for name, how in (("mean", "mean"), ("deviation", "std"))
        },
    )
    frame = frame.join(measured, on=["row", "column"])
    frame["n"] = frame["n"].fillna(0).astype(int)
    paper = [results.printed.get(place) for place in _places(results)]
    frame["paper"] = pd.Series(paper, dtype=float)
    frame["paper_dataset"] = [None if x is None else PRINTED_DATASET for x in paper]
    if results.published and results.comparable:
        known = [results.published.get(row, {}).get(column) for row, column in _places(results)]
        frame["published"] = pd.Series([x.top1 if x else None for x in known], dtype=float)
        frame["protocol"] = ["; ".join(filter(None, x.protocol)) if x else None for x in known]
    for rule in RULES:
        gap = frame[f"{rule}_mean"] - frame["paper"]
        frame[f"{rule}_minus_paper"] = gap if results.comparable else None
    return frame.to_csv(index=False, lineterminator="\n")


def _places(results: Results) -> Iterable[tuple[str, str]]:
    places = results.runs[["row", "column"]].drop_duplicates()
    return list(places.itertuples(index=False, name=None))
