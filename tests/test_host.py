"""How many processors a process may use, and that a training keeps to them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mdistiller import device
from mdistiller.engine.runtime import host

CPU2 = "0::/box/job\n"
CPU1 = "5:memory:/box/job\n2:cpu,cpuacct:/box/job\n"


def cores(folder: Path, own: str, files: dict[str, str], monkeypatch, bound: int = 64) -> int:
    """``usable_cores`` where ``files`` are what Linux shows, on ``bound`` processors."""
    for place, content in {**files, "own": own}.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(content, encoding="ascii")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)), raising=False)
    return device.usable_cores(folder, folder / "own")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        (CPU2, {"box/job/cpu.max": "200000 100000\n"}, 2),
        (CPU2, {"box/job/cpu.max": "250000 100000\n"}, 3),  # two and a half: none is left unused
        (CPU2, {"box/job/cpu.max": "10000 100000\n"}, 1),
        (CPU2, {"box/job/cpu.max": "max 100000\n", "box/cpu.max": "400000 100000\n"}, 4),
        (CPU2, {"cpu.max": "800000 100000\n"}, 8),  # a container that does not see its own path
        (CPU2, {"box/job/cpu.max": "max 100000\n"}, 64),
        (CPU2, {"box/job/cpu.max": "9900000 100000\n"}, 64),
        (CPU2, {}, 64),
        (CPU2, {"box/job/cpu.max": "what?\n"}, 64),
        ("", {}, 64),
    ],
)
def test_quotas_of_control_groups_bound_the_cores(own, files, expected, tmp_path, monkeypatch):
    assert cores(tmp_path, own, files, monkeypatch) == expected


def test_quotas_of_the_first_version_bound_the_cores(tmp_path, monkeypatch):
    quota, period = (
        "cpu,cpuacct/box/job/cpu.cfs_quota_us",
        "cpu,cpuacct/box/job/cpu.cfs_period_us",
    )
    files = {quota: "150000\n", period: "50000\n", "memory/box/job/cpu.cfs_quota_us": "1\n"}
    assert cores(tmp_path, CPU1, files, monkeypatch) == 3
    assert cores(tmp_path, CPU1, {quota: "-1\n"}, monkeypatch) == 64  # no quota


def test_a_process_that_is_bound_uses_no_more(tmp_path, monkeypatch):
    files = {"box/job/cpu.max": "800000 100000\n"}
    assert cores(tmp_path, CPU2, files, monkeypatch, bound=3) == 3


def test_here_it_is_a_number_of_processors():
    assert 1 <= device.usable_cores() <= os.cpu_count()


@pytest.mark.parametrize("asked", [None, "4"])
def test_a_training_gets_no_more_threads_than_cores(asked, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(host, "usable_cores", lambda: 2)
    monkeypatch.setattr(host, "keep_freed_memory", bool)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    try:
        torch.set_num_threads(4)
        host.use_host()
        assert torch.get_num_threads() == (4 if asked else 2)
        torch.set_num_threads(1)
        host.use_host()  # somebody's own choice is not raised
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
