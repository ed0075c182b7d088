"""Comparisons of configurations; nothing is trained here but by test_tools.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mdistiller.errors import ConfigError, MdistillerError
from mdistiller.experiments import compare, runner
from mdistiller.experiments.compare import Compared, format_table

from .study_runs import Instantly

KD = Path("configs/digits/kd.yaml")


@pytest.fixture
def backend(monkeypatch) -> Instantly:
    """Takes the place of the local one."""
    found = Instantly()
    monkeypatch.setattr(runner, "_POLL_SECONDS", 0.0)
    module = sys.modules["mdistiller.experiments.compare"]
    monkeypatch.setattr(module, "LocalBackend", lambda slots: found)
    return found


def changed(tmp_path: Path) -> str:
    path = tmp_path / "copy.yaml"
    path.write_text(f"_BASE_: {KD.resolve()}\nKD:\n  TEMPERATURE: 2\n")
    return str(path)


@pytest.mark.parametrize("opts", [(), ("EXPERIMENT.NAME", "x")])
def test_configurations_of_one_name_are_told_apart(tmp_path, backend, opts):
    opts = ("LOG.PREFIX", str(tmp_path), *opts)
    cells = compare([str(KD), changed(tmp_path)], [0, 1], opts=opts)
    assert [len(cell.last) for cell in cells] == [2, 2]
    assert len({job.folder for job in backend.started}) == 4
    temperatures = {job.folder: job.cfg.KD.TEMPERATURE for job in backend.started}
    assert sorted(temperatures.values()) == [2, 2, 4, 4]
    before = len(backend.started)
    compare([str(KD), changed(tmp_path)], [0, 1], opts=opts)
    assert len(backend.started) == before, "nothing is trained twice"


def test_the_teacher_comes_first_and_its_students_load_it(tmp_path, backend):
    opts = ("LOG.PREFIX", str(tmp_path))
    compare([str(KD)], [3], teacher="configs/digits/teacher.yaml", opts=opts)
    teacher, student = backend.started
    assert str(teacher.folder / "student_latest") == student.cfg.DISTILLER.TEACHER_CKPT


def test_what_cannot_be_compared_is_refused_before_training(tmp_path, backend):
    same = tmp_path / "same.yaml"
    same.write_text(f"_BASE_: {KD.resolve()}\n")
    opts = ("LOG.PREFIX", str(tmp_path / "out"))
    for files, seeds, options, words in (
        ([str(KD)], [0, 1, 0], opts, "--seeds: 0 is there twice"),
        ([str(KD), str(KD)], [0], opts, "are the same configuration"),
        ([str(KD), str(same)], [0], opts, f"{KD} and {same} are the same configuration"),
        ([str(KD)], [0], ("SOLVER.EPOCHS",), "--set takes pairs KEY VALUE, but SOLVER.EPOCHS has"),
        ([str(KD)], [0], (*opts, "SOLVER.EPOCHS"), "SOLVER.EPOCHS has no value"),
    ):
        with pytest.raises(ConfigError) as error:
            compare(files, seeds, teacher="configs/digits/teacher.yaml", opts=options)
        assert words in str(error.value) and "\n" not in str(error.value)
    assert not backend.started and not (tmp_path / "out").exists()


def test_a_failure_ends_it_with_the_last_lines_of_the_log(tmp_path, backend):
    backend.codes = {"kdEXPERIMENT.SEED:1": 1}
    backend.size = 1
    with pytest.raises(MdistillerError, match=r"failed, its log .* ends with:\n  error: its last"):
        compare([str(KD)], [0, 1, 2], opts=("LOG.PREFIX", str(tmp_path)))
    assert len(backend.started) == 2


def test_the_table_has_paired_differences():
    cells = [
        Compared("a", np.array([80.0, 82.0]), np.array([81.0, 82.0]), np.array([10.0, 10.0])),
        Compared("b", np.array([81.0, 83.0]), np.array([81.5, 83.0]), np.array([15.0, 15.0])),
    ]
    text = format_table(cells)
    assert "81.00 +- 1.41" in text and "+1.00 +- 0.00" in text and "1.50x" in text
    assert "+-" not in format_table([Compared("a", *np.ones((3, 1)))]).splitlines()[2]
