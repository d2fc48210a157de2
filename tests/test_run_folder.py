"""The folder of a run: what may be in it when a training begins, and what does not stay."""

import os
from pathlib import Path

import pytest

from bytelm.config import PATH_OF_CONFIG
from bytelm.errors import StorageError
from bytelm.run_folder import PATH_OF_LOCK, begin_folder, check_folder


def test_a_run_that_was_killed_while_its_first_settings_were_written_can_begin(tmp_path: Path) -> None:
    (tmp_path / f".{PATH_OF_CONFIG}.{os.getpid()}.part").write_bytes(b"[model")
    (tmp_path / PATH_OF_LOCK).touch()
    check_folder(tmp_path, None)
    with begin_folder(tmp_path):
        pass


@pytest.mark.parametrize("name", ["a", ".hidden", ".a.7.part", ".config.toml.part", "config.toml.7.part"])
def test_what_is_somebody_elses_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(StorageError, match=r"is no run of bytelm \(it holds .+\); choose another --out") as caught:
        check_folder(tmp_path, None)
    assert name in str(caught.value)
