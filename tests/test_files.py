"""Files are whole or absent, and a disk that refuses is named with its remedy."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bytelm.errors import CheckpointError, StorageError
from bytelm.files import clear_parts, locked, refusals_named, write_file


def test_a_written_file_replaces_the_old_one_and_leaves_nothing_beside(tmp_path: Path) -> None:
    target = tmp_path / "index.json"
    write_file(target, b"old")
    write_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_a_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "index.json"
    write_file(target, b"old")
    code = (
        "import pathlib, sys; from bytelm.files import write_file\n"
        f"write_file(pathlib.Path({str(target)!r}), b'x' * 100_000)"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    ended = subprocess.run(
        [sys.executable, "-B", "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert "StorageError" in ended.stderr
    assert "larger than this system allows" in ended.stderr
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


KILLED = """
import os, pathlib, signal, sys
from bytelm import files
target = pathlib.Path(sys.argv[1])
files.flush_folder = lambda folder: None
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_file(target, b"half")
"""


def test_what_a_killed_process_left_of_a_file_is_cleared_away_by_its_next_writer(tmp_path: Path) -> None:
    target = tmp_path / "config.toml"
    subprocess.run([sys.executable, "-B", "-c", KILLED, str(target)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".config.toml.")
    write_file(tmp_path / "toml", b"of another name")
    assert left.exists()
    write_file(target, b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "toml"]


def test_the_part_of_a_process_that_still_writes_stays(tmp_path: Path) -> None:
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "(print(flush=True), input(), sys.exit())")
    words = [sys.executable, "-B", "-c", code, str(tmp_path / "a")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        (part,) = tmp_path.iterdir()
        clear_parts(tmp_path)
        write_file(tmp_path / "a", b"mine")
        assert part.exists()
        writer.communicate(b"\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_that_only_look_like_parts_stay(tmp_path: Path) -> None:
    for name in ("a.part", ".a.part", ".a.x.part", ".7.part", ".a.7.part.txt"):
        (tmp_path / name).write_bytes(b"somebody's")
    clear_parts(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_refusals_of_the_disk_are_named_with_path_and_remedy(number: int, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*; ") as caught, refusals_named(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path) in str(caught.value)


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="closed"), refusals_named(tmp_path):
        raise OSError(errno.EBADF, "closed")


@pytest.mark.parametrize("name", ["long" * 100, "circle/x"])
def test_a_folder_that_cannot_be_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(StorageError, match=r"cannot write .*; choose a"), refusals_named(tmp_path / name):
        (tmp_path / name).mkdir(parents=True)


HOLDER = """
import pathlib, sys
from bytelm.errors import CheckpointError
from bytelm.files import locked
with locked(pathlib.Path(sys.argv[1]), CheckpointError):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_names_its_holder_and_goes_with_it_however_it_ends(tmp_path: Path) -> None:
    place = tmp_path / ".lock"
    for ends_by_kill in (False, True):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"^process {holder.pid} on "), locked(place, CheckpointError):
            raise AssertionError
        if ends_by_kill:
            holder.kill()
        holder.communicate()
        assert place.exists() == ends_by_kill  # a file that was left behind locks nobody out
        with locked(place, CheckpointError):
            assert place.exists()
        assert not place.exists()


def test_a_lock_is_let_go_of_after_an_error(tmp_path: Path) -> None:
    place = tmp_path / ".lock"
    with pytest.raises(ValueError), locked(place, CheckpointError):
        raise ValueError
    with locked(place, CheckpointError):
        pass


def test_a_lock_in_a_folder_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="a part of the path is a file"),
        locked(tmp_path / "file" / ".lock", CheckpointError),
    ):
        raise AssertionError
