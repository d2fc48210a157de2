"""A device is what it is called, or refused with the reason; threads are as many as can compute."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bytelm import device
from bytelm.device import choose_decoding_threads, choose_device, means_cpu, usable_threads
from bytelm.errors import ConfigError


def test_auto_takes_cuda_where_there_is_one() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert means_cpu("auto") == (not torch.cuda.is_available())


@pytest.mark.parametrize("name", ["nothing", "cpu:x", "" if torch.cuda.is_available() else "cuda"])
def test_a_device_that_is_not_here_is_refused_in_one_line(name: str) -> None:
    for choose in (choose_device, means_cpu):
        with pytest.raises(ConfigError, match=r"cannot be used here|there is no device") as caught:
            choose(name)
        assert "\n" not in str(caught.value)


def test_without_a_driver_auto_is_the_cpu_and_torch_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unasked(name: str) -> torch.device:
        raise AssertionError(name)

    monkeypatch.setattr(device, "choose_device", unasked)
    monkeypatch.setattr(device, "_DEVICES", (str(tmp_path / "driver"),))
    assert means_cpu("auto")
    assert means_cpu("cpu")
    (tmp_path / "driver").touch()
    with pytest.raises(AssertionError, match="auto"):
        means_cpu("auto")


def test_a_small_model_decodes_on_one_thread_and_a_large_one_on_all() -> None:
    assert choose_decoding_threads(1_000_000) == 1
    assert choose_decoding_threads(1_000_000_000) == usable_threads() >= 1


def test_threads_are_those_that_torch_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import torch; from bytelm.device import usable_threads; print(usable_threads() == torch.get_num_threads())"
    for asked in ("", "1", "3", "3,2"):
        environment = {**os.environ, "OMP_NUM_THREADS": asked}
        found = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
        )
        assert found.stdout == "True\n", asked
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert usable_threads() >= 1
