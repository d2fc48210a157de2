"""Small corpora for the tests of the data side."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bytelm.data.ingest import ingest
from bytelm.data.shards import Corpus

MakeCorpus = Callable[..., Corpus]


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """A function that ingests documents, one file each, and opens the corpus; small frames and all train by default."""
    made = 0

    def make(documents: Sequence[bytes], **settings: object) -> Corpus:
        nonlocal made
        made += 1
        folder = tmp_path / f"files-{made}"
        folder.mkdir()
        for number, document in enumerate(documents):
            (folder / f"{number:06d}").write_bytes(document)
        out = tmp_path / f"corpus-{made}"
        defaults = {"validation_fraction": 0.0, "frame_bytes": 512, "level": 1}
        ingest([folder], out, **{**defaults, **settings})
        return Corpus.open(out)

    return make
