"""What the system says, read from folders that say it; and from this machine, against other ways to ask it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bytelm import machine


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which ``proc`` and ``cgroup`` stand for the system's own."""
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    write(tmp_path / "proc/meminfo", "MemTotal: 1000 kB\nMemFree: 10 kB\nMemAvailable: 600 kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_container_the_machine_itself_is_the_limit(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/\n")
    assert machine.cores() == machine.Cores(installed=8, allowed=6, quota=None)
    assert machine.cores().usable == 6
    assert machine.memory() == machine.Memory(total=1000 * 1024, available=600 * 1024)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limits_of_a_container_count(system: Path, version: int) -> None:
    if version == 2:
        write(system / "proc/self/cgroup", "0::/pod/job\n")
        write(system / "cgroup/pod/job/cpu.max", "max 100000\n")
        write(system / "cgroup/pod/cpu.max", "250000 100000\n")  # the limit of a group binds those in it
        write(system / "cgroup/pod/job/memory.max", "409600\n")
        write(system / "cgroup/pod/job/memory.current", "204800\n")
        write(system / "cgroup/pod/job/memory.stat", "anon 5\ninactive_file 1024\n")
    else:
        write(system / "proc/self/cgroup", "3:cpu,cpuacct:/pod\n2:memory:/pod\n1:name=systemd:/\n")
        write(system / "cgroup/cpu/pod/cpu.cfs_quota_us", "125000\n")
        write(system / "cgroup/cpu/pod/cpu.cfs_period_us", "50000\n")
        write(system / "cgroup/memory/pod/memory.limit_in_bytes", "409600\n")
        write(system / "cgroup/memory/pod/memory.usage_in_bytes", "204800\n")
        write(system / "cgroup/memory/pod/memory.stat", "inactive_file 1024\n")
        write(system / "cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
        write(system / "cgroup/memory/memory.usage_in_bytes", "204800\n")
    assert machine.cores().quota == 2.5
    assert machine.cores().usable == 2
    assert machine.memory() == machine.Memory(total=409_600, available=409_600 - 204_800 + 1024)


def test_a_part_of_one_core_is_still_one_thread() -> None:
    assert machine.Cores(installed=8, allowed=8, quota=0.5).usable == 1


def test_a_system_that_says_nothing_is_asked_no_further(system: Path) -> None:
    (system / "proc/meminfo").unlink()
    assert machine.memory() is None
    assert machine.cores().usable == 6
    assert machine.busy_processes(0.0) == []
    assert machine.nvidia_gpus() == []
    assert machine.file_system(Path("/")) is None
    assert machine.processor_name()


def test_gpus_are_named_as_the_driver_names_them(system: Path) -> None:
    write(system / "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: \t\t NVIDIA H200\nIRQ: 5\n")
    assert machine.nvidia_gpus() == ["NVIDIA H200"]


def test_the_file_system_is_that_of_the_nearest_mount(system: Path) -> None:
    folder = system / "a b"
    folder.mkdir()
    mounted = str(folder).replace(" ", "\\040")
    write(system / "proc/self/mounts", f"/dev/a / ext4 rw 0 0\nserver:/x {mounted} nfs4 rw 0 0\n")
    assert machine.file_system(folder / "runs") == "nfs4"
    assert machine.file_system(system) == "ext4"


def test_a_process_that_works_is_found_by_its_number_and_command() -> None:
    work = "while True: pass"
    process = subprocess.Popen([sys.executable, "-c", work])
    try:
        found = next((one for one in iter_busy() if one.number == process.pid), None)
    finally:
        process.kill()
        process.wait()
    assert found is not None
    assert found.cores > 0
    assert found.name == f"{Path(sys.executable).name} -c {work}"[:60]
    assert os.getpid() not in {one.number for one in machine.busy_processes(0.01)}


def iter_busy() -> list[machine.BusyProcess]:
    """Everything that is busy within a tenth of a second, looked at until something is."""
    while not (found := machine.busy_processes(0.1)):
        pass
    return found
