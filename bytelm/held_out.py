"""Documents to evaluate on, with the type of each, from a split of a corpus or from one file; read again and again."""

import importlib.resources
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bytelm.bounded_reading import FileBytes, read_at_most, size_of_regular
from bytelm.checkpoint import read_corpus
from bytelm.data.kinds import KINDS, group_of, kind_of
from bytelm.data.shards import Corpus
from bytelm.errors import ConfigError, CorpusError, SourceError
from bytelm.evaluate import Document, some_bytes
from bytelm.labels import document_type
from bytelm.shipped import is_shipped

_WHOLE_BYTES: Final = 1 << 30
"""Of a file of the disk that is scored whole, at most: it is one document, and a document is held."""
_STREAM_BYTES: Final = 64 << 20
"""Of a device or a pipe, which is held to be read again."""
_BEGINNING_BYTES: Final = 64 << 10
"""Of a file, by which its kind is told."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Documents of one place.

    Attributes:
        name: Where they come from, for the result.
        raw_bytes: Their bytes.
        documents: Gives them one by one, each with its kind (index in ``KINDS``).
    """

    name: str
    raw_bytes: int
    documents: Callable[[], Iterable[tuple[Document, int]]]

    def some(self, limit_bytes: int | None, window_bytes: int) -> Iterator[tuple[bytes, str]]:
        """Documents, or pieces of them from evenly spread places, each with its type.

        Args:
            limit_bytes: Bytes to give, all there are where that is less; all where None.
            window_bytes: Of the model; see ``some_bytes``.
        """
        kind = 0

        def passing() -> Iterator[Document]:
            nonlocal kind
            for data, kind in self.documents():  # noqa: B007  the kind of the document that a piece is cut from
                yield data

        limit = self.raw_bytes if limit_bytes is None else limit_bytes
        for data in some_bytes(passing(), self.raw_bytes, limit_bytes=limit, window_bytes=window_bytes):
            yield data, document_type(data, KINDS[kind], group_of(kind))

    def lacking(self, limit_bytes: int | None) -> tuple[str, ...]:
        """What to tell people where there is less than they asked for: a line, or nothing."""
        if limit_bytes is None or limit_bytes <= self.raw_bytes:
            return ()
        return (
            f"{limit_bytes:,} bytes were asked for, and there are {self.raw_bytes:,} in {self.name}: all are scored",
        )


def of_file(path: Path, limit_bytes: int | None = None) -> HeldOut:
    """One file as one document. Of a device or a pipe the beginning is taken, for it has no places to spread over.

    Args:
        path: The file.
        limit_bytes: Bytes that will be scored; None for all.

    Raises:
        SourceError: It cannot be read, or is too large to be held.
    """
    size = size_of_regular(path)
    if size is None:
        most = _STREAM_BYTES if limit_bytes is None else limit_bytes
        content = read_at_most(path, min(most, _STREAM_BYTES) + 1)
        if len(content) > _STREAM_BYTES:
            raise SourceError(
                f"{path} is no file of the disk and has more than {_STREAM_BYTES >> 20} MiB, which are the most that "
                "are read of it; give --limit-bytes, at most that much"
            )
        cut = content[:most]
        name = str(path) if len(cut) == len(content) else f"{path} (its first {len(cut):,} bytes)"
        kind = kind_of(path.name.encode(), cut)
        return HeldOut(name=name, raw_bytes=len(cut), documents=lambda: [(cut, kind)])
    if size > _WHOLE_BYTES and (limit_bytes is None or limit_bytes >= size):
        raise SourceError(
            f"{path} has {size:,} bytes, and a file is scored as one document of at most {_WHOLE_BYTES >> 20} MiB; "
            "give --limit-bytes to score pieces of it, or ingest it and give --corpus"
        )
    data = FileBytes(path, size)
    kind = kind_of(path.name.encode(), data[:_BEGINNING_BYTES])
    return HeldOut(name=str(path), raw_bytes=size, documents=lambda: [(data, kind)])


def of_own_modules() -> HeldOut:
    """The source of the command line that is running: code that no model that ships with bytelm was trained on."""
    folder = importlib.resources.files("bytelm.cli")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".py"))
    contents = [folder.joinpath(name).read_bytes() for name in names]
    kind = KINDS.index("python")
    return HeldOut(
        name="the modules of bytelm.cli",
        raw_bytes=sum(map(len, contents)),
        documents=lambda: ((content, kind) for content in contents),
    )


def of_corpus(corpus: Corpus, split: str) -> HeldOut:
    """A split of a corpus.

    Raises:
        CorpusError: The corpus has no such split.
    """
    corpus.shards(split)
    known = {name: index for index, name in enumerate(KINDS)}
    kinds = [known.get(name, 0) for name in corpus.kinds]
    return HeldOut(
        name=f"{corpus.place} ({split})",
        raw_bytes=corpus.raw_bytes(split),
        documents=lambda: ((piece.data, kinds[piece.kind]) for piece in corpus.pieces(split)),
    )


def open_held_out(
    checkpoint: Path,
    *,
    file: Path | None,
    corpus: str | Path | None,
    split: str | None = None,
    limit_bytes: int | None = None,
) -> HeldOut:
    """What a person asked for: a file, a corpus, or else the corpus that the run was trained on.

    The corpus of a model that ships with bytelm is not here: it reads bytelm's own code. Of a corpus the split
    ``validation`` is read where none is named.

    Raises:
        ConfigError: A file and a corpus are both given, or a split and no corpus that has any.
        SourceError: The file cannot be read.
        CorpusError: The corpus is not there, has no such split, or is another one than the run's.
    """
    if file is not None and corpus is not None:
        raise ConfigError("--file and --corpus are both given; one is scored, leave one out")
    own_modules = corpus is None and is_shipped(checkpoint)
    if split is not None and (file is not None or own_modules):
        raise ConfigError(f"--split {split} names a part of a corpus; give --corpus, or leave --split out")
    if file is not None:
        return of_file(file, limit_bytes)
    if own_modules:
        return of_own_modules()
    return of_corpus(_corpus_of(checkpoint) if corpus is None else Corpus.open(corpus), split or "validation")


def _corpus_of(checkpoint: Path) -> Corpus:
    """The corpus that the run was trained on, if it is still there."""
    path, fingerprint = read_corpus(checkpoint)
    remedy = "give --corpus or --file"
    if not isinstance(path, str):
        raise CorpusError(f"the run was trained on several corpora ({', '.join(path)}); {remedy}")
    try:
        corpus = Corpus.open(path)
    except CorpusError as error:
        raise CorpusError(f"the run's own corpus cannot be opened ({error}); {remedy}") from error
    if corpus.fingerprint != fingerprint:
        raise CorpusError(f"{path} holds another corpus now than the one that the run was trained on; {remedy}")
    return corpus
