"""Signals: what a training does when it is asked to end."""

import os
import signal
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
