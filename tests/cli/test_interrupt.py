"""Signals: what a training does when it is asked to end."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from bytelm.cli.interrupt import StopRequest
from bytelm.errors import TrainingError


@pytest.fixture(autouse=True)
def noted() -> Iterator[list[int]]:
    """What SIGTERM does outside: it is noted."""
    signals: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    yield signals
    signal.signal(signal.SIGTERM, before)


def test_the_first_signal_asks_and_the_second_interrupts(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), StopRequest() as should_stop:
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
        os.kill(os.getpid(), signal.SIGTERM)
    assert "once more to leave at once" in capfd.readouterr().err


@pytest.mark.parametrize("quiet", [False, True])
def test_afterwards_signals_are_what_they_were(quiet: bool, noted: list[int]) -> None:
    with StopRequest(quiet=quiet):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    assert noted == [signal.SIGTERM]


def test_of_several_processes_one_that_has_an_error_gets_to_say_so(noted: list[int]) -> None:
    with pytest.raises(TrainingError), StopRequest(quiet=True):
        raise TrainingError("another process has ended")
    os.kill(os.getpid(), signal.SIGTERM)  # of torchrun, while the line is on its way
    assert noted == []


def test_a_terminal_that_goes_asks_to_stop_and_stops_nothing_else() -> None:
    """It sends SIGHUP more than once, and all writing to it fails from then on."""
    code = """
import os, signal, sys
from bytelm.cli.interrupt import StopRequest
with StopRequest() as should_stop, open(sys.argv[1], "w") as file:
    print("ready", flush=True)
    while not should_stop():
        signal.pause()
    os.kill(os.getpid(), signal.SIGHUP)
    print("a line for nobody", flush=True)
    print("another", file=sys.stderr, flush=True)
    file.write("saved")
"""
    ours, theirs = pty.openpty()
    reads, writes = os.pipe()
    words = [sys.executable, "-B", "-c", code, f"/proc/self/fd/{writes}"]
    child = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, pass_fds=(writes,)
    )
    os.close(theirs)
    os.close(writes)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    os.kill(child.pid, signal.SIGHUP)
    assert child.wait() == 0
    with os.fdopen(reads, "rb") as file:
        assert file.read() == b"saved"


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as should_stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not should_stop()
    finally:
        signal.signal(signal.SIGHUP, before)
