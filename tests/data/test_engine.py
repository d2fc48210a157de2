"""Engines: the same results whoever does the work, and nobody left behind."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bytelm.data.engine import Engine, InThisProcess, Processes, RayCluster, Tally, available_cores
from bytelm.errors import BytelmError, ConfigError, SourceError

WORK = """
import os, signal, sys, threading
from dataclasses import dataclass
from bytelm.data.workers import Tally
from bytelm.errors import SourceError

@dataclass(frozen=True)
class Square:
    number: int
    weight_bytes: int = 0

def square(job, tell):
    for _ in range(job.number):
        tell(Tally(1, 10, 1))
    return job.number**2

def fail(job, tell):
    if job.number == 3:
        raise SourceError("three is no good", reason="damaged")
    return job.number

def who(job, tell):
    return os.getpid(), "torch" in sys.modules, signal.pthread_sigmask(signal.SIG_BLOCK, ())

def has(job, tell):
    return "xml.dom.minidom" in sys.modules

def die(job, tell):
    os.kill(os.getpid(), signal.SIGKILL)

def crash(job, tell):
    return 1 // 0

def linger(job, tell):
    os.write(1, b"%d\\n" % os.getpid())
    threading.Event().wait()
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module with work that any process can import."""
    (tmp_path / "some_work.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    import some_work  # pyright: ignore[reportMissingImports]

    yield some_work
    del sys.modules["some_work"]


@dataclass(frozen=True)
class Unsized:
    weight_bytes: int = 0


ENGINES: list[Callable[[], Engine]] = [InThisProcess, lambda: Processes(1), lambda: Processes(2), lambda: Processes(5)]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_job_is_done_once_and_all_tallies_arrive(work: Any, engine: Callable[[], Engine]) -> None:
    tallies: list[Tally] = []
    with engine() as running:
        for _ in range(2):
            tallies.clear()
            results = dict(running.run(work.square, map(work.Square, range(30)), tallies.append))
            assert results == {number: number**2 for number in range(30)}
            assert tuple(map(sum, zip(*tallies, strict=True))) == (435, 4350, 435)
        assert list(running.run(work.square, [], tallies.append)) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_of_the_work_comes_back_as_itself_and_the_engine_goes_on(
    work: Any, engine: Callable[[], Engine]
) -> None:
    with engine() as running:
        with pytest.raises(SourceError, match="three is no good") as caught:
            list(running.run(work.fail, map(work.Square, range(30)), print))
        assert caught.value.reason == "damaged"
        assert len(list(running.run(work.square, map(work.Square, range(4)), print))) == 4


def test_jobs_are_taken_as_workers_become_free(work: Any) -> None:
    taken = 0

    def jobs() -> Iterator[Any]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield work.Square(number)

    with Processes(2) as engine:
        for done, _ in enumerate(engine.run(work.square, jobs(), lambda _: None)):
            assert taken <= done + 4


def test_workers_are_light_and_deaf_to_ctrl_c(work: Any) -> None:
    with Processes(2) as engine:
        found = [result for _, result in engine.run(work.who, map(work.Square, range(20)), print)]
    processes = {process for process, _, _ in found}
    assert len(processes) <= 2
    assert os.getpid() not in processes
    assert all(not with_torch and signal.SIGINT in blocked for _, with_torch, blocked in found)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_workers_load_what_they_are_told_to_while_they_start(work: Any) -> None:
    for modules in ((), ("xml.dom.minidom",)):
        with Processes(2, modules) as engine:
            assert dict(engine.run(work.has, map(work.Square, range(4)), print)) == dict.fromkeys(
                range(4), bool(modules)
            )


def test_small_jobs_are_done_here_and_large_ones_are_not() -> None:
    for weights, here in (([1 << 20] * 20, True), ([1 << 40], True), ([20 << 20] * 3, available_cores() == 1)):
        engine = Processes()
        with engine:
            results = engine.run(_process_of, [Unsized(weight) for weight in weights], print)
            if here:
                assert {process for _, process in results} == {os.getpid()}


def _process_of(job: Unsized, tell: object) -> int:
    del job, tell
    return os.getpid()


def test_a_killed_worker_is_named_and_not_waited_for(work: Any) -> None:
    with Processes(2) as engine, pytest.raises(BytelmError, match=r"killed \(SIGKILL\), perhaps for want of memory"):
        list(engine.run(work.die, map(work.Square, range(5)), print))


def test_a_bug_in_the_work_is_ours(work: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with Processes(2) as engine, pytest.raises(RuntimeError, match="ended with code 1; its traceback is above"):
        list(engine.run(work.crash, map(work.Square, range(5)), print))
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_workers_end_with_a_process_that_is_killed(work: Any, tmp_path: Path) -> None:
    code = f"""
        import sys; sys.path.insert(0, {str(tmp_path)!r})
        import some_work
        from bytelm.data.engine import Processes
        list(Processes(2).run(some_work.linger, map(some_work.Square, range(2)), print))
    """
    assert work
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        processes = [parent.stdout.readline() for _ in range(2)]
        parent.kill()
        # The workers hold the other end of this pipe: it ends when the last of them has.
        assert parent.stdout.read() == b""
    assert all(process.strip().isdigit() for process in processes)


def test_impossible_worker_counts_are_refused() -> None:
    with pytest.raises(ConfigError, match="workers = 0"):
        Processes(0)


def test_ray_does_the_same(work: Any) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'bytelm[ray]'")
    tallies: list[Tally] = []
    with RayCluster(workers=2) as engine:
        assert engine.workers == 2
        results = dict(engine.run(work.square, map(work.Square, range(12)), tallies.append))
        assert results == {number: number**2 for number in range(12)}
        assert sum(tally.documents for tally in tallies) == 66
        with pytest.raises(SourceError, match="three is no good") as caught:
            list(engine.run(work.fail, map(work.Square, range(12)), print))
        assert caught.value.reason == "damaged"


def test_a_ray_cluster_that_is_not_there_is_named() -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'bytelm[ray]'")
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 'nonsense'.*check --address"):
        RayCluster("nonsense")
