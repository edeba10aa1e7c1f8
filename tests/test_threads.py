"""The number of threads follows what the process may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from tnet import threads

OWN = "4:cpu,cpuacct:/docker/abc\n3:memory:/docker/abc\n0::/user.slice/job\n"


def groups(tmp_path: Path, files: dict[str, str]) -> float | None:
    (tmp_path / "cgroup").write_text(OWN)
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text)
    return threads.cpu_limit(tmp_path / "fs", tmp_path / "cgroup")


@pytest.mark.parametrize(("files", "limit"), [
    ({}, None),
    ({"cpu.max": "150000 100000\n"}, 1.5),
    ({"cpu.max": "max 100000\n"}, None),
    ({"user.slice/cpu.max": "300000 100000\n", "user.slice/job/cpu.max": "max 100000\n"}, 3.0),
    ({"user.slice/cpu.max": "300000 100000\n", "user.slice/job/cpu.max": "200000 100000\n"}, 2.0),
    ({"cpu/docker/abc/cpu.cfs_quota_us": "50000\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, 0.5),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    ({"cpu.max": "nonsense\n"}, None),
])  # fmt: skip
def test_limits_of_control_groups(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    assert groups(tmp_path, files) == limit


def test_there_may_be_no_control_groups(tmp_path: Path) -> None:
    assert threads.cpu_limit(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(("cpus", "limit", "number"), [(8, 2.5, "3"), (8, 0.3, "1"), (2, 4.0, None), (8, None, None)])
def test_threads_follow_the_limit(monkeypatch: pytest.MonkeyPatch, cpus: int, limit: float, number: str | None) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(threads, "cpu_limit", lambda: limit)
    chosen: dict[str, str] = {}
    threads.choose_threads(chosen)
    waiting = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "2000"}
    assert chosen == waiting | ({} if number is None else {"OMP_NUM_THREADS": number})
    assert f"{cpus} usable CPUs" in threads.reasons(chosen) and "OMP_WAIT_POLICY=passive" in threads.reasons(chosen)


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cpus", lambda: 8)
    monkeypatch.setattr(threads, "cpu_limit", lambda: 1.0)
    for waiting in ({"KMP_BLOCKTIME": "200"}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "9"}):
        chosen = {"OMP_NUM_THREADS": "5", **waiting}
        threads.choose_threads(chosen)
        assert chosen == {"OMP_NUM_THREADS": "5", **waiting}
