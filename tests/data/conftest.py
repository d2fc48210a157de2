"""Small corpora for the tests of the data side."""

import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus

MakeCorpus = Callable[..., Corpus]


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """A function that ingests documents, one file each, and opens the corpus.

    By default frames are small, all is train, and documents that are equal stay.
    """
    made = 0

    def make(documents: Sequence[bytes], **settings: object) -> Corpus:
        nonlocal made
        made += 1
        folder = tmp_path / f"files-{made}"
        folder.mkdir()
        for number, document in enumerate(documents):
            (folder / f"{number:06d}").write_bytes(document)
        out = tmp_path / f"corpus-{made}"
        defaults = {"validation_fraction": 0.0, "frame_bytes": 512, "level": 1, "keep_duplicates": True}
        ingest([folder], out, **{**defaults, **settings})
        return Corpus.open(out)

    return make


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a real S3 server on loopback; the environment points every S3 client of this process there."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'bytelm[s3]'")
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture
def bucket(s3_server: str) -> str:
    """Address of a new, empty bucket on that server."""
    import s3fs

    name = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem(endpoint_url=s3_server).mkdir(name)
    return f"s3://{name}"
