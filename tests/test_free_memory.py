"""What a process may still take is what its machine has free, or what the limit of a control group leaves."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from optidel_hf.memory import FILES, free_memory


def group(folder: Path, version: str, limit: object, used: int, cached: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = FILES[version]
    (folder / files.limit).write_text(f"{limit}\n")
    (folder / files.used).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{files.cached} {cached}\n")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    return tmp_path / "cgroup"


def test_a_limit_counts_wherever_it_stands(told: Path, tmp_path: Path) -> None:
    told.write_text("1:name=systemd:/elsewhere\n0::/slurm/job_7/step_0\n")
    group(tmp_path / "slurm" / "job_7" / "step_0", "", "max", used=300, cached=0)
    group(tmp_path / "slurm" / "job_7", "", 800, used=300, cached=20)
    assert free_memory(told, tmp_path) == 520
    group(tmp_path / "slurm", "", 10_000, used=300, cached=0)
    group(tmp_path, "", 700, used=300, cached=0)  # as a container sees its own
    assert free_memory(told, tmp_path) == 400
    group(tmp_path, "", 200, used=300, cached=0)
    assert free_memory(told, tmp_path) == 0


def test_the_first_version_has_other_names(told: Path, tmp_path: Path) -> None:
    told.write_text("9:cpu,cpuacct:/job\n4:memory:/job\n0::/\n")
    group(tmp_path / "memory" / "job", "memory", 600, used=250, cached=50)
    assert free_memory(told, tmp_path) == 400


def test_without_limits_it_is_what_the_machine_has_free(told: Path, tmp_path: Path) -> None:
    assert free_memory(told, tmp_path) == 1000
    told.write_text("4:memory:/gone\n0::/gone\n")
    assert free_memory(told, tmp_path) == 1000
