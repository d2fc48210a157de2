"""A hub that cannot be reached is told in one line, without its client's retries."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bytelm import hub
from bytelm.cli.app import run
from bytelm.data.tables import dataset_rows
from bytelm.errors import SourceError
from bytelm.task_data import read_rows
from bytelm.task_programs import PROGRAM_TASKS


@pytest.fixture(autouse=True)
def own_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Settings of the client that this test alone has, and an address where nobody answers."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody else gets this port, and nobody listens there
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        hub.unreachable.cache_clear()
        yield
    hub.unreachable.cache_clear()


def test_a_data_set_out_of_reach_is_one_line_with_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ingest", "hf:somebody/some-set", "--out", str(tmp_path / "corpus")]) == 2
    said = capsys.readouterr().err
    assert "hf:somebody/some-set: somebody/some-set is in no cache here, and 127.0.0.1 cannot be reached (conn" in said
    assert "connect to the network, or give files" in said
    with pytest.raises(SourceError, match=r"cannot be reached \(connection refused\); give --data"):
        read_rows(PROGRAM_TASKS["mbpp"].source, None, "mbpp")
    with pytest.raises(SourceError, match="cannot be reached"):
        list(dataset_rows("hf:somebody/some-set", "text", 0, 1))


def test_a_hub_that_answers_a_cache_and_a_folder_are_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.out_of_reach("somebody/some-set")
    assert hub.out_of_reach(str(tmp_path)) == ""
    (tmp_path / "cache" / "hub" / "datasets--somebody--some-set").mkdir(parents=True)
    assert hub.out_of_reach("somebody/some-set") == ""
    assert hub.out_of_reach("somebody/other-set")
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.out_of_reach("somebody/other-set") == ""


def test_a_proxy_is_asked_in_place_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    assert hub.out_of_reach("somebody/some-set").startswith("somebody/some-set is in no cache here, and hub.invalid")
    hub.unreachable.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.out_of_reach("somebody/some-set") == ""


def test_a_client_that_is_there_already_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert hub.out_of_reach("somebody/some-set")
    assert datasets.config.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"
