"""The paper's tables and the study's grids as data."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.check import check_config
from mdistiller.errors import ConfigError, UnknownNameError
from mdistiller.experiments import STUDY, TABLES, build_table, datasets
from mdistiller.experiments.query import trial_seed
from mdistiller.experiments.tables.pairs import PAIRS
from mdistiller.experiments.tables.study import FIXED, RULES_OUT

CELLS = {
    "table1": 70,
    "table2": 24,
    "table3": 136,
    "figure2a": 27,
    "figure2b": 27,
    "figure3": 12,
    "figure4": 6,
}
# On two pairs each.
CELLS |= {"grid_a": 20, "grid_b": 66, "grid_c": 22, "grid_d": 16, "grid_e": 50}


def test_all_cells_are_there_distinct_and_compared_with_rows_of_their_method():
    assert CELLS.keys() == set(TABLES)
    for name, count in CELLS.items():
        table = build_table(name)
        assert len(table.cells) == count
        assert len({(c.row.key, c.column.key) for c in table.cells}) == count
        assert len({(c.cfg_file, c.opts, c.row.derived) for c in table.cells}) == count
        assert table.trials == 5
        rows = {row.key: row for row in table.rows}
        for row in rows.values():
            if row.baseline is not None:
                assert rows[row.baseline].method == row.method
                assert rows[row.baseline].baseline is None


def of_every_row_and_column(cells):
    """The first cell of each row and each column."""
    rows, columns = set(), set()
    for cell in cells:
        if cell.row.key not in rows or cell.column.key not in columns:
            rows.add(cell.row.key)
            columns.add(cell.column.key)
            yield cell


@pytest.mark.parametrize(
    "some", [of_every_row_and_column, pytest.param(list, marks=pytest.mark.slow)]
)
def test_cells_resolve_to_what_their_row_and_column_say(some):
    every = [(name, "cifar100") for name in TABLES] + [("table1", name) for name in datasets()]
    for name, dataset in (*every, *((name, "digits") for name in ("grid_c", "grid_d", "table3"))):
        for cell in some(build_table(name, dataset).cells):
            assert Path(cell.cfg_file).exists()
            cfg = load_cfg(cell.cfg_file, cell.opts)
            try:
                check_config(cfg)
            except ConfigError as error:  # CAGrad without its solver, an optional package
                assert "CAGrad" in cell.row.label and "pip install" in str(error)
            assert dataset == cfg.DATASET.TYPE
            assert cfg.DISTILLER.TYPE.removeprefix("CROSSBATCH_") == cell.method
            assert (cfg.SOLVER.TRAINER == "crossbatch") == (cell.row.variant == "crossbatch")
            networks = cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT
            assert (cell.column.pair.teacher, cell.column.pair.student) == networks


def test_printed_numbers():
    one, two = build_table("table1"), build_table("table2")
    for table in (one, two):
        assert table.averages.keys() == {row.key for row in table.rows}
        for row in table.rows:
            printed = [table.cell(row.key, column.key).printed for column in table.columns]
            # Half of the last printed digit.
            assert statistics.mean(printed) == pytest.approx(table.averages[row.key], abs=0.00501)
    shared = {c.key for c in one.columns} & {c.key for c in two.columns}
    assert len(shared) == 3
    for pair in shared:
        assert two.cell("original", pair).printed == one.cell("kd", pair).printed
        assert two.cell("ours", pair).printed == one.cell("kd_crossbatch", pair).printed
    assert one.cell("pkt_crossbatch", "wrn40_2_wrn40_1").printed == 74.09
    assert one.cell("at", "res56_res20").printed == 69.70
    assert two.cell("pcgrad", "res32x4_res8x4").printed == 75.77
    assert build_table("table1", "digits").cell("kd", "res20_res8").printed is None
    asked = build_table("table1", "digits", ["res56_res20"])
    assert asked.cell("kd", "res56_res20").printed == 70.62


# Rows of the table in golden/METHODS.md.
PUBLISHED_AS = {
    **{name: name.lower() for name in ("KD", "DIST", "MLKD", "NKD", "TTM", "WTTM", "CTKD", "RLD")},
    "KD+LS": "kd_ls",
    "DKD+LS": "dkd_ls",
    "CTKD+LS": "ctkd_ls",
    "MLKD+LS": "mlkd_ls",
    "CAT-KD": "catkd",
    "SimKD": "simkd",
    "EA-KD": "eakd",
}


def test_published_numbers_and_their_protocols_are_those_of_the_page():
    page = (Path(__file__).parent / "golden" / "METHODS.md").read_text(encoding="utf-8")
    table, found = build_table("table3"), set()
    for line in page[page.index("| method | 56->20") :].splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, *top1, protocol = (cell.strip() for cell in line.strip("|").split("|"))
        numbers = table.published[PUBLISHED_AS[name.rstrip("*")]]
        shown = [f"{n.top1:.2f}" if (n := numbers.get(c.key)) else "-" for c in table.columns]
        assert shown == top1, name
        found.add(PUBLISHED_AS[name.rstrip("*")])
        for number in numbers.values():
            assert number.selected == "best"
            assert ("480 epochs" in protocol) == (number.mark == "480 epochs, 2 views")
            assert not number.reread or not name.endswith("*") or "32x4: authors'" in protocol
            assert ("EXTRA PARAMETERS" in protocol) == ("extra parameters" in number.note)
            if number.log and number.log[1]:
                assert "{:.2f}/{:.2f}".format(*number.log) in protocol
    assert found == set(table.published)
    # Only of what is trained with the fixed weights of its authors.
    for cell in table.cells:
        assert cell.published is table.published.get(cell.row.key, {}).get(cell.column.key)
        assert cell.row.variant == "vanilla" or cell.published is None
    assert table.cell("simkd", "res32x4_res8x4").published.by == "its authors"
    assert table.cell("catkd", "vgg13_vgg8").published.by == "another paper"


def test_rows_of_table3_with_another_budget_say_so():
    table = build_table("table3")
    for cell in table.cells:
        cfg = load_cfg(cell.cfg_file, cell.opts)
        assert ("two views" in cell.row.label) == cfg.DATASET.STRONG_VIEW
        assert (cfg.SOLVER.EPOCHS == 480) == cfg.DATASET.STRONG_VIEW
    with pytest.raises(UnknownNameError, match="valid names: cifar100, digits, glyphs"):
        build_table("table3", "fashion_mnist")


def test_figure2_sets_both_weights():
    table = build_table("figure2a")
    assert [row.x for row in table.rows] == [n / 10 for n in range(1, 10)]
    for row in table.rows:
        cell = table.cell(row.key, "vgg13_vgg8")
        loss = load_cfg(cell.cfg_file, cell.opts).KD.LOSS
        assert pytest.approx(row.x) == loss.CE_WEIGHT
        assert pytest.approx(1) == loss.CE_WEIGHT + loss.KD_WEIGHT
    table = build_table("figure2b")
    for method, own in (("RKD", 1.0), ("KDSVD", 1.0), ("PKT", 30000.0)):
        # The caption's example: 0.3 : 0.7 is 0.6 : 1.4, and 0.6 : 42000 for PKT.
        for x, ce, feat in ((0.5, 1.0, 1.0), (0.3, 0.6, 1.4)):
            cell = table.cell(f"x{x}", f"{method.lower()}_vgg13_vgg8")
            loss = load_cfg(cell.cfg_file, cell.opts)[method].LOSS
            assert pytest.approx((ce, feat * own)) == (loss.CE_WEIGHT, loss.FEAT_WEIGHT)


def test_figure4_applies_the_preferred_weights_themselves():
    table = build_table("figure4")
    found = []
    for key in ("prefer_ce", "prefer_kd", "stabilized"):
        cell = table.cell(key, "vgg13_vgg8")
        node = load_cfg(cell.cfg_file, cell.opts).CROSSBATCH
        found.append((node.PREFER, node.STABILIZE))
    assert found == [("ce", False), ("kd", False), ("ce", True)]


def test_the_grids_have_what_the_study_asks_for():
    rows = {name: {row.key for row in layout.rows} for name, layout in STUDY.items()}
    assert len(rows["grid_a"]) == 10
    wanted = {"vanilla", "align", "printed", "orthogonal", "ridge"}
    assert wanted | {f"{key}_ema" for key in wanted - {"vanilla"}} | {"cone_ema"} <= rows["grid_b"]
    wanted = {"alpha0.25", "alpha1.0", "alpha2.0", "rescale1", "rescale2"}
    assert wanted | (set(RULES_OUT) - {"best_fixed"}) <= rows["grid_b"]
    assert {f"select{x}" for x in FIXED} <= rows["grid_b"] and len(FIXED) >= 6
    assert {"mgda", "pcgrad", "fairgrad", "cagrad", "gradnorm", "uncertainty"} <= rows["grid_c"]
    assert {"dot", "gradient_cosine", "distill_decay", "ours", "original"} <= rows["grid_c"]
    assert {"previous", "period5", "period10", "auxiliary16", "auxiliary32"} <= rows["grid_d"]
    methods = {key.removesuffix("_crossbatch") for key in rows["grid_a"]}
    controls = {f"{m}_{c}" for m in methods for c in ("scaled_lr", "mean_weights", "same")}
    assert rows["grid_e"] == rows["grid_a"] | controls


def test_weights_are_fixed_and_chosen_on_held_out_images():
    table = build_table("grid_b", "digits")
    for x in FIXED:
        cell = table.cell(f"select{x}", "res20_res8")
        assert cell.opts[-2:] == ("DATASET.HOLDOUT", "270")
        if x != FIXED[0]:
            tested = table.cell(f"fixed{x}", "res20_res8")
            assert cell.opts == (*tested.opts, "DATASET.HOLDOUT", "270")
    assert "5000" in build_table("grid_b", "fashion_mnist").cell("select0.1", "res20_res8").opts


def test_parts_of_a_table():
    table = build_table("table1", pairs=["vgg13_vgg8", "res56_res20"], methods=["pkt", "KD"])
    assert [c.key for c in table.columns] == ["res56_res20", "vgg13_vgg8"]
    assert [r.key for r in table.rows] == ["kd", "kd_crossbatch", "pkt", "pkt_crossbatch"]
    only = build_table("table1", methods=["kd_crossbatch"])
    assert [r.key for r in only.rows] == ["kd_crossbatch"]
    assert len(build_table("table2", methods=["MGDA"]).cells) == 4
    assert len(build_table("figure2b", methods=["PKT"]).cells) == 9
    small = build_table("table1", "fashion_mnist")
    assert [c.key for c in small.columns] == ["res20_res8", "wrn16_2_wrn16_1"]
    assert len(build_table("table1", "fashion_mnist", pairs=list(PAIRS)).cells) == 10 * len(PAIRS)


def test_unknown_names_are_explained():
    for arguments, words in (
        (("tabel1",), ("unknown table 'tabel1'", "did you mean 'table1'?")),
        (("table1", "digit"), ("unknown data set", "did you mean 'digits'?")),
        (("table1", "cifar100", ["re56_res20"]), ("unknown pair", "did you mean 'res56_res20'?")),
        (("table1", "digits", ["nothing"]), ("unknown pair", "wrn16_2_wrn16_1")),
        (("table1", "digits", [], ["KDD"]), ("unknown method 'KDD'", "did you mean 'KD'?")),
        (("table2", "digits", [], ["fairgrat"]), ("unknown method", "did you mean 'fairgrad'?")),
    ):
        with pytest.raises(UnknownNameError) as error:
            build_table(*arguments)
        assert all(word in str(error.value) for word in words)


def test_seeds_depend_on_table_pair_and_trial():
    places = [(t, p, n) for t in ("table1", "table2") for p in PAIRS for n in range(5)]
    assert len({trial_seed(*place) for place in places}) == len(places)
    # Pinned: results that exist were made with it.
    assert trial_seed("table1", "res20_res8", 0) == 521103730
    # All runs of a pair and trial have one seed in all grids.
    assert {build_table(name).seeds for name in STUDY} == {"study"}
