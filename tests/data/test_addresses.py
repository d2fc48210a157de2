"""Addresses: the same bytes from a disk, a bucket and a web server, and a named error where they do not come."""

import functools
import gzip
import http.server
import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from bytelm.data.addresses import blocks_of, is_url, opened, small_file
from bytelm.data.sources import Document, ReadOptions, Unit, find_units, read_unit
from bytelm.errors import ConfigError, SourceError

MIB = 1 << 20
CONTENT = os.urandom(9 * MIB + 5)


@pytest.fixture
def memory() -> Iterator[str]:
    """Address of an empty folder in the memory of this process."""
    address = f"memory://{uuid.uuid4().hex}"
    yield address
    files, path = fsspec.core.url_to_fs(address)
    if files.exists(path):
        files.rm(path, recursive=True)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that knows nothing of parts of a file."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Breaking(Quiet):
    """A web server that promises more than it sends."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: 2 * MIB])


class Server(http.server.ThreadingHTTPServer):
    """A server that does not mind when its client has heard enough."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


@pytest.fixture
def web(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a web server on loopback that gives what is in the test's folder."""
    handler = functools.partial(getattr(request, "param", Quiet), directory=str(tmp_path))
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def read(address: str, stored_bytes: int = 0, begin: int = 0) -> bytes:
    blocks = list(blocks_of(address.encode(), stored_bytes, begin))
    assert all(1 <= len(block) <= MIB for block in blocks)
    return b"".join(blocks)


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, len(CONTENT)])
@pytest.mark.parametrize("listed", [0, 1, 50 * MIB])
def test_blocks_joined_are_the_file_whatever_size_was_listed(tmp_path: Path, size: int, listed: int) -> None:
    place = tmp_path / os.fsdecode(b"file\xff")
    place.write_bytes(CONTENT[:size])
    assert b"".join(blocks_of(os.fsencode(place), listed)) == CONTENT[:size]
    assert b"".join(blocks_of(os.fsencode(place), listed, 5)) == CONTENT[5:size]


@pytest.mark.parametrize("size", [1, 4096, MIB - 1, MIB])
def test_a_small_file_comes_whole_or_is_left_to_others(tmp_path: Path, size: int) -> None:
    place = tmp_path / os.fsdecode(b"file\xff")
    place.write_bytes(CONTENT[:size])
    assert small_file(os.fsencode(place), size) == (CONTENT[:size] if size < MIB else None)
    assert small_file(os.fsencode(place), size - 1) is None, "it has grown"
    assert small_file(os.fsencode(place), size + 1) is None, "it has shrunk"
    with pytest.raises(SourceError, match="no such file"):
        small_file(os.fsencode(place) + b"x", 5)


def test_a_file_in_memory_or_in_a_bucket_is_read_like_a_local_one(memory: str, bucket: str) -> None:
    for folder in (memory, bucket):
        address = f"{folder}/deep/file"
        with fsspec.open(address, "wb") as file:
            file.write(CONTENT)  # pyright: ignore[reportAttributeAccessIssue]
        assert read(address) == read(address, len(CONTENT)) == CONTENT
        assert read(address, 0, 8 * MIB) == CONTENT[8 * MIB :]
        with opened(address.encode()) as file:
            assert file.seek(-5, os.SEEK_END) == len(CONTENT) - 5
            assert file.read(100) == CONTENT[-5:]
            assert file.seek(3) == 3
            assert file.read(4) == CONTENT[3:7]


def test_a_file_from_a_web_server_is_read_to_its_end(tmp_path: Path, web: str) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert read(f"{web}/file", len(CONTENT)) == read(f"{web}/file") == CONTENT


def test_a_web_server_that_sends_no_parts_is_named_where_parts_are_needed(tmp_path: Path, web: str) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    with (
        pytest.raises(SourceError, match="its server sends no parts of it; download it first"),
        opened(f"{web}/file".encode()) as file,
    ):
        file.seek(8 * MIB)
        file.read(10)


def test_a_file_on_the_web_is_taken_for_what_its_name_says_without_the_question(tmp_path: Path, web: str) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n{"text": "y"}\n'))
    options = ReadOptions(field="text")
    (unit,) = find_units([f"{web}/a.jsonl.gz?from=/some/where.txt"], options)
    assert isinstance(unit, Unit)
    assert unit.form == "jsonl+gz"
    assert [b"".join(one.blocks()) for one in read_unit(unit, options) if isinstance(one, Document)] == [b"x", b"y"]


@pytest.mark.parametrize("web", [Breaking], indirect=True)
def test_a_connection_that_breaks_is_an_error_and_no_shorter_file(web: str) -> None:
    with pytest.raises(SourceError, match=r"cannot read 'http://.*/file'"):
        read(f"{web}/file")


def test_a_remote_file_of_another_size_than_listed_is_an_error(memory: str) -> None:
    with fsspec.open(f"{memory}/file", "wb") as file:
        file.write(b"12345")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(SourceError, match="5 bytes came instead of 6; it has changed, or the connection broke"):
        read(f"{memory}/file", 6)


def test_what_is_not_there_is_named(tmp_path: Path, memory: str, bucket: str, web: str) -> None:
    for folder in (str(tmp_path), memory, bucket, web):
        address = f"{folder}/nothing"
        with pytest.raises(SourceError, match=r"cannot read '.*/nothing': there is no such file or folder") as caught:
            read(address)
        assert caught.value.reason == "unreadable"
        with pytest.raises(SourceError, match="there is no such file or folder"), opened(address.encode()):
            pass


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc for a file that nobody can read")
def test_a_file_that_cannot_be_read_is_named() -> None:
    with pytest.raises(SourceError, match=r"cannot read '/proc/self/mem': .*; make it readable or leave it out"):
        read("/proc/self/mem")
    with pytest.raises(SourceError, match=r"cannot read '/proc/self/mem'"), opened(b"/proc/self/mem") as file:
        file.read(10)


def test_an_unknown_scheme_is_named() -> None:
    with pytest.raises(ConfigError, match="names no storage that fsspec knows"):
        read("nonsense://x/y")


def test_a_url_is_told_from_a_path() -> None:
    assert is_url(b"s3://bucket/x")
    assert is_url("memory://ä".encode())
    assert not is_url(b"/local/path")
    assert not is_url(b"\xff://x")
    assert not is_url(b"file:///local/path")
