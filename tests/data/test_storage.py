"""Folders here and elsewhere: the same operations, and nothing half written."""

import pickle
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from bytelm.data.storage import Folder, RemoteFolder, file_system_of, folder_at, retried
from bytelm.errors import ConfigError, StorageError


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    """An empty folder of each kind; the S3 server is a real one on loopback."""
    if request.param == "local":
        return folder_at(tmp_path / "folder")
    if request.param == "memory":
        return folder_at(f"memory://{uuid.uuid4().hex}/folder")
    return folder_at(f"{request.getfixturevalue('bucket')}/folder")


def test_a_file_comes_back_whole_and_in_parts(folder: Folder) -> None:
    folder.write("below/name", b"0123456789")
    assert folder.read("below/name") == b"0123456789"
    assert folder.read_range("below/name", 3, 4) == b"3456"
    assert folder.read_range("below/name", 8, 4) == b"89"
    assert folder.size("below/name") == 10
    folder.write("below/name", b"", durable=False)
    assert folder.read("below/name") == b""


def test_what_is_not_there_is_said_to_be_missing(folder: Folder) -> None:
    for read in (folder.read, folder.size, lambda name: folder.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            read("nowhere")
    assert not folder.exists("nowhere")
    assert folder.names() == []
    folder.remove("nowhere")


def test_names_are_listed_those_that_others_have_written_since_too(folder: Folder) -> None:
    for name in ("b", "a", ".ingest/one", ".ingest/two", "ab"):
        folder.write(name, b"x")
    assert folder.names() == [".ingest/", "a", "ab", "b"]
    assert folder.names(".ingest") == ["one", "two"]
    assert folder.names("nowhere") == folder.names("a") == []
    again = folder_at(folder.address)
    again.remove("a")
    again.write("c", b"x")
    assert folder.names() == [".ingest/", "ab", "b", "c"]
    assert folder.exists("c")
    assert not folder.exists("a")


def test_a_file_is_moved_in(folder: Folder, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"moved")
    folder.write("name", b"old")
    folder.put(file, "name")
    folder.flush("name")
    assert folder.read("name") == b"moved"
    assert not file.exists()


def test_a_folder_travels_to_another_process(folder: Folder) -> None:
    folder.write("name", b"x")
    assert pickle.loads(pickle.dumps(folder)).read("name") == b"x"  # noqa: S301  our own bytes
    assert folder.is_shared == (not folder.address.startswith("memory:"))


def test_a_local_folder_leaves_nothing_beside_what_it_wrote(tmp_path: Path) -> None:
    folder = folder_at(f"file://{tmp_path}/here")
    assert folder.local == tmp_path / "here"
    folder.write("name", b"x")
    assert folder.names() == ["name"]


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(StorageError, match="a part of the path is a file, not a folder; choose another --out"):
        folder_at(tmp_path / "file" / "below").write("name", b"x")
    assert not folder_at(tmp_path / "file").exists("below")


def test_a_bucket_that_is_not_there_is_named_and_not_made(s3_server: str) -> None:
    assert s3_server
    address = f"s3://{uuid.uuid4().hex}/x"
    for _ in range(2):
        with pytest.raises(
            StorageError, match=rf"cannot write {address}/name: The specified bucket does not exist; check"
        ):
            folder_at(address).write("name", b"x")
    assert not folder_at(address).exists("name")


def test_a_server_that_is_not_there_is_named(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_files = pytest.importorskip("s3fs").S3FileSystem
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.replace("127.0.0.1", "127.0.0.2"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3_files.clear_instance_cache()
    try:
        with pytest.raises(StorageError, match=r"cannot write s3://bucket/x/name: .*the network"):
            RemoteFolder("s3://bucket/x", pauses_s=(0,)).write("name", b"x")
    finally:
        s3_files.clear_instance_cache()


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gs://bucket/x", "needs a package that is not installed: Please install gcsfs"),
        ("nonsense://x", "Protocol not known: nonsense; check the part before ://"),
    ],
)
def test_an_address_that_cannot_be_reached_is_refused_at_once(address: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        folder_at(address)


def failing(times: int, error: Exception) -> Callable[[], str]:
    left = times

    def work() -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error
        return "done"

    return work


def test_what_the_network_breaks_is_tried_again_and_what_it_refuses_is_not() -> None:
    assert retried(failing(2, ConnectionError("reset")), (0, 0)) == "done"
    with pytest.raises(ConnectionError):
        retried(failing(3, ConnectionError("reset")), (0, 0))
    for final in (FileNotFoundError("gone"), PermissionError("no")):
        with pytest.raises(type(final)):
            retried(failing(1, final), (0, 0))


def test_errors_of_the_libraries_below_become_our_kind() -> None:
    file_system_of("s3://bucket")
    from botocore.exceptions import BotoCoreError

    assert retried(failing(1, BotoCoreError()), (0,)) == "done"
    with pytest.raises(OSError, match="An unspecified error occurred"):
        retried(failing(2, BotoCoreError()), (0,))
